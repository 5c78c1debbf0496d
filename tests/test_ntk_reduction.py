from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
import torch
from scipy import stats

from spikedim.data import load_dataset
from spikedim.errors import BudgetError, ConfigError, DataError, ModelError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import LIF, PLIF, LIFParams, record
from spikedim.ntk import effects, gram
from spikedim.ntk.effects import Effect, Sweep, SweepPoint, _effect, sweep
from spikedim.ntk.invert import Inversion, Trial, _Search, crossing, invert
from spikedim.ntk.reduction import _closed_forms, _notes, reduction
from spikedim.ntk.regimes import Regime, regimes
from spikedim.ntk.variants import (
    Membrane,
    calibrated,
    closure,
    combined,
    firing_rate,
    firing_rates,
    mean_rate,
    membrane,
    over_networks,
    pooled,
    split,
    variant,
)
from spikedim.report.picture import picture
from spikedim.results import Estimate, number
from spikedim.theory import reduction as closed

matplotlib.use("Agg")
NEURON = LIFParams(v_reset=-0.5, refractory=1)
T = 3


@pytest.fixture(scope="module")
def x():
    return load_dataset("digits").tensors("train", 16, 0)[0]


def network(x, seed=0, name="spikformer_nano", **changes):
    options = {"embed_dim": 16} if name == "spikformer_nano" else {}
    made = create_model(
        name,
        num_classes=3,
        input_shape=(1, 8, 8),
        seed=seed,
        neuron=replace(NEURON, **changes),
        **options,
    )
    calibrate_batchnorm(made, [x], T)
    return made


@pytest.fixture(scope="module")
def measured(x):
    return reduction([network(x, seed) for seed in (0, 1)], x, T=T)


def outputs(model, x, steps=None):
    with torch.no_grad():
        return model(x, steps)


def participation(model, x):
    """Independent of the library: autograd sample by sample, centred, in float64."""
    rows = []
    for sample in x:
        output = model(sample[None])[0]
        row = []
        for value in output:
            found = torch.autograd.grad(
                value,
                list(model.parameters()),
                retain_graph=True,
                materialize_grads=True,
                allow_unused=True,
            )
            row.append(torch.cat([g.flatten() for g in found]))
        rows.append(torch.stack(row))
    jacobian = torch.stack(rows).double()
    jacobian = jacobian - jacobian.mean(0)
    kernel = torch.einsum("nop,mop->nm", jacobian, jacobian)
    return float(kernel.trace() ** 2 / (kernel**2).sum())


def test_all_mechanisms_are_the_network_and_none_its_continuous_twin(x):
    net = network(x)
    assert torch.equal(
        outputs(variant(net, ("threshold", "leak", "reset", "refractory"), T), x),
        outputs(net, x, T),
    )
    twin = variant(net, (), T)
    assert twin.default_timesteps == 1
    torch.testing.assert_close(outputs(twin, x), outputs(net.continuous(), x))


@pytest.mark.parametrize(
    ("on", "changes"),
    [
        (("threshold", "leak"), {"reset": "none", "refractory": 0}),
        (("threshold", "leak", "reset"), {"refractory": 0}),
        (("threshold", "leak", "refractory"), {"reset": "none"}),
        (("leak",), {"reset": "none", "refractory": 0, "smooth": True}),
        # gain 1 - beta: the steady potential is the current itself
        (("threshold",), {"reset": "none", "refractory": 0, "beta": 0.0}),
        (("threshold", "refractory"), {"reset": "none", "beta": 0.0}),
    ],
)
def test_a_switch_is_a_neuron_parameter(x, on, changes):
    net = network(x)
    switched = outputs(variant(net, on, T), x)
    assert torch.equal(switched, outputs(variant(net, None, T, **changes), x))


