"""Inputs of the user's own in Python: values that are no numbers, torch's containers, layouts."""

import pytest
import torch

from spikedim.design.layers import layer_dimensions
from spikedim.dimension import measure
from spikedim.errors import DataError
from spikedim.models import create_model, representations, settle_batchnorm
from spikedim.ntk import KernelOperator, gram, sketched_gram
from spikedim.profiling import activity, profile


@pytest.fixture(scope="module")
def network():
    model = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=0)
    settle_batchnorm(model, [images(16)], 2)
    return model


def images(n):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


ENTRIES = {
    "measure": lambda net, x: measure(x),
    "profile": lambda net, x: profile(net, x, 2, batch_size=4),
    "profile of batches": lambda net, x: profile(net, x.split(4), 2),
    "activity": lambda net, x: activity(net, x, 2),
    "layers": lambda net, x: layer_dimensions(net, x, 2),
    "representations": lambda net, x: representations(net, x, 2),
    "gram": lambda net, x: gram(net, x, T=2),
    "gram against others": lambda net, x: gram(net, images(3), x, T=2),
    "sketch": lambda net, x: sketched_gram(net, x, T=2),
    "operator": lambda net, x: KernelOperator(net, x, T=2),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_number_is_refused_with_its_sample(entry, value, network):
    x = images(9)
    x[6, 0, 3, 4] = value
    x[8] = float("nan")
    with pytest.raises(DataError, match=rf"sample 6.*{value}.*remove or impute"):
        ENTRIES[entry](network, x)


def test_the_sample_of_a_recording_is_on_its_second_axis(network):
    x = torch.rand(2, 9, 1, 8, 8)
    x[1, 6, 0, 3, 4] = float("nan")
    for entry in (profile, layer_dimensions):
        with pytest.raises(DataError, match="sample 6"):
            entry(network, x, 2)
    with pytest.raises(DataError, match="sample 6"):
        gram(network, x)
