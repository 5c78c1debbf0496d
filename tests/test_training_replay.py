"""What a search over T costs, counted on stored curves."""

import math
from dataclasses import replace

import pytest

from spikedim.errors import ConfigError, DataError
from spikedim.training.replay import compare_search, curves, replay_search, sufficient
from spikedim.training.study_table import StudyRow, StudyTable

optuna = pytest.importorskip("optuna")

RISING = {1: 50.0, 2: 80.0, 4: 90.0, 8: 90.5}


def table(*accuracies):
    blank = dict.fromkeys(StudyRow.__dataclass_fields__)
    row = StudyRow(**blank | {"dataset": "d", "model": "m", "seed": 0, "status": "done"})
    rows = [
        replace(row, train_T=train, eval_T=test, accuracy=accuracy)
        for train, test, accuracy in accuracies
    ]
    return StudyTable(tuple(rows), {})


def test_sufficient_is_measured_against_the_isotonic_plateau():
    found = {T: sufficient(RISING, T, 1.0) for T in (0, 1, 2, 3, 4, 5, 8, 100)}
    assert found == {0: False, 1: False, 2: False, 3: False, 4: True, 5: True, 8: True, 100: True}
    falling = {1: 92.0, 2: 90.0}  # pooled: the plateau is 91, not 92
    assert sufficient(falling, 1, 0.0)
    assert sufficient(falling, 2, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_trainings_are_counted_until_the_answer_is_found(seed):
    curve = {1: 10.0, 2: 20.0, 4: 30.0, 8: 90.0}
    found = replay_search(curve, 1.0, trials=40, seed=seed)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed)
    )
    order = []
    for _ in range(40):
        trial = study.ask()
        order.append(trial.suggest_categorical("T", [1, 2, 4, 8]))
        study.tell(trial, [curve[order[-1]], order[-1]])
    needed = list(dict.fromkeys(order)).index(8) + 1
    assert (found.first, found.settled, found.final) == (needed, needed, needed)
    assert (found.T, found.sufficient, found.trainings) == (8, True, len(set(order)))


def test_easy_and_missed_curves():
    flat = replay_search({1: 90.0, 2: 90.0, 4: 90.0}, 0.0, trials=30)
    assert (flat.first, flat.settled, flat.T) == (1, 1, 1)
    assert 1 <= flat.final <= 3
    one = replay_search({4: 50.0})
    assert (one.first, one.final, one.T) == (1, 1, 4)
    # One suggestion that is not the last T: the search ends with a wrong answer and says so.
    missed = [replay_search(RISING, 0.1, trials=1, seed=s) for s in range(12)]
    assert any(not m.sufficient and m.settled == math.inf for m in missed)


def test_a_recommendation_is_compared_on_every_curve():
    study = table((1, 1, 50.0), (4, 1, 40.0), (4, 4, 90.0))
    assert curves(study) == {("d", "m", 0): {1: 50.0, 4: 90.0}}
    (good,) = compare_search(study, lambda *_: (4, 1), repeats=3)
    (bad,) = compare_search(study, lambda *_: (2, 0), repeats=3)
    assert (good.sufficient, bad.sufficient) == (True, False)
    assert good.mean("final") == pytest.approx(sum(s.final for s in good.searches) / 3)
    assert good.searches == bad.searches


def test_nothing_to_replay_is_refused():
    with pytest.raises(DataError, match="no network tested"):
        curves(table((4, 1, 40.0)))
    with pytest.raises(ConfigError, match="at least one T"):
        replay_search({})
    with pytest.raises(ConfigError, match="tolerance"):
        replay_search(RISING, tolerance=-1)