def test_without_leak_the_potential_is_the_steady_one(x):
    """Gain 1: g·x/(1 − β), so that the threshold is met β-independently like in the twin."""
    net = network(x, decay_input=False, refractory=0, reset="none")
    spiking, smooth = variant(net, ("threshold",), 1), variant(net, (), 1)
    with record(spiking, ("potential",)) as a, record(smooth, ("potential",)) as b:
        outputs(spiking, x), outputs(smooth, x)
    first = next(iter(a))
    torch.testing.assert_close(a.potential[first], b.potential[first])
    with torch.no_grad():
        long = variant(net, ("threshold", "leak"), 60)
        with record(long, ("potential",)) as c:
            long(x)
    torch.testing.assert_close(c.potential[first][-1], a.potential[first][-1])


def test_a_variant_leaves_the_network_alone(x):
    net = network(x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    shared = variant(net, (), T)
    assert all(a is b for a, b in zip(net.parameters(), shared.parameters(), strict=True))
    own = variant(net, (), T, calibrated(x))
    assert not any(a is b for a, b in zip(net.parameters(), own.parameters(), strict=True))
    changed = [n for n, v in own.state_dict().items() if not torch.equal(v, before[n])]
    assert any("running_mean" in name for name in changed)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert net.config.neuron == NEURON


def test_mechanisms_need_others(x):
    present = ("threshold", "leak", "reset", "refractory")
    assert closure(("reset",), present) == ("threshold", "leak", "reset")
    assert closure(("refractory",), present) == ("threshold", "refractory")
    assert closure(("leak",), present) == ("leak",)
    net = network(x)
    with pytest.raises(ConfigError, match="does nothing without threshold"):
        variant(net, ("refractory",))
    with pytest.raises(ConfigError, match="'rest' is unknown"):
        variant(net, ("rest",))


def test_d_eff_equals_that_of_an_autograd_loop(x):
    net = network(x).double()
    found = reduction(net, x[:8].double(), T=T)
    for setting in found.settings:
        if setting.on in ((), ("threshold", "leak", "reset", "refractory")):
            expected = participation(variant(net, setting.on, T), x[:8].double())
            assert setting.dimension.value == pytest.approx(expected, rel=1e-9)


def test_factors_and_products_are_ratios_of_the_combinations(measured):
    at = {s.on: s.dimension.value for s in measured.settings}
    assert len(at) == 8
    by = {f.label: f.value.value for f in measured.factors}
    leaky = ("threshold", "leak")
    assert by["threshold"] == pytest.approx(at["threshold",] / at[()])
    assert by["reset"] == pytest.approx(at[(*leaky, "reset")] / at[leaky])
    assert by["refractory"] == pytest.approx(at["threshold", "refractory"] / at["threshold",])
    assert by["threshold (leak on)"] == pytest.approx(at[leaky] / at["leak",])
    assert by["joint"] == pytest.approx(at[(*leaky, "reset", "refractory")] / at[()])
    assert all(together.gap.value != pytest.approx(1) for together in measured.products)
    whole = measured.products[-1]
    names = ("threshold", "leak", "reset", "refractory")
    assert whole.on == names
    assert whole.product.value == pytest.approx(math.prod(by[name] for name in names))
    assert whole.gap.value == pytest.approx(whole.product.value / whole.joint.value)
    for factor in measured.factors:
        assert set(factor.measured) >= {"pr", "stable_rank", "entropy_rank", "ridge", "pca95_real"}
        assert factor.value.low < factor.value.value < factor.value.high


def test_a_reduction_is_shown_and_stored(measured):
    assert json.loads(json.dumps(measured.to_dict(), allow_nan=False))["networks"] == 2
    assert "refractory" in str(measured)
    ticks = [label.get_text() for label in measured.plot().get_xticklabels()]
    assert ticks[-1] == "joint"


def test_closed_forms_take_the_membrane_in_units_of_the_threshold(measured):
    m = Membrane("all", 1.0, 0.1, 0.6, 0.2, 10)
    means = {("threshold",): m, ("threshold", "leak"): m}
    means["threshold", "refractory"] = replace(m, rate=0.125)
    neuron = LIFParams(threshold=2.0, v_reset=-1.0, refractory=2)
    published, corrected = _closed_forms("threshold", neuron, means, ())
    assert published == closed.threshold_published(1.0, 0.1, 0.6)
    assert corrected == closed.threshold_corrected(1.0, 0.1, 0.6)
    assert _closed_forms("reset", neuron, means, ()) == (0.8, 0.8)
    assert _closed_forms("refractory", neuron, means, ()) == (1 - 2 / 8, 1 / 1.4)
    joint = closed.reduction_published(1.0, 0.1, 0.6, -0.5, 2.0)
    assert _closed_forms("joint", neuron, means, ())[0] == joint
    assert _closed_forms("leak", neuron, means, ()) == (None, None)
    factor = measured.factors[0]
    assert factor.error(factor.published) == factor.published / factor.value.value - 1


def test_membrane_statistics_pool_all_neurons(x):
    net = network(x).eval()
    rows = membrane(net, x)
    with torch.no_grad(), record(net, ("spikes", "potential")) as recording:
        net(x)
    units = [
        net.get_submodule(name).params.threshold * torch.ones_like(u)
        for name, u in recording.potential.items()
    ]
    u = torch.cat(
        [(v / w).flatten() for v, w in zip(recording.potential.values(), units, strict=True)]
    )
    s = torch.cat([v.flatten() for v in recording.spikes.values()])
    every = pooled(rows)
    assert every.mean == pytest.approx(float(u.double().mean()), abs=1e-6)
    assert every.deviation == pytest.approx(float(u.double().std(correction=0)), rel=1e-5)
    assert every.rate == pytest.approx(float(s.double().mean()))
    assert every.neurons == s.numel() // (len(x) * net.default_timesteps)
    assert {row.threshold for row in rows} == {1.0, 0.5}


def test_the_interval_of_a_mean_is_the_classical_one():
    data = np.random.default_rng(0).standard_normal(12)
    left = [np.delete(data, i).mean() for i in range(12)]
    found = combined(np.array([[data.mean(), *left]]))
    half = stats.t.ppf(0.975, 11) * data.std(ddof=1) / math.sqrt(12)
    assert found.high - found.value == pytest.approx(half)
    # networks alone: samples that do not matter leave Student's interval of the networks
    found = combined(np.repeat(data[:, None], 9, axis=1))
    assert (found.value, found.n) == (pytest.approx(data.mean()), 12)
    assert found.high - found.value == pytest.approx(half)


def test_the_interval_covers():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        samples, nets = rng.standard_normal(30), rng.standard_normal((5, 1))
        groups = np.array_split(np.arange(30), 15)
        kept = [np.arange(30), *(np.setdiff1d(np.arange(30), g) for g in groups)]
        found = combined(nets + np.array([samples[k].mean() for k in kept]))
        hits += found.low < 0 < found.high
    assert hits / 400 > 0.92


def test_silent_networks_are_left_out():
    values = np.array([[1.0, 1.1, 0.9], [math.nan, math.nan, math.nan]])
    assert combined(values).n == 1
    assert math.isnan(combined(values[1:]).value)


def test_what_cannot_be_reduced_is_refused(x):
    net = network(x)
    with pytest.raises(DataError, match="at least 8"):
        reduction(net, x[:4], T=T)
    with pytest.raises(ModelError, match="continuous already"):
        reduction(net.continuous(), x, T=T)
    with pytest.raises(ModelError, match="one configuration"):
        reduction([net, network(x, refractory=0)], x, T=T)
    with pytest.raises(ModelError, match="plain torch module"):
        reduction(LIF(), x)
    with pytest.raises(ConfigError, match="reads samples"):
        reduction(net, x, estimator="two_nn")
    learned = network(x)
    learned.head.add_module("extra", PLIF())
    with pytest.raises(ConfigError, match="learns its leak"):
        sweep(learned, x, "tau_m", (1.5, 2), T=T)


def test_a_missing_refractory_period_is_noted_for_both_ways_of_asking():
    (note,) = _notes({}, replace(NEURON, refractory=0))
    assert "--neuron refractory=1 " in note
    assert "set_neurons(refractory=1)" in note
    assert not _notes({}, NEURON)


def test_slopes_are_those_of_power_laws():
    place = np.log([0.5, 1.0, 2.0])
    noise = 1e-3 * np.random.default_rng(0).standard_normal((3, 3, 9))
    rising = _effect("d_eff", place, 0.7 * place[:, None] + noise, 0.95)
    assert rising.slope.value == pytest.approx(0.7, abs=2e-3)
    assert (rising.sign, rising.verdict, rising.monotone) == (1, "raises", True)
    assert _effect("R", place, -0.7 * place[:, None] + noise, 0.95).verdict == "lowers"
    assert _effect("R", place, noise, 0.95).sign == 0
    assert Effect("R", Estimate(math.nan), False).sign == 0


def test_a_sweep_measures_the_network_of_each_value(x):
    nets = [network(x, seed, refractory=0) for seed in (0, 1)]
    found = sweep(nets, x, "t_ref", (0, 1), T=T)
    logs = [
        math.log(
            gram(variant(net, None, T, refractory=1), x).dimension(interval="none")["pr"].value
        )
        for net in nets
    ]
    assert found.points[1].dimension.value == pytest.approx(math.exp(np.mean(logs)), rel=1e-5)
    change = math.log(found.points[1].dimension.value / found.points[0].dimension.value)
    assert found.effects[0].slope.value == pytest.approx(change)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert found.plot().get_xlabel() == "t_ref"
    assert "t_ref" in str(found)
    assert not [note for note in found.notes if "one network" in note]


@pytest.mark.parametrize("parameter", ["tau_m", "v_reset"])
def test_a_sweep_is_drawn_in_two_panels_with_readable_ticks(parameter):
    drawn = made_sweep(parameter).plot()
    upper, lower = drawn.figure.axes
    assert drawn is upper
    assert (upper.get_ylabel(), lower.get_ylabel(), lower.get_xlabel()) == ("d_eff", "R", parameter)
    assert upper.get_title() == "1 network, 90% intervals"
    drawn.figure.canvas.draw()
    for axes in (upper, lower):
        low, high = axes.get_ylim()
        inside = [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
        assert len([t for t in inside if t.get_text()]) >= 3
    if parameter == "tau_m":
        assert [t.get_text() for t in lower.get_xticklabels()] == ["1", "2", "3"]
    assert picture(made_sweep(parameter)).startswith(b"\x89PNG")


def test_a_sweep_draws_d_eff_alone_into_given_axes():
    figure = matplotlib.figure.Figure()
    axes = figure.subplots()
    assert made_sweep("tau_m").plot(axes) is axes
    assert figure.axes == [axes]
    assert axes.get_ylabel() == "d_eff"
    assert axes.xaxis.label.get_visible()


def made_sweep(parameter):
    """Values of d_eff and R that share a decade which holds no power of ten."""
    points = tuple(
        SweepPoint(
            value,
            Estimate(3.0 + value, 2.5, 8.0, confidence=0.9),
            Estimate(0.3 + value / 10, 0.25, 0.8, confidence=0.9),
            0.1,
        )
        for value in (1.0, 2.0, 3.0)
    )
    return Sweep(parameter, NEURON, T, 16, 1, "pr", True, points, (), ())


def test_a_silent_value_is_left_out_of_the_slope(x):
    found = sweep(network(x), x, "v_th", (0.5, 1.0, 1e6), T=T)
    assert math.isnan(found.points[-1].dimension.value)
    assert math.isfinite(found.effects[0].slope.value)
    assert "v_th = 1e+06" in found.notes[0]
    assert "--initialisations N" in found.notes[-1]


def test_a_sweep_names_the_values_that_hardly_fire(x, monkeypatch):
    net = network(x, refractory=0)
    monkeypatch.setattr(effects, "QUIET", 0.0)
    plain = sweep(net, x, "v_th", (0.5, 1.0), T=T)
    assert len(plain.notes) == 1
    border = max(point.rate for point in sweep(net, x, "v_th", (2.0, 4.0), T=T).points)
    assert border < min(point.rate for point in plain.points)
    monkeypatch.setattr(effects, "QUIET", border * 1.001)
    (note, _) = sweep(net, x, "v_th", (0.5, 1.0, 2.0), T=T).notes
    assert f"At v_th = 2 neurons nearly fall silent ({number(border, 2)} spikes per step)" in note
    assert f"slopes without: d_eff {plain.effects[0].slope}, R {plain.effects[1].slope}" in note
    (note, _) = sweep(net, x, "v_th", (1.0, 2.0), T=T).notes
    assert "too few other values" in note


@pytest.mark.parametrize(
    ("parameter", "values", "message"),
    [
        ("beta", None, "cannot be swept"),
        ("tau_m", (0.5, 2), "at least 1 step"),
        ("t_ref", (0.5, 2), "whole number"),
        ("v_th", (1.0,), "at least 2"),
    ],
)
def test_sweep_mistakes(x, parameter, values, message):
    with pytest.raises(ConfigError, match=message):
        sweep(network(x), x, parameter, values)


def test_rates_cross_where_they_should():
    low, high = crossing(lambda v: 1 / v, 1.0, 0.25)
    assert low < 4 < high < low * 1.01


def ends(estimate):
    return (estimate.low, estimate.high)


def jackknifed(spiking, twin, x):
    """95 % interval of d_eff, or of its ratio to the twin's, by leaving out groups of samples."""
    kernels = [gram(net, x).values for net in (spiking, twin) if net is not None]
    logs = []
    for group in split(len(x), 0):
        kept = np.setdiff1d(np.arange(len(x)), group)
        parts = [kernel[np.ix_(kept, kept)] for kernel in kernels]
        parts = [k - k.mean(0) - k.mean(1)[:, None] + k.mean() for k in parts]
        found = [math.log(np.trace(k) ** 2 / (k**2).sum()) for k in parts]
        logs.append(found[0] - sum(found[1:]))
    count = len(logs)
    deviation = math.sqrt((count - 1) * np.var(logs))
    reach = stats.t.ppf(0.975, count - 1) * deviation
    whole = [k - k.mean(0) - k.mean(1)[:, None] + k.mean() for k in kernels]
    found = [math.log(np.trace(k) ** 2 / (k**2).sum()) for k in whole]
    middle = found[0] - sum(found[1:])
    return (math.exp(middle - reach), math.exp(middle + reach))


@pytest.mark.parametrize(
    "name", ["spikformer_nano", pytest.param("spike_driven_nano", marks=pytest.mark.slow)]
)
def test_inversion_meets_three_targets(x, name):
    """Acceptance: within 5 % of d_eff, the rate inside the window, checked independently."""
    net = network(x, name=name, refractory=0, v_reset=0.0)
    window = (0.02, 0.3)
    reached = invert(net, x, target_d_eff=1e3, rate_window=window, T=T)
    assert not reached.feasible
    assert reached.most == pytest.approx(len(x) - 1)
    assert {(t.beta, t.refractory) for t in reached.trials} == {(0.5, 0)}  # no use in trying more
    assert "at most, by the number of samples" in str(reached)
    assert reached.reachable is not None
    low, high = reached.reachable
    for share in (0.25, 0.5, 0.75):
        target = low * (high / low) ** share
        found = invert(net, x, target_d_eff=target, rate_window=window, T=T)
        assert found.feasible, str(found)
        best = found.found
        changed = variant(
            net, None, T, threshold=best.threshold, beta=best.beta, refractory=best.refractory
        )
        value = gram(changed, x).dimension(interval="none", estimators=["pr"])["pr"].value
        assert value == pytest.approx(target, rel=0.05)
        assert window[0] <= pooled(membrane(changed, x)).rate <= window[1]
        assert jackknifed(changed, None, x) == pytest.approx(ends(found.estimate))
        assert found.estimate.value == pytest.approx(value, rel=1e-4)
        assert found.estimate.low < found.estimate.value < found.estimate.high
        rows = dict(found.tables()[0].rows)
        assert rows["measured d_eff"] == found.estimate
        assert rows["error of the search"].endswith("%")
        assert found.to_dict()["estimate"]["low"] == found.estimate.low
    axes = found.plot()
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"target ± tolerance", "rate window", "found, 95% interval"} <= labels
    axes.figure.canvas.draw()
    assert axes.get_legend().get_window_extent().x0 > axes.get_window_extent().x1


def test_inversion_of_a_reduction_with_rates_in_hertz(x):
    net = network(x, refractory=0, v_reset=0.0)
    only = {"betas": (0.5,), "refractories": (0,)}
    found = invert(net, x, target_reduction=0.5, rate_window=(5, 75), dt=0.004, T=T, **only)
    assert found.window == pytest.approx((0.02, 0.3))
    if found.feasible:
        assert abs(found.error) <= 0.05
        assert found.found.reduction == pytest.approx(0.5, rel=0.05)
    assert found.estimate.value == pytest.approx(found.found.reduction, rel=1e-4)
    best = {"threshold": found.found.threshold, "beta": 0.5}
    pair = (variant(net, None, T, refractory=0, **best), variant(net, (), T, **best))
    assert jackknifed(*pair, x) == pytest.approx(ends(found.estimate))
    assert "Hz" in str(found)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert found.plot().get_ylabel() == "R"


@pytest.mark.parametrize(
    ("estimator", "most", "target", "tried"),
    [
        ("pr", lambda n, P: n - 1, 1.04, {0.5, 0.25}),
        ("pr", lambda n, P: n - 1, 1.06, {0.5}),
        ("stable_rank", lambda n, P: n - 1, 1.06, {0.5}),
        ("pr_corrected", lambda n, P: P, 0.9, {0.5, 0.25}),  # speaks about more samples
    ],
)
def test_what_so_few_samples_can_show_at_most(x, estimator, most, target, tried):
    net = network(x, refractory=0)
    most = most(len(x), sum(p.numel() for p in net.parameters()))
    only = {"betas": (0.5, 0.25), "refractories": (0,), "rate_window": (0.02, 0.3), "T": T}
    found = invert(net, x, target_d_eff=target * most, estimator=estimator, **only)
    assert found.most == pytest.approx(most)
    assert {trial.beta for trial in found.trials} == tried
    assert ("at most, by" in str(found)) == (target > 1)


def test_a_neuron_silent_without_some_samples_has_no_interval(x, monkeypatch):
    net = network(x, refractory=0)
    logs = np.full(9, np.nan)
    logs[0] = 1.0
    monkeypatch.setattr(_Search, "_logs", lambda self, changed: logs)
    only = {"betas": (0.5,), "refractories": (0,), "rate_window": (0.02, 0.3), "T": T}
    found = invert(net, x, target_d_eff=2, **only)
    assert found.estimate.value == found.found.dimension
    assert found.estimate.low is None
    assert "found" not in str([t.get_text() for t in found.plot().get_legend().get_texts()])


def test_a_neuron_that_hardly_fires_is_pointed_out():
    def found(rate, feasible):
        trial = Trial(1.0, 0.5, 0, 9.0, None, rate)
        return Inversion(
            "d_eff", 9.0, 0.05, (0, 1), None, trial, feasible, (8.0, 9.0), 1.0, (trial,)
        )

    assert "hardly fires, below 0.005 spikes per step" in str(found(0.004, True))
    assert "hardly fires" not in str(found(0.006, True))
    assert "reachable" not in str(found(0.1, True))  # the search ended where it met the target
    assert "8 to 9" in str(found(0.1, False))


def test_each_leak_and_refractory_period_is_drawn_in_its_own_way():
    trials = tuple(
        Trial(1.0, beta, t_ref, 3.0, None, 0.1)
        for beta in (0.25, 0.5, 0.75, 0.9)
        for t_ref in (0, 1, 2)
    )
    found = Inversion("d_eff", 9.0, 0.05, (0, 1), None, None, False, (3.0, 3.0), 1.0, trials)
    lines = found.plot().get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(trials)


def test_a_rate_no_neuron_has_is_infeasible(x):
    found = invert(
        network(x), x, target_d_eff=3, rate_window=(0.9, 0.95), T=T, betas=(0.5,), refractories=(1,)
    )
    assert (found.feasible, found.found, found.reachable) == (False, None, None)
    assert math.isnan(found.error)
    assert found.estimate is None
    assert "no neuron tried fires" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one target"),
        ({"target_d_eff": 2, "target_reduction": 0.5}, "give one target"),
        ({"target_d_eff": 0.5}, "1 or more"),
        ({"target_reduction": -1}, "> 0"),
        ({"target_d_eff": 2, "rate_window": (0.5, 0.2)}, "rate window"),
        ({"target_d_eff": 2, "rate_window": (1, 500), "dt": 0.004}, "0 and 250"),
        ({"target_d_eff": 2, "dt": 0}, "positive"),
        ({"target_d_eff": 2, "tolerance": 0}, "tolerance"),
        ({"target_d_eff": 2, "betas": ()}, "empty"),
    ],
)
def test_inversion_mistakes(x, options, message):
    with pytest.raises(ConfigError, match=message):
        invert(network(x), x, **options)


