"""What the controlled study says: loss at T = 1 and T* against effective dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spikedim.errors import DataError
from spikedim.results import Estimate, Result, Table
from spikedim.training.study_table import StudyRow
from spikedim.training.timestep import first_sufficient, isotonic, t_star

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOLERANCE = 1.0
_RESAMPLES = 2000
_METHOD = "bootstrap over seeds and test samples"


@dataclass(frozen=True)
class DimensionPoint:
    """One task of the study, all its seeds together.

    Attributes:
        family: ``"truncated digits"`` or ``"synthetic"``.
        d_eff: PCA-95 % dimension of its training inputs.
        components: principal components kept, or intrinsic dimension.
        seeds: trainings at each T.
        accuracy: percent at each T, mean over seeds.
        steps: the trained T.
        lost: points of accuracy at the smallest T below the plateau, bootstrap over seeds and test
            samples.
        relative: the same as a share of what the plateau exceeds guessing by, percent.
        t_star: T* of each seed.
    """

    family: str
    d_eff: float
    components: int | None
    seeds: int
    steps: tuple[int, ...]
    accuracy: tuple[float, ...]
    lost: Estimate
    relative: Estimate
    t_star: tuple[int, ...]


@dataclass(frozen=True)
class Slope:
    """Change per doubling of d_eff, with a bootstrap interval over seeds and test samples.

    ``published`` is what ``T = C·d_eff/ε²`` implies: log2 T* grows by 1.
    """

    family: str
    quantity: str
    estimate: Estimate
    published: float | None


@dataclass(frozen=True)
class DimensionEffect(Result):
    """The controlled study, read: does T* grow with the dimension of the data?

    Attributes:
        model: the network.
        points: one per task, by family and dimension.
        slopes: per doubling of d_eff.
    """

    model: str
    points: tuple[DimensionPoint, ...]
    slopes: tuple[Slope, ...]

    def slope(self, family: str, quantity: str) -> Slope:
        """The slope of one quantity in one family.

        Raises:
            DataError: it was not measured.
        """
        for found in self.slopes:
            if (found.family, found.quantity) == (family, quantity):
                return found
        raise DataError(f"no slope of {quantity} for {family}")

    def tables(self) -> list[Table]:
        """Tasks, then slopes."""
        rows = [
            (
                p.family, p.components, p.d_eff, p.seeds,
                ", ".join(f"{a:.1f}" for a in p.accuracy), p.lost, p.relative,
                ", ".join(map(str, p.t_star)),
            )
            for p in self.points
        ]  # fmt: skip
        steps = ", ".join(map(str, self.points[0].steps)) if self.points else ""
        columns = (
            "task", "k", "d_eff", "seeds", f"accuracy (%) at T = {steps}", "lost at T = 1",
            "lost / (plateau − chance), %", "T* by seed",
        )  # fmt: skip
        changes = [(s.family, s.quantity, s.estimate, s.published) for s in self.slopes]
        return [
            Table(f"{self.model}: the same network on data of different dimension", columns, rows),
            Table(
                "Change per doubling of d_eff",
                ("task", "quantity", "measured", "published rule"),
                changes,
            ),
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Points lost at the smallest T against d_eff, one series per family."""
        from matplotlib import pyplot

        axes = ax if ax is not None else pyplot.figure(figsize=(6.4, 4)).add_subplot()
        for family, marker, colour in zip(
            dict.fromkeys(p.family for p in self.points), "os^", ("#0072b2", "#d55e00", "#555555"),
            strict=False,
        ):  # fmt: skip
            points = [p for p in self.points if p.family == family]
            x = [p.d_eff for p in points]
            y = [p.lost.value for p in points]
            bars = np.array([p.lost.reach for p in points]).T
            axes.errorbar(x, y, bars, marker=marker, color=colour, capsize=3, label=family)
            for p in points:
                typical = sorted(p.t_star)[(len(p.t_star) - 1) // 2]
                axes.annotate(
                    f"T* = {typical}", (p.d_eff, p.lost.value), textcoords="offset points",
                    xytext=(6, 5), fontsize=8, color=colour,
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        ticks = sorted({2 ** round(math.log2(p.d_eff)) for p in self.points})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set(
            xlabel="effective dimension of the inputs (PCA-95 %)",
            ylabel="accuracy lost at T = 1 (points)",
            title=f"{self.model}: the same network, inputs of different dimension",
        )
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.legend(frameon=False)
        return axes


def dimension_effect(rows: Iterable[StudyRow], seed: int = 0) -> DimensionEffect:
    """Losses, T* and slopes of a controlled study (:mod:`spikedim.design.dimension_study`).

    Only seeds trained at every T of the study count, so that an unfinished study can be read.

    Raises:
        DataError: fewer than two complete tasks of one family.
    """
    kept = [row for row in rows if row.status == "done" and row.eval_T == row.train_T]
    steps = tuple(sorted({row.train_T for row in kept}))
    tasks: dict[tuple[str, float, int | None, int], dict[int, dict[int, np.ndarray]]] = {}
    for row in kept:
        family = "synthetic" if row.dataset.startswith("gaussian") else f"truncated {row.dataset}"
        key = (family, row.d_eff_pca95, row.components, row.classes)
        tasks.setdefault(key, {}).setdefault(row.seed, {})[row.train_T] = row.hits
    rng = np.random.default_rng(seed)
    points, draws = [], []
    for (family, d_eff, k, classes), by_seed in sorted(tasks.items(), key=lambda i: i[0][:2]):
        complete = [by_T for _, by_T in sorted(by_seed.items()) if set(by_T) == set(steps)]
        if complete:
            point, drawn = _point(family, d_eff, k, classes, steps, complete, rng)
            points.append(point)
            draws.append(drawn)
    slopes: list[Slope] = []
    for family in dict.fromkeys(p.family for p in points):
        chosen = [i for i, p in enumerate(points) if p.family == family]
        if len(chosen) >= 2:
            slopes += _slopes(family, [points[i] for i in chosen], [draws[i] for i in chosen])
    if not slopes:
        raise DataError("the study has fewer than two complete tasks of one family")
    return DimensionEffect(kept[0].model, tuple(points), tuple(slopes))


def _point(
    family: str,
    d_eff: float,
    k: int | None,
    classes: int,
    steps: Sequence[int],
    seeds: Sequence[dict[int, np.ndarray]],
    rng: np.random.Generator,
) -> tuple[DimensionPoint, np.ndarray]:
    """The point, and bootstrap draws [resamples, 3] of lost, relative and log2 T*."""
    table = np.stack([[by_T[T] for T in steps] for by_T in seeds]).astype(float)  # seed, T, sample
    found = [t_star(by_T, TOLERANCE, resamples=400) for by_T in seeds]
    value = _summary(table.mean(axis=2), classes)
    n, count = table.shape[2], len(seeds)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    accuracy = (weights @ table.reshape(-1, n).T).reshape(_RESAMPLES, count, len(steps))
    chosen = rng.integers(count, size=(_RESAMPLES, count))
    accuracy = np.take_along_axis(accuracy, chosen[..., None], axis=1)
    lost, relative = _summary(accuracy, classes)
    firsts = _firsts(100 * accuracy.reshape(-1, len(steps)), steps).reshape(_RESAMPLES, count)
    drawn = np.stack([lost, relative, np.log2(firsts).mean(axis=1)], axis=1)
    samples = n * count
    points = _estimate(float(value[0]), drawn[:, 0], samples, "points")
    share = _estimate(float(value[1]), drawn[:, 1], samples, "%")
    point = DimensionPoint(
        family, d_eff, k, len(seeds), tuple(steps),
        tuple(float(a) for a in 100 * table.mean(axis=(0, 2))), points, share,
        tuple(int(f.estimate.value) for f in found),
    )  # fmt: skip
    return point, drawn


def _estimate(value: float, drawn: np.ndarray, n: int, unit: str) -> Estimate:
    low, high = map(float, np.quantile(drawn, (0.025, 0.975)))
    return Estimate(value, min(low, value), max(high, value), n, unit, method=_METHOD)


def _summary(accuracy: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Points lost at the first T against the last, and their share of plateau − chance.

    Args:
        accuracy: fractions [..., seeds, T].
        classes: of the task.
    """
    mean = 100 * accuracy.mean(axis=-2)
    lost = mean[..., -1] - mean[..., 0]
    return lost, 100 * lost / np.maximum(mean[..., -1] - 100 / classes, 1.0)


def _firsts(accuracy: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Smallest T within the tolerance of the end of the isotonic fit, for each row in percent."""
    return np.asarray(steps)[first_sufficient(isotonic(accuracy), TOLERANCE)]


def _slopes(
    family: str, points: Sequence[DimensionPoint], draws: Sequence[np.ndarray]
) -> list[Slope]:
    x = np.log2([p.d_eff for p in points])
    values = np.array(
        [[p.lost.value, p.relative.value, float(np.mean(np.log2(p.t_star)))] for p in points]
    )
    stacked = np.stack(draws)  # task, resample, quantity
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slopes = np.tensordot(weights, stacked, axes=(0, 0))
    units = (("points lost at T = 1", "points"), ("share lost at T = 1", "%"), ("log2 T*", ""))
    found = []
    for j, (quantity, unit) in enumerate(units):
        estimate = _estimate(float(weights @ values[:, j]), slopes[:, j], len(points), unit)
        found.append(Slope(family, quantity, estimate, 1.0 if quantity == "log2 T*" else None))
    return found
