"""How a network is held against what the original one gave, and against its own layers."""

import hashlib

import numpy as np
import torch
from torch import nn


def assert_same_spikes(recorded, expected, released):
    """Every recorded train has the digest of the stored one.

    ``released(name, spikes)`` brings a train to the axes of the original network.
    """
    assert set(recorded) == set(expected)
    for name, spikes in recorded.items():
        bits = released(name, spikes).detach().to(torch.uint8).numpy()
        digest = hashlib.sha256(np.packbits(bits.ravel()).tobytes()).hexdigest()
        assert digest == expected[name]["sha256"], name


def assert_same_gradients(model, expected, absent=()):
    """Gradients within 1e-6 of the stored ones, relative, and none where none was stored."""
    parameters = dict(model.named_parameters())
    for name, gradient in expected.items():
        difference = (parameters[name].grad - gradient.double()).norm()
        assert difference <= 1e-6 * gradient.double().norm(), name
    assert {n for n, p in parameters.items() if p.grad is None} == set(absent)


def channels_third(name, spikes):
    """[T, B, ..., C] as the vision families released it, [T, B, C, ...]."""
    return spikes.movedim(-1, 2)


def counted_macs(model, shape):
    """Multiply-accumulates of every weight layer in one step on one sample, by layer."""
    counts = {}

    def count(name):
        def hook(module, inputs, output):
            channel_first = isinstance(module, nn.Conv2d)
            positions = output[:, 0].numel() if channel_first else output[..., 0].numel()
            counts[name] = counts.get(name, 0) + positions * module.weight.numel()

        return hook

    handles = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    model.steps(torch.zeros(1, 1, *shape))
    for handle in handles:
        handle.remove()
    return counts
