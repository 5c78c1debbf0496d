"""Failure injection for studies on Ray: workers and drivers die, the table stays the same."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from processes import PATIENCE_S, wait_for
from spikedim.storage import Run
from spikedim.training import engines
from spikedim.training.engines import Engine
from spikedim.training.study import Cell, Study, run_study
from spikedim.training.study_table import read_study
from spikedim.training.study_trial import StudyWork
from test_training_study import FAST, MODEL, toy

ray_trial, keep = engines._ray_trial, StudyWork.keep


@pytest.fixture(scope="module")
def ray():
    """A Ray of two workers, which a driver process joins and outlives it."""
    module = pytest.importorskip("ray", reason="Ray is not installed (spikedim[ray])")
    context = module.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40
    )
    yield context.address_info["gcs_address"]
    module.shutdown()


def study() -> Study:
    """Three trainings with enough epochs to die in the middle."""
    cell = Cell(toy(), MODEL, replace(FAST, epochs=12))
    return Study("killed", (cell,), (1, 2, 3), eval_T=(4,))


def trial_of_a_doomed_worker(work, trial):
    """The task of a worker; the first one dies of SIGKILL when it has saved an epoch."""
    place = work.run.path
    try:
        (place / "victim").touch(exist_ok=False)
    except FileExistsError:
        return ray_trial(work, trial)

    def watch() -> None:
        while not list(place.glob(f"trials/*-T{trial.T}-*/last.ckpt")):
            time.sleep(0.001)
        (place / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return ray_trial(work, trial)


def keep_and_die(work, trial, measurement):
    keep(work, trial, measurement)
    wait_for((work.run.path / "killed").exists)
    os.kill(os.getpid(), signal.SIGKILL)


def run_driver(path: str, address: str) -> None:
    """What the driver process does; SIGKILL ends it when one trial has come back."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests
    engines._ray_trial, StudyWork.keep = trial_of_a_doomed_worker, keep_and_die
    with Run(path, {}) as run:
        run_study(study(), run, Engine("ray", workers=2, address=address))


def finished(path: Path) -> dict[str, int]:
    """Stored trials of the study with the time they were written."""
    return {file.name: file.stat().st_mtime_ns for file in path.glob("steps/toy-*.json")}


def test_killed_worker_and_killed_driver_leave_the_serial_table(ray, tmp_path):
    path = tmp_path / "ray"
    code = "import sys; from test_training_study_ray import run_driver; run_driver(*sys.argv[1:])"
    places = [os.path.dirname(__file__), *sys.path]
    driver = subprocess.run(
        [sys.executable, "-c", code, path, ray],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert driver.returncode == -signal.SIGKILL, driver.stdout
    done = finished(path)
    assert 1 <= len(done) < 3
    assert not (path / "study.parquet").exists()

    with Run(path, {}) as run:
        run_study(study(), run, Engine("ray", workers=2))
    assert (path / "killed").exists()
    now = finished(path)
    assert len(now) == 3
    assert {name: now[name] for name in done} == done

    with Run(tmp_path / "serial", {}) as run:
        serial = run_study(study(), run).table
    killed = read_study(path / "study.parquet")
    assert killed.same_trials(serial)
    assert len(killed) == 2 + 3 + 4
    assert len({(row.key, row.eval_T) for row in killed}) == len(killed)
