import ast
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spikedim
from processes import PATIENCE_S
from spikedim import storage
from spikedim.errors import SpikedimError, SpikedimWarning, StorageError
from spikedim.progress import relay, report_to, showing, task, track
from spikedim.provenance import provenance
from spikedim.results import Estimate, Result, Table, number, plain

SOURCE = Path(spikedim.__file__).parent

# Each floor may import the floors on its left, never those on its right.
FLOORS = [
    {"errors", "results", "storage", "provenance", "progress", "gather", "cluster"},
    {"neurons", "theory", "dimension"},
    {"adapters", "circuits", "models", "data"},
    {"profiling", "order"},
    {"ntk"},
    {"training"},
    {"design", "claims", "rank"},
    {"report"},
    {"cli"},
]
INDEPENDENT = {"neurons", "theory", "dimension"}


def _floor(name):
    return next(i for i, floor in enumerate(FLOORS) if name in floor)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "spikedim":
                yield from [parts[1]] if len(parts) > 1 else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("spikedim."):
                    yield alias.name.split(".")[1]


def test_every_folder_is_a_known_floor():
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= set().union(*FLOORS)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=str)
def test_imports_only_go_down(path):
    owner = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if owner in ("__init__", "__main__"):
        return
    for name in _imports(path):
        if name == owner:
            continue
        assert _floor(name) <= _floor(owner), f"{path} imports {name}"
        if owner in INDEPENDENT:
            assert _floor(name) == 0 or (owner, name) == ("dimension", "theory"), path


def test_theory_needs_no_torch():
    code = "import sys, spikedim.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_atomic_write_replaces_and_leaves_no_litter(tmp_path):
    path = tmp_path / "a" / "value.json"
    storage.write_json(path, {"x": np.float64(1.5), "y": [np.int64(2)], "z": float("nan")})
    storage.write_json(path, {"x": 2})
    assert storage.read_json(path) == {"x": 2}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no disk space"), (errno.EACCES, "cannot write")]
)
def test_failed_write_keeps_the_old_file_and_says_why(tmp_path, monkeypatch, code, words):
    path = storage.write_text(tmp_path / "kept.txt", "old")

    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match=words) as caught:
        storage.write_text(path, "new")
    assert "\n" not in str(caught.value)
    assert "place" in str(caught.value)
    assert "--" not in str(caught.value)  # not every verb has the same option
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def _write_forever(path):
    while True:
        storage.write_json(path, {"value": list(range(20_000))})


def test_sigkill_during_writes_never_leaves_a_half_file(tmp_path):
    path = tmp_path / "value.json"
    context = multiprocessing.get_context("fork")
    for delay in (0.03, 0.07, 0.11):
        process = context.Process(target=_write_forever, args=(path,))
        process.start()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if path.exists():
            assert storage.read_json(path) == {"value": list(range(20_000))}


def test_unreadable_json_is_one_clear_error(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(StorageError, match="remove it"):
        storage.read_json(tmp_path / "bad.json")


def test_run_steps_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"answer": np.array([1, 2])}

    for _ in range(2):
        with storage.Run.named(tmp_path, "job", {"a": 1}) as run:
            assert run.step("one", compute) == {"answer": [1, 2]}
    assert calls == [1]


def test_run_refuses_another_configuration(tmp_path):
    with storage.Run(tmp_path / "r", {"a": 1, "b": {"c": 2, "e": 4}}):
        pass
    with (
        pytest.raises(StorageError, match=r"other settings \(b\.c: 2 → 3, d: None → \[1\]\)"),
        storage.Run(tmp_path / "r", {"a": 1, "b": {"c": 3, "e": 4}, "d": [1]}),
    ):
        pass
    with storage.Run(tmp_path / "r", {"a": 1, "b": {"c": 2, "e": 4}}):
        pass


def test_run_is_exclusive(tmp_path):
    with storage.Run(tmp_path / "r", {}):
        code = (
            "import sys; from spikedim.storage import Run\n"
            "from spikedim.errors import StorageError\n"
            "try:\n"
            "    with Run(sys.argv[1], {}): pass\n"
            "except StorageError as e: print(e); sys.exit(7)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "r"], capture_output=True, text=True
        )
    assert done.returncode == 7
    assert "in use" in done.stdout


