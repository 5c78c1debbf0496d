"""Sketched and implicit kernels against the exact ones."""

import numpy as np
import pytest
import torch
from torch import nn

import ntk_networks as families
from ntk_networks import FAMILIES
from spikedim import progress
from spikedim.errors import BudgetError, ConfigError, DataError, ModelError, StorageError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.ntk import Setup, gram, matrix_free, sketch
from spikedim.ntk import fold as folds
from spikedim.ntk.capture import logits
from spikedim.ntk.directions import random_sums
from spikedim.ntk.fold import Fold
from spikedim.ntk.gram import jacobian_rows
from spikedim.ntk.matrix_free import (
    TRACE_METHODS,
    KernelOperator,
    kernel_spectrum,
    kernel_traces,
)
from spikedim.ntk.sketch import _moments, sketched_gram
from spikedim.ntk.stream import Stream
from spikedim.storage import write_arrays

N, T = 12, 2


def network(outputs, samples=N):
    net = create_model(
        "spikformer_nano", seed=0, num_classes=outputs, input_shape=(3, 16, 16)
    ).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, 16, 16, generator=generator, dtype=torch.float64)
    calibrate_batchnorm(net, [x], T)
    return net, x


def jacobian(net, x):
    """[O, n, P]"""
    setup = Setup(net, T, logits, False)
    eye = torch.eye(net.num_classes, dtype=torch.float64)
    rows = [row.detach() for _, row in jacobian_rows(setup, x, eye, "loop")]
    return torch.cat(rows, 2).numpy()


@pytest.fixture(scope="module")
def many():
    """A network with more outputs than probes, samples, and the exact Jacobian."""
    net, x = network(16)
    return net, x, jacobian(net, x)


@pytest.fixture(scope="module")
def few():
    net, x = network(3)
    return net, x, jacobian(net, x)


def trace_kernel(jac):
    return np.einsum("oap,obp->ab", jac, jac)


def full_kernel(jac):
    rows = jac.transpose(1, 0, 2).reshape(-1, jac.shape[-1])
    return rows @ rows.T


def centred(k):
    k = k - k.mean(0)
    return k - k.mean(1, keepdims=True)


def ratio(k):
    return float(np.trace(k) ** 2 / (k**2).sum())


def covers(estimate, exact):
    return estimate.low * (1 - 1e-9) <= exact <= estimate.high * (1 + 1e-9)


class Dense:
    """An explicit matrix in the place of a network's kernel."""

    def __init__(self, matrix):
        self.matrix, self.size, self.products = matrix, len(matrix), 0

    def apply(self, vectors):
        self.products += vectors.shape[1]
        return self.matrix @ vectors


