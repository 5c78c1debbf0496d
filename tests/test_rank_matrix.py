"""Ranks of token matrices against exact arithmetic; layer norm and residual identities."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedim.dimension import measure
from spikedim.errors import DataError
from spikedim.rank import (
    affine_rank,
    layer_norm_check,
    matrix_rank,
    residual_check,
    token_ranks,
)

SIZES = st.integers(1, 7)


def exact_rank(rows):
    """Rank over the rationals (or of mpmath numbers, to 1e-40) by elimination."""
    rows = [list(row) for row in rows]
    rank = 0
    for column in range(len(rows[0])):
        pivot = max(range(rank, len(rows)), key=lambda i: abs(rows[i][column]), default=None)
        if pivot is None or abs(rows[pivot][column]) <= 1e-40:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] / rows[rank][column]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
        if rank == len(rows):
            break
    return rank


def fractions(x):
    return [[Fraction(int(v)) for v in row] for row in x]


def with_ones(rows):
    return [[*row, 1] for row in rows]


@st.composite
def whole(draw, low=-3, high=3):
    """Whole-number tokens [n, d], often of low rank: a product, sometimes with an offset."""
    n, d, r = draw(SIZES), draw(SIZES), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(low, high + 1, (n, r)) @ rng.integers(low, high + 1, (r, d))
    if draw(st.booleans()):
        x = x + rng.integers(low, high + 1, d)
    return x


@settings(max_examples=30)
@given(whole())
def test_rank_and_affine_rank_are_those_of_exact_arithmetic(x):
    exact = exact_rank(fractions(x)), exact_rank(with_ones(fractions(x)))
    assert (matrix_rank(x), affine_rank(x)) == exact
    assert (matrix_rank(x.astype(np.float32)), affine_rank(x.astype(np.float32))) == exact


@settings(max_examples=20)
@given(whole(0, 1), st.integers(0, 2**32 - 1))
def test_what_leaves_ranks_as_they_are(x, seed):
    rng = np.random.default_rng(seed)
    n, d = x.shape
    before = affine_rank(x)
    assert affine_rank(x + rng.integers(-5, 6, d)) == before
    assert affine_rank(x[rng.permutation(n)][:, rng.permutation(d)]) == before
    assert affine_rank(np.concatenate([x, x[:1]])) == before
    mixed = np.tril(rng.integers(-2, 3, (d, d)), -1) + np.eye(d, dtype=int)
    assert (matrix_rank(x @ mixed), affine_rank(x @ mixed)) == (matrix_rank(x), before)
    assert affine_rank(x * 2.0**40) == affine_rank(x * 2.0**-40) == before
    assert before - 1 <= matrix_rank(x) <= before
    assert matrix_rank(x.T) == matrix_rank(x)


def test_collapsed_silent_and_single_tokens():
    assert affine_rank(np.ones((5, 3))) == 1
    assert affine_rank(np.zeros((5, 3))) == 1
    assert matrix_rank(np.zeros((5, 3))) == 0
    assert affine_rank(np.ones((1, 3))) == 1
    found = token_ranks(np.stack([np.zeros((5, 3)), np.eye(5, 3)]))
    assert found.affine.tolist() == [1, 4]
    assert found.stable.tolist() == [0, 3]


def test_tolerance_follows_the_type_the_values_were_computed_in():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(40, 4, generator=generator) @ torch.randn(4, 30, generator=generator)
    assert matrix_rank(low) == 4  # rounding of float32 does not count
    assert matrix_rank(low.double()) > 4  # read as exact doubles it does
    assert matrix_rank(low.double(), eps=torch.finfo(torch.float32).eps) == 4
    spikes = (low > 0).float()
    assert matrix_rank(spikes) == matrix_rank(spikes.double())
    assert not token_ranks(spikes).ambiguous
    near = torch.diag(torch.tensor([1.0, 2 * 2.0**-52 * 3, 0.0], dtype=torch.float64))
    assert token_ranks(near).ambiguous


def test_stable_rank_and_effective_dimension_against_their_definitions():
    x = np.random.default_rng(3).normal(size=(20, 9)) * np.arange(1, 10)
    found = token_ranks(x)
    assert float(found.stable) == pytest.approx((x**2).sum() / np.linalg.norm(x, 2) ** 2)
    assert float(found.dimension) == measure(x, ["pca95"])["pca95"].value


@pytest.mark.parametrize("factor", [1e-300, 1e200, 1e307])
def test_ranks_have_no_scale(factor):
    rng = np.random.default_rng(0)
    low = rng.standard_normal((2, 12, 3)) @ rng.standard_normal((3, 20))
    low[1] *= 1e-9  # of every matrix its own
    plain, scaled = token_ranks(low), token_ranks(low * factor)
    for name in ("rank", "affine", "dimension", "ambiguous"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(plain, name))
    np.testing.assert_allclose(scaled.stable, plain.stable, rtol=1e-9)


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan), np.zeros((2, 2), complex)]
)
def test_what_has_no_rank_is_refused(bad):
    with pytest.raises(DataError, match="token matrix"):
        token_ranks(bad)


# -- layer norm ---------------------------------------------------------------------------------


def exact_layer_norm(x, gain, eps):
    """LN(X) with 50 digits, gains and tokens whole numbers."""
    rows = []
    for row in x:
        mean = mpmath.mpf(int(row.sum())) / len(row)
        variance = sum((mpmath.mpf(int(v)) - mean) ** 2 for v in row) / len(row)
        deviation = mpmath.sqrt(variance + eps)
        rows.append([(int(v) - mean) / deviation * int(g) for v, g in zip(row, gain, strict=True)])
    return rows


@settings(max_examples=30)
@given(whole(), st.integers(0, 2**32 - 1))
def test_layer_norm_ranks_are_those_of_exact_arithmetic_and_add_up(x, seed):
    rng = np.random.default_rng(seed)
    gain = rng.integers(0, 3, x.shape[1])  # now and then 0
    bias = rng.integers(-2, 3, x.shape[1])
    found = layer_norm_check(x, gain, bias, eps=1e-5)
    with mpmath.workdps(60):
        rows = exact_layer_norm(x, gain, mpmath.mpf(1e-5))
        assert found.after == exact_rank(with_ones(rows))
    assert found.before == exact_rank(with_ones(fractions(x)))
    assert found.predicted == found.after
    assert found.after - found.before == (
        found.deviations_outside - found.ones_outside - found.ones_in_rows - found.lost_to_gains
    )
    assert found.constant_rows == sum(len(set(row)) == 1 for row in x.tolist())
    assert found.zero_gains == int((gain == 0).sum())
    assert found.ones_in_rows == (
        exact_rank(fractions(x)) == exact_rank([*fractions(x), [Fraction(1)] * x.shape[1]])
    )
    if not found.neutral:  # the report names a reason
        assert found.failed


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(4, 30), st.integers(1, 40), st.integers(0, 10**6))
def test_generic_tokens_keep_their_affine_rank(n, d, r, seed):
    """Rank below d - 1 and below n: the published conditions hold, and so does the statement."""
    r = min(r, n - 1, d - 2)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, r)) @ rng.normal(size=(r, d))
    found = layer_norm_check(x, rng.uniform(0.5, 2, d), rng.normal(size=d))
    assert found.failed == ()
    assert found.neutral
    assert found.before == r + 1
    without = layer_norm_check(x, rng.uniform(0.5, 2, d))
    assert without.after == found.after
    normal = torch.nn.functional.layer_norm(torch.from_numpy(x), (d,))
    assert matrix_rank(normal) == matrix_rank(x, eps=1e-13) == r  # zero bias keeps the rank too


def generic(n=6, d=10, r=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, r)) @ rng.normal(size=(r, d))


def test_constant_rows_are_named():
    x = generic()
    x[2] = 3.0
    found = layer_norm_check(x)
    assert (found.constant_rows, found.ones_in_rows) == (1, 1)
    assert found.failed[:2] == ("constant rows", "1 in the row space")
    with pytest.raises(DataError, match="1 of 6 rows are constant"):
        layer_norm_check(x, eps=0.0)


def test_ones_in_the_row_space_are_named_and_cost_one():
    x = generic()
    x[5] = 1.0 - x[0]  # no constant row, but two rows add up to ones
    found = layer_norm_check(x)
    assert found.failed == ("1 in the row space",)
    assert (found.before, found.after) == (6, 5)


def test_more_tokens_than_channels_lose_one():
    """Generic, yet not neutral: the row space is everything and holds the ones."""
    found = layer_norm_check(np.random.default_rng(0).normal(size=(64, 16)))
    assert found.failed == ("1 in the row space",)
    assert (found.before, found.after) == (17, 16)


def test_a_zero_gain_is_named_and_costs_rank_where_every_channel_counts():
    x = np.random.default_rng(0).normal(size=(20, 6))
    x -= x.mean(1, keepdims=True)  # rows sum to zero: ones are outside the row space
    gain = np.ones(6)
    assert layer_norm_check(x, gain).failed == ()
    gain[3] = 0.0
    gain[4] = 0.0
    found = layer_norm_check(x, gain)
    assert found.failed == ("gamma_j = 0",)
    assert (found.before, found.after, found.lost_to_gains) == (6, 5, 1)


def test_the_three_published_conditions_do_not_suffice():
    """Collinear tokens off the origin go to points of a circle: affine rank 2 becomes 3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=8) + np.array([[-1.0], [0.2], [2.0], [5.0]]) * rng.normal(size=8)
    found = layer_norm_check(x)
    assert (found.before, found.after) == (2, 3)
    assert (found.constant_rows, found.ones_in_rows, found.zero_gains) == (0, 0, 0)
    assert found.failed == ("deviations and ones lie differently",)


