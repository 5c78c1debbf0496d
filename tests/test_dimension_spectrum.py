import lzma
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from spikedim.dimension import (
    FrequentDirections,
    SpectrumStream,
    measure,
    merge_sketches,
    participation_ratio,
    pca_count,
    randomised_spectrum,
    sketch_spectrum,
    spectrum,
    stochastic_traces,
    traces,
)
from spikedim.dimension.arrays import as_samples
from spikedim.dimension.moments import moments
from spikedim.errors import BudgetError, ConfigError, DataError

shapes = st.tuples(st.integers(2, 40), st.integers(1, 30), st.integers(0, 10_000))


def data(n, d, seed=0, scale=True):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x * rng.uniform(0.1, 3, d) + rng.normal(0, 5, d) if scale else x


def reference(x, center=True):
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    z = x - x.mean(0) if center else x
    values = np.linalg.svd(z, compute_uv=False) ** 2 / (len(x) - 1 if center else len(x))
    return values[: min(len(x) - center, x.shape[1])]


def ratio(spec):
    return spec.total_variance**2 / spec.square


@settings(max_examples=60, deadline=None)
@given(shapes, st.booleans())
def test_both_sides_equal_the_singular_values(shape, center):
    x = data(*shape)
    want = reference(x, center)
    for method in ("auto", "covariance", "gram"):
        found = spectrum(x, center, method=method)
        assert_allclose(found.eigenvalues[: len(want)], want, atol=1e-9 * want[0])
        assert_allclose(found.total_variance, want.sum(), rtol=1e-9)
        assert (found.n, found.d) == x.shape
        z = x - x.mean(0) if center else x
        assert_allclose(found.fourth, ((z**2).sum(1) ** 2).sum(), rtol=1e-8)
    assert_allclose(traces(x, center).square, (want**2).sum(), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(shapes, st.floats(1e-6, 1e6))
def test_rotation_translation_and_scale_leave_the_dimension(shape, scale):
    n, d, seed = shape
    x = data(n, d, seed)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    moved = scale * (x @ rotation + rng.standard_normal(d))
    keys = ["pca90", "pr", "pr_corrected", "stable_rank", "entropy_rank", "ridge"]
    before = measure(x, keys, interval="none")
    after = measure(moved, keys, interval="none")
    for key in keys:
        assert_allclose(
            after.estimates[key].value, before.estimates[key].value, rtol=1e-6, equal_nan=True
        )
    spec = before.spectrum
    assert 1 - 1e-9 <= before["pr"].value <= spec.rank + 1e-9


@settings(max_examples=30, deadline=None)
@given(shapes, st.lists(st.floats(0, 1), max_size=4), st.booleans())
def test_merged_streams_equal_the_whole(shape, cuts, center):
    x = data(*shape) + 100
    places = sorted({round(c * len(x)) for c in cuts} - {0, len(x)})
    parts = [SpectrumStream().extend([block]) for block in np.split(x, places)]
    whole = parts[0]
    for part in parts[1:]:
        whole = part.merge(whole)
    found, want = whole.finalise(center), spectrum(x, center)
    length = min(len(found.eigenvalues), len(want.eigenvalues))
    assert_allclose(
        found.eigenvalues[:length], want.eigenvalues[:length], atol=1e-9 * want.eigenvalues[0]
    )
    assert_allclose(found.fourth, want.fourth, rtol=1e-8)
    assert_allclose(whole.mean, x.mean(0), rtol=1e-12)


def test_stream_updates_equal_one_pass_and_subtraction_undoes_addition():
    x = data(500, 12) * 10 + 50
    stream = SpectrumStream().extend(np.array_split(x, 7))
    assert stream.n == 500
    assert_allclose(stream.finalise().eigenvalues, spectrum(x).eigenvalues, rtol=1e-10)
    whole, part = moments(as_samples(x)), moments(as_samples(x[:200]))
    left, want = whole.minus(part), moments(as_samples(x[200:]))
    left = left.about(want.shift)
    assert_allclose(left.scatter, want.scatter, rtol=1e-8, atol=1e-6)
    assert_allclose([left.norm, left.norm2], [want.norm, want.norm2], rtol=1e-9)
    assert_allclose(left.norm_z, want.norm_z, rtol=1e-7, atol=1e-3)


def test_every_type_and_layout_gives_the_same_numbers(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (120, 4, 5), dtype=np.uint8)
    want = reference(base)
    path = tmp_path / "x.npy"
    np.save(path, base)
    flat = base.reshape(120, 20).astype(np.float64)
    strided = np.repeat(np.repeat(base, 2, axis=0), 3, axis=2)[::2, :, ::3]
    assert not strided.flags.c_contiguous
    variants = [
        base, base.astype(np.int64), base.astype(np.float32), base.astype(np.float16),
        np.asfortranarray(flat), strided, np.load(path, mmap_mode="r"), flat.tolist(),
        torch.tensor(base), torch.tensor(base).float().requires_grad_(),
        torch.tensor(base).to(torch.bfloat16), sp.csr_matrix(flat), sp.coo_array(flat),
    ]  # fmt: skip
    for x in variants:
        assert_allclose(spectrum(x).eigenvalues, want, rtol=1e-9)
        assert_allclose(spectrum(x, method="gram").eigenvalues[:20], want, rtol=1e-9)
    flags = base > 127
    assert_allclose(spectrum(flags).eigenvalues, reference(flags), rtol=1e-9)


def test_float32_products_keep_the_promised_accuracy():
    rng = np.random.default_rng(1)
    scale = np.arange(1, 301) ** -0.8
    x = (rng.standard_normal((6000, 300)) * scale + 3).astype(np.float32)
    want = reference(x)
    for array in (x, np.ascontiguousarray(x[:299])):
        found, want = spectrum(array), reference(array)
        assert_allclose(found.eigenvalues, want, atol=1e-6 * want[0])
        assert_allclose(ratio(found), want.sum() ** 2 / (want @ want), rtol=1e-6)
    pixels = rng.integers(0, 256, (6000, 300), dtype=np.uint8)
    assert_allclose(spectrum(pixels).eigenvalues, reference(pixels), rtol=1e-6)
    tiny = (x * np.float32(1e-20)).astype(np.float32)
    assert_allclose(ratio(spectrum(tiny)), ratio(spectrum(x)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
def test_small_values_keep_the_dimension_or_are_refused(shape, kind):
    x = data(*shape)
    plain, small = (measure(kind(v), ["pr", "pr_corrected", "pca95"]) for v in (x, x * 1e-69))
    for key, estimate in plain.estimates.items():
        for end in ("value", "low", "high"):
            found, expected = (getattr(e, end) for e in (small[key], estimate))
            assert found is expected is None or found == pytest.approx(expected, rel=1e-6)
    for factor in (1e-81, 1e-200):
        with pytest.raises(DataError, match="too small"):
            measure(kind(x * factor), ["pr"])
        for limits in ({"tolerance": 0.1}, {"memory_limit": 1e3}):
            with pytest.raises(DataError, match="too small"):
                participation_ratio(kind(x * factor), **limits)


def test_single_precision_values_whose_squares_underflow_are_measured_in_double():
    x = np.random.default_rng(0).standard_normal((4000, 300)).astype(np.float32)
    small = x * np.float32(1e-30)
    assert_allclose(ratio(spectrum(small)), ratio(spectrum(x)), rtol=1e-4)
    probed = participation_ratio(small, tolerance=0.1)
    assert probed.low < ratio(spectrum(x)) < probed.high


def test_large_offset_does_not_cancel():
    x = data(200, 10, scale=False)
    assert_allclose(spectrum(x + 1e7).eigenvalues, spectrum(x).eigenvalues, rtol=1e-6)
    y = np.hstack([x, np.full((200, 3), 1e8 / 3)])
    found = spectrum(y)
    assert found.rank == 10
    assert_allclose(found.eigenvalues[:10], spectrum(x).eigenvalues, rtol=1e-9)


@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (5, 1), (2, 1)])
def test_tiny_inputs(shape):
    x = data(*shape)
    if shape[0] == 1:
        with pytest.raises(DataError, match="at least 2"):
            measure(x)
        with pytest.raises(DataError, match="center=False, --no-center"):
            measure(x)
        report = measure(x, ["pca95", "pr", "stable_rank"], center=False)
        assert {e.value for e in report.estimates.values()} == {1.0}
    else:
        report = measure(x)
        assert report["pca95"].value == 1
        assert_allclose(report["pr"].value, 1 if 1 in shape or shape[0] == 2 else np.nan)


@pytest.mark.parametrize(("n", "center"), [(1, False), (2, True), (3, False), (7, True)])
def test_no_interval_stands_beside_the_note_that_there_are_none(n, center):
    report = measure(data(n, 6), center=center)
    assert [e for e in report.estimates.values() if e.low is not None or e.high is not None] == []
    assert sum(w.startswith(f"no intervals from {n} sample") for w in report.warnings) == 1
    assert np.isnan(report["two_nn"].value) == np.isnan(report["mle"].value) == (n < 5)
    assert not any(w.startswith("no intervals") for w in measure(data(8, 6)).warnings)
    assert measure(data(8, 6))["pr"].high is not None


@pytest.mark.parametrize("x", [np.zeros((20, 5)), np.full((20, 5), 0.1), np.zeros((3, 50), bool)])
def test_no_variance_is_dimension_zero(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = measure(x)
    assert {e.value for e in report.estimates.values()} == {0.0}
    assert any("no variance" in w for w in report.warnings)
    assert participation_ratio(x).value == 0
    assert participation_ratio(x, tolerance=0.1).value == 0


def test_duplicates_keep_the_spectrum():
    x = data(50, 6)
    double = np.repeat(x, 2, axis=0)
    assert_allclose(spectrum(double).eigenvalues * 99 / 98, spectrum(x).eigenvalues, rtol=1e-10)
    assert measure(double, ["two_nn", "mle"])["two_nn"].value > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(50, 4, 2), (5, 10, 2)])
