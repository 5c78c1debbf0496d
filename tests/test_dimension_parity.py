"""Corrected participation ratio against the package of the authors of arXiv 2509.26560."""

import lzma

import numpy as np
import pytest
from numpy.testing import assert_allclose

from spikedim.dimension import measure

dimensionality = pytest.importorskip(
    "dimensionality", reason="the reference implementation is not installed (PyPI dimensionality)"
)


def theirs(x):
    """All four estimates; x is passed raw, the package centres by algebra."""
    return dimensionality.participation_ratio(np.asarray(x, np.float64), return_all=True)


def power_law(n, d, seed):
    rng = np.random.default_rng(seed)
    mix, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return (rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.5) @ mix + 2.0


@pytest.mark.parametrize("n", [4, 20, 100, 600])
@pytest.mark.parametrize("seed", range(3))
def test_row_correction_is_the_same_number(n, seed):
    """The package's ``row`` corrects for few samples of fully known features, as ours does."""
    x = power_law(n, 60, seed)
    want = theirs(x)
    found = measure(x, ["pr", "pr_corrected"])
    assert_allclose(found["pr"].value, want["naive"], rtol=1e-9)
    # theirs is not kept within the possible range of a participation ratio
    assert_allclose(found["pr_corrected"].value, np.clip(want["row"], 1, 60), rtol=1e-8)


def test_skewed_and_discrete_data_agree_too():
    rng = np.random.default_rng(5)
    scale = np.arange(1, 51) ** -0.5
    for x in (rng.exponential(size=(200, 50)) * scale, rng.poisson(scale, (150, 50))):
        found = measure(x, ["pr_corrected"])["pr_corrected"].value
        assert_allclose(found, theirs(x)["row"], rtol=1e-8)


def test_both_corrections_lie_in_our_interval():
    """``both`` also treats the features as a sample of more; few samples dominate here."""
    inside = 0
    for seed in range(20):
        x = power_law(300, 400, seed)
        found = measure(x, ["pr_corrected"])["pr_corrected"]
        inside += found.low <= theirs(x)["both"] <= found.high
    assert inside >= 18


def test_cifar_agrees_within_the_interval(shared):
    with lzma.open(shared / "data" / "cifar10_train_images.npy.xz") as handle:
        x = np.load(handle)[:500].reshape(500, -1)
    found, want = measure(x, ["pr_corrected"])["pr_corrected"], theirs(x)
    assert_allclose(found.value, want["row"], rtol=1e-6)
    assert found.low <= want["both"] <= found.high
