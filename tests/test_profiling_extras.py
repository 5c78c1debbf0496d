"""Counts equal to the last digit to NeuroBench's and SpikingJelly's, where they are installed.

Run with ``make test-extras``, which gives these libraries an environment of their own.
"""

import contextlib
import io
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import LIF, LIFParams
from spikedim.profiling import profile, register_neuron, registry
from spikedim.profiling.neurobench import neurobench_metrics, neurobench_model

aten = torch.ops.aten


def installed(package, wanted):
    try:
        return version(package) == wanted
    except PackageNotFoundError:
        return False


neurobench = pytest.mark.skipif(
    not installed("neurobench", "2.3.0"), reason="neurobench 2.3.0 is not installed"
)
spikingjelly = pytest.mark.skipif(
    not installed("spikingjelly", "2.0.0"), reason="spikingjelly 2.0.0 is not installed"
)


def network(name, **config):
    """A network in double precision (peers add counts in the type of the network), and an input."""
    model = create_model(name, seed=0, num_classes=10, **config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.8, 1.6, generator=generator)
                module.bias.normal_(0.0, 0.1, generator=generator)
    x = torch.rand(4, *model.input_shape, generator=generator).double()
    calibrate_batchnorm(model, [x], 4)
    return model.eval(), x


NETWORKS = {
    "spikformer": ("spikformer_nano", {}),
    "spikformer-imagenet": (
        "spikformer_8_384_imagenet",
        {"input_shape": (3, 32, 32), "embed_dim": 48, "num_heads": 4, "depth": 2},
    ),
    "qkformer": ("qkformer_nano", {}),
    "spike-driven": ("spike_driven_nano", {}),
    "spike-driven-2": ("spike_driven_v2_nano", {}),
    "spikingresformer": ("spikingresformer_nano", {}),
}


class Steps(nn.Module):
    """Layers called once per step, with pruned weights, on real or ternary input."""

    def __init__(self, input_scale):
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, padding=2, groups=2)
        self.dilated = nn.Conv2d(8, 4, 3, dilation=2, bias=False)
        self.one, self.two, self.head = LIF(LIFParams(threshold=0.2)), LIF(), nn.Linear(36, 10)
        self.scale = input_scale
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator) - 0.3
        for layer in (self.grouped, self.head):
            layer.weight.data[layer.weight.data.abs() < 0.15] = 0.0

    def steps(self, x, T):
        if self.scale == "ternary":
            x = x.sign()
        out = []
        for step in range(T):
            y = self.conv(x if x.ndim == 4 else x[step])
            s = self.one(y[None])[0]
            z = self.grouped(s)
            s = self.two(z[None])[0] + self.two(self.dilated(z.gt(0).to(z.dtype))[None])[0].sum()
            out.append(self.head(s[:, :4, :3, :3].flatten(1)))
        return torch.stack(out)


def as_neurobench(model, T):
    """NeuroBench's own counts of ``model.steps(batch, T)``, batch by batch."""
    from neurobench.models import TorchModel

    class Counted(TorchModel):
        def __call__(self, batch):
            with torch.no_grad():
                return self.net.steps(batch, T).mean(0)

    wrapped = Counted(model)
    wrapped.add_activation_module(LIF)
    return wrapped


def benchmark(model, x, batch_size, metrics, labels=None):
    from neurobench.benchmarks import Benchmark

    labels = torch.zeros(len(x), dtype=torch.long) if labels is None else labels
    loader = DataLoader(TensorDataset(x, labels), batch_size)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = Benchmark(model, loader, [], [], metrics).run(quiet=True)
    assert "Error running" not in said.getvalue(), said.getvalue()
    return found


@neurobench
@pytest.mark.parametrize("batch_size", [4, 3])
@pytest.mark.parametrize("name", [*NETWORKS, "steps-ternary", "steps-real"])
def test_neurobench_counts_equal(name, batch_size):
    from neurobench.metrics import static, workload

    if name in NETWORKS:
        config_name, config = NETWORKS[name]
        model, x = network(config_name, **config)
    else:
        x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(2)).double()
        model = Steps(name.removeprefix("steps-")).double()
    T = 3
    metrics = [
        [static.ParameterCount, static.Footprint, static.ConnectionSparsity],
        [workload.SynapticOperations, workload.ActivationSparsity],
    ]
    theirs = benchmark(as_neurobench(model, T), x, batch_size, metrics)
    found = profile(model, x, T, ["neurobench"], batch_size=batch_size)
    ours = found.neurobench
    assert ours["SynapticOperations"] == theirs["SynapticOperations"]
    assert ours["SynapticOperations"]["Effective_ACs"] > 0
    for key in ("ParameterCount", "Footprint", "ConnectionSparsity"):
        assert ours[key] == theirs[key]
    assert ours["ActivationSparsity"] == pytest.approx(theirs["ActivationSparsity"], rel=1e-12)
    (energy,) = found.energy
    counts = theirs["SynapticOperations"]
    assert (energy.macs, energy.accumulates) == (counts["Effective_MACs"], counts["Effective_ACs"])
    pj = 4.6 * energy.macs + 0.9 * energy.accumulates
    assert energy.total.value == pytest.approx(1e-9 * pj, rel=1e-12)


