"""Energies: additive, by hand, zero without spikes, beside conventional networks, by rule."""

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikedim.errors import ConfigError, DataError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import LIF, LIFParams
from spikedim.profiling import (
    Energy,
    UnitEnergy,
    convention,
    list_conventions,
    profile,
    register_rule,
    registry,
    rules,
)
from spikedim.profiling.assemble import per_correct
from spikedim.profiling.baselines import bits_of, compare, mac_price
from spikedim.profiling.counter import Counter
from spikedim.profiling.records import ONCE, steps_of
from spikedim.results import UNCHARGED, Estimate, number, plain
from spikedim.theory.statistics import mean_estimate
from test_profiling_counts import Products, values
from test_profiling_profile import Net, by_layer, charged, frames

EVERY = list_conventions()


def spiking(threshold):
    return Net(neuron=lambda: LIF(LIFParams(threshold=threshold)))


# -- additive --------------------------------------------------------------------------------


@settings(max_examples=12)
@given(
    threshold=st.floats(0.05, 2.0),
    T=st.integers(1, 5),
    n=st.integers(1, 4),
    seed=st.integers(0, 100),
    layout=st.sampled_from(["merged", "static", "unmerged"]),
    events=st.booleans(),
)
def test_energies_add_up_over_layers_steps_and_samples(threshold, T, n, seed, layout, events):
    model = Net(layout, lambda: LIF(LIFParams(threshold=threshold)))
    x = frames(n, seed=seed)
    if events:
        x = torch.stack([x.roll(t, 0) for t in range(T)]).gt(0.5).float()
    found = profile(model, x, T, EVERY, batch_size=3)
    for energy in found.energy:
        total = pytest.approx(energy.total.value, rel=1e-12)
        assert math.fsum(charge.energy for charge in energy.charges) == total
        assert math.fsum((*energy.by_step, energy.once)) == total
        assert energy.samples.sum() / n == total
        assert energy.static + energy.linear + energy.quadratic == total
        grid = np.array(list(energy.layers().values()))
        assert grid.shape[1] == T + 1
        assert grid.sum() == total
        np.testing.assert_allclose(grid.sum(0), [*energy.by_step, energy.once], rtol=1e-12)
        for charge in energy.charges:
            parts = math.fsum((*charge.by_step, charge.once))
            assert parts == pytest.approx(charge.energy, rel=1e-12)
            assert all(part >= 0 for part in charge.by_step)
    for layer in found.layers:
        assert layer.counts.sum() / n == pytest.approx(layer.spikes.value, rel=1e-12)
    for operation in found.operations:
        sums = operation.counts.sum((1, 2)) / n
        np.testing.assert_allclose(sums, operation.fanout, rtol=1e-12)


def test_counts_belong_to_their_step_and_sample():
    T, n = 3, 4
    model, x = Net(), frames(n)
    found = profile(model, x, T, ["exact-fanout"], batch_size=3)
    with torch.no_grad():
        s = model.lif1(model.first(x).expand(T, -1, -1, -1, -1))
    np.testing.assert_array_equal(found.layers[0].counts[:-1], s.sum((2, 3, 4)))
    ones = torch.ones(4, 4, 3, 3)
    reached = nn.functional.conv2d(s.flatten(0, 1), ones, stride=2).sum((1, 2, 3))
    second = by_layer(found)["second"].counts[0]
    np.testing.assert_array_equal(second[:-1], reached.reshape(T, n))
    charge = charged(found.energy[0])["second"]
    np.testing.assert_allclose(
        charge.by_step, 0.9e-9 * reached.double().reshape(T, n).mean(1).numpy(), rtol=1e-12
    )


def test_what_runs_once_has_no_step():
    found = profile(Net("static"), frames(), 3, ["spikingjelly", "exact-fanout"])
    ran, repeated = found.energy
    first = charged(ran)["first"]
    assert first.once == first.energy > 0
    assert not any(first.by_step)
    assert charged(repeated)["first"].once == 0
    assert len(set(charged(repeated)["first"].by_step)) == 1


