"""Small networks whose tangent kernels the tests compute, and how far two kernels are apart."""

import numpy as np
import torch

from spikedim.models import calibrate_batchnorm, create_model

# One tiny network of every family; tokens are drawn below the size of the vocabulary.
FAMILIES = {
    "spikformer_nano": {"input_shape": (1, 8, 8)},
    "qkformer_nano": {"input_shape": (1, 8, 8)},
    "spike_driven_nano": {"input_shape": (1, 8, 8)},
    "spike_driven_v2_nano": {
        "input_shape": (1, 16, 16),
        "embed_dims": (4, 8, 8, 8),
        "depths": (1, 1),
        "num_classes": 4,
    },
    "spikingresformer_nano": {"input_shape": (1, 16, 16), "num_classes": 3},
    "spikegpt_nano": {"num_classes": 7, "embed_dim": 16},
    "spikingbert_nano": {"vocabulary": 11},
}


def last_token(model, x, T):
    return model(x, T)[:, -1]


def network(name, samples, dtype=torch.float64, **options):
    """A calibrated network in eval mode, inputs, and what else ``gram`` needs."""
    model = create_model(name, seed=0, **options)
    generator = torch.Generator().manual_seed(1)
    if name.startswith(("spikegpt", "spikingbert")):
        x = torch.randint(0, 7, (samples, 5), generator=generator)
        more = {"readout": last_token, "fallback": True} if "gpt" in name else {"T": 3}
        return model.to(dtype).eval(), x, more
    calibrate_batchnorm(model, [torch.randn(16, *model.input_shape, generator=generator)], 3)
    x = torch.randn(samples, *model.input_shape, generator=generator)
    return model.to(dtype).eval(), x.to(dtype), {"T": 3}


def small_network():
    """The smallest Spikformer, five samples and three outputs."""
    options = {"input_shape": (1, 4, 4), "embed_dim": 16, "num_classes": 3}
    return network("spikformer_nano", 5, **options)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)
