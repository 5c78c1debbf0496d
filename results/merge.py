"""Write ``study.parquet`` and ``outputs.parquet`` from run directories of studies.

The trials that are finished are taken, whether or not their run is, of networks that were trained
at every T of the grid: without the largest T there is no plateau to compare with.

Run: ``python results/merge.py OUT RUN [RUN ...] --command "how they were made"``
"""

from __future__ import annotations

import argparse
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


def main() -> None:
    """Merge the runs into the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--command", required=True, help="what trained them")
    parser.add_argument("--hardware", help="what they were trained on, if not on this machine")
    parser.add_argument("--logit-samples", type=int, default=50, help="whose logits are kept")
    options = parser.parse_args()
    measured, settings = {}, {}
    for directory in options.runs:
        settings[directory.name] = yaml.safe_load((directory / "run.yaml").read_text())
        for step in sorted(directory.glob("steps/*.json")):
            stored = read_json(step)
            if isinstance(stored, dict) and "rows" in stored:
                measured[stored["key"]] = Measurement(**stored)
    rows, outputs = rows_of(measured.values())

    def network(row: StudyRow | OutputRow, components: int | None) -> tuple[object, ...]:
        return row.seed, row.dataset, components, row.model

    trained = Counter(network(r, r.components) for r in rows if r.eval_T == r.train_T)
    steps = {len(run["T"]) for run in settings.values()}
    for cell, count in sorted(trained.items(), key=str):
        print(*cell, f"{count} T", "" if count in steps else "(left out: not all T)")
    rows = [r for r in rows if trained[network(r, r.components)] in steps]
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


if __name__ == "__main__":
    main()