# -- residual update ----------------------------------------------------------------------------


def softmax_attention(x, heads, rng):
    d = x.shape[1]
    out = np.zeros_like(x)
    for _ in range(heads):
        q, k, v, o = (rng.normal(size=(d, d // heads)) / np.sqrt(d) for _ in range(4))
        scores = (x @ q) @ (x @ k).T / np.sqrt(d // heads)
        maps = np.exp(scores - scores.max(1, keepdims=True))
        out += (maps / maps.sum(1, keepdims=True)) @ (x @ v) @ o.T
    return out


@settings(max_examples=20)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_attention_raises_the_rank_of_generic_tokens(r, heads, seed):
    rng = np.random.default_rng(seed)
    n, d = 14, 12
    x = rng.normal(size=(n, r)) @ rng.normal(size=(r, d))
    found = residual_check(x, softmax_attention(x, heads, rng), heads)
    assert found.verdict == "grew"
    assert found.before == r < found.after <= found.bound <= (heads + 1) * r


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_equal_tokens_stay_equal(distinct, heads, seed):
    """No attention, whatever its weights, gives more rank than there are different tokens."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(-4, 5, (distinct, 12)).astype(float)
    kinds[:, 0] = np.arange(distinct)
    x = kinds[rng.integers(0, distinct, 14)]
    update = softmax_attention(x, heads, rng)
    found = residual_check(x, update, heads, eps=1e-13)
    assert found.after <= found.distinct <= distinct
    if found.distinct == 1:  # collapsed tokens stay collapsed
        assert affine_rank(x + update, eps=1e-13) == 1


def test_reasons_why_the_rank_did_not_grow():
    x = generic(6, 10, 3)
    assert residual_check(x, np.zeros_like(x)).verdict == "update is zero"
    assert residual_check(x, x).verdict == "update adds no rank"
    assert residual_check(x, -x).verdict == "fell"
    full = np.random.default_rng(0).normal(size=(6, 10))
    assert residual_check(full, full**2).verdict == "full already"
    twice = np.repeat(full[:2], 3, axis=0)
    assert residual_check(twice, 2 * twice + 1).verdict == "as many as different tokens"
    with pytest.raises(DataError, match="must be alike"):
        residual_check(x, x[:2])
