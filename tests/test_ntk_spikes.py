"""Weight gradients as sums over spikes, against matrix products."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ntk_networks import FAMILIES, network
from spikedim.ntk import gram, spikes
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
        patch.setattr(spikes, "WORK", 0)
        patch.setattr(spikes, "DENSITY", 2.0)
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


def test_threads_share_the_samples(monkeypatch):
    monkeypatch.setattr(spikes, "WORK", 0)
    monkeypatch.setattr(spikes, "_SPLIT", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = inputs((7, 5, 2, 3), 0.3, torch.float64)
    g = torch.randn(7, 6, 4, dtype=torch.float64)
    weight, out = torch.randn(5, 4, dtype=torch.float64), torch.empty(7, 5, 4, dtype=torch.float64)
    inner = torch.empty(7, 4, dtype=torch.float64)
    Spikes.of(x, 4).outer(g, out, weight, inner)
    torch.testing.assert_close(out, x.flatten(2) @ g)
    torch.testing.assert_close(inner, (out * weight).sum(1))


def test_only_large_products_of_few_spikes(monkeypatch):
    sparse, dense = (inputs((4, 8, 2, 8), share, torch.float32) for share in (0.2, 0.9))
    assert Spikes.of(sparse, 16) is None
    monkeypatch.setattr(spikes, "WORK", sparse.numel() * 16)
    assert Spikes.of(sparse, 16) is not None
    assert Spikes.of(sparse, 15) is None
    assert Spikes.of(dense, 16) is None
    assert Spikes.of(sparse.half(), 16) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_kernel_of_every_family(name, monkeypatch):
    model, x, more = network(name, 3, **FAMILIES[name])
    expected = gram(model, x, **more)
    used = []
    outer = Spikes.outer
    monkeypatch.setattr(Spikes, "outer", lambda self, *rest: used.append(1) or outer(self, *rest))
    monkeypatch.setattr(spikes, "WORK", 0)
    monkeypatch.setattr(spikes, "DENSITY", 0.9)
    found = gram(model, x, **more)
    assert used
    for part, true in expected.layers.items():
        np.testing.assert_allclose(
            found.layers[part], true, rtol=1e-9, atol=1e-12 * found.values.max()
        )


def test_no_folder_for_compiled_code(monkeypatch):
    import numba

    def njit(function, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(numba, "njit", njit)
    spikes._compiled.cache_clear()
    monkeypatch.setattr(spikes, "WORK", 0)
    monkeypatch.setattr(spikes, "DENSITY", 1.0)
    x = inputs((2, 3, 1, 4), 0.3, torch.float64)
    g = torch.randn(2, 4, 2, dtype=torch.float64)
    out = torch.empty(2, 3, 2, dtype=torch.float64)
    Spikes.of(x, 2).outer(g, out, None, out.new_empty(2, 2))
    spikes._compiled.cache_clear()
    torch.testing.assert_close(out, x.flatten(2) @ g)
