import json
import multiprocessing
import os
import signal

import pytest

from processes import wait_for
from spikedim.design import cases, store
from spikedim.design.cases import dimension_cases, reference_cases
from spikedim.design.forecast import forecast
from spikedim.errors import DataError, SpikedimWarning, StorageError
from study_cases import case


@pytest.fixture(scope="module")
def said():
    return forecast(case())


def test_place_is_given_or_from_the_environment_or_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "x.jsonl"))
    assert store.store_path() == tmp_path / "x.jsonl"
    assert store.store_path("y.jsonl").name == "y.jsonl"
    monkeypatch.delenv(store.VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store.store_path() == tmp_path / "spikedim" / "calibration.jsonl"


def test_a_design_is_stored_once_and_read_back(said, tmp_path):
    path = tmp_path / "new" / "c.jsonl"
    first = store.append(said, case(), path)
    assert store.append(said, case(), path).id == first.id
    store.append(said, case(seed=5), path)
    entries = store.read(path)
    assert [entry.case for entry in entries] == [case(), case(seed=5)]
    assert entries[0].predicted["constant"][0] == 4
    assert entries[0].recommended == said.best.name


def _append(path, said, seeds):
    for seed in seeds:
        store.append(said, case(seed=seed), path)


def test_concurrent_processes_lose_nothing(said, tmp_path):
    path = tmp_path / "c.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_append, args=(path, said, range(10 * i, 10 * i + 10)))
        for i in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(entry.case.seed for entry in store.read(path)) == list(range(40))


def _append_forever(path, said):
    seed = 0
    while True:
        store.append(said, case(seed=seed), path)
        seed += 1


def test_a_killed_process_damages_no_other_entry(said, tmp_path):
    path = tmp_path / "c.jsonl"
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_append_forever, args=(path, said))
    worker.start()
    wait_for(lambda: path.exists() and path.stat().st_size, worker.is_alive)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with open(path, "a") as handle:
        handle.write('{"id": "torn')  # what a kill in the middle of a write leaves
    with pytest.warns(SpikedimWarning, match="skipped"):
        store.append(said, case(seed=10_000), path)
    with pytest.warns(SpikedimWarning, match="skipped"):
        seeds = [entry.case.seed for entry in store.read(path)]
    assert seeds[-1] == 10_000
    assert seeds[:-1] == list(range(len(seeds) - 1))


def test_refit_adopts_the_store_and_says_what_changed(said, tmp_path):
    path = tmp_path / "c.jsonl"
    with pytest.raises(DataError, match="--verify"):
        store.recalibrate(path)
    for dataset in ("mine", "other"):
        for seed in range(6):
            store.append(said, case(dataset, "net", seed, t=8, d_eff=5.0), path)
    assert store.known_cases(path)[1] == 0  # not before the user says so
    found = store.recalibrate(path)
    assert (found.own, found.new, found.cases) == (12, 12, 12 + len(reference_cases()))
    changed = {c.predictor: c for c in found.changes}
    assert changed["calibrated"].fitted_before != changed["calibrated"].fitted_after
    assert changed["constant"].own == 1.0  # T = 4 was said, T* = 8 was found
    assert "calibrated" in str(found)
    cases, own = store.known_cases(path)
    assert (len(cases), own) == (found.cases, 12)
    assert store.recalibrate(path).new == 0
    assert store.forget(path)
    assert not store.forget(path)
    assert store.known_cases(path)[1] == 0
    assert len(store.read(path)) == 12


def test_a_case_of_the_users_own_does_not_predict_itself():
    mine, other = case("mine", "net", t=8), case("other", "net", t=8)
    given = [*reference_cases(), other, mine]
    said = forecast(mine, given, own=2)
    assert said.ranked == forecast(mine, given[:-1], own=1).ranked
    assert (said.own, said.cases) == (1, len(given) - 1)
    assert any("1 of your own cases" in note for note in said.notes)
    assert forecast(case("new", "net"), given, own=2).own == 2


def test_a_refit_brings_every_case_to_one_tolerance(said, tmp_path):
    loose = {False: tmp_path / "loose.jsonl", True: tmp_path / "strict.jsonl"}
    for seed in range(6):
        found = case("mine", "net", seed, t=8)
        for strict, path in loose.items():
            store.append(said, found if strict else found.within(5.0), path)
    fits = [store.recalibrate(path) for path in loose.values()]
    assert fits[0].tolerance == fits[1].tolerance == 1.0
    for a, b in zip(fits[0].changes, fits[1].changes, strict=True):
        assert (a.after, a.fitted_after) == (b.after, b.fitted_after)
    assert "within 1 point" in str(fits[0])


def test_a_store_is_checked_before_work(tmp_path, monkeypatch):
    store.check_store(tmp_path / "new" / "folder" / "c.jsonl")
    assert not (tmp_path / "new").exists()
    with pytest.raises(StorageError, match="--store"):
        store.check_store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file is not a folder; .*--store"):
        store.check_store(tmp_path / "file" / "c.jsonl")
    monkeypatch.setattr(store.os, "access", lambda place, mode: False)
    with pytest.raises(StorageError, match="not writable"):
        store.check_store(tmp_path / "c.jsonl")


def test_a_place_that_cannot_be_written_is_one_clear_error(said, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--store"):
        store.append(said, case(), tmp_path / "file" / "c.jsonl")


def test_entries_are_plain_json(said, tmp_path):
    path = tmp_path / "c.jsonl"
    store.append(said, case(), path)
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["case"]["dataset"] == "a"


@pytest.mark.parametrize("damage", [None, b"", b'{"dataset": "digits"}', b"{torn", b"\xff\xfe"])
@pytest.mark.parametrize("name", [cases.REFERENCE, cases.DIMENSION])
def test_a_shipped_file_that_is_missing_or_damaged_is_named(name, damage, tmp_path, monkeypatch):
    monkeypatch.setattr(cases.resources, "files", lambda package: tmp_path)
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    read = {cases.REFERENCE: reference_cases, cases.DIMENSION: dimension_cases}[name]
    read.cache_clear()
    try:
        with pytest.raises(DataError, match=rf"{name}.*; reinstall .*validate --ship") as caught:
            read()
    finally:
        read.cache_clear()
    assert "Errno" not in str(caught.value)