def with_spectrum(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (q * values) @ q.T


def test_signed_folding_is_a_linear_map_with_orthonormal_mean(few):
    net, _, jac = few
    setup = Setup(net, T, logits, False)
    total = np.zeros((N, N))
    draws, size = 300, 211
    flat = torch.from_numpy(jac[0])
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    for seed in range(draws):
        fold = Fold(setup, seed, random_sums=False)
        row = torch.zeros(1, N, size, dtype=torch.float64)
        for name, part in zip(sizes, flat.split(list(sizes.values()), 1), strict=True):
            fold(part.clone(), name, 0, row)
        total += (row[0] @ row[0].T).numpy()
    exact = jac[0] @ jac[0].T
    assert np.linalg.norm(total / draws - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("count", "k", "start"), [(1000, 61, 17), (30, 61, 40), (5, 1, 0)])
def test_folding_in_one_pass_is_folding_at_once(dtype, threads, count, k, start, monkeypatch):
    monkeypatch.setattr(folds, "_SPLIT", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    full = torch.randn(4, count, dtype=dtype)
    minus = torch.rand(count) < 0.5
    one, other = torch.ones(4, k, dtype=dtype), torch.ones(4, k, dtype=dtype)
    folds._fold(full, minus, start, one)
    folds._fold_at_once(torch.where(minus, -full, full), start, other)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("fits", "size"), [(20_000, 16_381), (5_000, 4_093), (10, 1_021)])
def test_sketches_are_as_long_as_memory_allows(fits, size, monkeypatch):
    net = nn.Sequential(nn.Linear(160, 160), nn.Linear(160, 4)).double().eval()
    x = torch.randn(6, 160).double()
    monkeypatch.setattr(sketch, "_SKETCHES", fits * 3 * len(x) * x.itemsize)
    assert sketched_gram(net, x, probes=3).sketches.shape == (3, 6, size)


def test_a_sketch_as_long_as_the_gradient_is_exact(few):
    net, x, jac = few
    found = sketched_gram(net, x, T=T, outputs=1, probes=3, size=jac.shape[-1])
    exact = jac[1] @ jac[1].T
    np.testing.assert_allclose(found.values, exact, rtol=1e-9, atol=1e-9 * exact.max())
    assert found.centered.value == pytest.approx(ratio(centred(exact)), rel=1e-9)
    assert found.uncentered.high == pytest.approx(ratio(exact), rel=1e-6)
    assert not found.random_sums
    assert found.sketches.shape == (3, N, jac.shape[-1])


@pytest.mark.parametrize("outputs", [5, 16, 30])  # of 16 features
def test_random_sums_have_the_identity_as_their_mean(outputs):
    net, x = network(outputs, samples=2)
    setup = Setup(net, T, logits, False)
    draws = 20_000
    z = random_sums(setup, x, draws, outputs, seed=0)
    np.testing.assert_allclose(z.square().sum(1), outputs, rtol=1e-12)  # the head's part is exact
    mean = (z.mT @ z / draws).numpy()
    # entries of a mean of products of unit variance or less, 5 standard errors of 900 of them
    assert np.abs(mean - np.eye(outputs)).max() < 5 * np.sqrt(3 / draws)
    if outputs <= 16:  # along singular vectors every draw is as long as every other
        vectors = torch.linalg.svd(net.head.weight.detach())[0]
        np.testing.assert_allclose((z @ vectors).abs(), 1, rtol=1e-9)


def test_random_sums_of_a_network_without_a_head_are_signs():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double().eval()
    setup = Setup(net, None, lambda model, x, T: model(x)[:, :3], False)
    z = random_sums(setup, torch.randn(2, 4, dtype=torch.float64), 50, 3, seed=0)
    assert set(z.flatten().tolist()) == {-1.0, 1.0}


def test_a_random_sum_of_outputs_has_the_mean_of_the_trace_kernel(many):
    net, x, jac = many
    exact = trace_kernel(jac)
    values = [
        sketched_gram(net, x, T=T, probes=12, size=1021, seed=seed).values for seed in range(4)
    ]
    error = np.linalg.norm(np.mean(values, 0) - exact) / np.linalg.norm(exact)
    assert error < 0.1


def test_few_outputs_are_all_differentiated(few):
    net, x, jac = few
    found = sketched_gram(net, x, T=T, probes=8, size=509)
    exact = trace_kernel(jac)
    assert not found.random_sums
    assert np.linalg.norm(found.values - exact) < 0.05 * np.linalg.norm(exact)
    assert found.centered.value == pytest.approx(ratio(centred(exact)), rel=0.1)


def test_the_sum_of_outputs_is_another_kernel(few):
    net, x, jac = few
    found = sketched_gram(net, x, T=T, outputs="sum", probes=4, size=jac.shape[-1])
    rows = jac.sum(0)
    np.testing.assert_allclose(found.values, rows @ rows.T, rtol=1e-8, atol=1e-8)


def test_batches_and_calls_leave_the_numbers_alone(many):
    net, x, _ = many
    whole = sketched_gram(net, x, T=T, probes=4, size=61)
    again = sketched_gram(net, x, T=T, probes=4, size=61)
    np.testing.assert_array_equal(whole.sketches, again.sketches)
    part = sketched_gram(net, x[:5], T=T, probes=4, size=61)
    np.testing.assert_allclose(part.sketches, whole.sketches[:, :5], rtol=1e-9, atol=1e-12)
    other = sketched_gram(net, x, T=T, probes=4, size=61, seed=1)
    assert not np.allclose(other.sketches, whole.sketches)


def test_a_small_budget_makes_small_batches_or_is_refused(few):
    net, x, _ = few
    free = sketched_gram(net, x, T=T, probes=3, size=61)
    tight = sketched_gram(net, x, T=T, probes=3, size=61, memory=0.6 * free.bytes / 2**30)
    assert tight.bytes < 0.6 * free.bytes
    np.testing.assert_allclose(tight.sketches, free.sketches, rtol=1e-9, atol=1e-12)
    with pytest.raises(BudgetError, match="give more memory"):
        sketched_gram(net, x, T=T, memory=1e-5)
    with pytest.raises(BudgetError, match="smaller size"):
        sketched_gram(net, x, T=T, memory=0.01, probes=100, size=10**6)


def test_sketch_intervals_cover_the_exact_ratio(many):
    net, x, jac = many
    exact = trace_kernel(jac)
    hits = [0, 0]
    for seed in range(8):
        found = sketched_gram(net, x, T=T, probes=8, size=251, seed=seed)
        hits[0] += covers(found.centered, ratio(centred(exact)))
        hits[1] += covers(found.uncentered, ratio(exact))
    assert min(hits) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [3, 16])
def test_sketch_coverage_of_a_hundred_seeds(outputs, many, few):
    net, x, jac = few if outputs == 3 else many
    exact = trace_kernel(jac)
    hits = np.zeros(2)
    for seed in range(100):
        found = sketched_gram(net, x, T=T, probes=8, size=251, seed=seed)
        hits[0] += covers(found.centered, ratio(centred(exact)))
        hits[1] += covers(found.uncentered, ratio(exact))
    print("covered", hits)
    assert (hits >= 90).all()


