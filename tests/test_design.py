from types import SimpleNamespace

import numpy as np
import pytest

from spikedim.data import load_dataset, make_dataset
from spikedim.design import Bound, Target, design
from spikedim.design.planner import _cheapest
from spikedim.design.verdict import _score, agreement
from spikedim.errors import ConfigError, DataError
from spikedim.report import render
from spikedim.results import Estimate
from spikedim.storage import Run
from spikedim.theory import timestep_rule


def sweep(low, high, grid=(1, 2, 4, 8), learned=True):
    points = [SimpleNamespace(T=t) for t in grid]
    return SimpleNamespace(points=points, t_star=Estimate(low, low, high), learned=learned)


def predicted(low, high):
    value = (low * high) ** 0.5
    return timestep_rule(Estimate(value, low - 0.01, high - 0.01), 1.0, "percent", constant=1.0)


@pytest.mark.parametrize(
    ("prediction", "measured", "expected"),
    [
        ((3, 5), (2, 4), "agrees"),
        ((3, 5), (5, 8), "agrees"),
        ((10, 20), (2, 4), "overestimates"),
        ((1, 2), (4, 8), "underestimates"),
        ((10, 20), (4, None), "undecided"),
        ((1, 2), (4, None), "underestimates"),
        ((3, 5), (1, 8), "undecided"),
    ],
)
def test_agreement(prediction, measured, expected):
    assert agreement(predicted(*prediction), sweep(*measured)) == expected


def test_agreement_without_measurement():
    assert agreement(predicted(3, 5), None) == "not measured"


def test_a_network_at_chance_judges_nothing():
    assert agreement(predicted(10, 20), sweep(1, 2, learned=False)) == "not learned"


@pytest.mark.parametrize(
    ("said", "measured", "expected"),
    [
        ((2, 4), (3, 3, 4), "interval holds the measured T* = 3."),
        ((2, 4), (5, 5, 8), "interval misses the measured T* = 5."),
        ((2, 4), (4, 3, None), "does not decide whether its 90 % interval holds."),
        ((2, 4), (8, 5, None), "interval misses the measured T* = 8 [5 or more]."),
        ((2, None), (8, 5, None), "does not decide whether its 90 % interval holds."),
    ],
)
def test_an_open_ended_measurement_contradicts_but_never_confirms(said, measured, expected):
    best = SimpleNamespace(name="constant", timesteps=Estimate(3.0, *said))
    found = SimpleNamespace(t_star=Estimate(*map(float, measured[:2]), measured[2]))
    assert _score(SimpleNamespace(best=best), found).endswith(expected)


def point(held_out, spikes):
    return SimpleNamespace(
        held_out=Estimate(held_out), accuracy=Estimate(0.0), spikes_per_sample=Estimate(spikes)
    )


def test_cheapest_neuron_setting_keeps_the_accuracy():
    points = [point(90.0, 10), point(96.0, 30), point(95.5, 20), point(94.0, 5)]
    assert _cheapest(points, 1.0) is points[2]
    assert _cheapest(points, 0.0) is points[1]
    assert _cheapest(points, 10.0) is points[3]
    tie = [point(64.9, 30), point(63.9, 20)]  # 64.9 - 1.0 is above 63.9 in floating point
    assert _cheapest(tie, 1.0) is tie[1]


@pytest.fixture(scope="module")
def unverified():
    return design(load_dataset("digits"), "spikformer_nano", profile_samples=16)


def test_unverified_plan_follows_the_best_predictor_and_says_so(unverified):
    plan = unverified
    assert plan.sweep is None
    assert plan.agreement == "not measured"
    assert plan.recommendation.basis == "predicted"
    assert plan.recommendation.timesteps == plan.forecast.best.timesteps
    others = [item.error for item in plan.forecast.ranked[1:]]
    assert others == sorted(others)
    assert plan.recommended.timesteps in [point.timesteps for point in plan.operating]
    assert "untrained" in plan.model.state
    assert "Not yet checked" in plan.verdict[0]


