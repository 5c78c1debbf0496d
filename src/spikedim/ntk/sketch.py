"""The trace kernel from a few random sums of outputs and short sketches of the gradients.

Two random projections replace the exact kernel Σ_o J_o J_oᵀ. A sum of outputs with random weights z
has the kernel (zᵀJ)(zᵀJ)ᵀ, whose mean over z is the trace kernel if that of zzᵀ is the identity: m
backward passes instead of one per output. And a gradient of P numbers is folded, with random signs,
to k: inner products keep their mean, memory is n·m·k instead of n·P. Each sum has weights and signs
of its own, so that the m kernels are independent, ⟨K_i, K_j⟩ for i ≠ j is an unbiased ‖K‖²_F, and
their scatter gives the error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from spikedim.dimension.arrays import spans
from spikedim.errors import BudgetError, ConfigError, DataError, StorageError
from spikedim.neurons import Surrogate
from spikedim.ntk.capture import Readout, parameters_of
from spikedim.ntk.directions import random_sums
from spikedim.ntk.fold import Fold
from spikedim.ntk.gram import surrogates_of
from spikedim.ntk.identity import identity
from spikedim.ntk.kernel import output_like, output_sums, prepared
from spikedim.ntk.plan import budget_of
from spikedim.ntk.result import UNRESOLVED, in_words, one_per_sample
from spikedim.ntk.stream import Stream
from spikedim.progress import Task, note, task
from spikedim.results import Estimate, Result, Table, number, plain
from spikedim.storage import Run, read_arrays, write_arrays
from spikedim.theory.statistics import normal_quantile

Float = NDArray[np.float64]
_BLOCK = 1 << 26  # bytes of one block of all kernels, in single and in double precision
_PIECE = 64  # samples whose sketches are stored at once
_LEAST = 16  # samples of the smallest subset
_SUBSETS = 8  # of one size
_SIZES = 16381, 4093, 1021  # primes, which spread the inputs of a layer best
_SKETCHES = 1 << 26  # bytes that the larger of them may take


@dataclass(frozen=True)
class SubsetDimension:
    """Centred participation ratio of random subsets of n samples that do not overlap.

    Args:
        n: samples of each.
        subsets: how many.
        mean: geometric mean over them; its interval is about these subsets, as that of a sketch.
        lowest, highest: of them: how much another draw of n samples may differ.
    """

    n: int
    subsets: int
    mean: Estimate
    lowest: float
    highest: float


@dataclass(frozen=True)
class SketchedKernel(Result):
    """Estimate of a kernel K: the mean of m independent, unbiased kernels Y_i Y_iᵀ.

    Args:
        sketches: Y, [m, n, k].
        outputs: ``"trace"``, ``"sum"`` or the index of one output.
        classes: number of outputs O.
        random_sums: the m kernels are of random sums of outputs; else of all of them.
        centered: participation ratio (tr K)²/‖K‖²_F of HKH, H = 1 − 11ᵀ/n, with its interval.
        uncentered: of K itself.
        growth: the same of subsets of n, n/2, n/4, … samples, up to eight of each. Where it still
            grows, d_eff is that of the samples rather than of the network.
        T: timesteps of a static input, ``None`` for the network's own.
        surrogate: distinct (kind, width, peak) of the neurons; empty where none is known.
        parameters: number of parameters differentiated.
        seed: of all signs.
        seconds: wall time.
        bytes: working memory that was predicted.
    """

    sketches: NDArray[Any]
    outputs: str | int
    classes: int
    random_sums: bool
    centered: Estimate
    uncentered: Estimate
    growth: tuple[SubsetDimension, ...]
    T: int | None
    surrogate: tuple[tuple[str, float, float], ...]
    parameters: int
    seed: int
    seconds: float
    bytes: int
    _products: Float = field(repr=False)  # of the centred kernels, [m, m]

    @property
    def samples(self) -> int:
        """N."""
        return self.sketches.shape[1]

    @property
    def values(self) -> Float:
        """Unbiased estimate of the kernel, float64 [n, n]."""
        rows = self.sketches.transpose(1, 0, 2).reshape(self.samples, -1).astype(np.float64)
        return np.asarray(rows @ rows.T / len(self.sketches))

    def alignment(self, labels: Any, confidence: float = 0.95) -> Estimate:
        """Centred kernel-target alignment ⟨HKH, Y⟩/(‖HKH‖‖Y‖), Y = 1 where two labels are equal.

        Args:
            labels: [n].
            confidence: coverage of the interval, from the same jackknife as the dimensions.

        Raises:
            DataError: not one label per sample, or fewer than two different ones.
        """
        target = one_per_sample(labels, self.samples)
        classes, index = np.unique(target, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"labels hold {len(classes)} class; alignment needs at least 2")
        member = np.eye(len(classes), dtype=self.sketches.dtype)[index]
        member -= member.mean(0)
        aligned = np.array([(member.T @ y).astype(float) ** 2 for y in self.sketches]).sum((1, 2))
        scale = float(np.linalg.norm(member.T @ member))

        def of(kept: NDArray[np.intp]) -> float:  # ⟨Y_i Y_iᵀ, HYH⟩ / (‖HKH‖ ‖HYH‖)
            square = _apart(self._products, kept)
            size = len(kept) * (len(kept) - 1)
            root = scale * (square / size) ** 0.5 if square > 0 else 0.0
            return float(aligned[kept].mean() / root) if root else 0.0

        found = _jackknife(of, len(aligned), confidence)
        method = _method(len(aligned), self.random_sums)
        return Estimate(*found, self.samples, "", confidence, method).within(0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the sketches."""
        names = [f.name for f in fields(self) if f.name not in ("sketches", "_products")]
        return {name: plain(getattr(self, name)) for name in names}

    def tables(self) -> list[Table]:
        """What was sketched, and the participation ratios."""
        m, n, k = self.sketches.shape
        rows: list[tuple[str, Any]] = [
            ("samples", n),
            ("participation ratio, centred", self.centered),
            ("participation ratio, uncentred", self.uncentered),
            ("confidence", f"{100 * self.centered.confidence:g} %"),
            ("outputs", f"{self.outputs} of {self.classes}"),
            ("sums of outputs", f"{m} random" if self.random_sums else "all"),
            ("sketches of each gradient", f"{1 if self.random_sums else m} of {k} numbers"),
            ("parameters", self.parameters),
            ("surrogate", in_words(self.surrogate)),
            ("seconds", self.seconds),
            ("memory predicted", f"{self.bytes / 2**30:.3g} GiB"),
        ]
        grown = [
            (g.n, g.subsets, g.mean, f"{number(g.lowest)} to {number(g.highest)}" * (g.subsets > 1))
            for g in self.growth
        ]
        about = (
            "Random subsets that do not overlap. Intervals are those of the sketch; other samples "
            "differ as the subsets do.",
        )
        return [
            Table("Sketched neural tangent kernel", ("quantity", "value"), rows),
            Table(
                "Dimension by samples",
                ("samples n", "subsets", "centred, mean", "lowest to highest"),
                grown,
                about,
            ),
        ]

    def plot(self, ax: Any = None) -> Any:
        """Centred participation ratio by number of samples; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5, 3.5), layout="constrained")[1] if ax is None else ax
        means = [g.mean for g in self.growth]
        n, value = np.array([(e.n, e.value) for e in means]).T
        ends = np.array([(g.lowest, g.highest) for g in self.growth]).T
        ax.fill_between(n, *ends, alpha=0.15, lw=0, label="lowest to highest subset")
        reach = np.array([e.reach for e in means]).T
        ax.errorbar(n, value, reach, fmt="o-", ms=4, capsize=3, label="mean")
        bottom, top = ax.get_ylim()
        if n.min() - 1 < top:
            ax.plot(n, n - 1, "--", color="0.5", label="n − 1, the most there can be")
        ax.set(xscale="log", xlabel="samples n", ylabel="centred participation ratio")
        ax.set_ylim(min(bottom, 1.0), top)
        ax.set_xticks(n, [f"{int(count):,}" for count in n])
        ax.minorticks_off()
        ax.set_title(
            f"d_eff of the NTK, sketched, {100 * self.centered.confidence:g} % intervals",
            loc="left",
            fontsize=9,
        )
        ax.legend(frameon=False, fontsize=8)
        return ax


def sketched_gram(
    model: nn.Module,
    x: Tensor,
    *,
    T: int | None = None,
    outputs: str | int = "trace",
    probes: int = 8,
    size: int | None = None,
    surrogate: str | Surrogate | None = None,
    width: float | None = None,
    readout: Readout | None = None,
    memory: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    directory: str | Path | None = None,
    fallback: bool = False,
) -> SketchedKernel:
    """Estimate a kernel and its participation ratios with intervals (claim SNTK).

    With as many outputs as probes or fewer, all outputs are differentiated and only the gradients
    are sketched, ``probes`` times. Otherwise the error comes from the probes and falls as
    1/√probes, whatever the number of outputs. The intervals are Student's, from a jackknife of
    the logarithm over the probes.

    Args:
        model: a network in eval mode; parameters that do not require gradients are left out.
        x: samples, as the network takes them.
        T: timesteps of a static input.
        outputs: ``"trace"`` sums the kernels of all outputs; ``"sum"`` is the kernel of the sum of
            all outputs (the pseudo-NTK), one pass but another kernel: its interval is about its
            own value; a whole number takes one output.
        probes: independent estimates m, at least 3.
        size: numbers kept of each gradient, k; a prime is best. ``None`` takes 16,381, 4,093 or
            1,021, the largest with which the sketches stay within 64 MiB and a quarter of the
            memory, and are no longer than the gradients.
        surrogate, width: surrogate of every neuron in place of the network's own; a width alone
            changes their widths.
        readout: what is differentiated, a function of (model, x, T) that returns [B, outputs].
        memory: GiB the computation may take beside network and samples; half of the free memory
            by default.
        confidence: coverage of the intervals.
        seed: of all signs.
        directory: folder for finished sketches; the same call resumes there.
        fallback: differentiate parameters without a rule by autograd, sample by sample.

    Raises:
        ModelError: the network is in training mode or a parameter has no rule.
        ConfigError: an unknown or unusable option.
        BudgetError: it does not fit ``memory``.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_micro", seed=0).eval()
        >>> found = sketched_gram(net, torch.randn(8, *net.input_shape))
        >>> found.sketches.shape
        (8, 8, 16381)
    """
    started = time.monotonic()
    if probes < 3 or (size is not None and size < 1):
        raise ConfigError(f"probes={probes}, size={size}; expected 3 or more and 1 or more")
    if outputs == "full":
        raise ConfigError("outputs='full'; a sketch is of 'trace', 'sum' or the index of an output")
    normal_quantile(confidence)
    setup = prepared(model, x, T, readout, surrogate, width)
    like = output_like(setup, x)
    classes = like.shape[1]
    drawn = outputs == "trace" and classes > probes
    stream = Stream(setup, x, fallback)
    if drawn:
        cotangents = random_sums(setup, x, probes, classes, seed, stream.without)
    else:
        cotangents = torch.ones_like(like) if outputs == "sum" else output_sums(setup, x, outputs)
    n = setup.count(x)
    vectors = len(cotangents) * (1 if drawn else probes)
    parameters = parameters_of(model)
    wide = torch.promote_types(like.dtype, torch.float32)
    if size is None:
        room = min(_SKETCHES, budget_of(memory) / 4)
        most = min(room / (probes * n * wide.itemsize), parameters)
        size = next((k for k in _SIZES if k <= most), _SIZES[-1])
    batch, need = _batch(stream, n, probes * size, vectors, budget_of(memory))
    note(
        f"sketched NTK of {n:,} samples and {parameters:,} parameters: {len(cotangents)} passes "
        f"in batches of {batch}, about {need / 2**30:.2g} GiB"
    )
    sketches = torch.zeros(probes, n, size, dtype=wide, device=like.device)
    fold = Fold(setup, seed, drawn)

    def draw(start: int, stop: int, rows: Tensor, bar: Task) -> None:
        def use(function: int, samples: slice, name: str, full: Tensor) -> None:
            fold(full, name, function, rows[:, samples.start - start : samples.stop - start])

        pieces = ((start + a, start + b) for a, b in spans(stop - start, batch))
        stream.run(pieces, cotangents, use, bar.advance)

    if directory is None:
        with task("sketched kernel", n) as bar:
            draw(0, n, sketches, bar)
    else:
        about = {"probes": probes, "size": size, "seed": seed}
        about |= identity(setup, samples=x, outputs=cotangents)
        with Run(directory, about) as folder, task("sketched kernel", n) as bar:
            for start, stop in spans(n, _PIECE):
                rows = sketches[:, start:stop]
                path = folder.file("sketches", f"{start}.npz")
                if (stored := read_arrays(path)) is None:
                    draw(start, stop, rows, bar)
                    write_arrays(path, {"rows": rows.cpu().numpy()})
                elif "rows" not in stored or stored["rows"].shape != rows.shape:
                    raise StorageError(f"{path} holds other arrays; remove it and run again")
                else:
                    rows.copy_(torch.from_numpy(stored["rows"]))
                    bar.advance(stop - start, "kept from before")
    method = _method(probes, drawn)

    uncentered = Estimate(*_ratio([_moments(sketches)], confidence), n, "", confidence, method)
    order = torch.from_numpy(np.random.default_rng((seed, 2)).permutation(n)).to(sketches.device)
    products, growth, count = np.zeros(0), [], n
    while count == n or count >= _LEAST:
        chosen = [order[i * count :][:count] for i in range(min(n // count, _SUBSETS))]
        parts = [_moments(_centred(sketches, c if count < n else None)) for c in chosen]
        products = parts[0][1] if count == n else products
        growth.append(_subsets(parts, count, confidence, method))
        count //= 2
    return SketchedKernel(
        sketches.cpu().numpy(),
        outputs,
        classes,
        drawn,
        growth[0].mean,
        uncentered.within(1.0, n) if uncentered.high else uncentered,
        tuple(growth),
        T,
        surrogates_of(setup.model),
        parameters,
        seed,
        time.monotonic() - started,
        int(need),
        products,
    )


def _centred(sketches: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Sketches [m, n, k] of gradients about the mean of the samples, of some of them."""
    y = sketches.clone() if chosen is None else sketches[:, chosen]
    size = torch.linalg.vector_norm(y)
    y.sub_(y.mean(1, keepdim=True))
    rounding = torch.linalg.vector_norm(y) <= UNRESOLVED * torch.finfo(y.dtype).eps * size
    return y.zero_() if rounding else y


