"""Weight gradients as sums over spikes, against matrix products."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ntk_networks import FAMILIES, network
from spikedim.ntk import Setup, gram, spikes
from spikedim.ntk import compiled as compiling
from spikedim.ntk.compiled import compiled
from spikedim.ntk.plan import in_flight, plans, probe
from spikedim.ntk.spikes import Spikes


def inputs(shape, density, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    return x * (torch.rand(shape, generator=generator) < density)


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    outputs=st.integers(1, 9),
    density=st.floats(0, 0.5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1.0, 0.3, 100.0]),
    weighed=st.booleans(),
    axes=st.permutations(range(4)),
    seed=st.integers(0, 2**31),
)
def test_sums_are_the_product(shape, outputs, density, dtype, scale, weighed, axes, seed):
    stored = scale * inputs([shape[a] for a in axes], density, dtype, seed)
    x = stored.permute(*np.argsort(axes).tolist())  # [B, I, T, R], laid out in any order
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WORK": 0, "DENSITY": 2.0, "OUTPUTS": 1, "ROWS": 1}.items():
            patch.setattr(spikes, name, value)
        found = Spikes.of(x, outputs)
    generator = torch.Generator().manual_seed(seed)
    flat = x.flatten(2)
    g = torch.randn(len(x), flat.shape[2], outputs, generator=generator, dtype=dtype)
    weight = torch.randn(x.shape[1], outputs, generator=generator, dtype=dtype)
    out, inner = flat.new_full((*flat.shape[:2], outputs), 7), flat.new_full((len(x), outputs), 7)
    found.outer(g, out, weight if weighed else None, inner)
    true = flat @ g
    tight = {"rtol": 0, "atol": (1e-4 if dtype == torch.float32 else 1e-12) * scale}
    torch.testing.assert_close(out, true, **tight)
    expected = (true * weight).sum(1) if weighed else torch.full_like(inner, 7)
    torch.testing.assert_close(inner, expected, **tight)


@pytest.fixture
def always(monkeypatch):
    """However small the product, and dense the inputs."""
    for name, value in {"WORK": 0, "DENSITY": 2.0, "OUTPUTS": 1, "ROWS": 1}.items():
        monkeypatch.setattr(spikes, name, value)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_threads_share_samples_and_outputs(samples, always, monkeypatch):
    class Pool(ThreadPoolExecutor):
        def map(self, part, places):
            shares.extend(places)
            return super().map(part, places)

    shares = []
    monkeypatch.setattr(spikes, "SPLIT", 1)
    monkeypatch.setattr(compiling, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    x = inputs((samples, 5, 2, 3), 0.3, torch.float64)
    g = torch.randn(samples, 6, 9, dtype=torch.float64)
    weight = torch.randn(5, 9, dtype=torch.float64)
    out = torch.empty(samples, 5, 9, dtype=torch.float64)
    inner = torch.empty(samples, 9, dtype=torch.float64)
    Spikes.of(x, 9).outer(g, out, weight, inner)
    torch.testing.assert_close(out, x.flatten(2) @ g)
    torch.testing.assert_close(inner, (out * weight).sum(1))
    assert len(shares) == 4


@pytest.mark.parametrize("rows", [1 << 16, (1 << 16) + 1])
def test_rows_of_any_number(rows, always):
    x = torch.zeros(1, 1, 1, rows)
    x[..., -1] = 3
    g = torch.arange(2.0 * rows).view(1, rows, 2)
    out = torch.empty(1, 1, 2)
    Spikes.of(x, 2).outer(g, out, None, torch.empty(1, 2))
    torch.testing.assert_close(out[0, 0], 3 * g[0, -1])


def test_only_large_products_of_few_spikes(monkeypatch):
    sparse, dense = (inputs((4, 8, 2, 8), share, torch.float32) for share in (0.2, 0.9))
    assert Spikes.of(sparse, 64) is None
    monkeypatch.setattr(spikes, "WORK", sparse.numel() * 64)
    assert Spikes.of(sparse, 64) is not None
    assert Spikes.of(sparse, 63) is None
    assert Spikes.of(dense, 64) is None
    assert Spikes.of(sparse.half(), 64) is None
    monkeypatch.setattr(spikes, "WORK", 0)
    assert Spikes.of(sparse, 16) is None
    assert Spikes.of(sparse[..., :3], 64) is None


def test_memory_is_that_of_inputs_that_are_not_sparse(monkeypatch):
    """Other samples than the one that is probed may not be, and all are laid out at first."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Flatten()).eval()
    setup = Setup(net, None, lambda model, x, T: model(x)[:, :2], False)
    x = torch.zeros(1, 3, 12, 12)
    before = probe(setup, x)
    monkeypatch.setattr(spikes, "WORK", 0)
    found = probe(setup, x)
    patches = 3 * 25 * 64 * 4
    assert found.searched == patches
    assert found.saved >= before.saved
    assert plans(found, 1000, 2, False, 2**33)[1] >= plans(before, 1000, 2, False, 2**33)[1] * 0.8
    many = replace(found, largest=1, searched=1 << 24)
    assert in_flight(many, 1000) == 4


@pytest.mark.parametrize("name", FAMILIES)
def test_kernel_of_every_family(name, monkeypatch):
    model, x, more = network(name, 3, **FAMILIES[name])
    expected = gram(model, x, **more)
    used = []
    outer = Spikes.outer
    monkeypatch.setattr(Spikes, "outer", lambda self, *rest: used.append(1) or outer(self, *rest))
    for setting, value in {"WORK": 0, "DENSITY": 0.9, "OUTPUTS": 1, "ROWS": 1}.items():
        monkeypatch.setattr(spikes, setting, value)
    found = gram(model, x, **more)
    assert used
    for part, true in expected.layers.items():
        np.testing.assert_allclose(
            found.layers[part], true, rtol=1e-9, atol=1e-12 * found.values.max()
        )


@pytest.mark.parametrize("damaged", [True, False])
def test_compiled_code_that_cannot_be_kept_or_read(damaged, always, monkeypatch):
    import numba

    def fails(*arguments):
        raise EOFError("Ran out of input")

    def njit(function, cache=False, **options):
        if cache and not damaged:
            raise RuntimeError("cannot cache function: no locator available")
        return fails if cache else function

    monkeypatch.setattr(numba, "njit", njit)
    compiled.cache_clear()
    x = inputs((2, 3, 1, 4), 0.3, torch.float64)
    g = torch.randn(2, 4, 2, dtype=torch.float64)
    out = torch.empty(2, 3, 2, dtype=torch.float64)
    try:
        Spikes.of(x, 2).outer(g, out, None, out.new_empty(2, 2))
    finally:
        compiled.cache_clear()
    torch.testing.assert_close(out, x.flatten(2) @ g)
