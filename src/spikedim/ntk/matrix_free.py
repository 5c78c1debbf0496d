"""The kernel as products with vectors, never formed: traces, participation ratio, spectrum.

K v = J(Jᵀv): reverse mode gives Jᵀv for a whole batch at once and forward mode J u, so that
neither the kernel nor a per-sample gradient is ever held. Random vectors then give tr K, ‖K‖²_F
and with them the participation ratio; the Lanczos iteration gives the spectrum.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, stats
from torch import Tensor, nn

from spikedim.dimension.arrays import spans
from spikedim.errors import ConfigError
from spikedim.neurons import Surrogate
from spikedim.ntk.capture import Readout
from spikedim.ntk.gram import ReadoutModule
from spikedim.ntk.kernel import output_sums, prepared
from spikedim.progress import Task, note, task
from spikedim.results import Estimate, Result, Table
from spikedim.theory.statistics import normal_quantile

Float = NDArray[np.float64]
TRACE_METHODS = ("hutch++", "xtrace", "hutchinson")
_AT_ONCE = 8  # vectors, and forward-mode passes of a batch, held at once
_GRADIENTS, _GRADIENT_BYTES = 64, 2**30  # most gradients of several outputs held at once
_KNOWN = 0.01  # relative error of an eigenvalue whose rank is believed
_TINY = float(np.finfo(np.float64).tiny)
_EPS = float(np.finfo(np.float64).eps)
_DEPENDENT = 1.5  # how much wider the intervals of estimates that share their directions are


class Operator(Protocol):
    """A symmetric positive semi-definite matrix that can be multiplied with vectors."""

    @property
    def size(self) -> int:
        """Rows."""

    def apply(self, vectors: Float) -> Float:
        """Product with ``vectors`` [size, k]."""


class KernelOperator:
    """Products with the neural tangent kernel of a network.

    Up to eight vectors are multiplied at once, at the memory of as many forward-mode passes
    through one batch. With ``outputs="trace"`` one forward of a batch serves several outputs, whose
    gradients, one per vector and output, are held: at most 64 or 1 GiB of them.

    Args:
        model: a network in eval mode; parameters that do not require gradients are left out.
        x: samples, as the network takes them.
        T: timesteps of a static input.
        outputs: ``"full"`` for every pair of outputs, [n·O, n·O] with the output running fastest;
            ``"trace"`` for their sum, [n, n], at O times the cost; a whole number for one output.
        center: multiply with HKH, H = 1 − 11ᵀ/size, rather than K.
        surrogate, width: surrogate of every neuron in place of the network's own; a width alone
            changes their widths.
        readout: what is differentiated, a function of (model, x, T) that returns [B, outputs].
        batch: samples per pass.

    Raises:
        ModelError: the network is in training mode.
        ConfigError: an unknown or unusable option.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_micro", seed=0).eval()
        >>> operator = KernelOperator(net, torch.randn(4, *net.input_shape))
        >>> operator.size
        40
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        T: int | None = None,
        outputs: str | int = "full",
        center: bool = True,
        surrogate: str | Surrogate | None = None,
        width: float | None = None,
        readout: Readout | None = None,
        batch: int = 32,
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch={batch}; expected at least 1")
        self._setup = prepared(model, x, T, readout, surrogate, width)
        self._x, self._batch, self.center = x, batch, center
        cotangents = output_sums(self._setup, x, outputs)
        functions = list(cotangents.split(1)) if outputs == "trace" else [cotangents]
        self._functions = functions  # each [F, O]; the kernels of all are added up
        self.size = self._setup.count(x) * len(functions[0])
        self._moving = {n: p for n, p in self._setup.model.named_parameters() if p.requires_grad}
        self._bar: Task | None = None

    @property
    def precision(self) -> float:
        """Relative rounding of the products: the coarsest of the parameters' number formats."""
        kinds = {p.dtype for p in self._setup.model.parameters() if p.dtype.is_floating_point}
        return max((float(torch.finfo(kind).eps) for kind in kinds), default=_EPS)

    @property
    def _shape(self) -> tuple[int, int, bool]:
        """Samples, outputs, and whether the kernels of the outputs are added up."""
        outputs = sum(len(functions) for functions in self._functions)
        return self._setup.count(self._x), outputs, len(self._functions) > 1

    @property
    def passes(self) -> int:
        """Passes through a batch, in reverse and in forward mode, that one product takes."""
        return 2 * len(self._functions) * len(self._batches())

    def apply(self, vectors: Float) -> Float:
        """K·vectors or HKH·vectors for ``vectors`` [size, k], float64 [size, k]."""
        right = self._centred(np.asarray(vectors, np.float64))
        if self._bar is None:
            with _reporting(self, "products", right.shape[1]):
                return self.apply(vectors)
        out = np.zeros(right.shape)
        for start, stop in spans(right.shape[1], _AT_ONCE):
            for functions in self._groups(stop - start):
                moved = self._pull(functions, right[:, start:stop])
                out[:, start:stop] += self._push(functions, moved)
        return self._centred(out)

    def _centred(self, vectors: Float) -> Float:
        return vectors - vectors.mean(0) if self.center else vectors

    def _batches(self) -> list[tuple[int, int]]:
        return list(spans(self._setup.count(self._x), self._batch))

    def _advance(self, passes: int) -> None:
        if self._bar is not None:
            self._bar.advance(passes)

    def _groups(self, vectors: int) -> Iterator[list[Tensor]]:
        """The functions, as many at once as may have their gradients held."""
        gradient = sum(p.numel() * p.element_size() for p in self._moving.values())
        held = min(_GRADIENTS, _GRADIENT_BYTES // max(gradient, 1))
        step = max(held // max(vectors, 1), 1)
        for start, stop in spans(len(self._functions), step):
            yield self._functions[start:stop]

    def _pull(self, functions: list[Tensor], vectors: Float) -> dict[str, Tensor]:
        """Jᵀ·vectors of every function by parameter, [functions·k, ...]."""
        right = torch.as_tensor(vectors.T.copy()).to(functions[0])
        weights = torch.cat([right.unflatten(1, (-1, len(f))) @ f for f in functions])
        total = {name: p.new_zeros(len(weights), *p.shape) for name, p in self._moving.items()}
        for start, stop in self._batches():
            x = self._setup.batch(self._x, start, stop)
            with torch.enable_grad():
                y = self._setup.readout(self._setup.model, x, self._setup.T)
            for index, weight in enumerate(weights):  # each [n, O]
                found = torch.autograd.grad(
                    y,
                    list(self._moving.values()),
                    weight[start:stop],
                    retain_graph=index < len(weights) - 1,
                    allow_unused=True,
                )
                for name, gradient in zip(self._moving, found, strict=True):
                    if gradient is not None:
                        total[name][index] += gradient
                self._advance(1)
        return total

    def _push(self, functions: list[Tensor], directions: dict[str, Tensor]) -> Float:
        """J·directions [size, k], each function's of its own directions, added up."""
        model = ReadoutModule(self._setup)
        buffers = {f"model.{n}": b for n, b in self._setup.model.named_buffers()}
        fixed = {
            f"model.{n}": p.detach()
            for n, p in self._setup.model.named_parameters()
            if n not in self._moving
        }
        values = {n: p.detach() for n, p in self._moving.items()}
        readouts = torch.stack(functions)  # [functions, F, O]
        parts = []
        for start, stop in self._batches():
            x = self._setup.batch(self._x, start, stop)

            def outputs(moving: dict[str, Tensor], x: Tensor = x) -> Tensor:
                named = {f"model.{n}": p for n, p in moving.items()}
                found: Tensor = torch.func.functional_call(model, {**fixed, **buffers, **named}, x)
                return found

            def derivative(direction: dict[str, Tensor], outputs: Any = outputs) -> Tensor:
                found: Tensor = torch.func.jvp(outputs, (values,), (direction,))[1]
                return found

            # a few directions at a time: all would hold as many batches of activations
            with torch.no_grad():
                moved = torch.func.vmap(derivative, chunk_size=_AT_ONCE)(directions)
            self._advance(len(moved))
            moved = moved.unflatten(0, (len(functions), -1))  # [functions, k, B, O]
            parts.append((moved @ readouts.mT[:, None]).sum(0).flatten(1))  # [k, B·F]
        return np.asarray(torch.cat(parts, 1).T.double().cpu().numpy())


class _Counted:
    """Any other operator, its products counted by ``bar``."""

    def __init__(self, operator: Operator, bar: Task) -> None:
        self._operator, self._bar, self.size = operator, bar, operator.size

    def apply(self, vectors: Float) -> Float:
        image = self._operator.apply(vectors)
        self._bar.advance(vectors.shape[1])
        return image


@contextmanager
def _reporting(operator: Operator, label: str, products: int) -> Iterator[Operator]:
    """The operator, with one bar for all ``products`` with it inside the block."""
    if not isinstance(operator, KernelOperator):
        with task(label, products) as bar:
            yield _Counted(operator, bar)
        return
    # a product can take minutes, so that what is counted is its passes
    with task(f"{label} (passes)", products * operator.passes) as bar:
        operator._bar = bar
        try:
            yield operator
        finally:
            operator._bar = None


def _announce(operator: Operator, products: int) -> None:
    text = f"{products:,} products with a kernel of {operator.size:,} rows"
    if isinstance(operator, KernelOperator):
        samples, outputs, summed = operator._shape
        over = "summed over " if summed else ""
        text += f" ({samples:,} samples, {over}{outputs:,} output{'s' * (outputs != 1)}): "
        text += f"{products * operator.passes:,} passes through a batch"
    note(text)


def _is_centred(operator: Operator) -> bool:
    return bool(getattr(operator, "center", False))


@dataclass(frozen=True)
class KernelTraces(Result):
    """tr K, ‖K‖²_F and the participation ratio (tr K)²/‖K‖²_F from products with vectors.

    All three are of HKH, H = 1 − 11ᵀ/size, where the operator is centred.

    Args:
        trace, square, ratio: the three numbers with intervals.
        size: rows of the kernel.
        method: estimator.
        products: vectors multiplied with the kernel.
        seed: of the vectors.
        seconds: wall time.
        centred: whether they are of HKH.
    """

    trace: Estimate
    square: Estimate
    ratio: Estimate
    size: int
    method: str
    products: int
    seed: int
    seconds: float
    centred: bool = False

    def tables(self) -> list[Table]:
        """The three numbers and what they took."""
        kernel, kind = ("HKH", "centred") if self.centred else ("K", "uncentred")
        rows: list[tuple[str, Any]] = [
            (f"tr {kernel}", self.trace),
            (f"‖{kernel}‖²_F", self.square),
            (f"participation ratio, {kind}", self.ratio),
            ("confidence", f"{100 * self.ratio.confidence:g} %"),
            ("rows of the kernel", self.size),
            ("method", f"{self.method}, {self.products} products"),
            ("seconds", self.seconds),
        ]
        return [Table("Kernel without forming it", ("quantity", "value"), rows)]


def kernel_traces(
    operator: Operator,
    *,
    method: str = "hutch++",
    products: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
) -> KernelTraces:
    """Traces of an implicit kernel with intervals.

    With P a projection onto some directions, tr K = tr PKP + E ωᵀ(1−P)K(1−P)ω and ‖K‖²_F =
    ‖KP‖²_F + E‖K(1−P)ω‖² for random signs ω, so that one product of K with each vector serves
    both. ``hutchinson`` has no P. ``hutch++`` (Meyer et al. 2021) takes the span of KΩ for a
    third of the products and other ω for the last third. ``xtrace`` (Epperly, Tropp & Webber 2024)
    takes for each ω the span of KΩ without it, and averages over all. Intervals are Student's, of
    the estimates one ω gives each; that of the ratio comes from its linearised logarithm. The
    estimates of ``xtrace`` are not independent: its intervals are half as wide again. Measured on
    flat, power-law, exponential and dominated spectra, nominal 95 % intervals of the ratio by 12 or
    32 products cover in 88 to 98 % (``hutch++``, ``xtrace``); ``hutchinson`` in 86 to 96 %. With
    products ≥ size the kernel is formed, without error.

    Args:
        operator: the kernel, e.g. a :class:`KernelOperator`.
        method: ``"hutch++"``, ``"xtrace"`` or ``"hutchinson"``.
        products: vectors multiplied with the kernel, at least 6.
        confidence: coverage of the intervals.
        seed: of the vectors.

    Raises:
        ConfigError: an unknown or unusable option.
    """
    started = time.monotonic()
    if method not in TRACE_METHODS:
        raise ConfigError(f"method={method!r}; expected one of {', '.join(TRACE_METHODS)}")
    if products < 6:
        raise ConfigError(f"products={products}; expected at least 6")
    normal_quantile(confidence)
    rng = np.random.default_rng(seed)
    n = operator.size
    exact = method != "hutchinson" and products >= n
    used = n if exact else products - products % 2 if method == "xtrace" else products
    _announce(operator, used)
    centred = _is_centred(operator)
    with _reporting(operator, "products", used) as operator:
        if exact:
            image = operator.apply(np.eye(n))
            traces, squares = np.full(2, np.trace(image)), np.full(2, (image**2).sum())
        elif method == "hutchinson":
            traces, squares = _plain(operator, _signs(rng, n, products))
        elif method == "hutch++":
            third = products // 3
            basis = linalg.qr(operator.apply(_signs(rng, n, third)), mode="economic")[0]
            traces, squares = _deflated(operator, basis, _signs(rng, n, products - 2 * third))
        else:
            traces, squares = _exchangeable(operator, _signs(rng, n, products // 2))
    trace, square = float(traces.mean()), float(squares.mean())
    how = f"{method}, {used} products, Student"

    def estimate(value: float, low: float, high: float) -> Estimate:
        return Estimate(value, low, high, n, "", confidence, how)

    quantile = float(stats.t.ppf(0.5 + confidence / 2, len(traces) - 1))
    quantile *= _DEPENDENT if method == "xtrace" else 1.0

    def half_width(values: Float) -> float:
        return quantile * float(values.std(ddof=1)) / float(np.sqrt(len(values)))

    if trace > 0 and square > 0:
        ratio = trace**2 / square
        reach = float(np.exp(half_width(2 * traces / trace - squares / square)))
        found = estimate(ratio, ratio / reach, ratio * reach).within(1.0, n)
    else:
        found = estimate(0.0, 0.0, 0.0)
    sides = [
        estimate(v, max(v - half_width(all_), 0.0), v + half_width(all_))
        for v, all_ in ((trace, traces), (square, squares))
    ]
    seconds = time.monotonic() - started
    return KernelTraces(sides[0], sides[1], found, n, method, used, seed, seconds, centred)


def _signs(rng: np.random.Generator, n: int, count: int) -> Float:
    return rng.choice((-1.0, 1.0), (n, count))


def _plain(operator: Operator, probes: Float) -> tuple[Float, Float]:
    image = operator.apply(probes)
    return (probes * image).sum(0), (image**2).sum(0)


def _deflated(operator: Operator, basis: Float, probes: Float) -> tuple[Float, Float]:
    """Estimates from each probe of both traces, the span of ``basis`` exactly."""
    rest = probes - basis @ (basis.T @ probes)
    image = operator.apply(np.hstack([basis, rest]))
    inside, outside = image[:, : basis.shape[1]], image[:, basis.shape[1] :]
    # K's cross terms between the span and its complement vanish in the traces, not in each probe
    return (
        float((basis * inside).sum()) + (rest * outside).sum(0),
        float((inside**2).sum()) + (outside**2).sum(0),
    )


def _exchangeable(operator: Operator, probes: Float) -> tuple[Float, Float]:
    """Estimates from each probe, deflated by the images of all others."""
    image = operator.apply(probes)
    basis, triangle = linalg.qr(image, mode="economic")
    inside = operator.apply(basis)
    # column i of S is the unit vector of the span that the image of probe i alone brings in
    scale = max(float(np.abs(np.diagonal(triangle)).max()), np.finfo(float).tiny)
    regular = triangle + 1e-14 * scale * np.eye(len(triangle))
    alone = linalg.solve_triangular(regular, np.eye(len(triangle)), trans="T")
    alone = alone / np.linalg.norm(alone, axis=0)
    within = basis.T @ probes
    within = within - alone * (alone * within).sum(0)
    rest, outside = probes - basis @ within, image - inside @ within
    lost = inside @ alone
    small = basis.T @ inside
    traces = np.trace(small) - (alone * (small @ alone)).sum(0) + (rest * outside).sum(0)
    squares = (inside**2).sum() - (lost**2).sum(0) + (outside**2).sum(0)
    return np.asarray(traces), np.asarray(squares)


@dataclass(frozen=True)
class KernelSpectrum(Result):
    """Spectrum of an implicit kernel, of HKH where it is centred, from the Lanczos iteration.

    Args:
        eigenvalues: leading eigenvalues, descending: each lies within its entry of ``errors`` of
            an eigenvalue of the kernel.
        errors: residual norms of them, at least the rounding of the products.
        nodes, weights: a measure with the moments of the spectral density, weights adding up to
            1: the mean of f(eigenvalue) is about Σ weights·f(nodes).
        size: rows of the kernel.
        starts: random start vectors behind the measure.
        seed: of them.
        seconds: wall time.
        centred: whether they are eigenvalues of HKH, H = 1 − 11ᵀ/size.
        precision: rounding of the products, relative to the largest eigenvalue.
    """

    eigenvalues: Float
    errors: Float
    nodes: Float
    weights: Float
    size: int
    starts: int
    seed: int
    seconds: float
    centred: bool = False
    precision: float = _EPS
    _by_start: tuple[tuple[Float, Float], ...] = field(default=(), repr=False)

    def trace_of(self, function: Any, confidence: float = 0.95) -> Estimate:
        """Tr f(K) = Σ f(λ) by stochastic Lanczos quadrature, e.g. λ/(λ + ridge).

        Args:
            function: f, applied to an array of eigenvalues.
            confidence: coverage of Student's interval over the start vectors.
        """
        found = self.size * np.array([weights @ function(n) for n, weights in self._by_start])
        quantile = stats.t.ppf(0.5 + confidence / 2, len(found) - 1)
        reach = float(quantile * found.std(ddof=1) / np.sqrt(len(found)))
        value = float(found.mean())
        method = f"Lanczos quadrature, {len(found)} starts, Student"
        return Estimate(value, value - reach, value + reach, self.size, "", confidence, method)

    def tables(self) -> list[Table]:
        """Leading eigenvalues with their error bounds."""
        rows = [
            (i + 1, float(v), float(e))
            for i, (v, e) in enumerate(zip(self.eigenvalues, self.errors, strict=True))
        ]
        kind = "centred" if self.centred else "uncentred"
        title = f"Leading eigenvalues of {self.size:,}, {kind}"
        return [Table(title, ("rank", "eigenvalue", "error at most"), rows)]

    def plot(self, ax: Any = None) -> Any:
        """Number of eigenvalues above each value; returns the matplotlib axes.

        Leading eigenvalues known to a hundredth of their value are points at their rank, where
        equal ones count once; the density below the last of them is estimated.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5, 3.5), layout="constrained")[1] if ax is None else ax
        kind = "centred" if self.centred else "uncentred"
        ax.set(xscale="log", yscale="log", xlabel="eigenvalue λ", ylabel="eigenvalues ≥ λ")
        ax.set_ylim(0.8, 1.25 * self.size)
        title = f"Spectrum of the {kind} NTK, {self.size:,} rows"
        ax.set_title(title, loc="left", fontsize=9)
        known = self._known()
        values, counts = self._rest(known)
        if known:
            found = self.eigenvalues[:known]
            ax.plot(found, 1 + np.arange(known), "o", ms=4, label="found one by one", zorder=3)
            values, counts = np.append(found[-1], values), np.append(known, counts)
        if len(values) > 1:
            ax.step(values, counts, where="post", color="C1", label="estimated density")
        if known or len(values) > 1:
            ax.legend(frameon=False, fontsize=8)
        else:
            ax.text(0.5, 0.5, "no eigenvalue above 0", ha="center", transform=ax.transAxes)
        return ax

    def _known(self) -> int:
        """Leading eigenvalues known to a hundredth of their value."""
        sure = self.errors < _KNOWN * self.eigenvalues
        return len(sure) if sure.all() else int(np.argmin(sure))

    def _rest(self, known: int) -> tuple[Float, Float]:
        """Values below the ``known`` leading eigenvalues and how many are estimated above each."""
        # every start has its own picture of the leading ones: left out by rank, not by value
        values = np.concatenate([np.sort(n)[::-1][known:] for n, _ in self._by_start])
        shares = np.concatenate([w[np.argsort(n)[::-1]][known:] for n, w in self._by_start])
        order = np.argsort(values)[::-1]
        values, shares = values[order], shares[order]
        # the rest has this many eigenvalues whatever the starts' shares in the leading ones
        counts = known + (self.size - known) * np.cumsum(shares) / max(shares.sum(), _TINY)
        above = values > self.precision * self.nodes.max()
        return values[above], counts[above]


def kernel_spectrum(
    operator: Operator, *, count: int = 10, steps: int = 40, starts: int = 4, seed: int = 0
) -> KernelSpectrum:
    """Leading eigenvalues and spectral density of an implicit kernel.

    One Krylov space per random start, kept orthogonal to rounding; the starts are multiplied
    together. Takes steps·starts products.

    Args:
        operator: the kernel, e.g. a :class:`KernelOperator`. Its ``precision``, float64's if it has
            none, is the least error reported, relative to the largest eigenvalue.
        count: leading eigenvalues reported, from the start that resolves them best.
        steps: of each iteration; cut to the size of the kernel.
        starts: random start vectors, at least 2.
        seed: of them.

    Raises:
        ConfigError: an unusable option.
    """
    started = time.monotonic()
    if not 1 <= count <= steps or starts < 2:
        raise ConfigError(
            f"count={count}, steps={steps}, starts={starts}; expected 1 <= count <= steps and at "
            "least 2 starts"
        )
    n = operator.size
    steps = min(steps, n)
    current = _signs(np.random.default_rng(seed), n, starts) / np.sqrt(n)
    bases = np.zeros((starts, n, steps))
    diagonal, beside = np.zeros((starts, steps)), np.zeros((starts, steps))
    lengths = np.full(starts, steps)
    precision = max(float(getattr(operator, "precision", _EPS)), _EPS)
    centred = _is_centred(operator)
    _announce(operator, steps * starts)
    with _reporting(operator, "Lanczos", steps * starts) as operator:
        for step in range(steps):
            bases[:, :, step] = current.T
            image = operator.apply(current)
            diagonal[:, step] = (current * image).sum(0)
            for s in range(starts):
                kept = bases[s, :, : step + 1]
                for _ in range(2):  # once loses orthogonality to rounding
                    image[:, s] -= kept @ (kept.T @ image[:, s])
            beside[:, step] = np.linalg.norm(image, axis=0)
            ended = beside[:, step] <= max(1e-12, precision) * np.abs(diagonal).max()
            lengths = np.where(ended & (lengths > step + 1), step + 1, lengths)
            current = np.where(ended, 0.0, image / np.where(ended, 1.0, beside[:, step]))
            if ended.all():
                break
    measures, found = [], []
    for s, length in enumerate(lengths):
        values, vectors = linalg.eigh_tridiagonal(diagonal[s, :length], beside[s, : length - 1])
        measures.append((np.maximum(values, 0.0), vectors[0] ** 2))
        residuals = np.abs(beside[s, length - 1] * vectors[-1])
        least = precision * max(float(values[-1]), 0.0)  # no product is more exact
        found.append((values[::-1][:count], np.maximum(residuals, least)[::-1][:count]))
    best = min(found, key=lambda pair: (-len(pair[0]), pair[1].sum()))
    return KernelSpectrum(
        best[0],
        best[1],
        np.concatenate([nodes for nodes, _ in measures]),
        np.concatenate([weights for _, weights in measures]) / starts,
        n,
        starts,
        seed,
        time.monotonic() - started,
        centred,
        precision,
        tuple(measures),
    )
