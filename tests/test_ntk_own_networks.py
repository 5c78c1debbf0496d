"""Kernels of networks that people bring, against autograd sample by sample."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.ntk import KernelOperator, by_timestep, gram, kernel_traces, sketched_gram


class Own(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x, T=None):
        return self.function(self, x) if T is None else self.function(self, x, T)


def own(function, **layers):
    torch.manual_seed(0)
    model = Own(function, **{name: make() for name, make in layers.items()}).double().eval()
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 2.0)
    return model


def agrees(model, x, **more):
    np.testing.assert_allclose(
        gram(model, x, **more).values,
        gram(model, x, method="loop", **{k: v for k, v in more.items() if k != "fallback"}).values,
        rtol=1e-10,
        atol=1e-12,
    )


def in_time(read):
    """A loop over time that reads tokens as ``read`` lays them out; half of them are kept."""

    def forward(model, x, T):
        v = total = 0.0
        for _ in range(T):
            v = 0.5 * v + model.norm(model.inner(read(x)))
            s = torch.sigmoid(4 * (v - 0.3))
            v = v - s
            total = total + model.outer(s)
        return read(total).mean(1)

    return forward


LAYERS = {
    "inner": lambda: nn.Linear(6, 8),
    "norm": lambda: nn.LayerNorm(8),
    "outer": lambda: nn.Linear(8, 3),
}


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("read", [lambda x: x, lambda x: x.transpose(0, 1)], ids=["B, L", "L, B"])
def test_batches_of_as_many_samples_as_timesteps_and_tokens(samples, read):
    model = own(in_time(read), **LAYERS)
    agrees(model, torch.rand(samples, 4, 6, dtype=torch.float64), T=4)


@pytest.mark.parametrize("samples", [2, 3])
def test_two_timesteps_and_two_tokens(samples):
    """Of two samples, on which layouts are otherwise told apart."""
    model = own(in_time(lambda x: x), **LAYERS)
    agrees(model, torch.rand(samples, 2, 6, dtype=torch.float64), T=2)


def test_tokens_of_as_many_samples_as_timesteps():
    def forward(model, ids, T):
        total = sum((t + 1) * torch.sin((t + 1) * model.embed(ids)) for t in range(T))
        return model.outer(total).mean(1)

    model = own(forward, embed=lambda: nn.Embedding(7, 5), outer=lambda: nn.Linear(5, 3))
    ids = torch.randint(7, (9, 4), generator=torch.Generator().manual_seed(0))
    for count in (3, 4, 9):
        agrees(model, ids[:count], T=4)


def test_padding_has_no_gradient_wherever_it_begins():
    def forward(model, ids):
        return model.outer(torch.tanh(model.embed(ids))).mean(1)

    layers = {"embed": lambda: nn.Embedding(7, 5, padding_idx=0), "outer": lambda: nn.Linear(5, 3)}
    model = own(forward, **layers)
    nn.init.normal_(model.embed.weight)
    ids = 1 + torch.randint(6, (6, 4), generator=torch.Generator().manual_seed(0))
    for start in (0, 3):
        padded = ids.clone()
        padded[start:, 2:] = 0
        agrees(model, padded)


def image(model, x):
    return model.head(functional.relu(model.last(x)).flatten(1))


def deep(model, x):
    return model.head(functional.relu(model.last(model.conv(x))).flatten(1))


def named(model, x):
    return model.head(input=functional.relu(model.conv(input=x)).flatten(1))


def shifted(model, x):
    y = model.conv(x)
    y += 0.1
    return model.head(functional.relu(model.last(y)).flatten(1))


def shifted_behind(model, x):
    y = model.last(model.conv(x))
    y -= 0.1
    return model.head(functional.relu(y).flatten(1))


def in_place(model, x):
    return model.head(functional.relu_(model.inner(x.flatten(2))).flatten(1))


HEAD = {"head": lambda: nn.Linear(2 * 4 * 4, 3)}
CONV = HEAD | {"conv": lambda: nn.Conv2d(2, 2, 3, padding=1)}


@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (image, HEAD | {"last": lambda: nn.LayerNorm([2, 4, 4])}),
        (image, HEAD | {"last": lambda: nn.LayerNorm([4, 4])}),
        (deep, CONV | {"last": lambda: parametrizations.weight_norm(nn.Conv2d(2, 2, 1))}),
        (deep, CONV | {"last": lambda: parametrizations.spectral_norm(nn.Conv2d(2, 2, 1))}),
        (named, CONV),
        (shifted, CONV | {"last": lambda: nn.BatchNorm2d(2)}),
        (shifted_behind, CONV | {"last": lambda: nn.BatchNorm2d(2)}),
        (deep, CONV | {"last": lambda: nn.BatchNorm2d(2)}),
        (in_place, HEAD | {"inner": lambda: nn.Linear(16, 16)}),
    ],
    ids=[
        "norm of three axes", "norm of two axes", "weight norm", "spectral norm", "named inputs",
        "changed in front of a norm", "changed behind a norm", "norm", "changed in place",
    ],
)  # fmt: skip
def test_layers_and_habits_of_plain_torch(function, layers):
    model = own(function, **layers)
    agrees(model, torch.rand(5, 2, 4, 4, dtype=torch.float64), fallback=True)


class Summing(nn.Linear):
    """Takes a list."""

    def forward(self, parts):
        return super().forward(sum(parts))


def test_a_layer_that_takes_anything():
    layers = {"sum": lambda: Summing(6, 3)}
    model = own(lambda m, x, T: m.sum([x, x]).mean(1), **layers)
    x = torch.rand(4, 5, 6, dtype=torch.float64)
    agrees(model, x, T=2, fallback=True)
    assert gram(model, x, T=2, method="jacobian").values.shape == (4, 4)


def test_embeddings_that_count_over_the_batch_have_no_rule():
    def forward(model, ids):
        return model.outer(torch.tanh(model.embed(ids))).mean(1)

    embed = {"embed": lambda: nn.Embedding(7, 5, scale_grad_by_freq=True)}
    model = own(forward, **embed, outer=lambda: nn.Linear(5, 3))
    ids = torch.randint(7, (6, 4), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match=r"embed\.weight of Embedding has no per-sample"):
        gram(model, ids)
    agrees(model, ids, fallback=True)


def head(model, x):
    return model.head(x.flatten(1))


@pytest.mark.parametrize("method", ["structured", "loop"])
def test_a_network_that_gives_nan_is_refused(method):
    model = own(lambda m, x: torch.sqrt(head(m, x) - 1e9), **HEAD)
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    with pytest.raises(ModelError, match="NaN"):
        gram(model, x, method=method)
    with pytest.raises(ModelError, match="gives NaN or infinity"):
        sketched_gram(model, x)


def test_an_infinite_gradient_is_refused():
    model = own(lambda m, x: (head(m, 0 * x) - m.head.bias.detach()).sqrt(), **HEAD)
    with pytest.raises(ModelError, match="a gradient of the network is NaN or infinite"):
        gram(model, torch.rand(3, 2, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_equal_samples_have_no_dimension_about_their_mean(precision):
    model = own(lambda m, x: torch.tanh(head(m, x)), **HEAD).to(precision)
    x = torch.rand(1, 2, 4, 4, dtype=precision).repeat(8, 1, 1, 1)
    report = gram(model, x).dimension()
    assert {e.value for e in report.estimates.values()} == {0.0}
    assert gram(model, x).dimension(center=False)["pr"].value == pytest.approx(1)
    assert sketched_gram(model, x).centered.value == 0
    traces = kernel_traces(KernelOperator(model, x))
    for found in (traces.trace, traces.square):
        assert 0 <= found.low <= found.value <= found.high
    x[0] += 1e-2  # what differs is told
    assert gram(model, x).dimension()["pr"].value == pytest.approx(1, rel=1e-3)


def test_timesteps_refuse_nan():
    from spikedim.models import create_model

    model = create_model("spikformer_micro", seed=0).eval()
    x = torch.rand(3, *model.input_shape)
    x[1] = math.nan
    with pytest.raises(DataError, match="nan"):
        by_timestep(model, x, T=2)


def test_a_kernel_between_two_sets_says_what_it_is():
    model = own(head, **HEAD)
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    between = gram(model, x, x[:2])
    for ask in (between.plot, between.dimension, lambda: between.alignment([0, 1, 1])):
        with pytest.raises(ConfigError, match="between two sets of samples"):
            ask()
