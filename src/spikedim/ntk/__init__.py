"""The neural tangent kernel of spiking networks.

``gram(model, x)`` gives the exact kernel with its effective dimensions, alignment with labels and
contribution of every layer; ``sketched_gram`` and ``KernelOperator`` estimate it where it is too
large; ``by_timestep`` takes it apart by steps and ``one_sided`` compares it with the true kernel
where there is one; ``reduction``, ``sweep`` and ``invert`` ask what threshold, reset, refractory
period and leak do to its effective dimension.
"""

from spikedim.ntk.capture import Capture
from spikedim.ntk.effects import sweep
from spikedim.ntk.gram import Setup, with_surrogate
from spikedim.ntk.invert import invert
from spikedim.ntk.kernel import Kernel, gram
from spikedim.ntk.matrix_free import KernelOperator, kernel_spectrum, kernel_traces
from spikedim.ntk.one_sided import OneSided, one_sided
from spikedim.ntk.reduction import reduction
from spikedim.ntk.regimes import regimes
from spikedim.ntk.sketch import SketchedKernel, sketched_gram
from spikedim.ntk.timesteps import TimestepKernel, by_timestep

__all__ = [
    "Capture",
    "Kernel",
    "KernelOperator",
    "OneSided",
    "Setup",
    "SketchedKernel",
    "TimestepKernel",
    "by_timestep",
    "gram",
    "invert",
    "kernel_spectrum",
    "kernel_traces",
    "one_sided",
    "reduction",
    "regimes",
    "sketched_gram",
    "sweep",
    "with_surrogate",
]
