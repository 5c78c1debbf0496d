"""Published numbers that the checks of the design rules read, with their sources."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spikedim.results import Estimate
from spikedim.theory.statistics import normal_quantile

SPIKFORMER = "Spikformer (ICLR 2023), arXiv:2209.15425"
QKFORMER = "QKFormer (NeurIPS 2024), arXiv:2403.16552"
TDFORMER = "TDFormer, arXiv:2505.15840 (Spikformer retrained, 5 seeds)"
DIGEST = "arXiv:2604.15769, third-party digest"


@dataclass(frozen=True)
class Ablation:
    """Accuracy of one network trained at several T.

    Attributes:
        dataset: as in :data:`spikedim.theory.PUBLISHED_D_EFF`.
        network, source: what and where.
        accuracy: T → percent.
        tested: test images.
    """

    dataset: str
    network: str
    source: str
    accuracy: dict[int, float]
    tested: int

    def loss(self, T: int) -> Estimate:
        """Points lost at T against the largest T, binomial interval of unpaired tests."""
        last = max(self.accuracy)
        best, here = (self.accuracy[t] / 100 for t in (last, T))
        error = math.sqrt((best * (1 - best) + here * (1 - here)) / self.tested)
        half = 100 * normal_quantile(0.95) * error if last != T else 0.0
        value = 100 * (best - here)
        return Estimate(value, value - half, value + half, self.tested, "points", method="binomial")

    def t_star(self, tolerance: float) -> Estimate:
        """Smallest T that loses at most ``tolerance`` points; bounds by the interval of the loss.

        The lower bound reaches into the gap of the grid, whose steps were not tried.
        """
        steps = sorted(self.accuracy)
        losses = {T: self.loss(T) for T in steps}
        value = next(T for T in steps if losses[T].value <= tolerance)
        least = next(T for T in steps if (losses[T].low or 0.0) <= tolerance)
        most = next(T for T in steps if (losses[T].high or 0.0) <= tolerance)
        gap = [T for T in steps if least > T]
        return Estimate(value, gap[-1] + 1 if gap else 1, most, self.tested, "timesteps")


ABLATIONS = (
    Ablation(
        "cifar10",
        "Spikformer-4-384",
        f"{SPIKFORMER}, Table 5",
        {1: 93.51, 2: 93.59, 4: 95.19, 6: 95.34},
        10_000,
    ),
    Ablation(
        "cifar100",
        "Spikformer-4-384",
        f"{SPIKFORMER}, Table 5",
        {1: 74.36, 2: 76.28, 4: 77.86, 6: 78.61},
        10_000,
    ),
    Ablation(
        "imagenet",
        "Spikformer-8-512",
        f"{SPIKFORMER}, Table 5",
        {1: 70.14, 2: 71.09, 4: 73.38, 6: 73.70},
        50_000,
    ),
    Ablation(
        "cifar100",
        "QKFormer-4-384",
        f"{QKFORMER}, Table 7",
        {1: 78.51, 2: 80.08, 4: 81.15, 6: 81.30},
        10_000,
    ),
    Ablation(
        "cifar10",
        "Spikformer-4-384 rerun",
        f"{TDFORMER}, Table 5",
        {2: 93.65, 4: 94.73, 6: 95.09},
        10_000,
    ),
    Ablation(
        "cifar100",
        "Spikformer-4-384 rerun",
        f"{TDFORMER}, Table 5",
        {2: 75.25, 4: 77.56, 6: 78.21},
        10_000,
    ),
)


@dataclass(frozen=True)
class Price:
    """Energy per ImageNet image of one network, mJ.

    Attributes:
        network: which.
        tabulated: as the audited paper has it.
        own: as the network's own paper has it.
        source: of ``own``.
    """

    network: str
    tabulated: float
    own: float
    source: str


#: The ANN of the audited table: 17.6 mJ for ViT-B/16, whose MAC count is 17.6 G.
ANN_TABULATED_MJ = 17.6
VIT_B_GMAC = 17.6
PRICES = (
    Price("Spikformer-8-512", 0.46, 11.577, f"{SPIKFORMER}, Table 2"),
    Price("Meta-SpikeFormer 8-512", 0.31, 52.4, f"{TDFORMER}, Table 1 (quoted)"),
    Price("QKFormer-10-768 at 384 x 384", 0.40, 113.64, f"{QKFORMER}, Table 1"),
)
#: Measured over theoretical spikes by number of heads, as published.
HEAD_RATIOS = {2: 2.89, 4: 2.56, 8: 2.31, 16: 2.15}
