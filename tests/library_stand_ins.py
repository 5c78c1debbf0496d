"""Stand-ins for the neurons of other libraries, and networks made of them.

Written from the libraries' equations, step by step; they know nothing of ours.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from spikedim.neurons import Surrogate, spike

SHAPE = (2, 6, 6)


class Spike:
    """A surrogate object with a sharpness."""

    def __init__(self, kind="sigmoid", alpha=4.0):
        self.alpha, self._surrogate = alpha, Surrogate(kind, alpha)

    def __call__(self, x):
        return spike(x, self._surrogate)


class BaseNode(nn.Module):
    """SpikingJelly's neurons: a state that lasts until reset(), two step modes."""

    def __init__(self, step_mode="m", v_threshold=1.0, v_reset=0.0, detach_reset=True, **more):
        super().__init__()
        self.step_mode, self.v_threshold, self.v_reset = step_mode, v_threshold, v_reset
        self.detach_reset, self.surrogate_function = detach_reset, Spike()
        for name, value in more.items():
            setattr(self, name, value)
        self.reset()

    def reset(self):
        self.v = self.v_reset or 0.0

    def forward(self, x):
        if self.step_mode == "s":
            return self.step(x)
        return torch.stack([self.step(x_t) for x_t in x])

    def step(self, x):
        v = self.charge(x)
        s = self.surrogate_function(v - self.v_threshold)
        z = s.detach() if self.detach_reset else s
        self.v = (
            v - z * self.v_threshold if self.v_reset is None else (1 - z) * v + z * self.v_reset
        )
        return s


class IFNode(BaseNode):
    def charge(self, x):
        return self.v + x


class LIFNode(BaseNode):
    tau, decay_input = 2.0, True

    def charge(self, x):
        rest = self.v_reset or 0.0
        if self.decay_input:
            return self.v + (x - (self.v - rest)) / self.tau
        return self.v - (self.v - rest) / self.tau + x


class ParametricLIFNode(BaseNode):
    def __init__(self, **options):
        super().__init__(**options)
        self.w, self.decay_input = nn.Parameter(torch.tensor(0.3)), True

    def charge(self, x):
        return self.v + (x - self.v) * self.w.sigmoid()


class QIFNode(BaseNode):
    def charge(self, x):
        return self.v + 0.5 * (x + self.v * (self.v - 0.8))


class Leaky(nn.Module):
    """snnTorch's neuron: one step per call, silent at threshold, reset in the next step."""

    def __init__(self, beta=0.9, threshold=1.0, reset_mechanism="subtract", **more):
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta))
        self.threshold = nn.Parameter(torch.tensor(threshold))
        self.register_buffer("graded_spikes_factor", torch.tensor(1.0))
        self.register_buffer("mem", torch.zeros(0), False)
        self.reset_mechanism, self.reset_delay = reset_mechanism, True
        self.init_hidden, self.output = True, False
        self.inhibition = self.state_quant = self.surrogate_disable = False
        self.spike_grad = fast_sigmoid()
        for name, value in more.items():
            setattr(self, name, value)

    def reset_mem(self):
        self.mem = torch.zeros(0)
        return self.mem

    def forward(self, x, mem=None):
        if mem is not None:
            self.mem = mem
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        before = (self.mem > self.threshold).to(x)
        if self.reset_mechanism == "zero":
            self.mem = self.beta * (1 - before) * self.mem + x
        else:
            self.mem = self.beta * self.mem + x - before * self.threshold
        s = self.spike_grad(self.mem - self.threshold)
        return s if self.init_hidden else (s, self.mem)


def fast_sigmoid(slope=10):
    """A step with a surrogate, written without ``setup_context`` as in the libraries."""

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x > 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad / (slope * x.abs() + 1) ** 2

    return Gradient.apply


class SNN(nn.Module):
    """Norse's sequence modules: explicit state, synaptic current, silent at threshold."""

    def __init__(self, **p):
        super().__init__()
        self.dt, defaults = 0.001, {"tau_syn_inv": 200.0, "tau_mem_inv": 100.0, "v_leak": 0.0}
        defaults |= {"v_th": 1.0, "v_reset": 0.0, "method": "super", "alpha": 1.0}
        self.p = SimpleNamespace(**(defaults | p))

    def forward(self, x, state=None):
        p, out = self.p, []
        v, i = (torch.as_tensor(p.v_leak), torch.zeros(())) if state is None else state
        for x_t in x:
            i = i + x_t
            v = v + self.dt * p.tau_mem_inv * ((p.v_leak - v) + i)
            i = i - self.dt * p.tau_syn_inv * i
            z = fast_sigmoid(1)(v - p.v_th)
            v = (1 - z) * v + z * p.v_reset
            out.append(z)
        return torch.stack(out), (v, i)


class LIF(SNN):
    pass


for _cls in (BaseNode, IFNode, LIFNode, ParametricLIFNode, QIFNode):
    _cls.__module__ = "spikingjelly.activation_based.neuron.lif"
Leaky.__module__ = "snntorch._neurons.leaky"
SNN.__module__ = LIF.__module__ = "norse.torch.module.lif"


@pytest.fixture(autouse=True)
def norse_threshold(monkeypatch):
    """Where Norse keeps its surrogates."""
    names = ("norse", "norse.torch", "norse.torch.functional", "norse.torch.functional.threshold")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].threshold = lambda x, method, alpha: fast_sigmoid(1)(x)


class Folded(nn.Module):
    """Time and batch as one axis for a layer of torch."""

    def __init__(self, *layers):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x):
        return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class OneByOne(nn.Sequential):
    """A network called with one timestep."""


def network(first, second=None, classes=5):
    """Convolution, neurons, read-out; in float64 so that rounding decides nothing."""
    torch.manual_seed(0)
    layers = [Folded(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)), first, nn.Flatten(2)]
    if second is not None:
        layers += [nn.Linear(144, 8), second]
    return nn.Sequential(*layers, nn.Linear(8 if second is not None else 144, classes)).double()


def stepwise(neuron, classes=5):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), neuron, nn.Flatten(), nn.Linear(144, classes)]
    return nn.Sequential(*layers).double()


def reset(net):
    for module in net.modules():
        for name in ("reset", "reset_mem"):
            if hasattr(module, name):
                getattr(module, name)()


def events(T=7, B=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(T, B, *SHAPE, dtype=torch.float64, generator=generator)