def test_first_bad_value_is_named(bad, shape):
    x = data(shape[0], 8 if shape[0] == 50 else 20).reshape(shape)
    x[3, 2, 1] = bad
    x[4, 0, 0] = np.nan
    for call in (spectrum, measure, traces, sketch_spectrum, participation_ratio):
        with pytest.raises(DataError, match="sample 3, feature 5"):
            call(x)
    with pytest.raises(DataError, match="sample 3, feature 5"):
        spectrum(sp.csr_matrix(x.reshape(shape[0], -1)))
    with pytest.raises(DataError, match="sample 3, feature 5"):
        SpectrumStream().update(x)
    big = np.ones((20, 3))
    big[1, 1] = 1e300
    with pytest.raises(DataError, match="too large"):
        spectrum(big)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros(5), "expected .samples, features"),
        (np.zeros((0, 5)), "holds no values"),
        (np.zeros((5, 0)), "holds no values"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.zeros((3, 2), complex), "real numbers"),
    ],
)
def test_unusable_input_is_one_clear_error(x, match):
    with pytest.raises(DataError, match=match):
        spectrum(x)


def test_bad_arguments_are_refused():
    x = data(20, 4)
    with pytest.raises(ConfigError, match="method"):
        spectrum(x, method="svd")
    with pytest.raises(BudgetError, match="GiB"):
        spectrum(x, memory_limit=1000)
    with pytest.raises(BudgetError, match="GiB"):
        SpectrumStream(memory_limit=1000).update(x)
    with pytest.raises(DataError, match="features"):
        SpectrumStream().extend([x, x[:, :2]])
    with pytest.raises(DataError, match="merge"):
        SpectrumStream().extend([x]).merge(SpectrumStream().extend([x[:, :2]]))
    with pytest.raises(DataError, match="at least 2"):
        SpectrumStream().finalise()


