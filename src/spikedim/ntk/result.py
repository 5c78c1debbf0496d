"""What a neural tangent kernel says: dimension, alignment with labels, share of each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikedim.dimension import DimensionReport, list_estimators, measure
from spikedim.dimension.arrays import as_samples
from spikedim.dimension.kernels import symmetric_eigenvectors
from spikedim.dimension.moments import centered_gram
from spikedim.errors import ConfigError, DataError
from spikedim.results import Estimate, Result, Table
from spikedim.theory.statistics import share

Float = NDArray[np.float64]
#: Units of rounding by which the gradients of equal samples may differ.
UNRESOLVED = 8


def in_words(surrogate: Sequence[tuple[str, float, float]]) -> str:
    """Surrogates (kind, width, peak) of the neurons that are known."""
    kinds = ", ".join(f"{k} (width {w:g}, peak {p:g})" for k, w, p in surrogate)
    return kinds or "the network's own"


@dataclass(frozen=True)
class Kernel(Result):
    """K(x, x') = ⟨J(x), J(x')⟩, J the Jacobian of the outputs with respect to the parameters.

    Spikes are differentiated through their surrogate, so the kernel scales with its peak layer by
    layer: kind, width and peak belong to the result.

    Args:
        values: float64 [n, m]: the trace over outputs or one output; for all pairs of outputs
            [n·O, m·O], output running fastest. Without a second set of samples exactly symmetric.
        layers: by parameter, its part of the kernel; they add up to ``values``.
        outputs: ``"trace"``, ``"full"`` or the index of one output.
        classes: number of outputs O.
        symmetric: there was no second set of samples.
        T: timesteps of a static input, ``None`` for the network's own.
        surrogate: distinct (kind, width, peak) of the neurons; empty where none is known.
        method: implementation.
        dtype: precision of the network.
        parameters: number of parameters differentiated.
        seconds: wall time.
        bytes: working memory that was predicted.
    """

    values: Float
    layers: dict[str, Float]
    outputs: str | int
    classes: int
    symmetric: bool
    T: int | None
    surrogate: tuple[tuple[str, float, float], ...]
    method: str
    dtype: str
    parameters: int
    seconds: float
    bytes: int

    @property
    def samples(self) -> int:
        """N."""
        return len(self.values) // (self.classes if self.outputs == "full" else 1)

    def centred(self) -> Float:
        """HKH with H = 1 − 11ᵀ/n: the kernel of gradients about their mean."""
        return np.asarray(centered_gram(self.values))

    def eigenvectors(self, k: int | None = None, center: bool = True) -> tuple[Float, Float]:
        """Largest ``k`` eigenvalues, descending, and their eigenvectors [n, k].

        Raises:
            ConfigError: the kernel is between two sets of samples.
        """
        self._square()
        matrix = self.centred() if center else self.values.copy()
        values, vectors = symmetric_eigenvectors(matrix)
        return np.asarray(values[::-1][:k], float), np.asarray(vectors[:, ::-1][:, :k], float)

    def features(self) -> Float:
        """Samples [n, n] whose inner products are the kernel: the gradients up to a rotation."""
        values, vectors = self.eigenvectors(center=False)
        return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))

    def dimension(
        self, center: bool = True, estimators: Sequence[str] | None = None, **options: Any
    ) -> DimensionReport:
        """Effective dimension of the gradients, by every estimator that reads a spectrum.

        The gradients of all outputs of a sample are no independent observations: of
        ``outputs="full"`` there are neither intervals nor ``pr_corrected``.

        Args:
            center: of HKH. The uncentred kernel is dominated by the mean gradient: its dimension
                is near 1 whatever the network.
            estimators: keys; by default all that need the spectrum only.
            **options: of :func:`spikedim.dimension.measure`.

        Raises:
            ConfigError: what needs independent rows is asked of ``outputs="full"``.
        """
        dependent = self.outputs == "full"
        if estimators is None:
            estimators = [e.key for e in list_estimators() if e.needs == "spectrum"]
            if dependent:
                estimators.remove("pr_corrected")
        if dependent and (
            options.setdefault("interval", "none") != "none" or "pr_corrected" in estimators
        ):
            raise ConfigError(
                "intervals and pr_corrected of outputs='full': the outputs of a sample depend on "
                "each other; use interval='none', outputs='trace' or an index"
            )
        # a sample has a gradient for each output, whose kernels the trace adds up
        numbers = self.parameters * (self.classes if self.outputs == "trace" else 1)
        features = self.features()
        spread = float(np.trace(self.centred()))
        if center and spread <= UNRESOLVED * np.finfo(self.dtype).eps * np.trace(self.values):
            features[:] = 0  # equal gradients: what is left is rounding
        rows = as_samples(features)
        return measure(replace(rows, space=max(numbers, rows.d)), estimators, center, **options)

    def alignment(self, labels: Any, center: bool = True) -> float:
        """Kernel-target alignment ⟨K, Y⟩/(‖K‖‖Y‖) with Y = 1 where two labels are equal.

        Args:
            labels: [n].
            center: align HKH with HYH (Cortes et al. 2012).
        """
        target = self._labels(labels)
        return float(self._alignments(target, np.arange(len(target))[None], center)[0])

    def alignment_by_chance(
        self, labels: Any, center: bool = True, permutations: int = 100, seed: int = 0
    ) -> Estimate:
        """:meth:`alignment` with shuffled labels: the mean, and the range of 95 % of them.

        It is not 0: a kernel of few effective dimensions is aligned with any labels a little.

        Args:
            labels, center: as for :meth:`alignment`.
            permutations: times the labels are shuffled.
            seed: of the shuffling.
        """
        target, rng = self._labels(labels), np.random.default_rng(seed)
        orders = np.array([rng.permutation(len(target)) for _ in range(permutations)])
        found = self._alignments(target, orders, center)
        low, high = np.quantile(found, (0.025, 0.975))
        method = f"{permutations} permutations"
        return Estimate(float(np.mean(found)), low, high, len(target), method=method)

    def _alignments(self, target: NDArray[Any], orders: NDArray[Any], center: bool) -> Float:
        """Alignment with the labels in each of several orders [m, n], from Y = M Mᵀ."""
        member = np.equal.outer(target, np.unique(target)).astype(float)  # M, [n, classes]
        matrix = self.centred() if center else self.values
        if center:
            member -= member.mean(0)
        scale = float(np.linalg.norm(matrix) * np.linalg.norm(member.T @ member))
        products = [float((member[order] * (matrix @ member[order])).sum()) for order in orders]
        return np.array(products) / scale if scale else np.zeros(len(orders))

    def regression(
        self, labels: Any, held_out: float = 0.25, ridge: float = 1e-3, seed: int = 0
    ) -> Estimate:
        """Accuracy in percent, on held-out samples, of kernel ridge regression on the labels.

        Args:
            labels: [n].
            held_out: fraction of each class that is predicted.
            ridge: added to the diagonal, in units of its mean.
            seed: of the split.

        Raises:
            DataError: a side of the split would be empty.
        """
        target = self._labels(labels)
        rng = np.random.default_rng(seed)
        test = np.zeros(len(target), bool)
        for label in np.unique(target):
            members = rng.permutation(np.flatnonzero(target == label))
            test[members[: round(held_out * len(members))]] = True
        if test.all() or not test.any():
            raise DataError(
                f"held_out={held_out} of {len(target)} samples leaves a side of the split empty"
            )
        known = np.unique(target[~test])
        wanted = (target[~test, None] == known).astype(float)
        mean = wanted.mean(0)
        inner = self.values[np.ix_(~test, ~test)]
        inner = inner + ridge * max(np.trace(inner) / len(inner), 1e-300) * np.eye(len(inner))
        scores = self.values[np.ix_(test, ~test)] @ np.linalg.solve(inner, wanted - mean) + mean
        right, n = int((known[scores.argmax(1)] == target[test]).sum()), int(test.sum())
        return share(right, n)

    def contributions(self) -> dict[str, float]:
        """Share of each layer (its parameters together) in the trace, or in the sum if no square.

        The largest first; they add up to 1.
        """
        parts: dict[str, float] = defaultdict(float)
        for name, part in self.layers.items():
            size = np.trace(part) if self.symmetric else part.sum()
            parts[name.rpartition(".")[0] or name] += float(size)
        whole = sum(parts.values()) or 1.0
        return {k: v / whole for k, v in sorted(parts.items(), key=lambda kv: -kv[1])}

    def tables(self) -> list[Table]:
        """What the kernel is of, and the share of each layer."""
        rows: list[tuple[str, Any]] = [
            ("shape", " x ".join(map(str, self.values.shape))),
            ("outputs", f"{self.outputs} of {self.classes}"),
            ("parameters", self.parameters),
            ("surrogate", in_words(self.surrogate)),
            ("method", f"{self.method}, {self.dtype}"),
            ("seconds", self.seconds),
            ("memory predicted", f"{self.bytes / 2**30:.3g} GiB"),
        ]
        if self.symmetric:
            rows[1:1] = [("mean of the diagonal", float(np.trace(self.values)) / len(self.values))]
        shares = [(name, 100 * share) for name, share in self.contributions().items()]
        return [
            Table("Neural tangent kernel", ("quantity", "value"), rows),
            Table("Share of each layer", ("layer", "% of the trace"), shares),
        ]

    def plot(self, ax: Any = None) -> Any:
        """Eigenvalues, centred and not, in units of the largest; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5, 3.5), layout="constrained")[1] if ax is None else ax
        for center, label in ((True, "centred"), (False, "uncentred")):
            values, _ = self.eigenvectors(center=center)
            kept = values[values > values[0] * 1e-12]
            ax.loglog(np.arange(1, len(kept) + 1), kept / kept[0], marker=".", label=label)
        ax.set_xlabel("rank")
        ax.set_ylabel("eigenvalue / largest")
        ax.set_title(f"NTK of {self.samples:,} samples", loc="left", fontsize=9)
        ax.legend(frameon=False, fontsize=8)
        return ax

    def _square(self) -> None:
        if not self.symmetric:
            raise ConfigError(
                "the kernel is between two sets of samples, this needs that of one; leave x2 out"
            )

    def _labels(self, labels: Any) -> NDArray[Any]:
        self._square()
        if self.outputs == "full":
            raise ConfigError("labels need one row per sample; use outputs='trace' or an index")
        return one_per_sample(labels, len(self.values))


def one_per_sample(labels: Any, n: int) -> NDArray[Any]:
    """Labels of ``n`` samples as an array [n].

    Raises:
        DataError: another number of them.
    """
    found = np.asarray(labels.tolist() if hasattr(labels, "tolist") else labels)
    if found.shape != (n,):
        raise DataError(f"labels have shape {found.shape}; expected one per sample, ({n},)")
    return found