def test_a_killed_sketch_resumes(many, tmp_path, monkeypatch):
    from spikedim.ntk import sketch as module

    net, x, _ = many
    monkeypatch.setattr(module, "_PIECE", 5)
    options = {"T": T, "probes": 4, "size": 61}
    whole = sketched_gram(net, x, **options)
    capture, calls = Setup.capture, []

    def failing(self, samples, *rest):
        calls.append(len(samples))
        if calls.count(5) == 2:
            raise KeyboardInterrupt
        return capture(self, samples, *rest)

    monkeypatch.setattr(Setup, "capture", failing)
    with pytest.raises(KeyboardInterrupt):
        sketched_gram(net, x, directory=tmp_path, **options)
    calls.clear()
    found = sketched_gram(net, x, directory=tmp_path, **options)
    pieces = sorted(count for count in calls if count > 1)
    assert pieces == [2, 2, 5]  # the check, and the pieces that were missing
    np.testing.assert_allclose(found.sketches, whole.sketches, rtol=1e-9, atol=1e-12)
    with pytest.raises(StorageError, match=r"other settings \(samples: "):
        sketched_gram(net, x + 1, directory=tmp_path, **options)
    with pytest.raises(StorageError, match=r"other settings .*seed"):
        sketched_gram(net, x, directory=tmp_path, seed=1, **options)
    stored = tmp_path / "sketches" / "0.npz"
    for content in (b"", b"PK", b"PK broken"):
        stored.write_bytes(content)
        with pytest.raises(StorageError, match=r"0\.npz is not a whole \.npz file; remove it"):
            sketched_gram(net, x, directory=tmp_path, **options)
    for arrays in ({"other": np.zeros(3)}, {"rows": np.zeros((2, 2))}):
        write_arrays(stored, arrays)
        with pytest.raises(StorageError, match=r"0\.npz holds other arrays; remove it"):
            sketched_gram(net, x, directory=tmp_path, **options)


def test_dimension_by_samples(few):
    net, x, jac = few
    x = torch.cat([x, x.flip(3), x.flip(2), x.roll(3, 3), x.roll(5, 2), x.roll(7, 3)])  # 72
    exactly = {"T": T, "outputs": 1, "probes": 3, "size": jac.shape[-1]}
    found = sketched_gram(net, x, **exactly)
    assert [(g.n, g.subsets, g.mean.n) for g in found.growth] == [
        (72, 1, 72),
        (36, 2, 36),
        (18, 4, 18),
    ]
    assert found.growth[0].mean == found.centered
    order = np.random.default_rng((0, 2)).permutation(72)
    for grown in found.growth[1:]:
        parts = order[: grown.n * grown.subsets].reshape(grown.subsets, grown.n)
        each = [sketched_gram(net, x[part], **exactly).centered.value for part in parts]
        assert grown.mean.value == pytest.approx(np.exp(np.mean(np.log(each))), rel=1e-9)
        assert (grown.lowest, grown.highest) == pytest.approx((min(each), max(each)), rel=1e-9)
    assert "Dimension by samples" in str(found)
    assert found.plot().get_xlabel() == "samples n"
    assert [g.n for g in sketched_gram(net, x[:5], T=T, size=61).growth] == [5]


def test_estimates_stay_where_the_quantity_can_lie(few):
    net, x, _ = few
    labels = np.arange(N) % 2
    for seed in range(10):
        found = sketched_gram(net, x, T=T, probes=3, size=1, seed=seed)
        for estimate, most in ((found.centered, N - 1), (found.uncentered, N)):
            assert 1 <= estimate.low <= estimate.value <= estimate.high <= most
        aligned = found.alignment(labels)
        assert 0 <= aligned.low <= aligned.value <= aligned.high <= 1


def test_a_network_without_gradients_has_no_dimension(few):
    net, x, _ = few
    still = sketched_gram(net, x[:1], T=T, probes=3, size=61)  # one sample is its own mean
    assert (still.centered.value, still.centered.low, still.centered.high) == (0, 0, 0)


