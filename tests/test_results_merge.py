"""The script that writes the stored tables."""

import subprocess
import sys
from pathlib import Path

from spikedim.storage import Run
from spikedim.training.study import run_study
from spikedim.training.study_table import read_study
from test_training_study import tiny

SCRIPT = Path(__file__).parents[1] / "results" / "merge.py"


def test_only_networks_trained_at_every_T_of_their_own_grid_are_kept(tmp_path):
    """Whole runs of two grids in folders of one name, and a run that stopped early."""
    whole = {"a": tiny(T=(1, 2)), "b": tiny(T=(1,), seeds=(1,))}
    for name, study in whole.items():
        with Run(tmp_path / name / "run", study.settings()) as run:
            run_study(study, run)
    stopped = tiny(T=(1, 2), seeds=(2,))
    with Run(tmp_path / "c" / "run", stopped.settings()) as run:
        run_study(stopped, run)
    (step,) = (tmp_path / "c" / "run").glob("steps/*-T2-s2-*.json")
    step.unlink()
    runs = [tmp_path / name / "run" for name in "abc"]
    command = [sys.executable, SCRIPT, tmp_path / "out", *runs, "--command", "made in a test"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "2 (left out: T = 2 missing)" in said
    assert said.count("left out") == 1
    table = read_study(tmp_path / "out" / "study.parquet")
    assert {(row.seed, row.train_T) for row in table} == {(0, 1), (0, 2), (1, 1)}
    assert list(table.provenance["config"]) == [str(path) for path in runs]
    assert table.provenance["command"] == "made in a test"
