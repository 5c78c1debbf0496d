"""Profiles of whole networks: energies by hand, identities, invariances, gates, errors."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import LIF, LIFParams
from spikedim.profiling import convention, list_conventions, profile, register_neuron
from spikedim.report.profile import render_profile
from spikedim.results import plain


class Net(nn.Module):
    """Conv - LIF - conv - LIF - residual linear - LIF - linear, in three equivalent layouts."""

    def __init__(self, layout="merged", neuron=None):
        super().__init__()
        self.layout = layout
        neuron = neuron or (lambda: LIF(LIFParams(threshold=0.3)))
        generator = torch.Generator().manual_seed(3)
        self.first, self.lif1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), neuron()
        self.second, self.lif2 = nn.Conv2d(4, 4, 3, stride=2, bias=False), neuron()
        self.third, self.lif3 = nn.Linear(4, 4, bias=False), neuron()
        self.head = nn.Linear(4, 3)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator) - 0.3

    def steps(self, x, T):
        static = x.ndim == 4
        if self.layout == "static" and static:
            y = self.first(x).expand(T, -1, -1, -1, -1)
        else:
            y = x.expand(T, *x.shape) if static else x
            y = self.first(y.flatten(0, 1)).unflatten(0, (T, -1))
        s = self.lif1(y)
        s = self.lif2(self.second(s.flatten(0, 1)).unflatten(0, (T, -1)))
        s = s.flatten(3).transpose(2, 3)  # [T, B, N, C]
        if self.layout == "merged":
            r = self.third(s.flatten(0, 1)).unflatten(0, (T, -1))
        else:
            r = self.third(s)
        s = s + self.lif3(r)
        return self.head(s).mean(2)


def frames(n=6, size=5, seed=0):
    return torch.randn(n, 2, size, size, generator=torch.Generator().manual_seed(seed))


def by_layer(result):
    return {operation.layer: operation for operation in result.operations}


def charged(energy):
    return {charge.layer: charge for charge in energy.charges}


@pytest.fixture(scope="module")
def tiny():
    model = create_model("spikformer_nano", seed=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, *model.input_shape, generator=generator)
    calibrate_batchnorm(model, [x], 4)
    return model, x


def test_energy_equals_hand_calculation():
    T, n = 3, 6
    model, x = Net(), frames(n)
    result = profile(model, x, T, ["paper-sop", "exact-fanout", "integer-as-spikes"])
    s1 = model.lif1(model.first(x).expand(T, -1, -1, -1, -1))
    s2 = model.lif2(model.second(s1.flatten(0, 1)).unflatten(0, (T, n)))
    tokens = s2.flatten(3).transpose(2, 3)
    s3 = model.lif3(model.third(tokens))
    mixed = tokens + s3
    assert set(mixed.unique().tolist()) == {0.0, 1.0, 2.0}
    dense_first = T * 25 * 9 * 2 * 4
    dense_second = 2 * 2 * 9 * 4 * 4
    rate = s1.mean().item()
    paper, exact, units = result.energy
    sops = rate * T * dense_second + tokens.sum().item() / n * 4
    sops += (mixed != 0).sum().item() / n * 3
    assert paper.macs == pytest.approx(dense_first, rel=1e-12)
    assert paper.accumulates == pytest.approx(sops, rel=1e-7)
    assert paper.total.value == pytest.approx((4.6 * dense_first + 0.9 * sops) * 1e-9, rel=1e-7)

    inside = 13 * 13  # taps of a 3 x 3 kernel on 5 x 5 with border 1 that touch the image
    assert exact.macs == T * inside * 2 * 4
    ones = torch.ones(4, 4, 3, 3)
    second = nn.functional.conv2d(s1.flatten(0, 1), ones, stride=2).sum().item() / n
    assert charged(exact)["second"].count == pytest.approx(second, rel=1e-12)
    assert charged(units)["head"].count == pytest.approx(mixed.sum().item() / n * 3, rel=1e-12)
    assert charged(exact)["head"].count < charged(units)["head"].count
    assert by_layer(result)["head"].inputs == ("integer",)
    assert by_layer(result)["third"].inputs == ("binary",)
    assert by_layer(result)["first"].inputs == ("real",)
    dense = dense_first / T + dense_second + 4 * 4 * 4 + 4 * 4 * 3
    assert result.dense.macs == dense
    assert result.dense.total.value == pytest.approx(4.6e-9 * dense, rel=1e-12)


def test_integer_policies():
    base = convention("exact-fanout")
    rules = [
        replace(base, name=policy, integers=policy)
        for policy in ("nonzero", "unit-spikes", "effective-mac", "dense-mac")
    ]
    result = profile(Net(), frames(), 3, rules)
    head = by_layer(result)["head"]
    counts = {e.convention: charged(e)["head"] for e in result.energy}
    assert counts["nonzero"].count == head.fanout[0]
    assert counts["unit-spikes"].count == head.unit_fanout[0]
    assert (counts["effective-mac"].unit, counts["effective-mac"].count) == ("MAC", head.fanout[0])
    assert (counts["dense-mac"].unit, counts["dense-mac"].count) == ("MAC", head.dense)


def test_first_layer_is_charged_by_the_rule_not_by_how_often_it_ran():
    T = 4
    paper = convention("paper-sop")
    rules = [paper, replace(paper, name="once", first_layer_repeats="once")]
    once, repeated = (profile(Net(layout), frames(), T, rules) for layout in ("static", "merged"))
    assert by_layer(once)["first"].copies == 1
    assert by_layer(repeated)["first"].copies == T
    for left, right in zip(once.energy, repeated.energy, strict=True):
        assert left.total == right.total
    first, single = (charged(energy)["first"] for energy in once.energy)
    assert first.count == T * single.count
    assert once.dense.macs == repeated.dense.macs


def test_published_first_layer_constant_of_spikformer():
    """All five ImageNet rows of Spikformer contain 4.6 pJ x 4 x 224² x 27 x 64 = 1.595 mJ.

    The published tables imply 1.596, as the difference of rounded figures.
    """

    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = nn.Conv2d(3, 64, 3, padding=1, bias=False), LIF(LIFParams())

        def steps(self, x, T):
            return self.lif(self.conv(x).expand(T, -1, -1, -1, -1)).mean((3, 4))

    paper, exact = profile(Stem(), torch.rand(1, 3, 224, 224) + 0.1, 4).energy
    assert paper.total.value == pytest.approx(1.596, abs=1e-3)
    assert paper.macs == 4 * 224**2 * 27 * 64
    inside = (3 * 224 - 2) ** 2
    assert exact.macs == 4 * inside * 3 * 64


@pytest.mark.parametrize("name", ["spikformer_nano", "spikformer_tiny"])
def test_every_small_network_is_counted_completely(name):
    model = create_model(name, seed=0).eval()
    x = torch.rand(2, *model.input_shape, generator=torch.Generator().manual_seed(0))
    result = profile(model, x, 2)
    macs = model.macs_per_step()
    assert not result.unsupported
    hidden = [o for o in result.operations if o.layer.split(".")[0] != "head"]
    weighted = sum(o.dense / o.copies for o in hidden if not o.operation.startswith("matmul"))
    assert weighted == macs.dense


def test_binary_image_is_still_a_real_first_layer():
    x = (frames() > 0).float()
    (energy,) = profile(Net(), x, 2, ["exact-fanout"]).energy
    assert charged(energy)["first"].unit == "MAC"
    events = x[None].expand(2, -1, -1, -1, -1)
    (energy,) = profile(Net(), events, 2, ["exact-fanout"]).energy
    assert charged(energy)["first"].unit == "accumulation"


@pytest.mark.parametrize("layout", ["static", "unmerged"])
def test_figures_do_not_depend_on_layout_or_batch_size(layout):
    x = frames(7)
    reference = profile(Net(), x, 3, batch_size=7)
    for size in (1, 2, 3, 7):
        other = profile(Net(layout), x, 3, batch_size=size)
        np.testing.assert_array_equal(other.sample_spikes, reference.sample_spikes)
        assert plain(other.energy) == plain(reference.energy)
        assert plain(other.layers) == plain(reference.layers)


def test_batches_give_the_figures_of_one_tensor():
    x = frames(7)
    whole = profile(Net(), x, 3)
    parts = profile(Net(), iter([x[:3], x[3:]]), 3)
    assert plain(whole.energy) == plain(parts.energy)
    assert parts.samples == 7


def test_sample_figures_belong_to_their_sample():
    x = frames(4)
    together = profile(Net(), x, 3)
    alone = [profile(Net(), x[i : i + 1], 3) for i in range(4)]
    np.testing.assert_array_equal(
        together.sample_spikes, [one.spikes_per_sample.value for one in alone]
    )
    for index, energy in enumerate(together.energy):
        mean = np.mean([one.energy[index].total.value for one in alone])
        assert energy.total.value == pytest.approx(mean, rel=1e-12)
    assert alone[0].spikes_per_sample.low is None


def test_spread_over_samples_is_that_of_a_sample_of_inputs():
    def spread(result):
        (table,) = [t for t in result.tables() if "std / mean" in t.columns]
        return table.rows[0][list(table.columns).index("std / mean")]

    result = profile(Net(), frames(4), 3)
    spikes = result.sample_spikes
    assert spread(result) == pytest.approx(np.std(spikes, ddof=1) / spikes.mean())
    assert spread(profile(Net(), frames(1), 3)) is None


def test_totals_are_sums(tiny):
    model, x = tiny
    result = profile(model, x, 4, list_conventions())
    for energy in (*result.energy, result.dense):
        parts = math.fsum(charge.energy for charge in energy.charges)
        assert parts == pytest.approx(energy.total.value, rel=1e-12)
        assert energy.convention in energy.scope
    layers = math.fsum(layer.spikes.value for layer in result.layers)
    assert layers == pytest.approx(result.spikes_per_sample.value, rel=1e-12)
    for layer in result.layers:
        assert np.mean(layer.rate_per_step) == pytest.approx(layer.rate.value, rel=1e-12)
        assert layer.rate.value * layer.neurons * 4 == pytest.approx(layer.spikes.value, rel=1e-12)


def test_rate_times_dense_is_fanout_without_borders(tiny):
    model, x = tiny
    result = profile(model, x, 4)
    for operation in result.operations:
        events = operation.rates[0] * operation.dense
        if operation.operation.startswith(("linear", "matmul")):
            assert events == pytest.approx(operation.fanout[0], rel=1e-12)
        else:
            assert events >= operation.fanout[0]


def test_spikformer_profile_matches_shapes(tiny):
    model, x = tiny
    result = profile(model, x, 4)
    macs = model.macs_per_step()
    products = [o for o in result.operations if o.operation.startswith("matmul")]
    weighted = [o for o in result.operations if o.operation.startswith(("conv", "linear"))]
    hidden = [o for o in weighted if o.layer != "head"]
    assert sum(o.dense / o.copies for o in hidden) == macs.dense
    assert sum(o.dense / o.copies for o in products) == macs.attention
    total = sum(o.dense / o.copies for o in (*weighted, *products))
    assert result.dense.macs == pytest.approx(total, rel=1e-12)
    assert {layer.name for layer in result.layers} == {
        name for name, module in model.named_modules() if isinstance(module, LIF)
    }
    assert not result.unsupported
    updates = {c.category: c.elements for c in result.categories}["neuron updates"]
    assert updates == 4 * sum(layer.neurons for layer in result.layers)
    assert not [g for g in result.gates if g.severity == "error"]


def test_zero_input_costs_only_the_first_layer():
    model, x = Net(), torch.zeros(3, 2, 5, 5)
    model.head.bias.data.zero_()
    paper, exact = profile(model, x, 4).energy
    assert paper.accumulates == exact.accumulates == exact.macs == 0
    assert paper.total.value == pytest.approx(4 * 25 * 9 * 8 * 4.6e-9, rel=1e-12)


def test_convention_can_charge_neurons_and_spikes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: mine, description: D., energy: {neuron_update: 81, spike: 14}, technology: X, "
        "source: S, spikes: fanout, integers: nonzero, reals: dense, products: excluded, "
        "first_layer: by-kind, first_layer_repeats: once, includes: [], excludes: []}"
    )
    result = profile(Net(), frames(), 3, [path])
    updates = 3 * sum(layer.neurons for layer in result.layers)
    spikes = result.spikes_per_sample.value
    expected = (81 * updates + 14 * spikes) * 1e-9
    assert result.energy[0].total.value == pytest.approx(expected, rel=1e-12)
    assert "81 pJ per neuron update" in result.energy[0].scope


def test_dead_and_saturated_layers_are_named():
    model = Net()
    model.second.weight.data.fill_(-1.0)
    model.first.weight.data.fill_(10.0)
    x = frames().abs() + 0.1
    found = {(g.gate, g.layer): g for g in profile(model, x, 3).gates}
    assert ("saturated", "lif1") in found
    assert ("dead", "lif2") in found
    assert "lower the threshold" in found["dead", "lif2"].mend
    assert "saturated" not in {g.gate for g in profile(model, x, 3, saturation=1.0).gates}


def test_uncalibrated_batchnorm_is_named():
    model = create_model("spikformer_nano", seed=0)
    x = torch.rand(2, *model.input_shape)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    gates = [g for g in profile(model, x, 2).gates if g.gate == "uncalibrated-batchnorm"]
    assert [g.layer for g in gates] == norms
    assert {g.severity for g in gates} == {"error"}
    calibrate_batchnorm(model, [x], 2)
    first = model.get_submodule(norms[0])
    first.num_batches_tracked.zero_()
    (gate,) = [g for g in profile(model, x, 2).gates if g.gate == "uncalibrated-batchnorm"]
    assert (gate.layer, gate.severity) == (norms[0], "note")


def test_smooth_neuron_is_not_binary():
    model = Net(neuron=lambda: LIF(LIFParams(threshold=0.3, smooth=True)))
    gates = [(g.gate, g.layer) for g in profile(model, frames(), 2).gates]
    assert ("non-binary", "lif1") in gates
    assert ("real-input", "second") in gates


class StepNeuron(nn.Module):
    """A foreign neuron with state, called once per step."""

    def forward(self, x):
        self.u = 0.5 * self.u + x
        return (self.u > 0.5).float(), self.u


class StepNet(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inner, self.neuron, self.head = nn.Linear(8, 6), StepNeuron(), nn.Linear(6, 2)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator) - 0.2


def run_steps(model, x, T):
    model.neuron.u = 0.0
    return torch.stack([model.head(model.neuron(model.inner(x))[0]) for _ in range(T)])


def test_foreign_step_by_step_network(monkeypatch):
    from spikedim.profiling import registry

    x = torch.rand(5, 8, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ModelError, match=r"no spiking layers.*register_neuron"):
        profile(StepNet(), x, 3, forward=run_steps)
    monkeypatch.setattr(registry, "_TYPES", list(registry._TYPES))
    assert register_neuron(StepNeuron) is StepNeuron
    result = profile(StepNet(), x, 3, forward=run_steps, batch_size=2)
    inner, head = result.operations
    assert inner.copies == head.copies == 3
    assert inner.dense == 3 * 48
    assert head.fanout[0] == pytest.approx(2 * result.spikes_per_sample.value, rel=1e-12)
    assert result.energy[0].macs == 3 * 48
    assert len(result.layers[0].rate_per_step) == 3
    with pytest.raises(ConfigError, match="subclass"):
        register_neuron(3)


def test_unsupported_operations_are_listed():
    class Odd(Net):
        def steps(self, x, T):
            y = super().steps(x, T)
            return y + torch.fft.rfft(y, dim=-1).real.sum() * 0 + torch.sort(y, -1).values * 0

    result = profile(Odd(), frames(), 2)
    names = {item.name for item in result.unsupported}
    assert any("fft" in name for name in names)
    assert all(0 < item.share < 1 for item in result.unsupported)
    assert "counting rule" in str(result)


@pytest.mark.parametrize("T", [0, -1, 2.0, True])
def test_timesteps_are_checked(T):
    with pytest.raises(ConfigError, match="T="):
        profile(Net(), frames(), T)


def test_errors_name_the_mend():
    x = frames()
    with pytest.raises(ConfigError, match="batch_size=0"):
        profile(Net(), x, 2, batch_size=0)
    with pytest.raises(ConfigError, match="saturation=0"):
        profile(Net(), x, 2, saturation=0)
    with pytest.raises(ConfigError, match=r"paper-sop.*twice"):
        profile(Net(), x, 2, ["paper-sop", "paper-sop"])
    with pytest.raises(DataError, match="no samples"):
        profile(Net(), x[:0], 2)
    with pytest.raises(DataError, match="mix"):
        profile(Net(), [x, x[None].expand(2, -1, -1, -1, -1)], 2)
    with pytest.raises(DataError, match="list"):
        profile(Net(), [[1.0]], 2)
    with pytest.raises(ModelError, match="forward="):
        profile(nn.Sequential(LIF(LIFParams())), x, 2)
    with pytest.raises(ModelError, match="no spiking layer of Net ran"):
        profile(Net(), x, 2, forward=lambda model, v, T: model.first(v))


def test_not_finite_output_names_the_layer():
    model = Net()
    model.third.weight.data.fill_(float("nan"))
    model.head.weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"NaN.*third"):
        profile(model, frames(), 2)


def test_model_is_left_as_found_even_after_an_error():
    model = Net()
    model.train()
    model.second.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        profile(model, torch.zeros(2, 3, 5, 5), 2)

    def failing(module, inputs):
        raise RuntimeError("inside a neuron")

    handle = model.lif1.register_forward_pre_hook(failing)
    with pytest.raises(RuntimeError, match="inside a neuron"):
        profile(model, frames(), 2)
    handle.remove()
    first = profile(model, frames(), 2)
    assert model.training
    assert not model.second.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert plain(first.energy) == plain(profile(model, frames(), 2).energy)
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0


def test_result_reads_and_exports(tiny):
    model, x = tiny
    result = profile(model, x, 4)
    text = str(result)
    assert text.count("paper-sop") >= 2
    assert "exact-fanout" in text
    assert "block.0.attn" in text
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["energy"][0]["convention"] == "paper-sop"
    assert len(data["sample_spikes"]) == len(x)
    assert "<table>" in result._repr_html_()
    axes = result.plot()
    assert len(axes.patches) == len(result.layers)


@pytest.mark.parametrize("strange", [-1, 10, 255])
def test_labels_that_are_no_class_of_the_network_are_refused(tiny, strange):
    model, x = tiny
    labels = [0, 1, strange, 3, 4]
    with pytest.raises(DataError, match=rf"1 of 5 labels .* 10 \(0 to 9\), e.g. {strange};"):
        profile(model, x, 2, labels=labels)


def test_calls_are_those_of_one_pass_whatever_the_batches(tiny):
    model, x = tiny
    whole, parts = (profile(model, x, 2, batch_size=size) for size in (5, 2))
    for attribute in ("categories", "others", "operations", "unsupported"):
        calls = [[item.calls for item in getattr(p, attribute)] for p in (whole, parts)]
        assert calls[0] == calls[1]
    updates = next(c for c in parts.categories if c.category == "neuron updates")
    assert updates.calls == len(parts.layers)


def test_tables_say_what_was_run_and_what_the_sums_are_over(tiny):
    model, x = tiny
    result = profile(model, x, 4, state="untrained")
    energy, *_ = tables = result.tables()
    assert f"({result.spikes_per_sample} per sample, " in energy.title
    assert energy.notes[0] == "Network: untrained."
    operations = next(t for t in tables if t.title.startswith("Synaptic operations"))
    runs = operations.columns.index("runs")
    assert [row[runs] for row in operations.rows] == [o.copies for o in result.operations]
    assert {1, 4} == {o.copies for o in result.operations}
    assert "4 where a layer runs at every timestep;" in operations.notes[0]
    page = render_profile(result)
    assert "network: untrained" in page
    assert page.count(str(result.spikes_per_sample)) >= 2
