"""Failure injection for studies on Ray: workers and drivers die, the table stays the same."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from spikedim.storage import Run
from spikedim.training.engines import Engine
from spikedim.training.study import Cell, Study, run_study
from spikedim.training.study_table import read_study
from test_training_study import FAST, MODEL, toy

ray = pytest.importorskip("ray", reason="Ray is not installed (spikedim[ray])")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds processes in /proc"
)
_PATIENCE_S = 240


def study() -> Study:
    """Four trainings, each long enough to be caught in the middle."""
    cell = Cell(toy(), MODEL, replace(FAST, epochs=40))
    return Study("killed", (cell,), (1, 2), seeds=(0, 1), eval_T=(3,))


def run_driver(path: str) -> None:
    """What the driver processes of this test do."""
    with Run(path, {}) as run:
        run_study(study(), run, Engine("ray", workers=2))


def driver(path: Path, log: Path) -> subprocess.Popen:
    code = "import sys; from test_training_study_ray import run_driver; run_driver(sys.argv[1])"
    places = [os.path.dirname(__file__), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=environment, stdout=log.open("a"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except (OSError, ValueError):
            continue
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return sorted(found - {pid})


def at_work(pid: int) -> list[int]:
    """Ray workers of the driver ``pid`` that are in the middle of a trial."""
    workers = []
    for child in descendants(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::_ray_trial"):
            workers.append(child)
    return workers


def wait_for(condition, process: subprocess.Popen, log: Path):
    started = time.monotonic()
    while not (value := condition()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() - started < _PATIENCE_S, log.read_text()
        time.sleep(0.05)
    return value


def finished(path: Path) -> dict[str, int]:
    """Stored trials of the study with the time they were written."""
    return {file.name: file.stat().st_mtime_ns for file in path.glob("steps/toy-*.json")}


def test_killed_worker_and_killed_driver_leave_the_serial_table(tmp_path):
    path, log = tmp_path / "ray", tmp_path / "log"
    first = driver(path, log)
    try:
        wait_for(lambda: list(path.glob("trials/*/last.ckpt")), first, log)
        (victim, *_) = wait_for(lambda: at_work(first.pid), first, log)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: finished(path), first, log)
        workers = at_work(first.pid)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = finished(path)
    assert not (path / "study.parquet").exists()
    assert 1 <= len(done) < 4
    assert victim not in workers

    second = driver(path, log)
    assert second.wait(timeout=_PATIENCE_S) == 0, log.read_text()
    now = finished(path)
    assert len(now) == 4
    assert {name: now[name] for name in done} == done

    with Run(tmp_path / "serial", {}) as run:
        serial = run_study(study(), run).table
    killed = read_study(path / "study.parquet")
    assert killed.same_trials(serial)
    assert len(killed) == 2 * (2 + 3)
    assert len({(row.key, row.eval_T) for row in killed}) == len(killed)
