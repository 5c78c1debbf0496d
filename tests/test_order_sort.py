"""Score-Schur sort: published values, exactness on linear models, the expectation gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedim.errors import ConfigError, DataError
from spikedim.order import (
    expectation_gap,
    information,
    order_violations,
    random_model,
    schur_sort,
)
from spikedim.order.sort import PUBLISHED_RIDGE


def naive(matrix, tolerance, ridge=0.0):
    """The algorithm as written: explicit Schur complements of the remaining matrix."""
    matrix, left, removed = matrix.copy(), list(range(len(matrix))), []
    while left:
        diagonal = matrix.diagonal()
        block = np.flatnonzero(diagonal <= diagonal.min() * (1 + tolerance))
        inner, alive, sub = [], list(range(len(block))), matrix[np.ix_(block, block)].copy()
        while alive:  # one by one inside the block
            k = min(alive, key=lambda i: sub[i, i])
            sub = sub - np.outer(sub[:, k], sub[k]) / (sub[k, k] * (1 + ridge))
            inner.append(int(block[k]))
            alive.remove(k)
        removed += [left[k] for k in inner]
        rest = np.setdiff1d(np.arange(len(left)), block)
        square = matrix[np.ix_(block, block)]
        square = square + ridge * np.trace(square) / len(block) * np.eye(len(block))
        cross = matrix[np.ix_(rest, block)]
        matrix = matrix[np.ix_(rest, rest)] - cross @ np.linalg.solve(square, cross.T)
        left = [left[k] for k in rest]
    return tuple(removed)


@pytest.mark.parametrize("beta", [-2.0, -0.3, 0.5, 1.7])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_published_two_variable_values(beta, sigma):
    """x₁ = n₁, x₂ = βx₁ + n₂: I = [[1+β², −β], [−β, 1]]/σ², removed 2 then 1."""
    expected = np.array([[1 + beta**2, -beta], [-beta, 1]]) / sigma**2

    def log_density(x):
        return -(x[0] ** 2 + (x[1] - beta * x[0]) ** 2) / (2 * sigma**2)

    points = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = information(torch.func.grad(log_density), points)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for tolerance in (0.0, 0.05):
        extraction = schur_sort(found, tolerance, PUBLISHED_RIDGE)
        assert [j + 1 for j in extraction.removed] == [2, 1]
        assert extraction.order == (0, 1)
        assert extraction.pivots == pytest.approx([1 / sigma**2] * 2, rel=1e-3)


@pytest.mark.parametrize("d", [20, 50, 100, 200])
def test_no_violation_given_the_true_precision(d):
    for seed in range(2):
        model = random_model(d, seed=seed)
        for tolerance in (0.0, 0.05):
            found = schur_sort(model.precision(), tolerance)
            assert order_violations(found.order, model.graph) == 0
            assert found.pivots == pytest.approx(np.ones(d), rel=0.05)


def test_the_published_ridge_misorders_dense_linear_models():
    wrong = dict.fromkeys((0.0, PUBLISHED_RIDGE), 0)
    for seed in (1, 3):
        model = random_model(200, seed=seed, edges=4)
        for ridge in wrong:
            order = schur_sort(model.precision(), ridge=ridge).order
            wrong[ridge] += order_violations(order, model.graph)
    assert wrong[0.0] == 0
    assert wrong[PUBLISHED_RIDGE] > 0


@settings(max_examples=30, deadline=None)
@given(
    d=st.integers(1, 14),
    seed=st.integers(0, 10**6),
    edges=st.floats(0, 5),
    scale=st.floats(1e-3, 1e3),
    tolerance=st.sampled_from([0.0, 0.05]),
)
def test_linear_models_are_ordered_exactly_in_any_unit(d, seed, edges, scale, tolerance):
    model = random_model(d, edges=edges, noise=scale, seed=seed)
    found = schur_sort(model.precision(), tolerance)
    assert sorted(found.removed) == list(range(d))
    assert order_violations(found.order, model.graph) == 0
    assert list(found.block) == sorted(found.block)


@settings(max_examples=30, deadline=None)
@given(
    d=st.integers(1, 12), seed=st.integers(0, 10**6), tolerance=st.sampled_from([0.05, 0.5, 3.0])
)
def test_same_as_explicit_schur_complements(d, seed, tolerance):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((2 * d, d))
    matrix = rows.T @ rows / d + 0.1 * np.eye(d)
    for ridge in (0.0, 1e-2):
        assert schur_sort(matrix, tolerance, ridge).removed == naive(matrix, tolerance, ridge)


@settings(max_examples=20, deadline=None)
@given(d=st.integers(2, 12), seed=st.integers(0, 10**6))
def test_known_noise_variances_restore_the_order(d, seed):
    noise = np.random.default_rng(seed).uniform(0.2, 5, d)
    model = random_model(d, edges=2, noise=noise, seed=seed)
    found = schur_sort(model.precision(), 0.0, noise_variance=3 * noise**2)
    assert order_violations(found.order, model.graph) == 0


def test_unequal_noise_variances_mislead_without_them():
    """x₁ → x₂ with a noisy effect: the leaf's 1/σ² may exceed the cause's entry, and then not."""
    model = random_model(2, edges=5, noise=1.0, seed=0)
    cause, effect = model.order()
    noise = np.ones(2)
    noise[cause] = 5.0
    noise[effect] = 0.1
    quiet = random_model(2, edges=5, noise=noise, seed=0)
    weight = abs(float(quiet.weights[cause, effect]))
    assert (schur_sort(quiet.precision()).removed[0] == effect) == (
        1 / 25 + weight**2 / 0.1**2 > 1 / 0.1**2
    )


def test_weak_edges_below_the_tolerance_may_turn():
    """p → c weakly, c → e strongly: p is within 5 % of the leaf although c is its child."""
    b = np.zeros((3, 3))
    b[1, 0], b[2, 1] = 0.1, 1.0
    rows = np.eye(3) - b
    matrix = rows.T @ rows
    assert schur_sort(matrix, 0.0).order == (0, 1, 2)
    assert schur_sort(matrix, 0.05).order == (1, 0, 2)


@pytest.mark.parametrize("kind", ["linear", "mlp", "gp", "gp-add"])
def test_expectation_gap_closes_the_schur_complement(kind):
    """Schur complement + gap = information of the marginal, here E[MᵀM]/σ² without the leaf."""
    model = random_model(5, kind, edges=2, noise=0.7, seed=4)
    x = torch.from_numpy(model.sample(400, seed=1))
    jacobian = torch.func.vmap(torch.func.jacrev(model.means))(x).numpy()
    through = np.eye(5) - jacobian
    matrix = np.einsum("nji,njk->ik", through, through) / (len(x) * 0.49)
    leaf = model.order()[-1]
    rest = [j for j in range(5) if j != leaf]
    schur = (
        matrix[np.ix_(rest, rest)]
        - np.outer(matrix[rest, leaf], matrix[leaf, rest]) / (matrix[leaf, leaf])
    )
    kept = through[:, rest][:, :, rest]
    marginal = np.einsum("nji,njk->ik", kept, kept) / (len(x) * 0.49)
    gap = expectation_gap(jacobian[:, leaf][:, rest], 0.49)
    np.testing.assert_allclose(schur + gap, marginal, atol=1e-9)
    assert (np.abs(gap).max() < 1e-12) == (kind == "linear")


def test_information_of_a_non_linear_model_is_that_of_its_jacobian():
    """E[−∇s] = E[MᵀM]/σ² up to the mean-zero term of second derivatives."""
    model = random_model(4, "gp-add", edges=2, seed=1)
    x = torch.from_numpy(model.sample(6000, seed=2))
    through = np.eye(4) - torch.func.vmap(torch.func.jacrev(model.means))(x).numpy()
    expected = np.einsum("nji,njk->ik", through, through) / len(x)
    np.testing.assert_allclose(information(model.score, x), expected, atol=0.2)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((2, 3)), "shape"),
        (np.empty((0, 0)), "shape"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "NaN"),
        (np.array([[1.0, 0.5], [0.1, 1.0]]), "symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.5]]), "positive definite"),
        (-np.eye(3), "positive definite"),
    ],
)
def test_bad_matrices_are_refused(matrix, words):
    with pytest.raises(DataError, match=words) as caught:
        schur_sort(matrix)
    assert "\n" not in str(caught.value)


def test_a_singular_block_asks_for_a_ridge():
    matrix = np.ones((2, 2))
    with pytest.raises(DataError):
        schur_sort(matrix, 0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance": -1},
        {"tolerance": np.nan},
        {"ridge": -1e-3},
        {"noise_variance": [1.0]},
        {"noise_variance": [1.0, 0.0]},
        {"noise_variance": [1.0, np.inf]},
    ],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        schur_sort(np.eye(2), **wrong)
