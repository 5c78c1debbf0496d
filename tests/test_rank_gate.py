"""The position-gated output projection and its control, in every family."""

import copy

import pytest
import torch
from torch.func import functional_call

from rank_networks import FAMILIES, inputs
from spikedim.errors import CheckpointError, ConfigError
from spikedim.models import (
    calibrate_batchnorm,
    create_model,
    list_models,
    load_checkpoint,
    load_model,
    model_entry,
    save_checkpoint,
)
from spikedim.models.gating import (
    OVERHEAD,
    PositionGate,
    gate_features,
    position_features,
)
from spikedim.neurons import streaming
from spikedim.ntk import gram
from spikedim.rank import matrix_rank


def built(name, gate="none", **more):
    return create_model(name, gate=gate, **(FAMILIES[name] | more)).double()


def ready(net, x):
    if len(net.input_shape) == 1:
        return net.eval()
    net.set_neurons(threshold=0.3)  # four small images: let every layer fire
    calibrate_batchnorm(net, [x], 3)
    return net


def steps(net, x):
    return net.steps(x, None if len(net.input_shape) == 1 else 3)


def gates_of(net):
    return [module for module in net.modules() if isinstance(module, PositionGate)]


def opened(net):
    """Gates away from 1."""
    for index, gate in enumerate(gates_of(net)):
        generator = torch.Generator().manual_seed(index)
        shape = gate.scores.weight.shape
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        gate.scores.weight.data.copy_(3 * weights)
    return net


def test_bert_base_overhead_is_just_below_the_published_bound():
    gate = PositionGate(768, 12)
    assert gate_features(768, 12) == 768
    assert sum(p.numel() for p in gate.parameters()) == 12 * 769 == 9228
    assert gate.overhead == pytest.approx(0.0156454, abs=1e-7)
    assert gate.overhead < OVERHEAD


