"""Which axis is time, which the samples: by the layout and by what grows, not by divisibility."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedim.adapters import register_neuron, wrap
from spikedim.errors import SpikedimWarning
from spikedim.neurons import LIF, LIFParams
from spikedim.profiling import profile, register_rule, registry
from spikedim.results import plain

PARAMS = LIFParams(threshold=0.3)


def frames(n, size=8, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(network):
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.3
    return network


class Kept(nn.Module):
    """A neuron of the user's own that puts the samples first, [B, T, F]."""

    def forward(self, x):
        u, spikes = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            u = 0.5 * u + x[:, t]
            spikes.append((u > 0.3).to(x))
            u = u - 0.3 * spikes[-1]
        return torch.stack(spikes, 1)


class Recurrent(nn.Module):
    """A neuron with synapses of its own, called once per timestep."""

    def __init__(self, n):
        super().__init__()
        self.inner = nn.Linear(n, n, bias=False)
        self.reset()

    def reset(self):
        self.u = self.s = None

    def forward(self, x):
        u, s = (torch.zeros_like(x),) * 2 if self.u is None else (self.u, self.s)
        self.u = 0.5 * u + x + self.inner(s) - 0.3 * s
        self.s = (self.u > 0.3).to(x)
        return self.s


class Cell(nn.Module):
    """A neuron called once per timestep, with an equivalent."""

    def forward(self, x):
        raise NotImplementedError


register_neuron(Cell)(
    lambda neuron: LIFParams(beta=0.5, threshold=0.3, reset="soft", decay_input=False)
)
for kept in (Kept, Recurrent):
    register_neuron(kept)(lambda neuron: None)


class Dense(nn.Module):
    def __init__(self, batch_first, neuron=lambda: LIF(PARAMS)):
        super().__init__()
        self.first, self.lif, self.head = nn.Linear(64, 6), neuron(), nn.Linear(6, 3)
        self.turn = batch_first and isinstance(self.lif, LIF)
        seeded(self)

    def current(self, x):
        return self.first(x.flatten(2))

    def forward(self, x):
        y = self.current(x)
        s = self.lif(y.transpose(0, 1)).transpose(0, 1) if self.turn else self.lif(y)
        return self.head(s.flatten(2))


class Conv(Dense):
    def __init__(self, batch_first):
        super().__init__(batch_first)
        self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)
        seeded(self)

    def current(self, x):
        return self.first(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def figures(found):
    return plain((found.energy, found.dense, found.layers, found.operations)), found.sample_spikes


@pytest.mark.parametrize("made", [Dense, Conv])
@pytest.mark.parametrize("T", [3, 5])
def test_samples_first_is_time_first_in_another_order(made, T):
    x = frames(5)
    time, samples = (
        profile(wrap(made(first), input_shape=(1, 8, 8), layout=layout), x, T)
        for first, layout in ((False, "TB"), (True, "BT"))
    )
    assert [o.copies for o in samples.operations] == [T, T]
    (left, spikes), (right, others) = figures(time), figures(samples)
    assert left == right
    np.testing.assert_array_equal(spikes, others)


def test_a_kept_neuron_that_puts_the_samples_first():
    with pytest.warns(SpikedimWarning, match="kept as it is"):
        network = wrap(Dense(True, Kept), input_shape=(1, 8, 8), layout="BT")
    x, T = frames(5), 4
    (layer,) = profile(network, x, T).layers
    original = Dense(True, Kept)
    spikes = original.lif(original.current(x[:, None].expand(-1, T, -1, -1, -1)))
    assert layer.neurons == 6
    np.testing.assert_allclose(layer.rate_per_step, spikes.mean((0, 2)), rtol=1e-6)
    np.testing.assert_array_equal(layer.counts.sum(0), spikes.sum((1, 2)))


@pytest.mark.parametrize("n", [2, 4, 6])
def test_channels_may_be_as_many_as_samples_and_timesteps(n):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), Cell(), nn.Flatten(), nn.Linear(144, 4), Cell())
    model = wrap(seeded(network), input_shape=(1, 8, 8), layout="step")
    x, T = frames(n), 4
    together = profile(model, x, T)
    assert [layer.neurons for layer in together.layers] == [144, 4]
    alone = [profile(model, sample[None], T).sample_spikes[0] for sample in x]
    np.testing.assert_array_equal(together.sample_spikes, alone)
    assert len(set(alone)) > 1


