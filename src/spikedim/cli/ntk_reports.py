"""What ``spikedim ntk`` prints of a kernel: dimensions, layers, labels, initialisations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spikedim.results import Estimate, Result, Table

if TYPE_CHECKING:
    from spikedim.dimension import DimensionReport
    from spikedim.ntk import Kernel, SketchedKernel, TimestepKernel
    from spikedim.ntk.matrix_free import KernelSpectrum, KernelTraces


@dataclass(frozen=True)
class Initialisations:
    """The centred participation ratio of several untrained networks.

    Attributes:
        seeds, each: of the networks, and their participation ratios.
        mean: geometric mean, with the interval for other initialisations; without silent networks.
    """

    seeds: tuple[int, ...]
    each: tuple[Estimate, ...]
    mean: Estimate

    def table(self) -> Table:
        """Each network, then their mean."""
        rows: list[tuple[Any, Estimate]] = list(zip(self.seeds, self.each, strict=True))
        title = f"Over {len(self.seeds)} initialisations"
        silent = sum(not e.value for e in self.each)
        notes = (f"{silent} silent, of which the mean knows nothing.",) if silent else ()
        columns = ("seed", "centred participation ratio")
        return Table(title, columns, [*rows, ("mean", self.mean)], notes)


@dataclass(frozen=True)
class KernelReport(Result):
    """The kernel of a network on samples of a data set, without its n² values.

    Attributes:
        network, dataset, T, samples, parameters: what it is of.
        outputs, surrogate, method, dtype, seconds: how it was made.
        centred, uncentred: effective dimensions of HKH and K.
        alignment, by_chance: kernel-target alignment with the labels and with shuffled ones,
            centred; ``None`` for all outputs or without labels.
        regression: held-out accuracy of kernel ridge regression on the labels, percent; ``None``
            without labels or with too few samples per class.
        layers: share of each layer in the trace.
        timesteps: share of each timestep and pair of steps in it; ``None`` where not asked for.
        initialisation: seed that the weights were made with; ``None`` for trained ones.
        over: the same for other initialisations; ``None`` where not asked for.
    """

    network: str
    dataset: str
    T: int
    samples: int
    parameters: int
    outputs: str | int
    surrogate: tuple[tuple[str, float, float], ...]
    method: str
    dtype: str
    seconds: float
    centred: DimensionReport
    uncentred: DimensionReport
    alignment: float | None
    by_chance: Estimate | None
    regression: Estimate | None
    layers: dict[str, float]
    timesteps: dict[str, Any] | None
    initialisation: int | None
    _kernel: Kernel = field(repr=False)
    _steps: TimestepKernel | None = field(repr=False)
    over: Initialisations | None = None

    @property
    def headline(self) -> Estimate:
        """The centred participation ratio."""
        return self.centred["pr"]

    @property
    def rows(self) -> int:
        """Rows of the kernel."""
        return len(self._kernel.values)

    def tables(self) -> list[Table]:
        """Dimensions side by side, then the kernel and its layers."""
        rows = [
            (key, e, self.uncentred[key], e.method) for key, e in self.centred.estimates.items()
        ]
        about = [
            ("alignment with labels", self.alignment),
            ("with shuffled labels, 95 % of them", self.by_chance),
            _held_out(self.regression),
        ]
        labels = Table("Kernel and labels", ("quantity", "value"), about)
        columns = ("estimator", "centred", "uncentred", "interval")
        notes = (*self.centred.warnings, *_untrained(self))
        if self.outputs != "full":
            notes += (
                "Values are exact for these samples; intervals are about the population that they "
                "are drawn from.",
            )
        return [
            Table(_title(self), columns, rows, notes),
            *([self.over.table()] if self.over is not None else []),
            *([labels] if self.alignment is not None else []),
            *self._kernel.tables(),
            *(self._steps.tables() if self._steps is not None else []),
        ]

    def plot(self, ax: Any = None) -> Any:
        """Spectrum of the kernel; returns the matplotlib axes."""
        return self._kernel.plot(ax)


@dataclass(frozen=True)
class ApproximateReport(Result):
    """Dimensions of a kernel that was not formed, with their intervals.

    Attributes:
        network, dataset, T, samples: what it is of.
        method: ``sketch`` or ``matrix-free``.
        kernel: what was estimated of it.
        alignment: kernel-target alignment with the labels, centred; ``None`` if matrix-free.
        spectrum: leading eigenvalues and spectral density; ``None`` of a sketch.
        initialisation: seed that the weights were made with; ``None`` for trained ones.
        over: the same for other initialisations; ``None`` where not asked for.
    """

    network: str
    dataset: str
    T: int
    samples: int
    method: str
    kernel: SketchedKernel | KernelTraces
    alignment: Estimate | None
    spectrum: KernelSpectrum | None
    initialisation: int | None
    over: Initialisations | None = None

    @property
    def headline(self) -> Estimate:
        """The centred participation ratio."""
        kernel: Any = self.kernel
        found: Estimate = kernel.centered if self.method == "sketch" else kernel.ratio
        return found

    @property
    def rows(self) -> int:
        """Rows of the kernel."""
        kernel: Any = self.kernel
        return int(kernel.samples if self.method == "sketch" else kernel.size)

    def tables(self) -> list[Table]:
        """What was estimated, and of which network; then its details."""
        first, *rest = self.kernel.tables()
        aligned = [] if self.alignment is None else [("alignment with labels", self.alignment)]
        if self.spectrum is not None:
            rest += self.spectrum.tables()
        if self.over is not None:
            rest.insert(0, self.over.table())
        rows, notes = [*first.rows, *aligned], (*first.notes, *_untrained(self))
        if getattr(self.kernel, "method", "") != "exact":
            notes += ("Intervals are about the kernel of these samples, which is estimated.",)
        return [replace(first, title=_title(self), rows=rows, notes=notes), *rest]

    def plot(self, ax: Any = None) -> Any:
        """Dimension by samples of a sketch, or spectrum; returns the matplotlib axes."""
        drawn: Any = self.kernel if self.spectrum is None else self.spectrum
        return drawn.plot(ax)


def _title(report: KernelReport | ApproximateReport) -> str:
    return (
        f"d_eff of the tangent kernel: {report.network} on {report.dataset}, T={report.T}, "
        f"{report.samples} samples"
    )


def _held_out(accuracy: Estimate | None) -> tuple[str, Any]:
    """Row of the accuracy of kernel regression, with what its interval is about."""
    if accuracy is None:
        return "held-out accuracy", "too few samples of each class to hold any out"
    return f"held-out accuracy, {accuracy.n} samples (95 % {accuracy.method})", accuracy


def _untrained(report: KernelReport | ApproximateReport) -> tuple[str, ...]:
    """What the intervals of one network that may be untrained do not cover."""
    from spikedim.models.registry import is_file

    if report.initialisation is None or report.over is not None:
        return ()
    kind = "network as its file makes it" if is_file(report.network) else "untrained network"
    return (
        f"One {kind}, seed {report.initialisation}: another may differ by more; "
        "--initialisations N measures N.",
    )