def test_regimes_are_measured_at_their_rates(x):
    found = regimes(network(x, refractory=0), x, T=T)
    assert [r.name for r in found.regimes] == ["dense", "moderate", "sparse"]
    for regime, hertz in zip(found.regimes, (75, 30, 5.5), strict=True):
        assert regime.rate / found.dt == pytest.approx(hertz, rel=0.1)
        assert 0 <= regime.layers[0] < regime.rate < regime.layers[1]
    assert "layers that fire outside a regime's rates" in str(found)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert "dense" in str(found)
    assert found.plot().get_ylabel().startswith("reduction")
    with pytest.raises(ConfigError, match="dt="):
        regimes(network(x), x, dt=0.1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (35, 45, "reproduced"),
        (-20, 10, "refuted"),
        (20, 45, "undecided, value inside"),
        (-30, 40, "undecided, value outside"),
        (None, None, "not measurable: the network is silent"),
    ],
)
def test_verdicts_follow_the_interval(low, high, verdict):
    middle = math.nan if low is None else (low + high) / 2
    estimate = Estimate(middle, low, high)
    assert Regime("dense", (50, 100), (30, 50), 1.0, 0.3, (0.2, 0.4), estimate).verdict == verdict


def test_a_regime_that_no_threshold_reaches_decides_nothing(x):
    found = regimes(network(x, refractory=1), x, T=T, dt=0.01)  # 75 Hz are 0.75 spikes per step
    dense = found.regimes[0]
    assert not dense.reached
    assert dense.rate / found.dt < 75
    assert dense.verdict == "not measurable: no threshold gives these rates"


