"""Rank and structure of token representations: collapse, layer norm, residuals, heads."""

from spikedim.rank.compare import GateComparison, GateRun, compare_gates
from spikedim.rank.diagnosis import RankDiagnosis, diagnose
from spikedim.rank.heads import (
    AmbiguityBasis,
    HeadAmbiguity,
    HeadReport,
    ambiguity_dimension,
    contributions,
    head_report,
    spike_patterns,
)
from spikedim.rank.matrix import TokenRanks, affine_rank, matrix_rank, token_ranks
from spikedim.rank.norm import LayerNormCheck, NormReport, layer_norm_check, norm_report
from spikedim.rank.profile import LayerRanks, RankProfile, rank_profile
from spikedim.rank.residual import ResidualCheck, ResidualReport, residual_check, residual_report

__all__ = [
    "AmbiguityBasis",
    "GateComparison",
    "GateRun",
    "HeadAmbiguity",
    "HeadReport",
    "LayerNormCheck",
    "LayerRanks",
    "NormReport",
    "RankDiagnosis",
    "RankProfile",
    "ResidualCheck",
    "ResidualReport",
    "TokenRanks",
    "affine_rank",
    "ambiguity_dimension",
    "compare_gates",
    "contributions",
    "diagnose",
    "head_report",
    "layer_norm_check",
    "matrix_rank",
    "norm_report",
    "rank_profile",
    "residual_check",
    "residual_report",
    "spike_patterns",
    "token_ranks",
]