class Tokens(nn.Module):
    """A stem that embeds the tokens [B, 4, 16] of a static input once, for all timesteps."""

    def __init__(self, how):
        super().__init__()
        self.how, self.num_steps = how, 4
        self.stem, self.lif, self.head = nn.Linear(16, 8), LIF(PARAMS), nn.Linear(8, 3)
        seeded(self)

    def forward(self, x):
        x = x.reshape(-1, 4, 16)
        if self.how == "module":
            y = self.stem(x)
        elif self.how == "functional":
            y = F.linear(x, self.stem.weight, self.stem.bias)
        elif self.how == "einsum":
            y = torch.einsum("bni,oi->bno", x, self.stem.weight)
        else:
            y = self.stem(x.flatten(0, 1)).unflatten(0, (-1, 4))
        return self.head(self.lif(y.expand(self.num_steps, *y.shape)).mean(2))


@pytest.mark.parametrize("how", ["module", "functional", "einsum", "flat"])
def test_as_many_tokens_as_timesteps_are_no_timesteps(how):
    network = wrap(Tokens(how), input_shape=(1, 8, 8), layout="static")
    for n in (4, 5, 20) if how == "einsum" else (1, 4, 20):  # einsum drops an axis of one
        found = profile(network, frames(n), 4, ["paper-sop"])
        stem = found.operations[0]
        assert (stem.copies, stem.dense) == (1, 4 * 16 * 8)
        assert found.energy[0].charges[0].count == 4 * stem.dense


class Attention(nn.Module):
    """torch's attention, whose products put the tokens before the samples."""

    def __init__(self, layer):
        super().__init__()
        self.stem, self.lif, self.head = nn.Linear(16, 8), LIF(PARAMS), nn.Linear(8, 3)
        self.mixer = layer(8, 2, batch_first=True)
        seeded(self)

    def forward(self, x):
        T, B = x.shape[:2]
        s = self.lif(self.stem(x.reshape(T, B, 4, 16))).flatten(0, 1)
        attend = isinstance(self.mixer, nn.MultiheadAttention)
        y = self.mixer(s, s, s, need_weights=False)[0] if attend else self.mixer(s)
        return self.head(y.unflatten(0, (T, B)).mean(2))


def encoder(width, heads, batch_first):
    return nn.TransformerEncoderLayer(width, heads, 16, batch_first=batch_first)


@pytest.mark.parametrize("layer", [nn.MultiheadAttention, encoder])
def test_layers_of_torch_are_counted_whole_and_by_sample(layer):
    network = wrap(Attention(layer), input_shape=(1, 8, 8))
    x, T = frames(4), 3
    fused = torch.backends.mha.get_fastpath_enabled()
    together = profile(network, x, T)
    assert torch.backends.mha.get_fastpath_enabled() is fused
    assert not together.unsupported
    inside = sum(o.dense for o in together.operations if o.layer.startswith("mixer"))
    projections, products, forward = 4 * 4 * 8 * 8, 2 * 4 * 4 * 8, 2 * 4 * 8 * 16
    assert inside == T * (projections + products + (forward if layer is encoder else 0))
    for i, sample in enumerate(x):
        alone = profile(network, sample[None], T)
        for ours, theirs in zip(together.energy, alone.energy, strict=True):
            np.testing.assert_allclose(ours.samples[:, i], theirs.samples[:, 0], rtol=1e-12)


def test_synapses_of_a_neuron_are_counted():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), Recurrent(6), nn.Linear(6, 3))
    with pytest.warns(SpikedimWarning, match="kept as it is"):
        model = wrap(seeded(network), input_shape=(1, 8, 8), layout="step")
    x, T = frames(5), 4
    found = profile(model, x, T, ["exact-fanout"])
    operations = {o.layer: o for o in found.operations}
    inner, head = operations["2.inner"], operations["3"]
    assert (inner.dense, inner.copies, inner.before_neurons) == (T * 36, T, False)
    spikes = found.layers[0].counts[:T].mean(1)  # those of a step arrive at the next
    assert inner.fanout[0] == pytest.approx(6 * spikes[:-1].sum(), rel=1e-12)
    assert head.fanout[0] == pytest.approx(3 * spikes.sum(), rel=1e-12)
    assert [c.operations for c in found.categories if c.category == "neuron updates"] == [6 * T]
    assert {c.layer for c in found.others}.isdisjoint({"2", "2.inner"})


def test_an_operation_that_reads_weights_uncounted_is_a_finding():
    class Distances(Dense):
        def forward(self, x):
            return torch.cdist(super().forward(x), self.head.weight[:, :3])

    model = wrap(Distances(False), input_shape=(1, 8, 8))
    found = profile(model, frames(2), 2)
    (finding,) = [g for g in found.gates if g.gate == "uncounted"]
    assert (finding.layer, finding.severity) == ("(model)", "error")
    assert found.unsupported[0].name in finding.message
    before = dict(registry._RULES)
    try:
        operation = found.unsupported[0].name.removeprefix("aten.")
        register_rule(getattr(torch.ops.aten, operation), "reduction")
        assert not [g for g in profile(model, frames(2), 2).gates if g.gate == "uncounted"]
    finally:
        registry._RULES.clear()
        registry._RULES.update(before)