def test_run_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="cannot write"),
        storage.Run(tmp_path / "file" / "r", {}),
    ):
        pass


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- a\n- b\n", b"{", b""])
def test_damaged_settings_are_one_clear_error(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with (
        pytest.raises(StorageError, match=r"cannot read .*run\.yaml.*; remove") as caught,
        storage.Run(tmp_path, {"a": 1}),
    ):
        pass
    assert "\n" not in str(caught.value)
    (tmp_path / "run.yaml").unlink()
    with storage.Run(tmp_path, {"a": 1}):
        pass


def test_run_removes_what_killed_writes_left_behind(tmp_path):
    left = tmp_path / "steps" / ".tmp-one.json.abc"
    storage.write_text(left, "half")
    kept = storage.write_text(tmp_path / "steps" / "two.json", "{}")
    with storage.Run(tmp_path, {}):
        assert kept.exists()
        assert not left.exists()


def test_run_file_in_a_place_that_cannot_be_made(tmp_path):
    with storage.Run(tmp_path, {}) as run:
        storage.write_text(run.file("taken"), "")
        with pytest.raises(StorageError, match="cannot write"):
            run.file("taken", "below", "x.json")


def test_digest_ignores_key_order_and_sees_values():
    assert storage.digest({"a": 1, "b": 2}) == storage.digest({"b": 2, "a": 1})
    assert storage.digest({"a": 1}) != storage.digest({"a": 2})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(values)
def test_plain_data_is_always_strict_json(value):
    json.dumps(plain(value), allow_nan=False)


@given(st.floats(-1e300, 1e300))
def test_number_reads_back_to_four_digits(value):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=6e-4, abs=1e-300)


@dataclass(frozen=True)
class Sample(Result):
    name: str
    score: Estimate


def test_result_renders_everywhere():
    sample = Sample("<b>", Estimate(96.125, 94.0, 98.0, 360, "%", method="Wilson"))
    assert sample.to_dict()["score"]["n"] == 360
    assert "96.1 [94.0, 98.0] %" in str(sample)
    assert "&lt;b&gt;" in sample._repr_html_()
    assert Table("t", ("a",), [(None,), (True,), (float("nan"),)]).cells() == [
        ["–"],
        ["yes"],
        ["n/a"],
    ]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(96.125, 94.037, 98.21, unit="%"), "96.1 [94.0, 98.2] %"),
        (Estimate(7087.3, 6856.1, 7318.2, unit="spikes"), "7,090 [6,860, 7,320] spikes"),
        (Estimate(3, 3, 4), "3 [3, 4]"),
        (Estimate(2, 2, None, unit="timesteps"), "2 [2 or more] timesteps"),
        (Estimate(5.172e-4, 5.032e-4, 5.313e-4, unit="mJ"), "0.517 [0.503, 0.531] µJ"),
        (Estimate(81.2, unit="mJ"), "81.2 mJ"),
        (Estimate(float("nan")), "n/a"),
        (Estimate(1.0, -float("inf"), float("inf")), "1 [-∞, ∞]"),
        (Estimate(5.0, 5.0, 5.0), "5 [5, 5]"),
        (Estimate(0.435, 0.0, 30_000.0), "0.4 [0, 30,000]"),
        (Estimate(1_711.3, 1.0, 2_900.0), "1,700 [1, 2,900]"),
        (Estimate(0.004, 0, 1), "0.004 [0.00, 1.00]"),
        (Estimate(1e-6, 0, 1), "0.000001 [0.00, 1.00]"),
        (Estimate(1e-9, 0, 1), "1.000e-09 [0.00, 1.00]"),
        (Estimate(0.5, -2e-7, 1), "0.50 [-2.000e-07, 1.00]"),
        (Estimate(0, 0, 1e-4), "0.000000 [0.000000, 0.000100]"),
    ],
)
def test_estimates_read_well(estimate, text):
    assert str(estimate) == text


def test_a_table_without_rows_is_its_title_and_notes():
    class Empty(Result):
        def tables(self):
            return [Table("Layer <norm>", ("column",), [], ("No layer norm runs.",))]

    assert str(Empty()).split("\n") == ["Layer <norm>: none", "No layer norm runs."]
    page = Empty()._repr_html_()
    assert "Layer &lt;norm&gt;: none" in page
    assert "No layer norm runs." in page
    assert "column" not in page


def test_a_column_of_energies_has_one_unit():
    def column(*values):
        rows = [(i, None if v is None else Estimate(v, unit="mJ")) for i, v in enumerate(values)]
        return [cells[1] for cells in Table("", ("i", "energy"), rows).cells()]

    assert column(6.4e-5, 1.3e-4) == ["0.064 µJ", "0.13 µJ"]
    assert column(6.4e-5, None, 5e-5) == ["64 nJ", "–", "50 nJ"]
    assert column(2.0, 5e-2) == ["2 mJ", "0.05 mJ"]
    assert column(6.4e-9, 1.3e-4) == ["0.0064 nJ", "0.13 µJ"]  # too far apart for one


def test_provenance_records_versions_and_command():
    record = provenance(seed=3, config={"a": 1}, data_fingerprint="f")
    assert {"python", "torch", "numpy", "spikedim"} <= set(record.versions)
    assert record.seed == 3


def test_a_recorded_command_can_be_run_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/there/spikedim/__main__.py", "info", "--json"])
    assert provenance().command == "python -m spikedim info --json"
    monkeypatch.setattr("sys.argv", ["/bin/spikedim", "info"])
    assert provenance().command == "spikedim info"


def test_progress_is_silent_in_the_library_and_speaks_in_a_log(capsys, monkeypatch):
    assert list(track([1, 2], "work")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("spikedim.progress._LOG_EVERY_S", 0.0)
    with showing(), task("training T=4", 2) as bar:
        bar.advance(detail="loss 0.5")
    assert "training T=4: 1/2 loss 0.5" in capsys.readouterr().err


def _die_with_the_lock(queue):
    queue._wlock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_relay_outlives_a_worker_killed_while_it_reports():
    context = multiprocessing.get_context("fork")
    ended = []

    def relayed():
        with relay(context) as queue:
            process = context.Process(target=_die_with_the_lock, args=(queue,))
            process.start()
            process.join()
        ended.append(process.exitcode)

    thread = threading.Thread(target=relayed, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert ended == [-signal.SIGKILL]


def _warn_in_a_worker(queue):
    report_to(queue)
    queue._joincancelled = False  # it ends at once here, and what it told is to be read
    warnings.warn("weights are odd", SpikedimWarning, stacklevel=1)


def test_a_warning_of_a_worker_is_given_here(capfd):
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings(record=True) as caught, relay(context) as queue:
        process = context.Process(target=_warn_in_a_worker, args=(queue,))
        process.start()
        process.join()
    assert [(w.category, str(w.message)) for w in caught] == [(SpikedimWarning, "weights are odd")]
    assert capfd.readouterr().err == ""


def test_errors_share_one_base():
    from spikedim import errors

    kinds = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert all(issubclass(c, (SpikedimError, UserWarning)) for c in kinds)