def test_moments_by_either_product():
    y = torch.randn(3, 50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for part in (y, y[:, :20]):  # of more samples than numbers, and of fewer
        kernels = part @ part.mT
        traces, products = _moments(part)
        np.testing.assert_allclose(traces, [float(k.trace()) for k in kernels])
        np.testing.assert_allclose(products, torch.einsum("iab,jab->ij", kernels, kernels))


def test_alignment_of_a_sketch(many, few):
    labels = np.arange(N) % 3
    member = np.eye(3)[labels] - 1 / 3
    same = member @ member.T
    net, x, jac = few
    kernel = centred(jac[1] @ jac[1].T)
    exact = (kernel * same).sum() / np.linalg.norm(kernel) / np.linalg.norm(same)
    found = sketched_gram(net, x, T=T, outputs=1, probes=3, size=jac.shape[-1])
    assert found.alignment(labels).value == pytest.approx(exact, rel=1e-9)
    with pytest.raises(DataError, match=r"\(11,\)"):
        found.alignment(labels[1:])
    with pytest.raises(DataError, match="1 class"):
        found.alignment(np.full(N, np.nan))
    net, x, jac = many
    kernel = centred(trace_kernel(jac))
    exact = (kernel * same).sum() / np.linalg.norm(kernel) / np.linalg.norm(same)
    estimates = [
        sketched_gram(net, x, T=T, probes=8, size=251, seed=seed).alignment(torch.tensor(labels))
        for seed in range(8)
    ]
    assert sum(covers(e, exact) for e in estimates) >= 6
    assert np.mean([e.value for e in estimates]) == pytest.approx(exact, rel=0.2)


def test_the_result_exports_and_prints_without_its_sketches(few):
    net, x, _ = few
    found = sketched_gram(net, x, T=T, probes=3, size=61)
    assert "sketches" not in found.to_dict()
    assert found.to_dict()["classes"] == 3
    assert "95 %" in str(found)
    assert "sigmoid" in str(found)


@pytest.mark.parametrize("outputs", ["full", "trace", 2])
@pytest.mark.parametrize("center", [True, False])
def test_products_with_the_kernel(few, outputs, center):
    net, x, jac = few
    exact = {"full": full_kernel, "trace": trace_kernel}.get(
        outputs, lambda j: full_kernel(j[2:3])
    )(jac)
    exact = centred(exact) if center else exact
    operator = KernelOperator(net, x, T=T, outputs=outputs, center=center)
    vectors = np.random.default_rng(0).standard_normal((operator.size, 3))
    found = operator.apply(vectors)
    assert np.linalg.norm(found - exact @ vectors) < 1e-11 * np.linalg.norm(exact @ vectors)


@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("most", [1, 2, 4, None])
def test_products_are_the_same_in_any_memory(few, outputs, most, monkeypatch):
    net, x, jac = few
    if most is not None:
        monkeypatch.setattr(matrix_free, "_MOST", most)
    forwards = []
    capture = Setup.capture

    def counted(self, x, without=()):
        forwards.append(len(x))
        return capture(self, x, without)

    operator = KernelOperator(net, x, T=T, outputs=outputs, center=False)
    vectors = np.random.default_rng(0).standard_normal((operator.size, 3))
    monkeypatch.setattr(Setup, "capture", counted)
    found = operator.apply(vectors)
    exact = (full_kernel if outputs == "full" else trace_kernel)(jac) @ vectors
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-11 * exact.max())
    assert sum(count for count in forwards if count > 1) == N  # kept for all passes
    rounds = {1: 3, 2: 2}.get(most, 1)
    assert operator.passes(3) == rounds * operator.passes(1)


def test_products_keep_to_a_budget(few):
    net, x, jac = few
    stream = Stream(Setup(net, T, logits, False), x)
    gradient = sum(p.numel() * p.element_size() for p in net.parameters())
    need = 3 * stream.need(1) + gradient
    operator = KernelOperator(net, x, T=T, outputs="full", center=False, memory=need / 2**30)
    assert operator.passes(1) == 2 * 3 * N  # one sample at a time
    vectors = np.random.default_rng(0).standard_normal((operator.size, 3))
    exact = full_kernel(jac) @ vectors
    np.testing.assert_allclose(operator.apply(vectors), exact, rtol=1e-9, atol=1e-11 * exact.max())
    with pytest.raises(BudgetError, match="hold no gradient"):
        KernelOperator(net, x, T=T, memory=(stream.need(1) + gradient / 2) / 2**30)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_streams_its_gradients(name):
    net, x, more = families.network(name, 3, **FAMILIES[name])
    exact = gram(net, x, **more).values
    operator = KernelOperator(net, x, outputs="trace", center=False, **more)
    assert families.distance(operator.apply(np.eye(3)), exact) < 1e-10
    size = sum(p.numel() for p in net.parameters())
    sketch = sketched_gram(net, x, outputs=1, probes=3, size=size, **more)
    assert families.distance(sketch.values, gram(net, x, outputs=1, **more).values) < 1e-10


class Tied(nn.Module):
    """A weight that a layer with a rule uses, and an operation without one."""

    def __init__(self, size=6):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(12, size), nn.Linear(size, size)

    def forward(self, x):
        y = torch.tanh(self.inner(self.embedding(x).mean(1)))
        return nn.functional.linear(y, self.inner.weight) @ self.embedding.weight.T


def test_a_parameter_with_a_rule_in_one_place_only_counts_once():
    torch.manual_seed(0)
    model, x = Tied().double(), torch.randint(0, 12, (5, 7))
    exact = gram(model, x, method="loop").values
    assert families.distance(gram(model, x, fallback=True).values, exact) < 1e-12
    large = Tied(64).double()
    parts = gram(large, x, fallback=True, memory=1e-4).values  # in groups of layers
    assert families.distance(parts, gram(large, x, method="loop").values) < 1e-12
    operator = KernelOperator(model, x, center=False, fallback=True)
    assert families.distance(operator.apply(np.eye(5)), exact) < 1e-12
    size = sum(p.numel() for p in model.parameters())
    sketch = sketched_gram(model, x, outputs=3, probes=3, size=size, fallback=True).values
    exact = gram(model, x, outputs=3, method="loop").values
    assert families.distance(sketch, exact) < 1e-12