def test_rates_need_no_gradient(x):
    net = network(x)
    net.register_forward_hook(lambda *_: grad.append(torch.is_grad_enabled()))
    grad = []
    rates = firing_rates(net, x)
    assert grad == [False]
    assert firing_rate(net, x) == pytest.approx(mean_rate(rates))


def test_silent_networks_have_no_part_in_the_mean_of_initialisations():
    assert over_networks([2.0, 8.0, 0.0]) == over_networks([2.0, 8.0])
    assert over_networks([2.0, 8.0]).value == pytest.approx(4)
    for values in ([0.0, 0.0], [0.0, 3.0]):
        assert math.isnan(over_networks(values).within(1.0, 9.0).value)


def test_kernels_of_comparisons_keep_to_the_memory(x):
    net = network(x)
    for call in (
        partial(reduction, net, x, T=T),
        partial(sweep, net, x, "v_th", (0.5, 1.0), T=T),
        partial(regimes, net, x, T=T),
        partial(invert, net, x, target_d_eff=3, T=T),
    ):
        with pytest.raises(BudgetError):
            call(memory=1e-5)


def test_any_rate_is_any_rate_in_hz_too(x):
    net, only = network(x), {"betas": (0.5,), "refractories": (0,), "T": T}
    plain, hertz = (invert(net, x, target_d_eff=3, dt=dt, **only) for dt in (None, 0.004))
    assert plain.found is not None
    assert hertz.found == plain.found


def test_groups_are_disjoint_and_complete():
    groups = split(50, 0)
    assert len(groups) == 20
    assert sorted(np.concatenate(groups)) == list(range(50))
