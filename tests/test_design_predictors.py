import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikedim.design.cases import Case, cases_from_rows, read_lines, write_lines
from spikedim.design.literature import published_cases, published_sweeps
from spikedim.design.piloting import expected_accuracy
from spikedim.design.predictors import PREDICTORS, calibrate, conformal, get_predictor
from spikedim.design.predictors.base import first_within, whole
from spikedim.design.predictors.rules import fit_constant
from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import create_model
from spikedim.results import plain
from spikedim.theory import accuracy_from_margins, power_law, timestep_rule
from study_cases import GRID, case, row, rows, truth_of

PLACES = [(d, m) for d in "abcd" for m in "mno"]


def by_dataset(item):
    return item.dataset


def grid_of(t_of, d_of=lambda d: 30.0, seeds=(0, 1)):
    return [case(d, m, s, t_of(d, m), d_of(d)) for d, m in PLACES for s in seeds]


def test_cases_of_a_table_have_the_truth_of_the_trained_points():
    table, outputs = rows()
    cases = cases_from_rows(table, outputs, tolerance=2.0)
    assert len(cases) == 4 * 3 * 2
    for found in cases:
        own = [r for r in table if (r.dataset, r.model, r.seed) == (*found.place, found.seed)]
        right = {r.train_T: r.hits for r in own if r.eval_T == r.train_T}
        assert found.truth.t_star == truth_of(right, 2.0)
        read = {r.eval_T: r.accuracy for r in own if r.train_T == 8}
        assert found.pilot.steps == GRID
        assert found.pilot.accuracy == tuple(read[T] for T in GRID)
        assert found.pilot.accuracy[-1] == found.truth.accuracy[-1]
        assert len(found.pilot.expected) == len(GRID)


def test_cases_leave_out_failed_and_too_short_trials():
    table, _ = rows(("a",), ("m",), (0,))
    failed = [
        row("b", "m", 0, T, T, np.ones(8, np.uint8), 9.0, status="failed: x", correct_bits=None)
        for T in GRID
    ]
    short = [row("c", "m", 0, T, T, np.ones(8, np.uint8), 9.0) for T in (1, 2)]
    unfinished = [row("a", "m", 1, T, T, np.ones(400, np.uint8), 9.0) for T in GRID[:4]]
    assert [c.place for c in cases_from_rows([*table, *failed, *short])] == [("a", "m")]
    again = [replace(r, fingerprint="a") for r in unfinished]
    assert [c.seed for c in cases_from_rows([*table, *again])] == [0]


def test_neurons_that_are_not_known_give_no_threshold():
    table, _ = rows(("a",), ("m",), (0,))
    assert [c.threshold for c in cases_from_rows(table)] == [1.0]
    kept = [replace(r, v_th=None, beta=None, t_ref=None, reset=None) for r in table]
    assert [c.threshold for c in cases_from_rows(kept)] == [None]


def test_two_trainings_of_one_case_are_refused_not_mixed():
    table, _ = rows(("a",), ("m",), (0,))
    longer = [replace(r, epochs=50, key=f"{r.key}-longer") for r in table]
    assert len(cases_from_rows([*table, *table])) == 1  # the same table given twice
    with pytest.raises(DataError, match="m on a with seed 0 was trained at T = 1 in two ways"):
        cases_from_rows([*table, *longer])


def test_cases_survive_their_file():
    table, outputs = rows(("a",), ("m", "n"), (0,))
    cases = cases_from_rows(table, outputs)
    again = read_lines(write_lines(cases), "file")
    assert [c.truth.t_star for c in again] == [c.truth.t_star for c in cases]
    assert write_lines(again) == write_lines(cases)
    assert Case.from_dict(plain(cases[0])) == cases[0]
    with pytest.raises(DataError, match="line 2"):
        read_lines(write_lines(cases[:1]) + '{"dataset": 3}\n', "file")


def test_published_rule_is_the_rule_of_the_theory():
    fitted = get_predictor("published").fit([])
    printed = get_predictor("published-fraction").fit([])
    for d in (5.0, 28.0, 47.0, 217.0):
        one = case(d_eff=d)
        assert fitted.timesteps(one) == timestep_rule(d, 5.0).timesteps.value
        assert printed.timesteps(one) == timestep_rule(d, 0.05, "fraction").timesteps.value


def test_refitted_constant_recovers_the_one_that_made_the_cases():
    dimension = {"a": 10.0, "b": 25.0, "c": 50.0, "d": 80.0}
    cases = grid_of(lambda d, m: math.ceil(1.6 * dimension[d] / 25), lambda d: dimension[d])
    found = fit_constant(cases).constant
    assert 39 / 25 < found.value <= 1.875  # all constants here give the same T
    assert found.low <= found.value <= found.high
    fitted = get_predictor("calibrated").fit(cases)
    assert all(fitted.timesteps(c) == c.truth.t_star for c in cases)


def test_power_law_finds_no_effect_where_there_is_none():
    dimension = {"a": 10.0, "b": 25.0, "c": 50.0, "d": 80.0}
    fitted = get_predictor("power-law").fit(grid_of(lambda d, m: 3, lambda d: dimension[d]))
    assert abs(fitted.exponent) < 1e-9
    assert fitted.timesteps(case(d_eff=1000.0)) == pytest.approx(3)