@pytest.mark.parametrize("net", [nn.Linear(5, 2), nn.Sequential(nn.Flatten(), nn.Linear(5, 2))])
def test_a_single_sample(net):
    x = torch.randn(1, 5)
    exact = gram(net, x, method="loop").values
    assert families.distance(gram(net, x).values, exact) < 1e-6
    operator = KernelOperator(net, x, center=False)
    assert families.distance(operator.apply(np.eye(1)), exact) < 1e-6


def test_a_network_without_a_moving_parameter_is_refused():
    net = nn.Linear(5, 2).requires_grad_(False)
    for compute in (gram, sketched_gram, KernelOperator):
        with pytest.raises(ModelError, match="no parameter requires a gradient"):
            compute(net, torch.randn(3, 5))


def test_an_operator_follows_the_weights():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 30)).double(), torch.randn(6, 5)
    x = x.double()
    operator = KernelOperator(net, x, center=False)
    assert operator.passes(1) == 2 * 5  # one per feature of the head, and one more
    with torch.no_grad():
        net[2].weight.normal_()
    assert families.distance(operator.apply(np.eye(6)), gram(net, x, method="loop").values) < 1e-12
    with pytest.raises(ConfigError, match=r"shape \(5, 2\); expected \[6, k\]"):
        operator.apply(np.ones((5, 2)))


def test_sketches_in_coarse_precision():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3)), torch.randn(6, 5)
    exact = sketched_gram(net, x, probes=3, size=8_000).values
    coarse = sketched_gram(net.bfloat16(), x.bfloat16(), probes=3, size=8_000)
    assert coarse.sketches.dtype == np.float32
    assert families.distance(coarse.values, exact) < 0.02


def test_streams_check_what_they_read():
    net, x, _ = families.network("spikegpt_nano", 2, num_classes=7, embed_dim=16)
    for estimate in (sketched_gram, KernelOperator):
        with pytest.raises(ModelError, match=r"time_decay of TimeMix .*fallback=True"):
            estimate(net, x, readout=families.last_token)

    class Shared(nn.Module):
        """A linear layer on something that all samples share."""

        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
            self.register_buffer("fixed", torch.randn(4, 3))

        def forward(self, x):
            return self.head(torch.tanh(x * self.inner(self.fixed).mean(0)))

    for estimate in (sketched_gram, KernelOperator):
        with pytest.raises(ModelError, match="not told apart by sample"):
            estimate(Shared().eval(), torch.randn(5, 3))


def test_learned_leaks_stream_their_gradients():
    options = {"input_shape": (1, 16, 16), "num_classes": 3, "plif": True}
    net, x, more = families.network("spikingresformer_nano", 3, **options)
    exact = gram(net, x, **more)
    assert sum(name.endswith(".w") for name in exact.layers) > 5
    operator = KernelOperator(net, x, center=False, **more)
    assert families.distance(operator.apply(np.eye(3)), exact.values) < 1e-10


def test_products_of_networks_with_frozen_parts(few):
    net, x, jac = few
    net = create_model("spikformer_nano", seed=0, num_classes=3, input_shape=(3, 16, 16)).double()
    net.load_state_dict(few[0].state_dict())
    net.eval()
    net.head.weight.requires_grad_(False)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    start = sum(list(sizes.values())[: list(sizes).index("head.weight")])
    kept = np.delete(jac, np.arange(start, start + sizes["head.weight"]), 2)
    operator = KernelOperator(net, x, T=T, outputs="full", center=False)
    vector = np.ones((operator.size, 1))
    np.testing.assert_allclose(operator.apply(vector), full_kernel(kept) @ vector, rtol=1e-10)


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_traces_are_unbiased(method):
    values = 1 / np.arange(1, 31.0)
    operator = Dense(with_spectrum(values))
    found = [kernel_traces(operator, method=method, products=9, seed=s) for s in range(400)]
    for name, exact in (("trace", values.sum()), ("square", (values**2).sum())):
        numbers = np.array([getattr(f, name).value for f in found])
        error = numbers.std() / len(numbers) ** 0.5
        assert abs(numbers.mean() - exact) < 4 * error + 1e-12
    assert operator.products <= 400 * 9


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_matrix_free_intervals_cover_in_ninety_of_a_hundred_seeds(method, few):
    """The network's own kernel, its products computed from the exact Jacobian."""
    jac = few[2]
    for center in (True, False):
        exact = full_kernel(jac)
        exact = centred(exact) if center else exact
        operator = Dense(exact)
        found = [kernel_traces(operator, method=method, products=18, seed=s) for s in range(100)]
        hits = sum(covers(f.ratio, ratio(exact)) for f in found)
        assert hits >= 90, (method, center, hits)


