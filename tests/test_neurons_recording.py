"""Recording spikes and potentials by layer."""

import copy

import pytest
import torch
from torch import nn

from spikedim.errors import ConfigError, ModelError
from spikedim.neurons import LIF, LIFParams, Trace, lif_potential, record


class Twice(nn.Module):
    """A network that uses one of its layers two times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = LIF(LIFParams(threshold=0.5))
        self.block = nn.ModuleDict({"neuron": LIF()})

    def forward(self, x):
        y = self.block["neuron"](3 * self.stem(x))
        return self.block["neuron"](2 * y)


@pytest.fixture
def x():
    return torch.randn(4, 10, generator=torch.Generator().manual_seed(0)) + 1


def test_records_by_path_and_counts_repeated_calls(x):
    model = Twice()
    expected = model(x)
    with record(model, what=("spikes", "potential")) as recording:
        out = model(x)
    assert torch.equal(out, expected)
    assert list(recording) == ["stem", "block.neuron", "block.neuron#2"]
    assert torch.equal(recording["block.neuron#2"].spikes, out)
    spikes, potential, _ = lif_potential(x, model.stem.params)
    assert torch.equal(recording["stem"].spikes, spikes)
    assert torch.equal(recording["stem"].potential, potential)
    assert torch.equal((potential >= 0.5).float(), spikes)


def test_records_only_what_is_asked_and_only_inside_the_block(x):
    model = Twice()
    with record(model) as recording:
        model(x)
        assert len(recording) == 3
        recording.clear()
        model(x)
    model(x)
    assert list(recording.spikes) == ["stem", "block.neuron", "block.neuron#2"]
    assert recording.potential == {}
    with record(model, "potential") as recording:
        model(x)
    assert recording.spikes == {}
    assert len(recording.potential) == 3
    assert recording["stem"] == Trace(None, recording.potential["stem"])


def test_nested_recordings_and_faults_leave_no_trace(x):
    model = Twice()
    with record(model) as outer, record(model.stem, ("potential",)) as inner:
        model(x)
    assert (len(outer), list(inner)) == (3, [""])
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    with record(model) as later:
        copy.deepcopy(model)
        model(x)
    assert len(later) == 3


def test_recorded_tensors_carry_gradients(x):
    model = Twice()
    x = x.requires_grad_()
    with record(model, ("spikes", "potential")) as recording:
        model(x)
    recording["block.neuron"].potential.sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_bad_requests_are_named():
    with pytest.raises(ConfigError, match=r"'voltage'.*potential"), record(LIF(), ("voltage",)):
        pass
    with pytest.raises(ConfigError, match="nothing"), record(LIF(), ()):
        pass
    with pytest.raises(ModelError, match="Linear has no"), record(nn.Linear(1, 1)):
        pass
