from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikedim.data import load_dataset
from spikedim.design import NeuronTarget, design, planner
from spikedim.design.budget import Budget, invert, parse_energy
from spikedim.errors import ConfigError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.profiling import convention, profile
from spikedim.report import render
from spikedim.results import Estimate
from spikedim.storage import Run
from spikedim.training import TrainConfig


def point(T, spikes, energy):
    total = Estimate(energy, unit="mJ")
    profile = SimpleNamespace(
        spikes_per_sample=Estimate(spikes),
        energy=(SimpleNamespace(convention="paper-sop", total=total),),
    )
    return SimpleNamespace(timesteps=T, profile=profile)


POINTS = [point(1, 100, 1e-4), point(2, 200, 2e-4), point(4, 400, 4e-4), point(8, 800, 8e-4)]
QUALITY = [80.0, 90.0, 92.0, 92.0]


@pytest.mark.parametrize(
    ("text", "mj"),
    [("2", 2.0), ("0.5uJ", 5e-4), ("0.5 µJ", 5e-4), ("300 nJ", 3e-4), ("1e-3mJ", 1e-3),
     ("2J", 2000.0), ("5pJ", 5e-9)],
)  # fmt: skip
def test_energies_are_read_with_their_unit(text, mj):
    assert parse_energy(text) == pytest.approx(mj)


@pytest.mark.parametrize("text", ["", "many", "3 kcal", "1 2 mJ", "mJ"])
def test_other_energies_are_one_clear_error(text):
    with pytest.raises(ConfigError, match="energy"):
        parse_energy(text)


def test_budget_takes_the_largest_accuracy_and_of_equals_the_cheapest():
    assert invert(POINTS, Budget(spikes=250), QUALITY).timesteps == 2
    assert invert(POINTS, Budget(spikes=1e9), QUALITY).timesteps == 4
    assert invert(POINTS, Budget(energy=1.5e-4), QUALITY).timesteps == 1
    assert invert(POINTS, Budget(energy=1, spikes=399), QUALITY).timesteps == 2


def test_infeasible_budget_says_what_can_be_reached():
    answer = invert(POINTS, Budget(spikes=50), QUALITY)
    assert answer.timesteps is None
    assert answer.text.startswith("Infeasible")
    assert "100 to 800 spikes" in answer.text
    assert answer.spikes == (100, 800)
    with pytest.raises(ConfigError, match="paper-sop"):
        invert(POINTS, Budget(energy=1, convention="loihi"), QUALITY)
    mine = replace(convention("paper-sop"), name="mine")
    with pytest.raises(ConfigError, match="'mine' was not counted"):
        invert(POINTS, Budget(energy=1, convention=mine), QUALITY)
    for values in ({}, {"energy": 0}, {"spikes": float("nan")}):
        with pytest.raises(ConfigError):
            Budget(**values)