@pytest.mark.slow
def test_matrix_free_coverage_of_a_hundred_seeds_from_products_alone(few):
    net, x, jac = few
    exact = centred(full_kernel(jac))
    operator = KernelOperator(net, x, T=T, outputs="full")
    hits = sum(
        covers(kernel_traces(operator, products=12, seed=s).ratio, ratio(exact)) for s in range(100)
    )
    print("covered", hits)
    assert hits >= 90


def test_a_centred_kernel_has_at_most_n_minus_one_dimensions():
    class Centring(Dense):
        center = True

    operator = Centring(np.eye(50) - 1 / 50)
    for method in TRACE_METHODS:
        found = kernel_traces(operator, method=method, products=8)
        assert found.ratio.value <= found.ratio.high <= 49
    exact = kernel_traces(operator, products=50)
    assert (exact.method, exact.ratio.value) == ("exact", pytest.approx(49))


def test_deflation_beats_plain_probes_where_the_spectrum_decays():
    values = 1 / np.arange(1, 121.0) ** 2
    operator = Dense(with_spectrum(values))
    exact = values.sum() ** 2 / (values**2).sum()
    errors = {
        method: np.sqrt(
            np.mean(
                [
                    (
                        kernel_traces(operator, method=method, products=30, seed=s).ratio.value
                        / exact
                        - 1
                    )
                    ** 2
                    for s in range(40)
                ]
            )
        )
        for method in TRACE_METHODS
    }
    assert errors["xtrace"] < errors["hutch++"] < 0.3 * errors["hutchinson"]


@pytest.mark.parametrize("products", [6, 12])
def test_enough_products_leave_nothing_to_chance(products):
    values = np.arange(1, 7.0)
    found = kernel_traces(Dense(with_spectrum(values)), products=products)
    assert found.ratio.value == pytest.approx(21**2 / 91)
    assert found.products == 6
    assert found.ratio.low == pytest.approx(found.ratio.high)


@pytest.mark.parametrize("method", TRACE_METHODS)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_traces_of_kernels_of_low_rank(method, rank):
    values = np.zeros(40)
    values[:rank] = 1 + np.arange(rank)
    found = kernel_traces(Dense(with_spectrum(values)), method=method, products=24)
    if rank == 0:
        assert found.trace.value == found.square.value == found.ratio.value == 0
    elif method != "hutchinson":
        assert found.ratio.value == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-6)


def test_a_spectrum_has_the_leading_eigenvalues_and_the_density():
    values = np.concatenate([[40.0, 20.0, 10.0], np.linspace(0.01, 2, 97)])
    found = kernel_spectrum(Dense(with_spectrum(values)), count=3, steps=8, starts=6)
    np.testing.assert_allclose(found.eigenvalues, [40, 20, 10], rtol=1e-9)
    assert (found.errors < 1e-5).all()
    assert found.weights.sum() == pytest.approx(1)
    assert covers(found.trace_of(lambda v: v / (v + 0.5)), (values / (values + 0.5)).sum())
    assert covers(found.trace_of(lambda v: v), values.sum())


def test_the_spectrum_of_a_network(few):
    net, x, jac = few
    exact = np.linalg.eigvalsh(centred(full_kernel(jac)))[::-1]
    operator = KernelOperator(net, x, T=T, outputs="full")
    found = kernel_spectrum(operator, count=4, steps=8, starts=2)
    for value, error in zip(found.eigenvalues, found.errors, strict=True):
        assert np.abs(exact - value).min() <= error + 1e-9 * exact[0]
    assert found.eigenvalues[0] == pytest.approx(exact[0], rel=1e-6)
    assert "eigenvalue" in str(found)
    assert found.plot() is not None


def test_the_iteration_ends_where_the_krylov_space_ends():
    operator = Dense(np.diag([3.0] * 20 + [1.0] * 20))
    found = kernel_spectrum(operator, count=6, steps=9, starts=2)
    np.testing.assert_allclose(found.eigenvalues, [3, 3, 1, 1])  # once for each start
    assert operator.products == 4
    assert found.trace_of(lambda v: v).value == pytest.approx(80, rel=0.3)


def test_a_spectrum_of_no_more_rows_than_products_is_exact():
    values = np.sort(np.random.default_rng(0).exponential(size=30))[::-1]
    found = kernel_spectrum(Dense(with_spectrum(values)), count=40, steps=4, starts=10)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-9)
    entropy = found.trace_of(lambda v: v / (v + 0.3))
    exact = (values / (values + 0.3)).sum()
    np.testing.assert_allclose([entropy.low, entropy.value, entropy.high], exact, rtol=1e-9)


