"""Published numbers that the checks of the design rules read, with their sources."""

from __future__ import annotations

from dataclasses import dataclass

SPIKFORMER = "Spikformer (ICLR 2023), arXiv:2209.15425"
QKFORMER = "QKFormer (NeurIPS 2024), arXiv:2403.16552"
TDFORMER = "TDFormer, arXiv:2505.15840 (Spikformer retrained, 5 seeds)"
DIGEST = "arXiv:2604.15769, third-party digest"


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
