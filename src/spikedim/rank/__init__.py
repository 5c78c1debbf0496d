"""Rank and structure of token representations: collapse, layer norm, residuals, heads."""

from spikedim.rank.heads import (
    AmbiguityBasis,
    HeadAmbiguity,
    HeadReport,
    ambiguity_dimension,
    head_report,
    spike_patterns,
)
from spikedim.rank.matrix import TokenRanks, affine_rank, matrix_rank, token_ranks
from spikedim.rank.norm import LayerNormCheck, layer_norm_check
from spikedim.rank.residual import ResidualCheck, ResidualReport, residual_check, residual_report

__all__ = ["head_report","residual_report","affine_rank","matrix_rank"]
