"""Trainings that Optuna needs to find T, against a recommendation; replayed from a stored study.

Method: for every (data set, network, seed) of the study, Optuna's TPE sampler suggests T twenty
times, with twenty sampler seeds; a T suggested again costs no training. Its answer is the smallest
T within the tolerance of the best accuracy it has seen. Counted are the distinct trainings of the
search (``all``: what its user runs, who does not know the plateau), those until its answer is its
last one (``final``) and, most favourable to the search, those until its answer is for the first
time within the tolerance of the plateau (``first``, of the searches that get there). The
recommendation is fitted without the data set it is asked about; one that trains nothing counts as
the one training that verifies it. No network is trained here.

Run: ``python benchmarks/bench_search.py [STUDY.parquet] [TOLERANCE]``
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

from spikedim.training.replay import Recommend, compare_search, curves, sufficient
from spikedim.training.study_table import StudyRow, StudyTable, read_study

RESULTS = Path(__file__).parents[1] / "results" / "study.parquet"


def typical(table: StudyTable[StudyRow], tolerance: float) -> Recommend:
    """The simplest recommendation: the median T* of the other data sets. No training."""
    needed = {
        place: min(T for T in curve if sufficient(curve, T, tolerance))
        for place, curve in curves(table).items()
    }

    def recommend(dataset: str, model: str, seed: int) -> tuple[int, int]:
        others = [T for place, T in needed.items() if place[0] != dataset]
        return round(statistics.median(others or list(needed.values()))), 0

    return recommend


def whole_grid(table: StudyTable[StudyRow], tolerance: float) -> Recommend:
    """Train at every T of the study and take the smallest that suffices."""
    known = curves(table)

    def recommend(dataset: str, model: str, seed: int) -> tuple[int, int]:
        curve = known[dataset, model, seed]
        return min(T for T in curve if sufficient(curve, T, tolerance)), len(curve)

    return recommend


RECOMMENDATIONS = {"median T* of other data": typical, "the whole grid": whole_grid}


def main(study: str = str(RESULTS), tolerance: str = "1") -> None:
    table, points = read_study(study), float(tolerance)
    table = StudyTable(tuple(r for r in table if r.status == "done"), table.provenance)
    print(f"{len(curves(table))} curves of {study}, tolerance {points:g} points")
    print(f"{'recommendation':<26}{'sufficient':>11}{'trainings':>11}{'Optuna:':>10}", end="")
    print(f"{'sufficient':>11}{'all':>7}{'final':>7}{'first':>7}{'all ÷':>8}{'final ÷':>9}")
    for name, make in RECOMMENDATIONS.items():
        found = compare_search(table, make(table, points), points)
        share = statistics.mean(c.sufficient for c in found)
        trainings = statistics.mean(c.trainings for c in found)
        optuna, every, final, first = (
            statistics.mean(m for c in found if not math.isnan(m := c.mean(what)))
            for what in ("sufficient", "trainings", "final", "first")
        )
        mine = max(1.0, trainings)
        print(
            f"{name:<26}{share:>11.0%}{trainings:>11.2f}{'':>10}{optuna:>11.0%}{every:>7.2f}"
            f"{final:>7.2f}{first:>7.2f}{every / mine:>8.2f}{final / mine:>9.2f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
