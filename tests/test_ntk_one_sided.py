"""Kernels of surrogate training against the true kernel of an escape-noise network."""

import json

import numpy as np
import pytest
import torch

from spikedim.errors import BudgetError, ConfigError, ModelError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import LIFParams, Surrogate
from spikedim.ntk import gram, one_sided
from spikedim.ntk.capture import logits
from spikedim.ntk.gram import Setup, jacobian_rows, with_surrogate
from spikedim.ntk.one_sided import (
    LAST,
    ONE_SIDED,
    SPIKING,
    TWO_SIDED,
    Mismatched,
    _Flat,
    _kernels,
    _statistics,
)
from spikedim.ntk.variants import variant

T, N = 2, 8
STEP = Surrogate("sigmoid", 4.0)


@pytest.fixture(scope="module")
def made():
    neuron = LIFParams(reset="soft", surrogate=STEP)
    options = {"input_shape": (1, 4, 4), "num_classes": 2, "embed_dim": 16, "neuron": neuron}
    net = create_model("spikformer_nano", seed=0, **options).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *net.input_shape, generator=generator, dtype=torch.float64)
    calibrate_batchnorm(net, [x], T)
    return net.eval(), x


@pytest.fixture(scope="module")
def measured(made):
    net, x = made
    return one_sided(net, x, T=T, widths=(1.0, 4.0, 16.0))


def test_a_firing_probability_ends_at_one(made):
    """A surrogate's own scale, as snnTorch's, is none of the escape noise's."""
    net, x = made
    scaled = variant(net, None, T, surrogate=Surrogate("sigmoid", 4.0, scale=2.0))
    found, plain = (one_sided(m, x, T=T, widths=(4.0,)) for m in (scaled, net))
    assert found.escape.scale == 1
    for a, b in zip(found.rows, plain.rows, strict=True):
        assert a.error.value == pytest.approx(b.error.value, abs=1e-12)
    same = {row.kernel: row for row in found.rows}
    assert same[TWO_SIDED].error.value == same[ONE_SIDED].error.value == 0
    assert same[ONE_SIDED].alignment.value == pytest.approx(1)
    with pytest.raises(ConfigError, match="scale 2"):
        one_sided(net, x, escape=Surrogate("sigmoid", 4.0, scale=2.0), T=T)


def test_an_antisymmetric_part_lowers_the_alignment():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 9, 9))
    true, odd = a @ a.T, b - b.T
    _, alignment, _, asymmetry = _statistics(true + odd, true, [])[:, 0]
    centre = np.eye(9) - 1 / 9
    k, t = (centre @ m @ centre for m in (true + odd, true))
    assert alignment == pytest.approx((k * t).sum() / np.linalg.norm(k) / np.linalg.norm(t))
    assert alignment < 1
    assert asymmetry > 0


def smooth_of(net):
    changes = {"smooth": True, "detach_reset": False, "surrogate": STEP}
    return variant(net, None, T, **changes)


def jacobian(net, x):
    """[outputs · n, P] by autograd, one sample and output at a time."""
    setup = Setup(net, T, logits, False)
    eye = torch.eye(2, dtype=torch.float64)
    rows = [row.detach() for _, row in jacobian_rows(setup, x, eye, "loop")]
    return torch.cat(rows, 2).numpy()


def test_the_step_keeps_its_values_and_takes_another_slope():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    other = Mismatched("atan", 3.0, STEP)
    y = other.primitive(x)
    assert torch.equal(y, STEP.primitive(x))
    y.sum().backward()
    torch.testing.assert_close(x.grad, Surrogate("atan", 3.0).derivative(x.detach()))


def test_the_true_jacobian_is_that_of_finite_differences(made):
    net, x = made
    smooth = smooth_of(net)
    jac = jacobian(smooth, x[:1])[:, 0]
    generator = torch.Generator().manual_seed(2)
    parameters = [p for p in smooth.parameters() if p.requires_grad]
    step = [1e-6 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    flat = torch.cat([s.flatten() for s in step]).numpy()
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, s in zip(parameters, step, strict=True):
                parameter += sign * s
            values.append(smooth(x[:1], T)[0].numpy())
        for parameter, s in zip(parameters, step, strict=True):
            parameter += s
    np.testing.assert_allclose((values[0] - values[1]) / 2, jac @ flat, rtol=1e-5, atol=1e-12)


def test_all_three_kernels_are_those_of_autograd(made):
    net, x = made
    slope = Mismatched("atan", 2.0, STEP)
    smooth = smooth_of(net)
    true, wrong = jacobian(smooth, x), jacobian(with_surrogate(smooth, slope), x)
    for found, (a, b) in zip(
        _kernels(smooth, slope, x, None), ((true, true), (true, wrong), (wrong, wrong)), strict=True
    ):
        expected = np.einsum("oap,obp->ab", a, b)
        assert np.linalg.norm(found - expected) < 1e-10 * np.linalg.norm(expected)


def test_the_true_slope_gives_the_true_kernel(measured):
    for name in (TWO_SIDED, ONE_SIDED):
        row = measured.find(name, 4.0)
        assert row.error.value < 1e-12
        assert row.alignment.value == pytest.approx(1, abs=1e-12)
        assert row.asymmetry.value < 1e-12
        assert row.dimension.value == pytest.approx(measured.dimension.value)


def test_a_kernel_that_is_not_symmetric_has_the_dimension_of_its_singular_values():
    rng = np.random.default_rng(0)
    true, kernel = (rng.standard_normal((9, 9)) for _ in range(2))
    centring = np.eye(9) - 1 / 9
    values = np.linalg.svd(centring @ kernel @ centring)[1]
    found = _statistics(kernel, true @ true.T, [])[2, 0]
    assert found == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert 1 <= found <= 8


def test_other_slopes_do_not(measured):
    for width in (1.0, 16.0):
        one, two = measured.find(ONE_SIDED, width), measured.find(TWO_SIDED, width)
        assert one.asymmetry.value > 1e-3
        assert two.asymmetry.value < 1e-14
        assert one.error.value > 1e-2
        assert one.error.value < two.error.value  # wrong on one side only
        for row in (one, two):
            assert row.alignment.low < row.alignment.value <= 1


def test_spikes_have_a_true_derivative_behind_the_last_layer_only(made, measured):
    net, x = made
    flat = gram(with_surrogate(net, _Flat("gaussian", 1.0)), x, T=T)
    whole = gram(net, x, T=T)
    for name, part in flat.layers.items():
        if name.startswith("head."):
            np.testing.assert_allclose(part, whole.layers[name], rtol=1e-10)
        else:
            assert not part.any(), name
    row = measured.find(LAST)
    assert row.width is None
    assert row.error.value > measured.find(SPIKING, 4.0).error.value
    assert row.alignment.high <= 1


def test_the_result_is_shown_and_stored(measured):
    assert "escape-noise" in str(measured)
    found = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert len(found["rows"]) == 10
    assert measured.plot().get_ylabel() == "alignment"


def test_mistakes(made):
    net, x = made
    with pytest.raises(ConfigError, match="widths must not be empty"):
        one_sided(net, x, T=T, widths=())
    with pytest.raises(ConfigError, match="kind 'step'"):
        one_sided(net, x, T=T, kind="step")
    with pytest.raises(BudgetError, match="by two surrogates"):
        one_sided(net, x, T=T, memory=1e-4, widths=(1.0,))
    with pytest.raises(ModelError, match="continuous already"):
        one_sided(net.continuous(), x, T=T)