@pytest.mark.parametrize("shape", [(60, 200), (300, 40)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_traces_block_by_block_equal_the_whole(shape, center, kind):
    x = data(*shape)
    if kind == "sparse":
        x = sp.random_array(shape, density=0.1, rng=np.random.default_rng(0), format="csr")
    whole, blocked = traces(x, center), traces(x, center, memory_limit=200_000)
    for name in ("total", "square", "fourth"):
        assert_allclose(getattr(blocked, name), getattr(whole, name), rtol=1e-9)
    dense = x.toarray() if kind == "sparse" else x
    assert_allclose(whole.ratio, ratio(spectrum(dense, center)), rtol=1e-9)
    assert_allclose(
        whole.corrected, measure(dense, ["pr_corrected"], center)["pr_corrected"].value, rtol=1e-8
    )


@pytest.mark.parametrize("shape", ["isotropic", "power"])
def test_stochastic_ratio_holds_the_exact_one(shape):
    rng = np.random.default_rng(0)
    d = 400
    scale = np.ones(d) if shape == "isotropic" else np.arange(1, d + 1) ** -0.5
    x = (rng.standard_normal((1000, d)) * scale + 2).astype(np.float32)
    exact = participation_ratio(x).value
    inside = 0
    for seed in range(20):
        found = participation_ratio(x, tolerance=0.01, seed=seed)
        assert (found.high - found.low) / 2 <= 0.0105 * exact
        inside += found.low <= exact <= found.high
    assert inside >= 17
    again = participation_ratio(x, tolerance=0.01, seed=3)
    assert again == participation_ratio(x, tolerance=0.01, seed=3)
    assert stochastic_traces(sp.csr_matrix(x), tolerance=0.05).square > 0
    with pytest.raises(ConfigError, match="tolerance"):
        participation_ratio(x, tolerance=2)


@pytest.mark.parametrize("n", [80, 900])
def test_sketches_keep_their_certificates(n):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 300)) * np.arange(1, 301) ** -1.0 + 1
    exact = spectrum(x)
    for found in (sketch_spectrum(x, 40), randomised_spectrum(x, 40)):
        kept = found.eigenvalues[:40]
        assert np.abs(kept - exact.eigenvalues[: len(kept)]).max() <= found.error + 1e-9
        assert found.error < 0.2 * exact.eigenvalues[0]
        assert_allclose(found.total_variance, exact.total_variance, rtol=1e-9)
        assert pca_count(found, 0.6) == pca_count(exact, 0.6)
        assert np.isnan(pca_count(found, 0.999))
    full = randomised_spectrum(x, 400)
    assert_allclose(ratio(full), ratio(exact), rtol=1e-6)


