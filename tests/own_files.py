"""What files of a user's own begin with: a neuron, and what is registered for it."""

THRESHOLD = """
import torch
from torch import nn
from spikedim.adapters import register_neuron, wrap
from spikedim.neurons import LIFParams


class Threshold(nn.Module):
    def forward(self, x):
        return (x >= 0.3).to(x)


@register_neuron(Threshold)
def convert(neuron):
    return LIFParams(beta=0.0, threshold=0.3, reset="none")
"""
