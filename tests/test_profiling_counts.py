"""Counts against element-by-element loops that know only the definition of the operation."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spikedim.neurons import LIF, LIFParams
from spikedim.profiling import profile
from spikedim.profiling.rules import Kind, convolution, linear, matmul, scan, weighted_sum

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def values(shape, kind, seed, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    if kind == "binary":
        x = rng.random(shape) < 0.4
    elif kind == "integer":
        x = rng.integers(-1, 4, shape)
        x.flat[0] = 2
    else:
        x = rng.normal(size=shape) * (rng.random(shape) < 0.7)
        x.flat[0] = 0.3
    return torch.tensor(np.asarray(x, float), dtype=dtype)


def weight_of(value, kind):
    return abs(value) if kind != "real" else float(value != 0)


def loop_convolution(x, weight, stride, padding, dilation, groups):
    """Nonzero and unit events reaching each output, one multiplication at a time."""
    n, _, h, w = x.shape
    out, inside, kh, kw = weight.shape
    oh = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    reached = np.zeros((2, n))
    dense = 0
    for b, o, i, j, c, p, q in product(*map(range, (n, out, oh, ow, inside, kh, kw))):
        dense += 1
        row = i * stride[0] - padding[0] + p * dilation[0]
        column = j * stride[1] - padding[1] + q * dilation[1]
        if 0 <= row < h and 0 <= column < w:
            channel = o // (out // groups) * inside + c
            value = float(x[b, channel, row, column])
            reached[:, b] += value != 0, abs(value)
    return reached, dense


@QUICK
@given(
    kind=st.sampled_from(["binary", "integer", "real"]),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.just(1)),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_convolution_equals_loops(kind, size, kernel, stride, padding, dilation, groups, seed):
    if size[0] + 2 * padding[0] < dilation[0] * (kernel[0] - 1) + 1:
        return
    x = values((2, 2, *size), kind, seed)
    weight = torch.ones(4, 2 // groups, *kernel)
    count = convolution(x, weight, stride, padding, dilation, False, (0, 0), groups)
    reached, dense = loop_convolution(x, weight, stride, padding, dilation, groups)
    (events,) = count.operands
    assert events.kind <= Kind[kind.upper()]
    assert count.dense == dense
    np.testing.assert_array_equal(events.counts[0], (x != 0).sum((1, 2, 3)))
    np.testing.assert_array_equal(events.counts[2], reached[0])
    if kind != "real":
        np.testing.assert_array_equal(events.counts[3], reached[1])


@pytest.mark.parametrize("kind", ["binary", "integer"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "extra", "dilation"), [(1, 0, 0, 1), (2, 1, 1, 1), (3, 1, 1, 2)]
)
def test_transposed_convolution_equals_autograd(kind, groups, stride, padding, extra, dilation):
    x = values((3, 4, 5, 4), kind, 1, torch.float64)
    weight = torch.ones(4, 2, 3, 3, dtype=torch.float64)
    geometry = (None, stride, padding, extra, groups, dilation)
    reached = F.conv_transpose2d((x != 0).double(), weight, *geometry).sum((1, 2, 3))
    units = F.conv_transpose2d(x.abs(), weight, *geometry).sum((1, 2, 3))
    pair = [(v, v) for v in (stride, padding, dilation, extra)]
    count = convolution(x, weight, pair[0], pair[1], pair[2], True, pair[3], groups)
    np.testing.assert_array_equal(count.operands[0].counts[2], reached)
    np.testing.assert_array_equal(count.operands[0].counts[3], units)


@pytest.mark.parametrize("dims", [1, 3])
def test_convolution_of_other_dimensions(dims):
    x = values((2, 3, *[5] * dims), "integer", 2, torch.float64)
    weight = torch.ones(2, 3, *[3] * dims, dtype=torch.float64)
    conv = F.conv1d if dims == 1 else F.conv3d
    expected = conv((x != 0).double(), weight, stride=2, padding=1).flatten(1).sum(1)
    count = convolution(x, weight, [2] * dims, [1] * dims, [1] * dims, False, [0] * dims, 1)
    np.testing.assert_array_equal(count.operands[0].counts[2], expected)


@QUICK
@given(
    kind=st.sampled_from(["binary", "integer", "real"]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_linear_equals_loops(kind, shape, outputs, seed):
    x = values(shape, kind, seed)
    count = linear(x, torch.ones(shape[1], outputs))
    reached = np.zeros((2, shape[0]))
    for r, k, _ in product(range(shape[0]), range(shape[1]), range(outputs)):
        reached[:, r] += float(x[r, k]) != 0, weight_of(float(x[r, k]), kind)
    np.testing.assert_array_equal(count.operands[0].counts[2:4], reached.astype(float))
    np.testing.assert_array_equal(count.operands[0].counts[4], reached[0])
    assert count.dense == shape[0] * shape[1] * outputs


@QUICK
@given(
    kinds=st.tuples(*[st.sampled_from(["binary", "integer", "real"])] * 2),
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    seed=st.integers(0, 1000),
)
def test_matmul_equals_loops(kinds, shape, seed):
    groups, rows, inner, columns = shape
    a = values((groups, rows, inner), kinds[0], seed)
    b = values((groups, inner, columns), kinds[1], seed + 1)
    count = matmul(a, b)
    pairs, left, right = np.zeros(groups), np.zeros((2, groups)), np.zeros((2, groups))
    for g, i, k, j in product(*map(range, shape)):
        x, y = float(a[g, i, k]), float(b[g, k, j])
        pairs[g] += x != 0 and y != 0
        left[:, g] += x != 0, weight_of(x, kinds[0])
        right[:, g] += y != 0, weight_of(y, kinds[1])
    np.testing.assert_array_equal(count.coincident, pairs)
    np.testing.assert_array_equal(count.operands[0].counts[2:4], left)
    np.testing.assert_array_equal(count.operands[1].counts[2:4], right)
    assert count.dense == groups * rows * inner * columns


def test_weighted_sum_is_a_product_with_real_weights():
    v = values((3, 4, 2), "binary", 0)
    expected = matmul(torch.full((3, 5, 4), 0.5), v)
    count = weighted_sum(5, v)
    assert count.dense == expected.dense
    assert [o.kind for o in count.operands] == [Kind.REAL, Kind.BINARY]
    torch.testing.assert_close(count.coincident, expected.coincident)
    for ours, theirs in zip(count.operands, expected.operands, strict=True):
        torch.testing.assert_close(ours.counts, theirs.counts)
        assert ours.elements == theirs.elements


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, bool])
def test_scan_takes_any_type(dtype):
    dtype = torch.bool if dtype is bool else dtype
    x = values((4, 30), "binary", 0).to(dtype)
    kind, nonzero, units = scan(x, lambda chunk: chunk.sum(1))
    assert kind is Kind.BINARY
    np.testing.assert_array_equal(nonzero, (x != 0).sum(1))
    np.testing.assert_array_equal(units, nonzero)


def test_scan_is_exact_across_chunks_of_different_kind():
    x = torch.ones(40, 20_000)
    x[30:] = 3
    kind, nonzero, units = scan(x, lambda chunk: chunk.sum(1))
    assert kind is Kind.INTEGER
    np.testing.assert_array_equal(nonzero, np.full(40, 20_000.0))
    np.testing.assert_array_equal(units, np.repeat([20_000.0, 60_000.0], [30, 10]))
    x[-1, -1] = 0.5
    assert scan(x, lambda chunk: chunk.sum(1))[0] is Kind.REAL


class Products(nn.Module):
    """One attention product written in every way PyTorch offers."""

    def __init__(self, how):
        super().__init__()
        self.lif = LIF(LIFParams())
        self.how = how

    def steps(self, x, T):
        s = self.lif(2.5 * x)  # [T, B, h, N, d]
        if self.how == "@":
            y = s @ s.transpose(-1, -2)
        elif self.how == "matmul":
            y = torch.matmul(s, s.transpose(-1, -2))
        elif self.how == "einsum":
            y = torch.einsum("tbhnd,tbhmd->tbhnm", s, s)
        elif self.how == "bmm":
            flat = s.flatten(0, 2)
            y = torch.bmm(flat, flat.transpose(1, 2))
        elif self.how == "baddbmm":
            flat = s.flatten(0, 2)
            y = torch.baddbmm(torch.zeros(1), flat, flat.transpose(1, 2))
        else:
            y = torch.stack([torch.stack([b @ b.mT for b in t]) for t in s])
        return y.reshape(T, x.shape[1], -1).mean(-1, keepdim=True)


def loop_pairs(s):
    """Coincidences of q kᵀ with q = k = s [T, B, h, N, d], per sample."""
    T, B, h, n, d = s.shape
    pairs = np.zeros(B)
    for t, b, i, j, g, k in product(*map(range, (T, B, n, n, h, d))):
        pairs[b] += bool(s[t, b, g, i, k]) and bool(s[t, b, g, j, k])
    return pairs


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("how", ["@", "matmul", "einsum", "bmm", "baddbmm"])
def test_every_spelling_of_a_product_is_counted(how, inference):
    x = torch.rand(3, 2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    model = Products(how)
    spikes = model.lif(2.5 * x)
    assert 0.1 < spikes.mean() < 0.9
    with torch.inference_mode(inference):
        found = profile(model, x, 3)
    (operation,) = found.operations
    assert operation.operation == "matmul"
    assert operation.inputs == ("binary", "binary")
    assert operation.coincident == loop_pairs(spikes).mean()
    assert operation.dense == 3 * 2 * 4 * 4 * 3
    assert operation.fanout[0] == float(spikes.sum()) * 4 / 2
    assert not found.unsupported


class FusedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.lif = LIF(LIFParams())

    def steps(self, x, T):
        s = self.lif(2.5 * x).flatten(0, 1)
        return F.scaled_dot_product_attention(s, s, s).reshape(T, x.shape[1], -1)


def test_fused_attention_is_two_products():
    x = torch.rand(3, 2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    model = FusedAttention()
    spikes = model.lif(2.5 * x)
    first, second = profile(model, x, 3).operations
    assert first.coincident == loop_pairs(spikes).mean()
    assert second.inputs == ("real", "binary")
    assert second.fanout[1] == float(spikes.sum()) * 4 / 2


def test_weight_on_the_left_of_a_product():
    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = LIF(LIFParams())
            self.weight = nn.Parameter(torch.ones(5, 3))

        def steps(self, x, T):
            s = self.lif(3 * x)  # [T, B, 3]
            return torch.einsum("oc,tbc->tbo", self.weight, s)

    x = torch.rand(4, 3, 1, 1, 3, generator=torch.Generator().manual_seed(1))
    model = Left()
    found = profile(model, x, 4, forward=lambda m, v, T: m.steps(v.flatten(2), T))
    (operation,) = found.operations
    assert operation.operation == "linear"
    assert operation.inputs == ("binary",)
    assert operation.fanout[0] * 3 == found.sample_spikes.sum() * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_whole_but_for_rounding_is_whole(dtype):
    eps = torch.finfo(dtype).eps
    spikes = torch.tensor([[0, 1, 1 + eps, 1 - eps]], dtype=dtype)
    sums = torch.tensor([[0, 1 - eps, 3 + 2 * eps, -2]], dtype=dtype)
    assert scan(spikes, lambda chunk: chunk.sum(1)) == (Kind.BINARY, 3, 3)
    if dtype != torch.bfloat16:  # where 3 and a few eps are another number
        assert scan(sums, lambda chunk: chunk.sum(1)) == (Kind.INTEGER, 3, 6)
    for real in ([0, 1, 1 + 10 * eps], [0, 1, 1e-9], [0, 1, 0.5]):
        assert scan(torch.tensor([real], dtype=dtype), lambda chunk: chunk.sum(1))[0] is Kind.REAL