@given(T=st.integers(1, 6), calls=st.integers(1, 4))
def test_steps_of_calls(T, calls):
    assert steps_of([T] * calls, T).tolist() == list(range(T)) * calls
    repeated = steps_of([1] * (T * calls), T)
    assert repeated.tolist() == [step for step in range(T) for _ in range(calls)]
    if T > 1:
        assert set(steps_of([1], T)) == {ONCE}


# -- without spikes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net", "spikformer_nano", "spikingresformer_nano"])
def test_zero_spikes_cost_exactly_the_first_layer_and_the_static_part(name):
    model = spiking(1e9) if name == "net" else create_model(name, seed=0)
    x = frames() if name == "net" else torch.rand(2, *model.input_shape)
    if name != "net":
        calibrate_batchnorm(model, [x], 3)
        model.set_neurons(threshold=1e9)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and module.bias is not None:
                module.bias.data.zero_()
    found = profile(model, x, 3, EVERY)
    assert found.spikes_per_sample.value == 0
    updates = 3 * sum(layer.neurons for layer in found.layers)
    real = {o.layer for o in found.operations if o.before_neurons or o.inputs == ("real",)}
    for energy in found.energy:
        price = convention(energy.convention).energy
        assert energy.linear == energy.quadratic == 0
        assert energy.accumulates == 0
        traffic = ("weight", "value", "spike bit", "potential")
        paid = [
            charge
            for charge in energy.charges
            if charge.unit in traffic
            or charge.unit == "neuron update"
            or (charge.layer in real and charge.unit == "MAC")
        ]
        assert energy.total.value == pytest.approx(math.fsum(c.energy for c in paid), rel=1e-12)
        sums = {unit: math.fsum(c.count for c in paid if c.unit == unit) for unit in traffic}
        assert sums["potential"] == (2 * updates if price.state_access else 0)


def test_energy_grows_with_every_added_spike():
    x = frames()
    rates, totals = [], []
    for threshold in (2.0, 1.0, 0.5, 0.2):
        found = profile(spiking(threshold), x, 3, EVERY)
        rates.append(found.rate)
        totals.append([energy.total.value for energy in found.energy])
    assert rates == sorted(rates)
    assert np.all(np.diff(totals, axis=0) >= -1e-12)