@pytest.mark.parametrize(
    "names",
    [
        list_models("*_nano") + list_models("*_small") + ["spikformer_4_384"],
        pytest.param(list_models(), marks=pytest.mark.slow),
    ],
    ids=["small", "all"],
)
def test_overhead_of_every_registered_network(names):
    """Below 1.6 % of each projection and of the network, but where a head has 4 channels."""
    for name in names:
        with torch.device("meta"):
            net = create_model(name, seed=None, gate="position")
        gates = gates_of(net)
        assert gates, name
        for gate in gates:
            assert gate.overhead < OVERHEAD or gate.scores.in_features == 1, name
        added = sum(p.numel() for gate in gates for p in gate.parameters())
        rest = sum(p.numel() for p in net.parameters()) - added
        assert added / rest < OVERHEAD, name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_gate_changes_nothing_and_an_open_one_does(name):
    plain = built(name)
    x = inputs(plain, 4, 1)
    before = steps(ready(plain, x), x)
    for kind in ("position", "constant"):
        net = ready(built(name, kind), x)
        assert torch.equal(steps(net, x), before)
        added = {n for n, _ in net.named_parameters()} - {n for n, _ in plain.named_parameters()}
        assert added
        assert all(".gate.scores." in n for n in added)
        assert not torch.equal(steps(opened(net), x), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_gates_learn_and_follow_the_twin_the_copy_and_functional_calls(name):
    net = built(name, "position")
    x = inputs(net, 4, 1)
    opened(ready(net, x))
    steps(net, x).square().sum().backward()
    for gate in gates_of(net):
        assert gate.scores.bias.grad is not None
    twin = net.continuous("surrogate")
    assert all(a is b for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    other = copy.deepcopy(net)
    assert torch.equal(steps(other, x), steps(net, x))
    state = {n: torch.zeros_like(p) if ".gate." in n else p for n, p in net.named_parameters()}
    wrapped = _Steps(net)
    called = functional_call(wrapped, {f"net.{n}": p for n, p in state.items()}, (x,))
    for gate in gates_of(other):
        torch.nn.init.zeros_(gate.scores.weight)
        torch.nn.init.zeros_(gate.scores.bias)
    torch.testing.assert_close(called, steps(other, x))


class _Steps(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return steps(self.net, x)


def test_what_a_gate_computes():
    """O_i = sum_h g_h(i) Y_h,i W_h, from the definition."""
    gate = PositionGate(8, 2).double()
    with torch.no_grad():
        gate.scores.weight.normal_(generator=torch.Generator().manual_seed(0))
        gate.scores.bias.fill_(0.3)
    y = torch.randn(3, 2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = position_features((5,), gate.scores.in_features)
    g = 2 / (1 + torch.exp(-(p @ gate.scores.weight.T + 0.3)))
    expected = torch.cat([y[..., :4] * g[:, :1], y[..., 4:] * g[:, 1:]], -1)
    torch.testing.assert_close(gate(y), expected)
    torch.testing.assert_close(gate.gates((5,)), g)
    torch.testing.assert_close(gate(y[..., 2:, :], start=2), expected[..., 2:, :])


def test_position_features_of_lines_and_images():
    line = position_features((6,), 4)
    torch.testing.assert_close(line[:, 0], torch.arange(6.0, dtype=torch.float64).sin())
    torch.testing.assert_close(line[:, 3], (torch.arange(6.0, dtype=torch.float64) / 100).cos())
    image = position_features((3, 5), 7)
    assert image.shape == (3, 5, 7)
    torch.testing.assert_close(image[:, 0, :4], image[:, 4, :4])  # rows
    torch.testing.assert_close(image[0, :, 4:], image[2, :, 4:])  # columns
    torch.testing.assert_close(image[:, 0, :4], position_features((3,), 4))


def test_the_control_has_the_same_parameters_and_no_position():
    gate, control = PositionGate(32, 2), PositionGate(32, 2, constant=True)
    sizes = [[p.shape for p in g.parameters()] for g in (gate, control)]
    assert sizes[0] == sizes[1]
    for g in (gate, control):
        g.scores.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    spread = [g.gates((20,)).std(0).max().item() for g in (gate, control)]
    assert spread[0] > 0.1
    assert spread[1] < 1e-6


def test_what_a_gate_tells_apart():
    """Constant contributions c_h of H heads: sum_h g_h(i) c_h determines them iff rank G = H."""
    gate = PositionGate(96, 3).double()
    c = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert matrix_rank(gate.gates((20,)).detach()) == 1  # fresh: the plain sum
    gate.scores.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    g = gate.gates((20,)).detach()
    assert matrix_rank(g) == 3
    torch.testing.assert_close(torch.linalg.lstsq(g, g @ c).solution, c)


def test_a_streamed_text_keeps_its_positions():
    net = opened(built("spikegpt_small", "position").eval())
    x = inputs(net, 4, 1)
    with torch.no_grad():
        whole = net.steps(x)
        with streaming(net):
            pieces = torch.cat([net.steps(x[:, :4]), net.steps(x[:, 4:])])
    torch.testing.assert_close(pieces, whole)


def test_the_tangent_kernel_covers_gates():
    net = built("spikformer_nano", "position")
    x = inputs(net, 4, 1)
    opened(ready(net, x))
    exact = gram(net, x, T=2, method="structured").values
    torch.testing.assert_close(exact, gram(net, x, T=2, method="jacobian").values)


def test_gated_networks_are_saved_and_files_from_before_gates_still_load(tmp_path):
    net = opened(built("spikformer_nano", "position").float())
    path = save_checkpoint(net, tmp_path / "gated.safetensors")
    again = load_model(path)
    assert again.config == net.config
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    plain = create_model("spikformer_nano", **FAMILIES["spikformer_nano"])
    old = save_checkpoint(plain, tmp_path / "plain.safetensors")
    before = old.read_bytes()
    old.write_bytes(_without_gate(before))
    assert old.read_bytes() != before
    assert load_model(old).config == plain.config
    with pytest.raises(CheckpointError, match=r"missing from the file .*gate\.scores"):
        load_checkpoint(net, old)


def _without_gate(data):
    """The file as written before the option existed; the header keeps its length."""
    field = rb", \"gate\": \"none\""
    assert data.count(field) == 1
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(field, b"")
    return data[:8] + header.ljust(size) + data[8 + size :]


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_gates_are_refused(name):
    assert model_entry(name).config.gate == "none"
    with pytest.raises(ConfigError, match="gate='positional': expected one of none, position"):
        create_model(name, gate="positional")