@neurobench
def test_our_energies_run_as_neurobench_metrics():
    from neurobench.metrics.workload import ClassificationAccuracy, SynapticOperations

    model, x = network("spikformer_nano")
    T, rules = 3, ("paper-sop", "exact-fanout", "with-memory")
    with torch.no_grad():
        labels = model(x, T).argmax(-1)
    labels[0] = (labels[0] + 1) % 10
    counted = neurobench_model(model, T, lambda net, batch, T: net(batch, T).argmax(-1))
    metrics = [[], [*neurobench_metrics(*rules), SynapticOperations, ClassificationAccuracy]]
    theirs = benchmark(counted, x, 2, metrics, labels)
    found = profile(model, x, T, rules, batch_size=2, labels=labels)
    for energy in found.energy:
        own = theirs[f"Energy[{energy.convention}]"]
        assert own["mJ"] == pytest.approx(energy.total.value, rel=1e-12)
        assert (own["MACs"], own["ACs"]) == (energy.macs, energy.accumulates)
    assert theirs["SynapticOperations"] == found.neurobench["SynapticOperations"]
    assert theirs["ClassificationAccuracy"] == found.neurobench["ClassificationAccuracy"] == 0.75


def as_spikingjelly(run):
    """SpikingJelly's SynOps and MACs of products and convolutions in ``run()``."""
    from spikingjelly.activation_based.op_counter import (
        DispatchCounterMode,
        MACCounter,
        SynOpCounter,
    )

    synops, macs = SynOpCounter(), MACCounter()
    with torch.no_grad(), DispatchCounterMode([synops, macs]):
        run()
    products = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution)
    records = macs.get_counts().get("Global", {})
    dense = sum(n for op, n in records.items() if op.overloadpacket in products)
    return synops.get_total(), dense


@spikingjelly
@pytest.mark.parametrize("name", [*NETWORKS, "steps-ternary", "steps-real"])
def test_spikingjelly_counts_equal(name):
    if name in NETWORKS:
        config_name, config = NETWORKS[name]
        model, x = network(config_name, **config)
    else:
        x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(2)).double()
        model = Steps(name.removeprefix("steps-")).double()
    T = 3
    synops, macs = as_spikingjelly(lambda: model.steps(x, T))
    (energy,) = profile(model, x, T, ["spikingjelly"], batch_size=len(x)).energy
    assert energy.accumulates * len(x) == synops
    assert energy.macs * len(x) == macs
    assert synops > 0


@spikingjelly
def test_spikingjellys_own_spikformer_counts_equal(monkeypatch):
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model.spikformer import Spikformer

    monkeypatch.setattr(registry, "_TYPES", list(registry._TYPES))
    register_neuron(neuron.BaseNode)
    torch.manual_seed(0)
    model = Spikformer(
        img_size_h=16, img_size_w=16, patch_size=4, num_classes=10, embed_dims=48, num_heads=4,
        depths=2,
    ).double()  # fmt: skip
    T, x = 4, torch.rand(3, 3, 16, 16).double()
    sequence = x.expand(T, *x.shape)
    for _ in range(30):
        model(sequence)
        functional.reset_net(model)
    model.eval()

    def run(net, batch, T):
        functional.reset_net(net)
        return net(batch.expand(T, *batch.shape))

    synops, macs = as_spikingjelly(lambda: run(model, x, T))
    found = profile(model, x, T, ["spikingjelly", "neurobench"], forward=run)
    energy = found.energy[0]
    assert (energy.accumulates * 3, energy.macs * 3) == (synops, macs)
    assert any(o.operation.startswith("matmul") for o in found.operations)
    if installed("neurobench", "2.3.0"):
        from neurobench.metrics.workload import SynapticOperations
        from neurobench.models import TorchModel

        class Counted(TorchModel):
            def __call__(self, batch):
                with torch.no_grad():
                    return run(self.net, batch, T)

        theirs = benchmark(Counted(model), x, 3, [[], [SynapticOperations]])
        assert found.neurobench["SynapticOperations"] == theirs["SynapticOperations"]
