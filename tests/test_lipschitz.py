"""Lipschitz estimates against exact singular values."""

import pytest
import torch
from torch import nn

from spikedim.errors import ConfigError, ModelError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import LIF, LIFParams
from spikedim.profiling import lipschitz

torch.manual_seed(0)


def smooth_network():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


class Spiking(nn.Module):
    """Two spiking layers, read out as a mean over time."""

    def __init__(self, neuron):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.lif = LIF(neuron)

    def forward(self, x, T=6):
        current = self.first(x).expand(T, *x.shape[:-1], 8)
        return self.second(self.lif(current)).mean(0)


def exact(model, x):
    rows = [torch.func.jacrev(lambda s: model(s[None])[0])(s) for s in x]
    return torch.stack([torch.linalg.matrix_norm(row.flatten(1), 2) for row in rows]).detach()


def test_a_linear_map_gives_its_spectral_norm():
    layer = nn.Linear(7, 4).double().eval()
    found = lipschitz(layer, torch.randn(3, 7, dtype=torch.float64))
    norm = torch.linalg.matrix_norm(layer.weight, 2).item()
    assert found.per_sample.tolist() == pytest.approx([norm] * 3, rel=1e-4)
    assert found.constant.high is None
    assert found.constant.low == found.constant.value <= norm * (1 + 1e-12)


def test_agrees_with_the_singular_values_of_the_jacobian():
    model, x = smooth_network(), torch.randn(6, 5, dtype=torch.float64)
    found = lipschitz(model, x, tolerance=1e-10, iterations=2000, batch=4)
    assert torch.allclose(found.per_sample, exact(model, x), rtol=1e-6)


@pytest.mark.parametrize("reset", ["soft", "hard", "none"])
def test_both_twins_of_a_spiking_network_agree_with_their_jacobians(reset):
    neuron = LIFParams(reset=reset, decay_input=False, detach_reset=False)
    model = Spiking(neuron).double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    options = {"tolerance": 1e-10, "iterations": 2000}
    found = lipschitz(model, x, twin="surrogate", **options)
    assert torch.allclose(found.per_sample, exact(model, x), rtol=1e-5)
    smooth = Spiking(LIFParams(reset=reset, decay_input=False, detach_reset=False, smooth=True))
    smooth = smooth.double().eval()
    smooth.load_state_dict(model.state_dict())
    found = lipschitz(model, x, twin="smooth", **options)
    assert torch.allclose(found.per_sample, exact(smooth, x), rtol=1e-5)
    assert not model.lif.params.smooth


def test_bounds_the_measured_variation_of_the_smooth_twin_from_below():
    """Along the worst direction the twin really changes that much."""
    model, x = smooth_network(), torch.randn(1, 5, dtype=torch.float64)
    found = lipschitz(model, x, tolerance=1e-10, iterations=2000)
    jacobian = torch.func.jacrev(lambda s: model(s[None])[0])(x[0])
    direction = torch.linalg.svd(jacobian).Vh[0]
    step = 1e-5
    change = (model(x + step * direction) - model(x - step * direction)).norm() / (2 * step)
    assert change.item() == pytest.approx(found.constant.value, rel=1e-5)


def test_a_constant_map_has_constant_zero():
    model = nn.Linear(3, 2).double().eval()
    nn.init.zeros_(model.weight)
    assert lipschitz(model, torch.randn(2, 3, dtype=torch.float64)).constant.value == 0


def test_an_unsettled_estimate_says_so_and_stays_below():
    model, x = smooth_network(), torch.randn(4, 5, dtype=torch.float64)
    few = lipschitz(model, x, iterations=1)
    assert bool((few.per_sample <= exact(model, x) * (1 + 1e-9)).all())
    assert "did not settle" in few.notes[-1]


def test_a_registered_model_in_both_twins():
    model = create_model("spikformer_nano", num_classes=10, input_shape=(1, 8, 8))
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    calibrate_batchnorm(model, [x], 2)
    model.eval()
    results = [lipschitz(model, x, T=2, twin=t, iterations=10) for t in ("smooth", "surrogate")]
    assert all(r.constant.value > 0 for r in results)
    again = lipschitz(model, x, T=2, iterations=10)
    assert again.per_sample.equal(results[0].per_sample)
    assert "lower bound" in str(results[0])


def test_mistakes_are_refused():
    x = torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"eval\(\)"):
        lipschitz(smooth_network().train(), x)
    with pytest.raises(ConfigError, match="twin"):
        lipschitz(smooth_network(), x, twin="rate")
    for bad in (x / 0, x.long()):
        with pytest.raises(ConfigError, match="finite"):
            lipschitz(smooth_network(), bad)
    with pytest.raises(ConfigError, match="n=0"):
        lipschitz(smooth_network(), x[:0])
