"""Effective dimension of data and representations: spectra, estimators, intervals.

``measure(x)`` gives every estimate with an interval; ``spectrum(x)`` the eigenvalues behind them;
``participation_ratio(x)`` one number without eigenvalues; ``SpectrumStream`` and the sketches
data that do not fit memory, ``sharded_spectrum`` those in many files, on a Ray cluster if need be;
``growth_curve``, ``per_class`` and ``per_neighbourhood`` the detail.
"""

from spikedim.dimension.clusters import ClusterStream, measure_clustered
from spikedim.dimension.estimators import (
    Estimator,
    estimator,
    get_estimator,
    list_estimators,
    pca_count,
    pca_quantile,
    ridge_dimension,
)
from spikedim.dimension.growth import GrowthCurve, growth_curve
from spikedim.dimension.local import (
    ClassDimensions,
    LocalDimensions,
    per_class,
    per_neighbourhood,
)
from spikedim.dimension.measure import DimensionReport, measure, published_protocol
from spikedim.dimension.sharded import FileShard, file_shards, sharded_spectrum
from spikedim.dimension.sketch import (
    FrequentDirections,
    merge_sketches,
    randomised_spectrum,
    sketch_spectrum,
)
from spikedim.dimension.spectrum import Spectrum, memory_needed, spectrum
from spikedim.dimension.streaming import SpectrumStream
from spikedim.dimension.traces import Traces, participation_ratio, stochastic_traces, traces

__all__ = [
    "ClassDimensions",
    "ClusterStream",
    "DimensionReport",
    "Estimator",
    "FileShard",
    "FrequentDirections",
    "GrowthCurve",
    "LocalDimensions",
    "Spectrum",
    "SpectrumStream",
    "Traces",
    "estimator",
    "file_shards",
    "get_estimator",
    "growth_curve",
    "list_estimators",
    "measure",
    "measure_clustered",
    "memory_needed",
    "merge_sketches",
    "participation_ratio",
    "pca_count",
    "pca_quantile",
    "per_class",
    "per_neighbourhood",
    "published_protocol",
    "randomised_spectrum",
    "ridge_dimension",
    "sharded_spectrum",
    "sketch_spectrum",
    "spectrum",
    "stochastic_traces",
    "traces",
]
