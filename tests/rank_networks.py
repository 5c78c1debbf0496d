"""One small network of every family, for the tests of ranks and gates."""

import torch

FAMILIES = {
    "spikformer_nano": {"input_shape": (1, 8, 8)},
    "qkformer_nano": {"input_shape": (1, 16, 16)},
    "spike_driven_nano": {"input_shape": (1, 8, 8)},
    "spike_driven_v2_nano": {"input_shape": (1, 16, 16)},
    "spikingresformer_nano": {"input_shape": (1, 16, 16)},
    "spikingbert_small": {"depth": 1, "positions": 16, "gradient": "surrogate"},
    "spikegpt_small": {"depth": 1},
}


def inputs(net, n, seed=0):
    """Images [n, C, H, W] in float64, or token ids [n, 9]."""
    generator = torch.Generator().manual_seed(seed)
    if len(net.input_shape) == 1:
        return torch.randint(0, 60, (n, 9), generator=generator)
    return torch.randn(n, *net.input_shape, generator=generator, dtype=torch.float64)
