"""Which variable drives which: causal orders from score functions (Score-Schur sort)."""

from spikedim.order.causal import MARGINALS, causal_order
from spikedim.order.edges import BASES, graph_of, hamming_distance, sparse_regressions
from spikedim.order.estimators import (
    ESTIMATORS,
    GaussianScore,
    NetworkScore,
    SteinScore,
    estimate,
    refit_sort,
)
from spikedim.order.residuals import check_residuals, hsic_p_values
from spikedim.order.result import CausalOrder
from spikedim.order.score import OBJECTIVES, ScoreConfig, ScoreNetwork, information
from spikedim.order.simulate import KINDS, Model, random_model
from spikedim.order.sort import Extraction, expectation_gap, order_violations, schur_sort
from spikedim.order.tables import (
    UNITS,
    Recorded,
    Variables,
    network_variables,
    read_variables,
    recorded_variables,
)

__all__ = [
    "BASES",
    "ESTIMATORS",
    "KINDS",
    "MARGINALS",
    "OBJECTIVES",
    "UNITS",
    "CausalOrder",
    "Extraction",
    "GaussianScore",
    "Model",
    "NetworkScore",
    "Recorded",
    "ScoreConfig",
    "ScoreNetwork",
    "SteinScore",
    "Variables",
    "causal_order",
    "check_residuals",
    "estimate",
    "expectation_gap",
    "graph_of",
    "hamming_distance",
    "hsic_p_values",
    "information",
    "network_variables",
    "order_violations",
    "random_model",
    "read_variables",
    "recorded_variables",
    "refit_sort",
    "schur_sort",
    "sparse_regressions",
]
