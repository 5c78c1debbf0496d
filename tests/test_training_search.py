"""Search with Optuna: resumable, no training twice, the documented answer."""

from dataclasses import replace

import pytest

from spikedim.errors import ConfigError, StorageError
from spikedim.storage import Run
from spikedim.training import search
from spikedim.training.search import SearchSettings, Tried, cheapest, run_search
from spikedim.training.study import Cell, neuron_grid
from spikedim.training.study_table import read_study
from test_training_study import FAST, MODEL, cli, tiny, toy
from test_training_sweep import refuse_training

pytest.importorskip("optuna")


def setting(T, accuracy, spikes=0.0):
    return Tried(T, {}, accuracy, None, spikes)


def grid():
    return tiny((1, 2), neurons=neuron_grid({"beta": [0.25, 0.5]}))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """An uninterrupted search of seven trials over four settings."""
    path = tmp_path_factory.mktemp("search")
    with Run(path, {}) as run:
        return run_search(grid(), run, SearchSettings(trials=7)), path


def same(one, other):
    assert [replace(f, trainings=0) for f in one.found] == [
        replace(f, trainings=0) for f in other.found
    ]
    assert one.table.same_trials(other.table)


def test_the_answer_is_the_cheapest_within_the_tolerance():
    tried = [setting(1, 80, 9), setting(2, 89.5, 7), setting(4, 90, 5), setting(8, 90.4, 20)]
    assert cheapest(tried, 1.0, "timesteps").T == 2
    assert cheapest(tried, 1.0, "spikes").T == 4
    assert cheapest(tried, 0.0, "timesteps").T == 8
    assert cheapest(tried, 20.0, "timesteps").T == 1
    assert cheapest([], 1.0, "timesteps") is None
    assert cheapest([setting(4, 90), setting(4, 91)], 5.0, "timesteps").accuracy == 91


def test_a_search_trains_every_setting_once(searched):
    result, path = searched
    (found,) = result.found
    assert found.suggestions == 7
    assert found.trainings == len(found.tried) <= 4
    assert found.best == cheapest(found.tried, 1.0, "timesteps")
    table = read_study(path / "study.parquet")
    assert len({row.key for row in table}) == found.trainings
    for tried in found.tried:
        (row,) = table.where(train_T=tried.T, eval_T=tried.T, beta=tried.neuron["beta"])
        assert row.held_out_accuracy == tried.accuracy
        test = tried.test_accuracy
        assert (test.value, test.n) == (row.accuracy, row.test_samples)
        assert (test.low, test.high) == pytest.approx((row.accuracy_low, row.accuracy_high))
    assert "smallest T" in str(result)


def test_a_chosen_setting_at_chance_is_said_to_be(searched):
    result, _ = searched
    (found,) = result.found
    assert found.chance == 50
    (table,) = result.tables()
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert (shown["chance, %"], shown["test samples"]) == (50, 24)
    for chance, said in ((0.0, False), (100.0, True)):
        (table,) = replace(result, found=(replace(found, chance=chance),)).tables()
        assert table.notes[0].startswith(f"At chance: {MODEL} on toy, T={found.best.T}, ") is said
    best = result.to_dict()["found"][0]["best"]
    assert best["test_accuracy"]["low"] == found.best.test_accuracy.low
    (table,) = replace(result, found=(replace(found, best=None),)).tables()
    assert table.rows[0][2:7] == (None,) * 5


def test_a_search_in_two_sessions_is_the_search_in_one(searched, tmp_path, monkeypatch):
    result, _ = searched
    with Run(tmp_path, {}) as run:
        short = run_search(grid(), run, SearchSettings(trials=3))
        assert short.found[0].suggestions == 3
    with Run(tmp_path, {}) as run:
        same(run_search(grid(), run, SearchSettings(trials=7)), result)
    refuse_training(monkeypatch)
    with Run(tmp_path, {}) as run:
        same(run_search(grid(), run, SearchSettings(trials=7)), result)


@pytest.mark.parametrize("moment", ["asked", "trained"])
def test_a_search_killed_in_a_trial_goes_on_with_it(searched, tmp_path, monkeypatch, moment):
    result, _ = searched

    class Killed(BaseException):
        pass

    calls = []
    name = {"asked": "_suggest", "trained": "_train"}[moment]
    original = getattr(search._Search, name)

    def die(self, *arguments):
        calls.append(1)
        if moment == "asked" and len(calls) == 4:
            raise Killed
        value = original(self, *arguments)
        if moment == "trained" and len(calls) == 4:
            raise Killed
        return value

    with monkeypatch.context() as patch:
        patch.setattr(search._Search, name, die)
        with pytest.raises(Killed), Run(tmp_path, {}) as run:
            run_search(grid(), run, SearchSettings(trials=7))
    with Run(tmp_path, {}) as run:
        again = run_search(grid(), run, SearchSettings(trials=7))
    assert again.found[0].suggestions == 7
    same(again, result)


def test_runs_share_a_database_and_learn_from_each_other(searched, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with Run(tmp_path / "one", {}) as run:
        one = run_search(grid(), run, SearchSettings(trials=6, storage=url))
    refuse_training(monkeypatch)
    with Run(tmp_path / "two", {}) as run:
        two = run_search(grid(), run, SearchSettings(trials=6, storage=url))
    assert one.found[0].suggestions == two.found[0].suggestions == 6
    assert two.found[0].trainings == 0
    assert two.found[0].best.T == one.found[0].best.T
    assert len(two.table) == 0


def test_bad_searches_are_refused(tmp_path):
    for options, message in (
        ({"objective": "joy"}, "objective='joy'"),
        ({"trials": 0}, "trials=0"),
        ({"tolerance": -1.0}, "tolerance"),
    ):
        with pytest.raises(ConfigError, match=message):
            SearchSettings(**options)
    with Run(tmp_path, {}) as run:
        with pytest.raises(StorageError, match="cannot use Optuna's database"):
            run_search(grid(), run, SearchSettings(storage="no://such"))
        bare = Cell(toy(), MODEL, replace(FAST, validation=0.0))
        with pytest.raises(ConfigError, match="held-out"):
            run_search(replace(grid(), cells=(bare,)), run, SearchSettings())


def test_command_searches_and_resumes(tmp_path, capsys):
    words = [
        "sweep", "--study", "cli", "--data", "digits", "--model", MODEL, "-T", "1,2",
        "--epochs", "1", "--train-samples", "40", "--test-samples", "30", "--workers", "1",
        "--device", "cpu", "--search", "spikes", "--out", str(tmp_path / "r"),
    ]  # fmt: skip
    for trials in ("1", "3"):
        code, text = cli(capsys, *words, "--trials", trials)
        assert code == 0, text.err
    assert "fewest spikes" in text.out
    code, text = cli(capsys, *words, "--tolerance", "3")
    assert code == 2
    assert "other settings" in text.err