def test_readout_finds_t_from_one_training_and_noise_needs_outputs():
    cases = grid_of(lambda d, m: {"a": 1, "b": 2, "c": 4, "d": 6}[d])
    readout = get_predictor("readout")
    fitted = readout.fit([c for c in cases if c.dataset != "b"])
    assert {fitted.timesteps(c) for c in cases if c.dataset == "b"} == {2}
    assert not readout.answers(case(pilot=False))
    assert not get_predictor("rate-noise").answers(case())
    with pytest.raises(DataError, match="needs one training"):
        calibrate(readout, cases, by_dataset).predict(case(pilot=False), GRID)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.name)
def test_no_predictor_looks_at_the_outcome_of_the_case_it_predicts(predictor):
    table, outputs = rows()
    cases = cases_from_rows(table, outputs)
    ready = calibrate(predictor, [c for c in cases if c.dataset != "a"], by_dataset)
    for held in [c for c in cases if c.dataset == "a"]:
        honest = ready.predict(held, GRID)
        assert honest == ready.predict(held.hidden(), GRID)
        low, value, high = (
            honest.timesteps.low, honest.timesteps.value, honest.timesteps.high
        )  # fmt: skip
        assert 1 <= low <= value <= high
        for T, loss in zip(GRID, honest.losses, strict=False):
            if max(GRID) == T:  # the plateau by definition: no error of a prediction
                assert (loss.value, loss.low, loss.high) == (0, None, None)
            else:
                assert loss.low <= loss.value <= loss.high
        assert json.loads(json.dumps(honest.to_dict()))["name"] == predictor.name


def test_left_out_errors_come_from_fits_without_the_group():
    seen = []

    class Spy:
        def timesteps(self, case):
            assert case.outcome is None
            return 4.0

        def losses(self, case, steps):
            return None

    def fit(cases):
        seen.append({c.dataset for c in cases})
        return Spy()

    from spikedim.design.predictors import Predictor

    ready = calibrate(Predictor("spy", "nothing", "", fit), grid_of(lambda d, m: 2), by_dataset)
    assert seen == [set("abcd") - {d} for d in "abcd"] + [set("abcd")]
    assert np.allclose(ready.ratios, -1)
    assert ready.predict(case(), GRID).timesteps.low == 2


@given(st.integers(1, 60), st.integers(0, 10_000))
def test_conformal_bounds_hold_a_new_draw_as_often_as_promised(n, seed):
    rng = np.random.default_rng(seed)
    low, high = conformal(rng.standard_normal(n), 0.9)
    assert low <= high


def test_conformal_coverage_of_exchangeable_errors():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        draw = rng.standard_normal(41)
        low, high = conformal(draw[:40], 0.9)
        inside.append(low <= draw[40] <= high)
    assert 0.85 <= np.mean(inside) <= 0.95
    with pytest.raises(ConfigError, match="confidence"):
        conformal(np.zeros(3), 1.0)


def test_expected_accuracy_is_that_of_simulated_noise():
    rng = np.random.default_rng(0)
    margins = rng.normal(1.0, 1.5, 4000)
    simulated = np.mean(margins + 0.2 + 0.8 * rng.standard_normal((200, 4000)) > 0)
    assert accuracy_from_margins(margins, 0.8, 0.2) == pytest.approx(simulated, abs=2e-3)
    assert accuracy_from_margins(margins, 0.0) == np.mean(margins > 0)
    for bad in ((np.array([]), 1.0), (margins, -1.0)):
        with pytest.raises(ConfigError):
            accuracy_from_margins(*bad)


def test_what_a_network_is_expected_to_reach_leaves_every_module_as_it_was():
    model = create_model("spikformer_nano").train()
    (norm, *_) = (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.eval()
    x, y = torch.rand(2, *model.input_shape), torch.zeros(2, dtype=torch.long)
    expected_accuracy(model, x, y, (1, 2))
    assert model.training
    assert not norm.training
    with pytest.raises(ModelError):
        expected_accuracy(model, x[..., 1:], y, (1, 2))
    assert model.training


def test_power_law_of_a_power_law():
    scale, exponent = power_law({T: 3.0 * T**-0.7 for T in GRID})
    assert (scale, exponent) == pytest.approx((3.0, 0.7))
    with pytest.raises(ConfigError, match="two positive"):
        power_law({1: 2.0, 2: 0.0})


@given(st.lists(st.floats(0, 20), min_size=6, max_size=6), st.floats(0, 5))
def test_first_within_is_enough_and_least(lost, tolerance):
    falling = np.array(sorted(lost, reverse=True))
    falling -= falling[-1]
    T = first_within(falling, GRID, tolerance)
    place = GRID.index(T)
    assert falling[place] <= tolerance + 1e-9
    assert place == 0 or falling[place - 1] > tolerance


def test_whole_rounds_halves_up_and_never_below_one():
    assert [whole(v) for v in (0.2, 1.49, 1.5, 2.5, 7.99)] == [1, 1, 2, 3, 8]


def test_published_sweeps_ship_with_their_sources():
    sweeps = published_sweeps()
    assert len(sweeps) == 6
    assert all("arXiv" in sweep.source and sweep.tested >= 10_000 for sweep in sweeps)
    first = published_cases(1.0)[0]
    assert (first.dataset, first.truth.t_star, first.d_eff) == ("cifar10", 4, 47)
    assert first.truth.accuracy == (93.51, 93.59, 95.19, 95.34)


def test_unknown_predictor_names_the_near_ones():
    with pytest.raises(ConfigError, match="readout"):
        get_predictor("readot")