def test_the_published_rule_stays_visible(unverified):
    published = unverified.forecast.named("published").timesteps
    assert published.value == unverified.predictions[0].timesteps.value
    assert unverified.predictions[1].timesteps.value > 1000
    assert any("C·d_eff/ε²" in line for line in unverified.verdict)
    assert "published" in str(unverified)


def test_the_rules_two_intervals_say_what_they_are_of(unverified):
    own, as_predictor = unverified.predictions[0].timesteps, unverified.forecast.named("published")
    assert (own.low, own.high) != (as_predictor.timesteps.low, as_predictor.timesteps.high)
    assert any("by its inputs C = " in line for line in unverified.verdict)
    said = " ".join(note for table in unverified.tables() for note in table.notes)
    assert "the published rule's own interval, elsewhere, is that of its inputs" in said
    assert "published rule, interval of C and d_eff" in str(unverified)
    page = render(unverified)
    assert "interval here is that of its inputs C and d_eff" in page
    assert "by its inputs, at ε" in page


def test_bounds_are_the_theory_filled_in(unverified):
    bounds = {bound.name: bound for bound in unverified.bounds}
    n, d = unverified.model.tokens, unverified.model.channels
    assert (n, d) == (64, 32)
    assert bounds["worst case L_f²·n·d/ε²"].value == pytest.approx(n * d / 0.05**2)
    spikes = unverified.recommended.profile.spikes_per_sample.value
    assert all(b.measured == spikes for b in unverified.bounds if b.unit.startswith("spikes"))
    assert {b.kind for b in unverified.bounds} == {
        "published lower bound",
        "Gaussian reference",
        "code requirement",
    }


def test_only_published_lower_bounds_are_judged():
    assert Bound("", "", "published lower bound", 5.0, "", 6.0, "").respected is True
    assert Bound("", "", "published lower bound", 5.0, "", 4.0, "").respected is False
    assert Bound("", "", "code requirement", 5.0, "", 4.0, "").respected is None


def test_standardised_float_images_are_designed_for():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 8, 8)).astype(np.float32), np.arange(120) % 3
    plan = design(make_dataset("z", (x, y), (x[:30], y[:30])), "spikformer_nano")
    assert all(np.isfinite(b.value) for b in plan.bounds)


def test_same_call_same_plan(unverified):
    again = design(load_dataset("digits"), "spikformer_nano", profile_samples=16)
    first, second = unverified.to_dict(), again.to_dict()
    first.pop("provenance"), second.pop("provenance")
    assert first == second


def test_target_changes_the_prediction():
    loose = design(
        load_dataset("digits"), "spikformer_nano", target=Target(epsilon=10), profile_samples=8
    )
    assert loose.predictions[0].raw.value == pytest.approx(2.3 * 28 / 100)


def test_verification_needs_a_place_and_no_checkpoint(tmp_path):
    data = load_dataset("digits")
    with pytest.raises(ConfigError, match="Run"):
        design(data, "spikformer_nano", verify=True)
    with (
        pytest.raises(ConfigError, match="checkpoint"),
        Run(tmp_path / "r", {}) as run,
    ):
        design(data, "spikformer_nano", verify=True, checkpoint="x.pt", run=run)


def test_images_that_are_all_the_same_are_named():
    x, y = np.full((60, 8, 8), 7, np.uint8), np.arange(60) % 3
    with pytest.raises(DataError, match=r"flat: the training samples .* all the same"):
        design(make_dataset("flat", (x, y), (x, y)), "spikformer_nano")


def test_vectors_cannot_be_designed_for():
    vectors = make_dataset("v", (np.random.default_rng(0).normal(size=(20, 5)), None))
    with pytest.raises(DataError, match="images, event recordings or texts with labels"):
        design(vectors)
