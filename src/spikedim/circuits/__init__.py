"""Spike circuits: rate codes, exponentials, products, softmax, attention, universal compiler."""

from spikedim.circuits.attention import AttentionSimulation, SpikingAttention
from spikedim.circuits.base import Circuit, Simulation
from spikedim.circuits.codes import BernoulliCode, IntegrateFireCode, LeakyCode
from spikedim.circuits.compiler import CompiledNetwork, compile
from spikedim.circuits.compiler_report import CompileReport
from spikedim.circuits.convergence import Convergence, ConvergencePoint, convergence
from spikedim.circuits.exchange import to_nir, write_nir
from spikedim.circuits.exchange_network import NirNetwork, from_nir
from spikedim.circuits.exponential import (
    ExponentialComparison,
    TaylorExponential,
    VetoExponential,
    compare_exponentials,
)
from spikedim.circuits.functions import FUNCTIONS
from spikedim.circuits.product import MatrixProduct, Product
from spikedim.circuits.softmax import (
    RaceSimulation,
    RaceSoftmax,
    ShuntingSoftmax,
    SubtractiveSoftmax,
)

__all__ = [
    "FUNCTIONS",
    "AttentionSimulation",
    "BernoulliCode",
    "Circuit",
    "CompileReport",
    "CompiledNetwork",
    "Convergence",
    "ConvergencePoint",
    "ExponentialComparison",
    "IntegrateFireCode",
    "LeakyCode",
    "MatrixProduct",
    "NirNetwork",
    "Product",
    "RaceSimulation",
    "RaceSoftmax",
    "ShuntingSoftmax",
    "Simulation",
    "SpikingAttention",
    "SubtractiveSoftmax",
    "TaylorExponential",
    "VetoExponential",
    "compare_exponentials",
    "compile",
    "convergence",
    "from_nir",
    "to_nir",
    "write_nir",
]