@given(st.floats(1, 2000), st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_no_affordable_point_is_better_than_the_answer(limit, quality):
    answer = invert(POINTS, Budget(spikes=limit), quality)
    fits = [
        (q, p.timesteps)
        for p, q in zip(POINTS, quality, strict=True)
        if p.profile.spikes_per_sample.value <= limit
    ]
    assert (answer.timesteps is None) == (not fits)
    if fits:
        best = max(q for q, _ in fits)
        assert answer.timesteps == min(T for q, T in fits if q == best)


def test_a_budget_inverts_a_design():
    data = load_dataset("digits")
    free = design(data, "spikformer_nano", profile_samples=8)
    spikes = free.operating[0].profile.spikes_per_sample.value
    tight = design(data, "spikformer_nano", profile_samples=8, budget=Budget(spikes=spikes))
    assert tight.recommendation.basis == "budget"
    assert tight.recommended.profile.spikes_per_sample.value <= spikes * 1.001
    assert tight.budget.timesteps == tight.recommendation.timesteps.value
    assert not any("by definition" in line for line in tight.verdict)
    ample = design(data, "spikformer_nano", profile_samples=8, budget=Budget(spikes=1e9))
    assert ample.recommended.timesteps == 8
    assert any("T = 8: 0 points" in line and "by definition" in line for line in ample.verdict)
    assert all((p.lost.low is None) == (p.timesteps == 8) for p in ample.operating)
    assert "0 by definition at the largest T" in ample.tables()[-2].notes[0]
    assert "by definition" in render(ample)
    none = design(data, "spikformer_nano", profile_samples=8, budget=Budget(spikes=1))
    assert none.budget.timesteps is None
    assert none.verdict[0].startswith("Infeasible")
    assert none.recommendation.basis == "predicted"


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory):
    """Verified plans of one run folder; of neuron settings, the one with most spikes is chosen."""
    patch = pytest.MonkeyPatch()
    patch.setattr(planner, "NEURON_GRID", {"threshold": (0.5, 1.5), "beta": (), "refractory": ()})
    patch.setattr(planner, "_cheapest", lambda points, tolerance: max(points, key=_spikes))
    asked = []
    patch.setattr(planner, "find_neuron", lambda *given, **options: asked.append(given))
    data, folder = load_dataset("digits").limited(200, 100), tmp_path_factory.mktemp("r")

    def plan(budget):
        with Run(folder, {}) as run:
            found = design(
                data,
                "spikformer_nano",
                verify=True,
                timesteps=(1, 2),
                config=TrainConfig(epochs=2, validation=0.2),
                budget=budget,
                neuron=NeuronTarget(d_eff=2.0),
                profile_samples=32,
                run=run,
            )
        return found, asked[-1]

    yield plan
    patch.undo()


def _spikes(point):
    return point.spikes_per_sample.value


def test_a_budget_counts_for_neuron_settings_too(budgeted):
    free, _ = budgeted(None)
    assert free.recommended.setting == "threshold = 0.5"
    own = next(p for p in free.operating if p.timesteps == free.recommended.timesteps)
    limit = 1.001 * own.profile.spikes_per_sample.value
    assert free.recommended.profile.spikes_per_sample.value > limit
    tight, _ = budgeted(Budget(spikes=limit))
    assert tight.recommended.timesteps == own.timesteps
    assert tight.recommended.profile.spikes_per_sample.value <= limit
    ample, _ = budgeted(Budget(spikes=1e9))
    advice = ample.recommendation
    assert advice.basis == "budget"
    assert advice.timesteps.value == ample.recommended.timesteps
    chosen = ample.recommended.setting == "threshold = 0.5"
    assert chosen is (ample.recommended.timesteps == ample.neurons.T)
    assert advice.threshold == (0.5 if chosen else 1.0)


def test_a_neuron_is_found_in_the_network_of_the_recommended_timestep(budgeted):
    free, _ = budgeted(None)
    least = free.operating[0].profile.spikes_per_sample.value
    plan, given = budgeted(Budget(spikes=1.001 * least))
    assert plan.recommended.timesteps == given[3] == 1
    assert given[4] == plan.sweep.at(1).checkpoint
    plan, given = budgeted(Budget(spikes=1e9))
    assert given[4] == plan.sweep.at(given[3]).checkpoint


def test_any_energy_convention_can_be_asked_for():
    data, budget = load_dataset("digits"), Budget(energy=1.0, convention="loihi")
    plan = design(data, "spikformer_nano", profile_samples=8, budget=budget)
    named = [energy.convention for energy in plan.recommended.profile.energy]
    assert named == ["paper-sop", "exact-fanout", "loihi"]
    assert "(loihi)" in plan.budget.text
    assert "loihi" in render(plan)
    with pytest.raises(ConfigError, match="nonsense"):
        Budget(energy=1.0, convention="nonsense")


def test_every_timestep_is_profiled_as_the_profile_of_that_timestep():
    data = load_dataset("digits")
    plan = design(data, "spikformer_nano", budget=Budget(spikes=5000.0), profile_samples=64)
    assert "at each T" in plan.model.state
    x, _ = data.tensors("test", 64, 0)
    images, _ = data.tensors("train", 256, 0)
    for point in (plan.operating[0], plan.operating[-1]):
        network = create_model("spikformer_nano", num_classes=10, input_shape=(1, 8, 8), seed=0)
        calibrate_batchnorm(network, images.split(64), point.timesteps)
        alone = profile(network, x, point.timesteps)
        assert point.profile.spikes_per_sample == alone.spikes_per_sample