# -- rules by hand ----------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["binary", "integer", "real"]),
    groups=st.sampled_from([1, 2]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    transposed=st.booleans(),
    seed=st.integers(0, 500),
)
def test_pruned_synapses_are_not_reached(kind, groups, stride, padding, transposed, seed):
    x = values((2, 4, 5, 4), kind, seed, torch.float64)
    shape = (4, 3, 3, 3) if transposed else (6, 4 // groups, 3, 3)
    weight = values(shape, "real", seed + 1, torch.float64)
    weight[0, 0, 0] = 0.0
    function = nn.functional.conv_transpose2d if transposed else nn.functional.conv2d
    reached = function(
        (x != 0).double(), (weight != 0).double(), None, stride, padding, groups=groups
    ).sum((1, 2, 3))
    geometry = ((stride,) * 2, (padding,) * 2, (1, 1), transposed, (0, 0), groups)
    count = rules.convolution(x, weight, *geometry)
    np.testing.assert_array_equal(count.operands[0].counts[rules.Row.LIVE], reached)
    ones = torch.ones_like(weight)
    whole = function(torch.ones_like(x), ones, None, stride, padding, groups=groups)
    assert count.inside == int(whole.sum())
    matrix = weight.flatten(1).t()
    flat = values((7, matrix.shape[0]), kind, seed, torch.float64)
    live = rules.linear(flat, matrix).operands[0].counts[rules.Row.LIVE]
    np.testing.assert_array_equal(live, ((flat != 0).double() @ (matrix != 0).double()).sum(1))


def test_ternary_values_are_spikes_only_where_the_convention_says_so():
    x = torch.tensor([-1.0, 0.0, 1.0, 1.0]).reshape(1, 4)
    assert rules.linear(x, torch.ones(4, 2)).operands[0].kind is rules.Kind.TERNARY
    base = replace(convention("exact-fanout"), integers="dense-mac")
    either = [replace(base, name=which, ternary=which) for which in ("spikes", "integers")]

    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.head = LIF(LIFParams(threshold=0.5)), nn.Linear(4, 2, bias=False)

        def steps(self, x, T):
            spikes = self.lif(x.expand(T, *x.shape)) - self.lif(-x.expand(T, *x.shape))
            return self.head(spikes)

    found = profile(Signed(), 4 * x, 2, either)
    spikes, integers = (charged(energy)["head"] for energy in found.energy)
    assert (spikes.unit, integers.unit) == ("accumulation", "MAC")
    assert integers.count == 2 * 4 * 2
    assert spikes.count < integers.count


def test_inputs_judged_by_call_change_with_the_batches():
    """An input that is binary in one batch and not in the next: what peers count by batch."""

    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.head = LIF(LIFParams(threshold=0.5)), nn.Linear(2, 3, bias=False)

        def steps(self, x, T):
            spikes = self.lif(x.expand(T, *x.shape))
            return self.head(spikes * (1 + (x.amax() > 10)))

    x = torch.tensor([[4.0, 4.0], [40.0, 40.0]])
    found = profile(Switch(), x, 1, ["spikingjelly", "exact-fanout"], batch_size=1)
    call, run = (energy for energy in found.energy)
    assert (call.accumulates, call.macs) == (2 * 3 / 2, 2 * 3 / 2)
    assert (run.accumulates, run.macs) == (2 * 3, 0)


def loop_attention(s):
    """Coincidences, and events times fan-out, of q kᵀ element by element, [T, B]."""
    T, B, h, n, d = s.shape
    pairs, events = np.zeros((T, B)), np.zeros((T, B))
    for t, b, g, i, j, k in product(*map(range, (T, B, h, n, n, d))):
        q, key = bool(s[t, b, g, i, k]), bool(s[t, b, g, j, k])
        pairs[t, b] += q and key
        events[t, b] += q
    return pairs, events


@pytest.mark.parametrize("how", ["@", "einsum", "bmm"])
def test_attention_equals_a_count_element_by_element(how):
    x = torch.rand(3, 2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    model = Products(how)
    pairs, events = loop_attention(model.lif(2.5 * x))
    exact, paper = profile(model, x, 3, ["exact-fanout", "paper-sop"]).energy
    np.testing.assert_allclose(exact.samples[:-1], 0.9e-9 * pairs, rtol=1e-12)
    np.testing.assert_allclose(paper.samples[:-1], 0.9e-9 * events, rtol=1e-12)


@pytest.mark.parametrize("b", [1, 2])
def test_one_sample_is_counted_like_several(b):
    """Of one sample and one step both sides of a product have no batch axis."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = LIF(LIFParams())
            self.scale = nn.Parameter(torch.full((3, 2), 2.0))

        def steps(self, x, T):
            s = self.lif(2.5 * x.expand(T, *x.shape))
            scores = s @ s.mT
            return scores.sum(-1) + (s @ (self.scale * 0.5)).sum(-1)

    x = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    parts = [profile(One(), x[i : i + b], 1) for i in range(0, 2, b)]
    for part in parts:
        assert [o.operation for o in part.operations] == ["matmul", "linear"]
    pairs = sum(part.operations[0].coincident * part.samples for part in parts)
    s = LIF(LIFParams())(2.5 * x[None])[0]
    assert pairs == sum(float((row @ row.mT).sum()) for row in s)


def test_memory_traffic_by_hand():
    T, n = 3, 6
    model, x = Net("static"), frames(n)
    found = profile(model, x, T, ["with-memory", "exact-fanout"])
    memory, arithmetic = found.energy
    neurons = 4 * 25 + 4 * 4 + 4 * 4
    weights = T * (72 + 144 + 16 + 12)
    # operands: image (real, every step by the rule), s1 and tokens (spikes), tokens + s3 (integers)
    words = T * (50 + 16) + T * (100 + 16 + 16 + 12)
    bits = T * (100 + 16) + T * neurons
    expected = 50 * (weights + words + 2 * T * neurons) + 1.5625 * bits
    traffic = memory.total.value - arithmetic.total.value
    assert traffic == pytest.approx(1e-9 * expected, rel=1e-12)
    assert profile(Net("merged"), x, T, ["with-memory"]).energy[0].total == memory.total
    far = profile(model, x, T, ["with-memory-dram"]).energy[0]
    assert far.total.value - arithmetic.total.value == pytest.approx(13 * traffic, rel=1e-12)


def test_other_operations_can_be_priced(tmp_path):
    base = convention("exact-fanout")
    energy = UnitEnergy(other={"normalisation": 4.6, "pooling": 0.9})
    model = create_model("spikformer_nano", seed=0, pools=(False, False, False, True))
    x = torch.rand(2, *model.input_shape)
    found = profile(model, x, 2, [replace(base, name="others", energy=energy)])
    totals = {c.category: c.operations for c in found.categories}
    expected = 4.6 * totals["normalisation"] + 0.9 * totals["pooling"]
    assert found.energy[0].total.value == pytest.approx(1e-9 * expected, rel=1e-12)
    pooled = [c for c in found.others if c.category == "pooling"]
    assert {c.layer.rpartition(".")[0] for c in pooled} == {"patch_embed"}
    assert sum(c.operations for c in pooled) == 9 * sum(c.elements for c in pooled)
    assert not any(c.layer for c in found.categories)
    path = tmp_path / "magic.yaml"
    fields = plain(base) | {"energy": {"other": {"magic": 1}}}
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigError, match=r"energy\.other"):
        convention(path)


# -- users' own rules -------------------------------------------------------------------------


def test_a_users_rule_counts_an_operation(monkeypatch):
    class Odd(Net):
        def steps(self, x, T):
            y = super().steps(x, T)
            rows = y.flatten(0, 1)[:, None]  # [T·B, 1, 3]
            far = torch.cdist(rows, torch.cat([rows, rows], 1)).sum((1, 2))
            return torch.sort(y, -1).values + far.unflatten(0, (T, -1))[..., None]

    before = profile(Odd(), frames(), 2)
    names = {item.name for item in before.unsupported}
    assert {"aten.sort", "aten._cdist_forward"} <= names
    share = sum(item.share for item in before.unsupported)
    assert 0 < share < 0.5
    monkeypatch.setattr(registry, "_RULES", {})
    register_rule(torch.ops.aten.sort, "reduction")
    register_rule(
        torch.ops.aten._cdist_forward,
        lambda a, b, *rest: replace(rules.matmul(a, b.mT), op="cdist"),
    )
    after = profile(Odd(), frames(), 2)
    assert not after.unsupported
    (counted,) = [o for o in after.operations if o.operation == "cdist"]
    assert (counted.dense, counted.copies) == (2 * 3 * 2, 2)
    assert after.energy[0].macs > before.energy[0].macs
    with pytest.raises(ConfigError, match="unknown category 'magic'"):
        register_rule(torch.ops.aten.sort, "magic")
    with pytest.raises(ConfigError, match="expected an operation"):
        register_rule(torch.sort, "reduction")


def test_weights_made_of_weights_are_weights():
    class Folded(Net):
        def steps(self, x, T):
            y = super().steps(x, T)
            return y @ (self.head.weight @ self.head.weight.t()).to(torch.float64).to(y.dtype)

    found = profile(Folded(), frames(1), 2, batch_size=1)
    assert by_layer(found)["(model)"].operation.startswith("linear")
    counter = Counter(model := Folded(), 2)
    with torch.no_grad(), counter.batch(1):
        model.steps(frames(1), 2)
    assert len(counter._weights) == len(list(model.parameters()))


# -- conventional networks --------------------------------------------------------------------


def test_bits_and_prices():
    assert [bits_of(T) for T in (1, 2, 3, 4, 7, 8, 15, 16)] == [1, 2, 2, 3, 3, 4, 4, 5]
    assert mac_price(32) == pytest.approx(4.6, rel=1e-15)
    assert mac_price(3) == pytest.approx(3.7 * 3 / 32 + 0.9, rel=1e-15)
    found = profile(Net(), frames(), 4)
    assert found.quantised.macs == found.dense.macs
    ratio = found.quantised.total.value / found.dense.total.value
    assert ratio == pytest.approx(mac_price(3) / 4.6, rel=1e-12)
    assert "3 bits" in found.quantised.scope


def test_where_time_is_the_sequence_the_conventional_network_reads_every_token():
    model = create_model("spikegpt_nano", seed=0)
    tokens = torch.randint(0, model.num_classes, (2, 8))
    found = profile(model, tokens, 8, ["paper-sop"])
    assert found.dense.macs == sum(o.dense for o in found.operations)
    assert found.quantised.total.value == pytest.approx(
        found.dense.total.value * mac_price(1) / 4.6, rel=1e-12
    )
    assert "each of the 8 tokens" in found.dense.scope
    assert "activations of 1 bit =" in found.quantised.scope
    assert found.comparisons[0].baseline_energy == found.dense.total.value


@given(
    parts=st.tuples(*[st.floats(0, 10)] * 3).filter(lambda p: p[1] + p[2] > 1e-3),
    target=st.floats(1e-2, 30),
    rate=st.floats(1e-3, 1),
)
def test_both_cost_the_same_at_the_crossover(parts, target, rate):
    static, linear, quadratic = parts
    base = Estimate(sum(parts), unit="mJ")
    energy = Energy("c", base, 0, 0, (), "", (), 0.0, static, linear, quadratic)
    other = Energy("dense-ann", Estimate(target, unit="mJ"), 0, 0, (), "")
    found = compare(energy, other, rate)
    factor = found.crossover / rate
    if static >= target:
        assert found.crossover == 0
    else:
        cost = static + linear * factor + quadratic * factor**2
        assert cost == pytest.approx(target, rel=1e-9)
        assert (found.gain > 1) == (found.crossover > rate) or found.gain == pytest.approx(1)


def test_comparisons_are_of_one_convention():
    found = profile(Net(), frames(), 3, ["exact-fanout", "with-memory", "spike-only"])
    pairs = [(c.convention, c.baseline) for c in found.comparisons]
    assert pairs == list(
        product(("exact-fanout", "with-memory", "spike-only"), ("dense-ann", "quantised-ann"))
    )
    plain_ann, memory_ann = found.comparisons[0], found.comparisons[2]
    assert plain_ann.baseline_energy == found.dense.total.value
    assert memory_ann.baseline_energy > plain_ann.baseline_energy
    assert found.comparisons[0].rate == pytest.approx(found.rate, rel=1e-12)
    assert "spikes win at rates" in str(found)


# -- cost per correct prediction --------------------------------------------------------------


def test_what_a_convention_counts_for_nothing_is_in_brackets():
    network = create_model("spikformer_nano", seed=0)
    result = profile(
        network, torch.rand(2, *network.input_shape), 2, conventions=("loihi", "paper-sop")
    )
    loihi, paper = result.energy
    assert (loihi.uncharged, paper.uncharged) == (("MAC",), ())
    assert loihi.macs > 0
    table = result.tables()[0]
    cells = {row[0]: row for row in table.cells()}
    assert cells["loihi"][2] == f"({number(loihi.macs)})"
    assert cells["loihi"][3] == number(loihi.accumulates)
    assert cells["paper-sop"][2] == number(paper.macs)
    assert UNCHARGED in table.notes
    paid = profile(network, torch.rand(2, *network.input_shape), 2, conventions=("paper-sop",))
    assert UNCHARGED not in paid.tables()[0].notes


def test_cost_per_correct_prediction():
    model, x, T = Net(), frames(8), 3
    with torch.no_grad():
        predicted = model.steps(x, T).mean(0).argmax(-1)
    labels = predicted.clone()
    labels[:2] = (labels[:2] + 1) % 3
    found = profile(model, x, T, labels=labels, batch_size=3)
    assert found.accuracy.value == 75
    assert found.accuracy.low < 75 < found.accuracy.high
    for item, energy in zip(found.per_correct, found.energy, strict=True):
        assert item.convention == energy.convention
        total = energy.samples.sum()
        assert item.energy.value == pytest.approx(total / 6, rel=1e-12)
        assert item.energy.low < item.energy.value < item.energy.high
    assert "per correct prediction" in str(found)
    assert found.neurobench["ClassificationAccuracy"] == 0.75
    wrong = profile(model, x, T, labels=(predicted + 1) % 3)
    assert wrong.per_correct[0].energy.value == math.inf
    assert plain(wrong)["per_correct"][0]["energy"]["value"] is None
    assert profile(model, x, T).per_correct == ()
    with pytest.raises(DataError, match="8 samples"):
        profile(model, x, T, labels=labels[:3])


@pytest.mark.parametrize(
    ("spread", "n", "accuracy"), [(0.005, 64, 0.99), (0.24, 16, 0.9), (0.24, 64, 0.5)]
)
def test_cost_per_correct_prediction_is_covered_at_any_accuracy(spread, n, accuracy):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        energy = SimpleNamespace(convention="", samples=1 + spread * rng.standard_normal((1, n)))
        found = per_correct(energy, (rng.random(n) < accuracy).astype(float)).energy
        covered.append(found.low <= 1 / accuracy <= found.high)
        assert found.low >= mean_estimate(energy.samples[0], "").low * (1 - 1e-12)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_cost_per_correct_prediction_of_few_wild_samples():
    energy = SimpleNamespace(convention="", samples=np.array([[0.0, 0.0, 0.0, 10.0]]))
    found = per_correct(energy, np.array([1.0, 0.0, 1.0, 1.0])).energy
    assert found.low == 0 < found.value < found.high


def test_cost_per_correct_prediction_is_paired():
    right = np.arange(40) % 2 == 0.0
    noise = np.tile([0.9, 0.9, 1.1, 1.1], 10)
    wide, narrow = (
        per_correct(SimpleNamespace(convention="", samples=noise[None] + sign * right), right * 1.0)
        for sign in (-0.4, 0.4)
    )
    ratios = [p.energy.high / p.energy.low for p in (wide, narrow)]
    assert ratios[1] < 0.8 * ratios[0]


def test_a_small_crossover_is_written_out():
    found = profile(Net(), frames(), 2)
    low = replace(found.comparisons[0], crossover=1.46e-5)
    assert "below 1.46e-05" in str(replace(found, comparisons=(low,)).tables()[1].rows)


# -- export -----------------------------------------------------------------------------------


def test_neurobench_keys_by_hand():
    model, x = Net(), frames()
    model.third.weight.data[0] = 0.0
    found = profile(model, x, 3)
    keys = found.neurobench
    assert keys["ParameterCount"] == sum(p.numel() for p in model.parameters())
    assert keys["Footprint"] == 4 * keys["ParameterCount"]
    assert keys["ConnectionSparsity"] == round(4 / (72 + 144 + 16 + 12), 4)
    assert keys["ActivationSparsity"] == pytest.approx(1 - found.rate, rel=1e-12)
    rates = {layer.name: layer.rate.value for layer in found.layers}
    for name, sparsity in keys["ActivationSparsityByLayer"].items():
        assert sparsity == pytest.approx(1 - rates[name], rel=1e-12)
    operations = by_layer(found)
    synops = keys["SynapticOperations"]
    live = [operations[name].live_fanout[0] for name in ("second", "third")]
    assert operations["third"].live_fanout[0] < operations["third"].fanout[0]
    assert synops["Effective_ACs"] == pytest.approx(sum(live), rel=1e-12)
    assert synops["Dense"] == sum(o.inside for o in operations.values())
    assert "neurobench" in plain(found)