def test_merged_sketches_keep_their_certificate():
    x = data(400, 50, scale=False) * np.arange(1, 51) ** -1.0
    parts = []
    for block in np.array_split(x, 4):
        part = FrequentDirections(12)
        part.update(block)
        parts.append(part)
    merged = merge_sketches(parts)
    exact = np.linalg.svd(x, compute_uv=False)[:12] ** 2
    found = merged.squares()
    assert (found <= exact + 1e-9).all()
    assert (exact <= found + merged.error + 1e-9).all()
    with pytest.raises(ConfigError, match="size"):
        FrequentDirections(1)
    with pytest.raises(DataError, match="features"):
        merged.update(np.ones((2, 3)))


def pixels(shared, limit):
    with lzma.open(shared / "data" / "cifar10_train_images.npy.xz") as handle:
        return np.load(handle)[:limit]


def against_sklearn(x):
    from sklearn.decomposition import PCA

    flat = x.reshape(len(x), -1).astype(np.float64)
    fitted = PCA(svd_solver="full").fit(flat).explained_variance_
    found = spectrum(x)
    want = fitted[: min(len(x) - 1, flat.shape[1])]
    cumulative = np.cumsum(want) / want.sum()
    assert pca_count(found, 0.95) == np.searchsorted(cumulative, 0.95) + 1
    assert_allclose(ratio(found), want.sum() ** 2 / (want @ want), rtol=1e-6)
    assert_allclose(traces(x).ratio, ratio(found), rtol=1e-6)
    assert_allclose(found.eigenvalues, want, atol=1e-6 * want[0])


def test_cifar_parity_with_sklearn(shared):
    images = pixels(shared, 1000)
    against_sklearn(images)
    against_sklearn(images[:, ::3, ::3])


@pytest.mark.slow
def test_cifar_parity_with_sklearn_whole(shared):
    against_sklearn(pixels(shared, 10_000))


def test_memory_mapped_file_larger_than_its_budget(tmp_path):
    import tracemalloc

    path = tmp_path / "sparse.dat"
    x = np.memmap(path, np.float32, "w+", shape=(300_000, 256))
    x[::1000] = np.random.default_rng(0).standard_normal((300, 256))
    tracemalloc.start()
    found = spectrum(x)
    ratio_only = participation_ratio(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 << 20
    assert_allclose(ratio_only.value, ratio(found), rtol=1e-6)


def test_sparse_input_is_never_densified():
    import tracemalloc

    x = sp.random_array((800, 60_000), density=1e-3, rng=np.random.default_rng(0), format="csr")
    tracemalloc.start()
    found = traces(x)
    spec = spectrum(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * 800 * 60_000 * 8
    assert_allclose(ratio(spec), found.ratio, rtol=1e-9)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float64, "sparse"])
def test_stochastic_traces_are_exact_but_for_the_square(center, kind):
    x = data(700, 30) + 4
    if kind != "sparse":
        x = x.astype(kind)
    exact = traces(x, center)
    found = stochastic_traces(sp.csr_matrix(x) if kind == "sparse" else x, center)
    assert_allclose([found.total, found.fourth], [exact.total, exact.fourth], rtol=1e-6)
    assert_allclose(found.square, exact.square, rtol=0.02)
    tiny = stochastic_traces((x * 1e-22).astype(np.float32) if kind != "sparse" else x, center)
    assert tiny.total > 0


def test_both_backends_give_the_same_numbers(monkeypatch):
    from spikedim.dimension import kernels

    x = data(300, 40).astype(np.float32)
    upper = np.asfortranarray(np.triu((x.T @ x).astype(np.float64)))
    plain = kernels.symmetric_eigenvalues(upper.copy(order="F"))
    products = kernels.product(x.T, x)
    monkeypatch.setattr(kernels, "LARGE_SIDE", 1)
    monkeypatch.setattr(kernels, "LARGE_PRODUCT", 1)
    assert_allclose(kernels.symmetric_eigenvalues(upper), plain, rtol=1e-12, atol=1e-12 * plain[-1])
    assert_allclose(kernels.product(x.T, x), products, rtol=1e-4, atol=1e-4)
