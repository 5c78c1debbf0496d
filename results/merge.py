"""Write ``study.parquet`` and ``outputs.parquet`` from the run directories of ``grid.sh``.

The trials that are finished are taken, whether or not their run is.

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
    data = {k: v for run in settings.values() for k, v in run["data"].items()}
    source = plain(replace(provenance(config=settings), command=GRID)) | {
        "hardware": hardware(),
        "data_fingerprints": {name: entry["fingerprint"] for name, entry in data.items()},
        "test_note": "Intervals cover the finite test set, not training seeds.",
    }
    write_study(f"{results}/study.parquet", rows, source, StudyRow)
    thin = [thinned(row, int(logit_samples)) for row in outputs]
    write_study(f"{results}/outputs.parquet", thin, source, OutputRow)
    cells = Counter((r.seed, r.dataset, r.model) for r in rows if r.eval_T == r.train_T)
    for (seed, dataset, model), count in sorted(cells.items()):
        print(f"seed {seed}  {dataset:<14}{model:<24}{count} of 6 T")


if __name__ == "__main__":
    main(*sys.argv[1:])
