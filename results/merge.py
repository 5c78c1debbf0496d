"""Write ``study.parquet`` and ``outputs.parquet`` from run directories of studies.

The trials that are finished are taken, whether or not their run is, of networks that were trained
at every T of the grid: without the largest T there is no plateau to compare with.

Run: ``python results/merge.py OUT RUN [RUN ...] --command "how they were made"``
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import yaml

from spikedim.provenance import provenance
from spikedim.results import plain
from spikedim.storage import read_json
from spikedim.training.study import hardware, thinned
from spikedim.training.study_table import OutputRow, StudyRow, write_study
from spikedim.training.study_trial import Measurement, rows_of


def main() -> None:
    """Merge the runs into the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--command", required=True, help="what trained them")
    parser.add_argument("--hardware", help="what they were trained on, if not on this machine")
    parser.add_argument("--logit-samples", type=int, default=50, help="whose logits are kept")
    options = parser.parse_args()
    measured, settings, grids = {}, {}, {}
    for directory in options.runs:
        run = yaml.safe_load((directory / "run.yaml").read_text())
        settings[str(directory)] = run
        for step in sorted(directory.glob("steps/*.json")):
            stored = read_json(step)
            if isinstance(stored, dict) and "rows" in stored:
                measured[stored["key"]] = Measurement(**stored)
                grids[stored["key"]] = set(run["T"])
    rows, outputs = rows_of(measured.values())
    trained, wanted = defaultdict(set), defaultdict(set)
    for row in rows:
        trained[_network(row)].add(row.train_T)
        wanted[_network(row)] |= grids[row.key]
    for network, steps in sorted(trained.items(), key=str):
        missing = ", ".join(map(str, sorted(wanted[network] - steps)))
        print(*network, f"(left out: T = {missing} missing)" if missing else "")
    rows = [r for r in rows if trained[_network(r)] == wanted[_network(r)]]
    keys = {r.key for r in rows}
    outputs = [o for o in outputs if o.key in keys]
    data = {k: v for run in settings.values() for k, v in run["data"].items()}
    source = plain(replace(provenance(config=settings), command=options.command)) | {
        "hardware": {"given": options.hardware} if options.hardware else hardware(),
        "data_fingerprints": {name: entry["fingerprint"] for name, entry in data.items()},
        "test_note": "Intervals cover the finite test set, not training seeds.",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_study(options.out / "study.parquet", rows, source, StudyRow)
    if outputs:
        thin = [thinned(row, options.logit_samples) for row in outputs]
        write_study(options.out / "outputs.parquet", thin, source, OutputRow)


def _network(row: StudyRow) -> tuple[object, ...]:
    """What is trained at every T of a grid."""
    data = row.dataset, row.components, row.fingerprint
    return *data, row.model, row.beta, row.v_th, row.t_ref, row.reset, row.seed


if __name__ == "__main__":
    main()
