"""Write ``study.parquet`` and ``outputs.parquet`` from the run directories of ``grid.sh``.

The trials that are finished are taken, whether or not their run is, of networks that were trained
at every T of the grid: without the largest T there is no plateau to compare with.

Run: ``python results/merge.py RUNS RESULTS [LOGIT_SAMPLES]``
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import yaml

from spikedim.provenance import provenance
from spikedim.results import plain
from spikedim.storage import read_json
from spikedim.training.study import hardware, thinned
from spikedim.training.study_table import OutputRow, StudyRow, write_study
from spikedim.training.study_trial import Measurement, rows_of

GRID = "sh results/grid.sh"


def main(runs: str, results: str, logit_samples: str = "50") -> None:
    """Merge ``runs/grid-*`` into the two tables under ``results``; logits of so many samples."""
    measured, settings = {}, {}
    for directory in sorted(Path(runs).glob("grid-*")):
        settings[directory.name] = yaml.safe_load((directory / "run.yaml").read_text())
        for step in sorted(directory.glob("steps/*.json")):
            stored = read_json(step)
            if isinstance(stored, dict) and "rows" in stored:
                measured[stored["key"]] = Measurement(**stored)
    rows, outputs = rows_of(measured.values())
    trained = Counter((r.seed, r.dataset, r.model) for r in rows if r.eval_T == r.train_T)
    steps = {len(run["T"]) for run in settings.values()}
    for cell, count in sorted(trained.items()):
        print(*cell, f"{count} T", "" if count in steps else "(left out: not all T)")
    rows = [r for r in rows if trained[r.seed, r.dataset, r.model] in steps]
    outputs = [o for o in outputs if trained[o.seed, o.dataset, o.model] in steps]
    data = {k: v for run in settings.values() for k, v in run["data"].items()}
    source = plain(replace(provenance(config=settings), command=GRID)) | {
        "hardware": hardware(),
        "data_fingerprints": {name: entry["fingerprint"] for name, entry in data.items()},
        "test_note": "Intervals cover the finite test set, not training seeds.",
    }
    write_study(f"{results}/study.parquet", rows, source, StudyRow)
    thin = [thinned(row, int(logit_samples)) for row in outputs]
    write_study(f"{results}/outputs.parquet", thin, source, OutputRow)


if __name__ == "__main__":
    main(*sys.argv[1:])