def _method(probes: int, random_sums: bool) -> str:
    about = "random sums of outputs" if random_sums else "sketches"
    return f"jackknife over {probes} {about}, Student"


def _batch(stream: Stream, n: int, kept: int, vectors: int, budget: float) -> tuple[int, float]:
    """Samples per batch, and bytes in all, with the bits of ``vectors`` vectors of signs."""
    found = stream.probe
    signs = found.columns * vectors / 8

    def need(batch: int) -> float:
        return float(stream.need(batch) + 2 * n * kept * found.itemsize + signs)

    batch = stream.batch
    while batch > 1 and need(batch) > budget:
        batch //= 2
    if need(batch) > budget:
        passing = need(batch) - 2.0 * n * kept * found.itemsize
        mend = "give more memory" if passing > budget else "use a smaller size or fewer probes"
        raise BudgetError(
            f"sketches of {n:,} samples take {need(batch) / 2**30:.3g} GiB, {passing / 2**30:.3g} "
            f"of them for one sample's pass, over the {budget / 2**30:.3g} GiB allowed; {mend}"
        )
    return batch, need(batch)


def _moments(y: Tensor) -> tuple[Float, Float]:
    """Traces [m] of the kernels Y_i Y_iᵀ and their inner products [m, m]."""
    m, n, k = y.shape
    traces = torch.linalg.vector_norm(y.flatten(1), dim=1, dtype=torch.float64).square()
    products = np.zeros((m, m))
    if n > (m + 1) * k:  # ⟨Y_i Y_iᵀ, Y_j Y_jᵀ⟩ = ‖Y_iᵀ Y_j‖²_F, which takes time linear in n
        for i, left in enumerate(y):
            for j in range(i, m):
                square = torch.linalg.vector_norm(left.mT @ y[j], dtype=torch.float64).square()
                products[i, j] = products[j, i] = float(square)
        return traces.cpu().numpy(), products
    tile = max(64, int((_BLOCK / (12 * m)) ** 0.5))
    for a, b in spans(n, tile):
        for c, d in spans(n, tile):
            if c < a:
                continue
            block = (y[:, a:b] @ y[:, c:d].mT).flatten(1).double()
            products += (1 if c == a else 2) * (block @ block.T).cpu().numpy()
    return traces.cpu().numpy(), products