def test_quadrature_intervals_cover_in_ninety_of_a_hundred_seeds():
    values = 1 / np.arange(1, 201.0)
    operator = Dense(with_spectrum(values))
    for function in (lambda v: v, lambda v: v / (v + 0.02), lambda v: np.log1p(v)):
        hits = sum(
            covers(
                kernel_spectrum(operator, count=1, steps=6, starts=8, seed=seed).trace_of(function),
                function(values).sum(),
            )
            for seed in range(100)
        )
        assert hits >= 90


@pytest.mark.parametrize("center", [True, False])
def test_results_say_whether_the_kernel_was_centred(few, center):
    net, x, jac = few
    operator = KernelOperator(net, x, T=T, outputs=1, center=center)
    exact = full_kernel(jac[1:2])
    exact = centred(exact) if center else exact
    traces = kernel_traces(operator, products=2 * operator.size)
    assert traces.trace.value == pytest.approx(np.trace(exact))
    labels = [row[0] for row in traces.tables()[0].rows]
    kernel, kind = ("HKH", "centred") if center else ("K", "uncentred")
    assert labels[:3] == [f"tr {kernel}", f"‖{kernel}‖²_F", f"participation ratio, {kind}"]
    spectrum = kernel_spectrum(operator, count=2, steps=3, starts=2)
    assert spectrum.tables()[0].title == f"Leading eigenvalues of {N}, {kind}"
    title = spectrum.plot().get_title(loc="left")
    assert title == f"Spectrum of the {kind} NTK, {N} rows"
    assert traces.to_dict()["centred"] is spectrum.to_dict()["centred"] is center
    assert not kernel_traces(Dense(exact), products=2 * N).centred


def test_errors_are_no_smaller_than_the_rounding_of_the_products(few):
    net = create_model("spikformer_nano", seed=0, num_classes=3, input_shape=(3, 16, 16)).double()
    net.load_state_dict(few[0].state_dict())
    net.eval()
    assert KernelOperator(net, few[1], T=T).precision == np.finfo(np.float64).eps
    net.float()
    operator = KernelOperator(net, few[1].float(), T=T)
    eps = float(np.finfo(np.float32).eps)
    assert operator.precision == eps
    found = kernel_spectrum(operator, count=3, steps=operator.size, starts=2)
    assert (found.errors >= eps * found.eigenvalues[0]).all()
    image = operator.apply(np.eye(operator.size))
    exact = np.linalg.eigvalsh((image + image.T) / 2)
    for value, error in zip(found.eigenvalues, found.errors, strict=True):
        assert np.abs(exact - value).min() <= error
    net.bfloat16()
    coarse = KernelOperator(net, few[1].bfloat16(), T=T, outputs="trace", center=False)
    values = gram(net, few[1].bfloat16(), T=T).values
    distance = families.distance(coarse.apply(np.eye(N)), values)
    assert 0 < distance < coarse.precision == torch.finfo(torch.bfloat16).eps
    explicit = kernel_spectrum(Dense(np.diag([4.0, 2.0, 1.0])), count=3, steps=3, starts=2)
    assert (explicit.errors >= 4 * np.finfo(np.float64).eps * (1 - 1e-9)).all()


def drawn(axes):
    """Points and curve of a plotted spectrum."""
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    if axes.get_legend() is not None:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    return lines.pop("found one by one", None), lines.pop("estimated density", None), lines


def test_spectra_show_the_leading_eigenvalues_at_their_rank():
    values = np.concatenate([[40.0, 20.0, 10.0], np.linspace(0.1, 2, 97)])
    found = kernel_spectrum(Dense(with_spectrum(values)), count=12, steps=8, starts=6)
    points, curve, others = drawn(found.plot())
    known = len(points)
    assert 3 <= known < 12  # those inside the bulk are not resolved
    assert not others
    np.testing.assert_allclose(points[:3], [[40, 1], [20, 2], [10, 3]], rtol=1e-9)
    np.testing.assert_array_equal(curve[0], points[-1])
    assert (np.diff(curve[:, 0]) < 0).all()
    assert (np.diff(curve[:, 1]) >= 0).all()
    assert curve[-1, 1] == pytest.approx(100)
    for value in (0.5, 1.0, 1.5):
        estimated = curve[curve[:, 0] >= value][-1, 1]
        assert estimated == pytest.approx((values >= value).sum(), abs=12)


