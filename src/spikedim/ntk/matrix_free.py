"""The kernel as products with vectors, never formed: traces, participation ratio, spectrum.

K v = J(Jᵀv): one pass over all samples adds up Jᵀv from their gradients, a second one multiplies
them with it, so that neither the kernel nor more than a batch's gradients of one layer are ever
held. Random vectors then give tr K, ‖K‖²_F and with them the participation ratio; a block
Krylov space gives the spectrum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, stats
from torch import Tensor, nn

from spikedim.dimension.arrays import spans
from spikedim.errors import BudgetError, ConfigError
from spikedim.neurons import Surrogate
from spikedim.ntk.capture import Readout
from spikedim.ntk.gram import batches
from spikedim.ntk.kernel import output_like, output_sums, prepared, trace_sums
from spikedim.ntk.plan import budget_of
from spikedim.ntk.stream import Stream
from spikedim.progress import Task, note, task
from spikedim.results import Estimate, Result, Table
from spikedim.theory.statistics import normal_quantile

Float = NDArray[np.float64]
TRACE_METHODS = ("hutch++", "xtrace", "hutchinson")
_MOST = 1 << 12  # gradients of all parameters held at once
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

    A round multiplies as many vectors as fit the memory: two passes of every sample through the
    network, each a backward per output, whatever the number of vectors.

    Args:
        model: a network in eval mode; parameters that do not require gradients are left out.
        x: samples, as the network takes them.
        T: timesteps of a static input.
        outputs: ``"trace"`` sums the kernels of all outputs, [n, n]; ``"full"`` keeps every pair of
            them, [n·O, n·O] with the output running fastest; a whole number takes one output.
        center: multiply with HKH, H = 1 − 11ᵀ/size, rather than K.
        surrogate, width: surrogate of every neuron in place of the network's own; a width alone
            changes their widths.
        readout: what is differentiated, a function of (model, x, T) that returns [B, outputs].
        memory: GiB the products may take beside network, samples and vectors; half of the free
            memory by default.
        fallback: differentiate parameters without a rule by autograd, sample by sample.

    Raises:
        ModelError: the network is in training mode or a parameter has no rule.
        ConfigError: an unknown or unusable option.
        BudgetError: ``memory`` holds not even one gradient beside one sample's pass.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_micro", seed=0).eval()
        >>> operator = KernelOperator(net, torch.randn(4, *net.input_shape))
        >>> operator.size
        4
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        T: int | None = None,
        outputs: str | int = "trace",
        center: bool = True,
        surrogate: str | Surrogate | None = None,
        width: float | None = None,
        readout: Readout | None = None,
        memory: float | None = None,
        fallback: bool = False,
    ) -> None:
        setup = prepared(model, x, T, readout, surrogate, width)
        self._outputs = 1 if isinstance(outputs, int) else output_like(setup, x).shape[1]
        self._setup, self._x, self._asked = setup, x, outputs
        self._stream = Stream(setup, x, fallback)
        self._settle()
        self.center = center
        self._samples = setup.count(x)
        self.size = self._samples * self._functions.shape[1]
        moving = [p for p in setup.model.parameters() if p.requires_grad]
        self._gradient = sum(p.numel() * max(p.element_size(), 4) for p in moving)
        kinds = {p.dtype for p in setup.model.parameters() if p.dtype.is_floating_point}
        self._precision = max((float(torch.finfo(kind).eps) for kind in kinds), default=_EPS)
        self._plan(budget_of(memory))
        self._bar: Task | None = None

    @property
    def about(self) -> str:
        """Samples and outputs in words."""
        over = "summed over " if len(self._functions) > 1 else ""
        count = f"{self._outputs:,} output{'s' * (self._outputs != 1)}"
        return f"{self._samples:,} samples, {over}{count}"

    @property
    def precision(self) -> float:
        """Relative rounding of the products: the coarsest of the parameters' number formats."""
        return self._precision

    def passes(self, vectors: int) -> int:
        """Backward passes through a batch that a product with so many vectors takes."""
        outputs = len(self._functions) * self._functions.shape[1]
        return 2 * outputs * len(self._batches) * -(-vectors // self._held)

    def apply(self, vectors: Float) -> Float:
        """K·vectors or HKH·vectors for ``vectors`` [size, k], float64 [size, k].

        Raises:
            ConfigError: vectors of another shape.
        """
        right = np.asarray(vectors, np.float64)
        if right.ndim != 2 or len(right) != self.size:
            raise ConfigError(f"vectors have shape {right.shape}; expected [{self.size:,}, k]")
        if self._bar is None:
            with _reporting(self, "products", [right.shape[1]]):
                return self.apply(right)
        right = self._centred(right)
        out = np.zeros(right.shape)
        for start, stop in spans(right.shape[1], self._held):
            together = max(1, self._held // (stop - start))
            for functions in self._functions.split(together):
                out[:, start:stop] += self._round(functions, right[:, start:stop])
        return self._centred(out)

    def _settle(self) -> None:
        """Functions, each of [F, O] sums of outputs, whose kernels are added up.

        Those of a trace depend on the weights that the head has now.
        """
        if self._asked == "trace":
            self._functions = trace_sums(self._setup, self._x, self._stream.without)[:, None]
        else:
            self._functions = output_sums(self._setup, self._x, self._asked)[None]

    def _plan(self, budget: float) -> None:
        """Share the memory between a batch, directions Jᵀv and forwards that are kept."""
        found, batch = self._stream.probe, self._stream.batch
        while batch > 1 and self._stream.need(batch) > budget / 3:
            batch //= 2
        room = budget - self._stream.need(batch)
        if room < self._gradient:
            raise BudgetError(
                f"{budget / 2**30:.2g} GiB hold no gradient ({self._gradient / 2**30:.2g} GiB) "
                f"beside the pass of a sample ({self._stream.need(batch) / 2**30:.2g} GiB); give "
                "more memory"
            )
        forwards = self._samples * found.saved
        self._keep = forwards <= min(room / 2, room - self._gradient)
        room -= forwards if self._keep else 0
        self._held = int(min(room // max(self._gradient, 1), _MOST))
        self._batches = batches(self._samples, batch, self._keep and not found.accelerator)

    def _centred(self, vectors: Float) -> Float:
        return vectors - vectors.mean(0) if self.center else vectors

    def _round(self, functions: Tensor, vectors: Float) -> Float:
        """Σ J(Jᵀ·vectors) [size, k] over ``functions`` [f, F, O]."""
        each = functions.shape[1]
        wide = torch.promote_types(functions.dtype, torch.float32)
        weights = torch.as_tensor(vectors.T.copy()).to(functions.device, wide)
        weights = weights.unflatten(1, (-1, each))
        image = torch.zeros(
            self._samples, each, len(weights), dtype=torch.float64, device=weights.device
        )
        moved: dict[str, Tensor] = {}  # by parameter, [f, k, P]

        def pull(index: int, part: slice, name: str, rows: Tensor) -> None:
            function, place = divmod(index, each)
            if name not in moved:
                shape = len(functions), len(weights), rows.shape[1]
                moved[name] = weights.new_zeros(shape)
            moved[name][function].addmm_(weights[:, part, place], rows.to(wide))

        def push(index: int, part: slice, name: str, rows: Tensor) -> None:
            function, place = divmod(index, each)
            image[part, place] += rows.to(wide) @ moved[name][function].mT

        def done(samples: int) -> None:
            assert self._bar is not None
            self._bar.advance(len(sums))

        sums = functions.flatten(0, 1)
        for use in (pull, push):
            self._stream.run(self._batches, sums, use, done, self._keep)
        return image.flatten(0, 1).cpu().numpy()


class _Counted:
    """Any other operator, its products counted by ``bar``."""

    def __init__(self, operator: Operator, bar: Task) -> None:
        self._operator, self._bar, self.size = operator, bar, operator.size

    def apply(self, vectors: Float) -> Float:
        image = self._operator.apply(vectors)
        self._bar.advance(vectors.shape[1])
        return image


@contextmanager
def _reporting(operator: Operator, label: str, rounds: Sequence[int]) -> Iterator[Operator]:
    """The operator, with one bar for all products with it inside the block.

    Args:
        rounds: vectors of each of them.
    """
    if not isinstance(operator, KernelOperator):
        with task(label, sum(rounds)) as bar:
            yield _Counted(operator, bar)
        return
    operator._settle()
    # a product can take minutes, so that what is counted is its passes
    with task(f"{label} (passes)", sum(map(operator.passes, rounds))) as bar:
        operator._bar = bar
        try:
            yield operator
        finally:
            operator._bar = None
            operator._stream.forget()


def _announce(operator: Operator, rounds: Sequence[int]) -> None:
    text = f"{sum(rounds):,} products with a kernel of {operator.size:,} rows"
    if isinstance(operator, KernelOperator):
        passes = sum(map(operator.passes, rounds))
        text += f" ({operator.about}): {passes:,} backward passes through a batch"
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
        method: estimator, ``"exact"`` where the kernel was formed.
        products: vectors multiplied with the kernel.
        seed: of the vectors.
        seconds: wall time.
        centred: whether they are of HKH.
        about: samples and outputs of the kernel in words.
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
    about: str = ""

    def tables(self) -> list[Table]:
        """The three numbers and what they took."""
        kernel, kind = ("HKH", "centred") if self.centred else ("K", "uncentred")
        rows: list[tuple[str, Any]] = [
            (f"tr {kernel}", self.trace),
            (f"‖{kernel}‖²_F", self.square),
            (f"participation ratio, {kind}", self.ratio),
            ("confidence", f"{100 * self.ratio.confidence:g} %"),
            ("rows of the kernel", f"{self.size:,} ({self.about})" if self.about else self.size),
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
    third, half = products // 3, products // 2
    if exact:
        rounds = [n]
    elif method == "hutchinson":
        rounds = [products]
    else:
        rounds = [third, products - third] if method == "hutch++" else [half, half]
    used = sum(rounds)
    _announce(operator, rounds)
    centred = _is_centred(operator)
    with _reporting(operator, "products", rounds) as operator:
        if exact:
            image = operator.apply(np.eye(n))
            traces, squares = np.full(2, np.trace(image)), np.full(2, (image**2).sum())
        elif method == "hutchinson":
            traces, squares = _plain(operator, _signs(rng, n, products))
        elif method == "hutch++":
            basis = linalg.qr(operator.apply(_signs(rng, n, third)), mode="economic")[0]
            traces, squares = _deflated(operator, basis, _signs(rng, n, products - 2 * third))
        else:
            traces, squares = _exchangeable(operator, _signs(rng, n, half))
    trace, square = float(traces.mean()), float(squares.mean())
    method = "exact" if exact else method
    how = "exact" if exact else f"{method}, {used} products, Student"

    def estimate(value: float, low: float, high: float) -> Estimate:
        return Estimate(value, low, high, n, "", confidence, how)

    quantile = float(stats.t.ppf(0.5 + confidence / 2, len(traces) - 1))
    quantile *= _DEPENDENT if method == "xtrace" else 1.0

    def half_width(values: Float) -> float:
        return quantile * float(values.std(ddof=1)) / float(np.sqrt(len(values)))

    if trace > 0 and square > 0:
        ratio = trace**2 / square
        reach = float(np.exp(half_width(2 * traces / trace - squares / square)))
        found = estimate(ratio, ratio / reach, ratio * reach).within(1.0, max(n - centred, 1))
    else:
        found = estimate(0.0, 0.0, 0.0)
    sides = [
        estimate(v, v - half_width(all_), v + half_width(all_)).within(0.0, math.inf)
        for v, all_ in ((trace, traces), (square, squares))
    ]
    seconds = time.monotonic() - started
    about = getattr(operator, "about", "")
    return KernelTraces(sides[0], sides[1], found, n, method, used, seed, seconds, centred, about)


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
    if not image.any():
        return np.zeros(probes.shape[1]), np.zeros(probes.shape[1])
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
    """Spectrum of an implicit kernel, of HKH where it is centred, from a block Krylov space.

    Args:
        eigenvalues: leading eigenvalues, descending: each lies within its entry of ``errors`` of
            an eigenvalue of the kernel.
        errors: residual norms of them, at least the rounding of the products.
        nodes, weights: a measure with the moments of the spectral density, weights adding up to
            1: the mean of f(eigenvalue) is about Σ weights·f(nodes), and is it where the kernel
            was formed.
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
    _by_start: Float = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    def trace_of(self, function: Any, confidence: float = 0.95) -> Estimate:
        """Tr f(K) = Σ f(λ) by stochastic quadrature, e.g. λ/(λ + ridge).

        Args:
            function: f, applied to an array of eigenvalues.
            confidence: coverage of Student's interval over the start vectors.
        """
        found = self.size * self._by_start @ function(self.nodes)
        quantile = stats.t.ppf(0.5 + confidence / 2, len(found) - 1)
        reach = float(quantile * found.std(ddof=1) / np.sqrt(len(found)))
        value = float(found.mean())
        method = f"Krylov quadrature, {len(found)} starts, Student"
        return Estimate(value, value - reach, value + reach, self.size, "", confidence, method)

    def tables(self) -> list[Table]:
        """Leading eigenvalues with their error bounds."""
        rows = [
            (i + 1, float(v), float(e))
            for i, (v, e) in enumerate(zip(self.eigenvalues, self.errors, strict=True))
        ]
        kind = "centred" if self.centred else "uncentred"
        title = f"Leading eigenvalues of {self.size:,}, {kind}"
        return [Table(title, ("rank", "eigenvalue", "one lies within"), rows)]

    def plot(self, ax: Any = None) -> Any:
        """Number of eigenvalues above each value; returns the matplotlib axes.

        Leading eigenvalues known to a hundredth of their value are points at their rank, where
        equal ones count as often as there were starts at most; the density below is estimated.
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
        order = np.argsort(self.nodes)[::-1][known:]
        values, shares = self.nodes[order], self.weights[order]
        # the rest has this many eigenvalues whatever the starts' shares in the leading ones
        counts = known + (self.size - known) * np.cumsum(shares) / max(shares.sum(), _TINY)
        above = values > self.precision * self.nodes.max()
        return values[above], counts[above]


def kernel_spectrum(
    operator: Operator, *, count: int = 10, steps: int = 6, starts: int = 16, seed: int = 0
) -> KernelSpectrum:
    """Leading eigenvalues and spectral density of an implicit kernel.

    Rayleigh-Ritz in the block Krylov space of random signs Ω [size, starts], the span of Ω, KΩ, …,
    K^(steps − 1)Ω, kept orthogonal to rounding. A step multiplies all starts at once, so that it
    takes one round of a :class:`KernelOperator`. With steps·starts ≥ size the kernel is formed and
    the spectrum is exact.

    Args:
        operator: the kernel, e.g. a :class:`KernelOperator`. Its ``precision``, float64's if it has
            none, is the least error reported, relative to the largest eigenvalue.
        count: leading eigenvalues reported.
        steps: of the iteration.
        starts: random start vectors, at least 2.
        seed: of them.

    Raises:
        ConfigError: an unusable option.
    """
    started = time.monotonic()
    if steps < 1 or starts < 2 or not 1 <= count <= steps * starts:
        raise ConfigError(
            f"count={count}, steps={steps}, starts={starts}; expected at least 1 step and 2 "
            "starts, and 1 <= count <= steps * starts"
        )
    n = operator.size
    precision = max(float(getattr(operator, "precision", _EPS)), _EPS)
    centred = _is_centred(operator)
    exact = steps * starts >= n
    rounds = [n] if exact else [starts] * steps
    draws = _signs(np.random.default_rng(seed), n, starts)
    _announce(operator, rounds)
    with _reporting(operator, "spectrum", rounds) as operator:
        if exact:
            basis = np.eye(n)
            images = operator.apply(basis)
        else:
            basis, images = _krylov(operator, draws, steps, precision)
    small = basis.T @ images
    values, vectors = linalg.eigh((small + small.T) / 2)
    found = np.maximum(values[::-1][:count], 0.0)
    leading = vectors[:, ::-1][:, :count]
    residuals = np.linalg.norm(images @ leading - basis @ (leading * found), axis=0)
    least = precision * max(float(values[-1]), 0.0)  # no product is more exact
    nodes = np.maximum(values, 0.0)
    # of ωᵀf(K)ω/n for each start ω; the mean over all ω is the trace, which is known if exact
    each = ((vectors.T @ (basis.T @ draws)) ** 2 / n).T
    weights = np.full((starts, len(nodes)), 1 / n) if exact else each
    return KernelSpectrum(
        found,
        np.maximum(residuals, least),
        nodes,
        weights.mean(0),
        n,
        starts,
        seed,
        time.monotonic() - started,
        centred,
        precision,
        weights,
    )


def _krylov(operator: Operator, block: Float, steps: int, precision: float) -> tuple[Float, Float]:
    """An orthonormal basis of the space, and the operator's products with it."""
    basis, images = np.zeros((len(block), 0)), np.zeros((len(block), 0))
    largest = float(np.linalg.norm(block, 2))
    for _ in range(steps):
        scale = largest
        for _ in range(2):  # once loses orthogonality to rounding
            block = block - basis @ (basis.T @ block)
            block, triangle, _ = linalg.qr(block, mode="economic", pivoting=True)
            new = np.abs(np.diagonal(triangle)) > max(1e-12, precision) * scale
            block, scale = block[:, new], 1.0
        if not block.shape[1]:
            break
        image = operator.apply(block)
        basis, images = np.hstack([basis, block]), np.hstack([images, image])
        largest = float(np.linalg.norm(images, 2))
        block = image
    return basis, images