def _apart(products: Float, kept: NDArray[np.intp]) -> float:
    """Sum of the inner products of different kernels among those kept."""
    p = products[np.ix_(kept, kept)]
    return float(p.sum() - np.trace(p))


def _subsets(
    parts: list[tuple[Float, Float]], count: int, confidence: float, method: str
) -> SubsetDimension:
    """The dimension of subsets of ``count`` samples, given their moments."""
    mean = Estimate(*_ratio(parts, confidence), count, "", confidence, method)
    each = [_ratio([part], confidence)[0] for part in parts]
    if mean.high:
        mean = mean.within(1.0, count - 1)
        each = [min(max(value, 1.0), count - 1) for value in each]
    return SubsetDimension(count, len(parts), mean, min(each), max(each))


def _ratio(parts: list[tuple[Float, Float]], confidence: float) -> tuple[float, float, float]:
    """Geometric mean of (tr K)²/‖K‖²_F over sets of samples, with its interval.

    Args:
        parts: traces and inner products of the independent estimates of each K.
        confidence: coverage of the interval.
    """

    def of(kept: NDArray[np.intp]) -> float:
        logs = 0.0
        for traces, products in parts:
            t = traces[kept]
            above, below = t.sum() ** 2 - (t @ t), _apart(products, kept)
            if above <= 0 or below <= 0:
                return 0.0
            logs += np.log(above / below)
        return float(np.exp(logs / len(parts)))

    if not any(traces.any() for traces, _ in parts):
        return 0.0, 0.0, 0.0
    return _jackknife(of, len(parts[0][0]), confidence)


def _jackknife(
    of: Callable[[NDArray[np.intp]], float], count: int, confidence: float
) -> tuple[float, float, float]:
    """A positive statistic of ``count`` estimates, and Student's interval of its logarithm."""
    every = np.arange(count)
    value, others = of(every), np.array([of(np.delete(every, i)) for i in range(count)])
    if value == 0 or (others == 0).any():
        return value, 0.0, float("inf")
    logs = np.log(others)
    error = np.sqrt((count - 1) / count * ((logs - logs.mean()) ** 2).sum())
    reach = float(np.exp(stats.t.ppf(0.5 + confidence / 2, count - 1) * error))
    return value, value / reach, value * reach