def test_spectra_of_small_and_empty_kernels():
    one = kernel_spectrum(Dense(with_spectrum(np.array([5.0] + [0.0] * 9))), count=3, steps=5)
    points, curve, _ = drawn(one.plot())
    np.testing.assert_allclose(points, [[5, 1]])
    assert curve is None
    pair = kernel_spectrum(Dense(with_spectrum(np.array([3.0, 1.0]))), count=2, steps=2)
    points, curve, _ = drawn(pair.plot())
    np.testing.assert_allclose(points, [[3, 1], [1, 2]])
    assert curve is None
    single = kernel_spectrum(Dense(np.full((1, 1), 2.0)), count=1, steps=1)
    np.testing.assert_allclose(drawn(single.plot())[0], [[2, 1]])
    axes = kernel_spectrum(Dense(np.zeros((6, 6))), count=3, steps=5).plot()
    assert drawn(axes) == (None, None, {})
    assert [text.get_text() for text in axes.texts] == ["no eigenvalue above 0"]
    axes.figure.canvas.draw()


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_products_report_to_one_bar(few, outputs, monkeypatch, capsys):
    net, x, _ = few
    bars = []

    class Bar(progress.Task):
        def __init__(self, label, total):
            assert all(bar.closed for bar in bars)
            super().__init__(label, total)
            self.closed, self.calls = False, 0
            bars.append(self)

        def advance(self, steps=1, detail=""):
            self.calls += 1
            super().advance(steps, detail)

        def close(self):
            self.closed = True
            super().close()

    monkeypatch.setattr(progress, "Task", Bar)
    operator = KernelOperator(net, x, T=T, outputs=outputs)
    each = 2 * 3 * len(operator._batches)  # both ways, three outputs
    with progress.showing():
        for method in TRACE_METHODS:
            kernel_traces(operator, method=method, products=7)
        kernel_spectrum(operator, count=1, steps=2, starts=2)
        operator.apply(np.ones((operator.size, 2)))
        kernel_traces(Dense(np.eye(30)), products=6)
    rounds = [2, 2, 1, 2, 1]  # hutch++ and xtrace have two, a spectrum one per step
    assert [bar.total for bar in bars] == [*(each * count for count in rounds), 6]
    assert all(bar.done == bar.total and bar.closed and bar.calls > 1 for bar in bars)
    said = capsys.readouterr().err.splitlines()
    rows, over = (36, "3 outputs") if outputs == "full" else (12, "summed over 3 outputs")
    first = f"7 products with a kernel of {rows} rows (12 samples, {over}): {2 * each} backward"
    assert said[0] == f"{first} passes through a batch"
    assert said[-1] == "6 products with a kernel of 30 rows"
    assert len(said) == 5


def test_unusable_options_are_named(few):
    net, x, _ = few
    for call, match in (
        (lambda: sketched_gram(net, x, T=T, probes=2), "probes=2"),
        (lambda: sketched_gram(net, x, T=T, size=0), "size=0"),
        (lambda: sketched_gram(net, x, T=T, outputs=3), "outputs=3"),
        (lambda: sketched_gram(net, x, T=T, outputs="full"), "outputs='full'"),
        (lambda: sketched_gram(net, x, T=T, confidence=1.5), "confidence=1.5"),
        (lambda: kernel_traces(Dense(np.eye(3)), method="guess"), "method='guess'"),
        (lambda: kernel_traces(Dense(np.eye(3)), products=2), "products=2"),
        (lambda: kernel_spectrum(Dense(np.eye(3)), count=9, steps=2, starts=4), "count=9"),
        (lambda: kernel_spectrum(Dense(np.eye(3)), starts=1), "starts=1"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()
    net.train()
    try:
        with pytest.raises(ModelError, match="training mode"):
            sketched_gram(net, x, T=T)
        with pytest.raises(ModelError, match="training mode"):
            KernelOperator(net, x, T=T, outputs="full")
    finally:
        net.eval()


def test_plain_networks_need_no_readout():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = gram(net, x, readout=lambda model, x, T: model(x)).values
    np.testing.assert_allclose(gram(net, x).values, exact, rtol=1e-12)
    np.testing.assert_allclose(gram(net, x, method="jacobian").values, exact, rtol=1e-12)
    sketch = sketched_gram(net, x, probes=4, size=10_000)
    np.testing.assert_allclose(sketch.values, exact, rtol=1e-10)
    operator = KernelOperator(net, x, outputs="trace", center=False)
    np.testing.assert_allclose(operator.apply(np.eye(6)), exact, rtol=1e-10)
    with pytest.raises(ModelError, match="T=3, but forward of Sequential"):
        gram(net, x, T=3)
    with pytest.raises(DataError, match="x is a ndarray; give a tensor"):
        gram(net, x.numpy())
    net.append(nn.Dropout())
    with pytest.raises(ModelError, match="training mode"):
        gram(net, x)


def test_networks_that_are_not_spiking():
    """A two-layer network whose kernel is known in closed form."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = lambda model, x, T: model(x)  # noqa: E731
    with torch.no_grad():
        h = net[1](net[0](x))
        slope = (1 - h**2)[:, None] * net[2].weight  # [n, O, 5]
        exact = 2 * (h @ h.T + 1) + torch.einsum("aok,bok->ab", slope, slope) * (x @ x.T + 1)
    found = sketched_gram(net, x, readout=plain, probes=4, size=10_000).values
    np.testing.assert_allclose(found, exact.numpy(), rtol=1e-10)
    operator = KernelOperator(net, x, readout=plain, outputs="trace", center=False)
    np.testing.assert_allclose(operator.apply(np.eye(6)), exact.numpy(), rtol=1e-10)
