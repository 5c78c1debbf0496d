"""Does the position-gated output projection help? A paired training comparison.

Three arms from the same draws and batches: no gate, the position gate, and its control of the same
parameters whose features are the same at every position (a plain gain per head). Each is trained
as a spiking network and as its continuous twin, on each data set, from several seeds. Differences
are paired by seed; their intervals are Student t over seeds, and speak about new seeds for these
training and test samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spikedim.data import load_dataset
from spikedim.errors import ConfigError
from spikedim.models import SpikingModel, create_model, model_entry
from spikedim.models.blocks import pools_for
from spikedim.models.gating import GATES, PositionGate
from spikedim.progress import track
from spikedim.rank.sites import hooked, run
from spikedim.results import Estimate, Result, Table
from spikedim.storage import Run
from spikedim.theory.statistics import mean_interval
from spikedim.training import TrainConfig, evaluate, fit, samples
from spikedim.training.batches import Batches
from spikedim.training.config import check_timesteps

KINDS = ("spiking", "continuous")
ARMS = {
    "none": "no gate",
    "position": "position gate (PG-OP)",
    "constant": "control: constant gate",
}


@dataclass(frozen=True)
class GateRun:
    """One training.

    Attributes:
        dataset, kind, arm, seed: which.
        accuracy: on the test samples, %.
        samples: test samples.
        train_loss: of the last epoch.
        spikes: per sample; ``None`` for the continuous twin.
        spread: standard deviation of a head's gate over positions, mean over heads and layers;
            ``None`` without a gate.
        gates: mean gate; ``None`` without a gate.
        parameters: of the network.
        seconds: of training.
    """

    dataset: str
    kind: str
    arm: str
    seed: int
    accuracy: float
    samples: int
    train_loss: float
    spikes: float | None
    spread: float | None
    gates: float | None
    parameters: int
    seconds: float


@dataclass(frozen=True)
class GateComparison(Result):
    """Accuracy of the three arms, and paired differences.

    Attributes:
        model, grid: the network, and about the side of its token grid.
        T: timesteps of the spiking network; its twin has one.
        train_samples, config: how it was trained.
        runs: every training.
    """

    model: str
    grid: int
    T: int
    train_samples: int
    config: dict[str, Any]
    runs: tuple[GateRun, ...]

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """Pairs of data set and kind."""
        return tuple(dict.fromkeys((r.dataset, r.kind) for r in self.runs))

    def accuracies(self, dataset: str, kind: str, arm: str) -> np.ndarray:
        """Accuracy in %, by seed."""
        chosen = [r for r in self.runs if (r.dataset, r.kind, r.arm) == (dataset, kind, arm)]
        return np.array([r.accuracy for r in sorted(chosen, key=lambda r: r.seed)])

    def difference(self, dataset: str, kind: str, against: str) -> Estimate:
        """Position gate minus another arm in percentage points, paired by seed."""
        gated = self.accuracies(dataset, kind, "position")
        return _mean(gated - self.accuracies(dataset, kind, against), "points")

    def overall(self, against: str) -> Estimate:
        """The same over all settings: each pair of runs is one observation."""
        found = [
            self.accuracies(*setting, "position") - self.accuracies(*setting, against)
            for setting in self.settings
        ]
        return _mean(np.concatenate(found), "points")

    def tables(self) -> list[Table]:
        """Accuracies by arm, then differences, then what the gates became."""
        rows = [
            (d, k, *(str(_share(self.accuracies(d, k, arm))) for arm in ARMS))
            for d, k in self.settings
        ]
        seeds = len({r.seed for r in self.runs})
        title = f"Accuracy of {self.model}, {seeds} seeds (mean, Student t over seeds)"
        differences: list[tuple[str, ...]] = [
            (d, k, str(self.difference(d, k, "none")), str(self.difference(d, k, "constant")))
            for d, k in self.settings
        ]
        differences.append(("all", "all", str(self.overall("none")), str(self.overall("constant"))))
        columns = ("data set", "network", "minus no gate", "minus control")
        about = (
            f"T={self.T} (continuous: 1), {self.train_samples:,} training samples, "
            f"{self.config['epochs']} epochs. {self.verdict}"
        )
        return [
            Table(title, ("data set", "network", *ARMS.values()), rows),
            Table("Position gate, paired differences", columns, differences, (about,)),
            Table(
                "What the gates became",
                ("data set", "network", "arm", "mean gate", "spread over positions", "parameters"),
                [
                    (d, k, ARMS[arm], *self._gates(d, k, arm))
                    for d, k in self.settings
                    for arm in ARMS
                ],
            ),
        ]

    @property
    def verdict(self) -> str:
        """Which paired intervals exclude zero, and out of how many; none is corrected for that."""
        clear = [
            f"{d}, {k}, against {ARMS[arm]}: {self.difference(d, k, arm)}"
            for d, k in self.settings
            for arm in ("none", "constant")
            if _excludes_zero(self.difference(d, k, arm))
        ]
        if not clear:
            return "No paired interval excludes zero: this comparison shows no effect of the gate."
        tried = 2 * len(self.settings)
        return (
            f"{len(clear)} of {tried} paired intervals, none corrected for their number, exclude "
            f"zero: {'; '.join(clear)}. Over all settings: {self.overall('none')} against no gate, "
            f"{self.overall('constant')} against the control."
        )

    def markdown(self) -> str:
        """The tables as a Markdown page."""
        parts = []
        for table in self.tables():
            head = " | ".join(map(str, table.columns))
            rule = " | ".join("---" for _ in table.columns)
            body = "\n".join(f"| {' | '.join(row)} |" for row in table.cells())
            notes = "".join(f"\n{note}\n" for note in table.notes)
            parts.append(f"## {table.title}\n\n| {head} |\n| {rule} |\n{body}\n{notes}")
        return "\n".join(parts)

    def plot(self, ax: Any = None) -> Any:
        """Paired differences with their intervals; returns the axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
        names = [f"{d}, {k}" for d, k in self.settings] + ["all settings"]
        for index, (arm, colour) in enumerate((("none", "#1f5a93"), ("constant", "#b1541c"))):
            found = [self.difference(d, k, arm) for d, k in self.settings] + [self.overall(arm)]
            y = np.arange(len(names)) + 0.24 * (index - 0.5)
            value = [e.value for e in found]
            reach = np.array([e.reach for e in found]).T
            label = f"minus {ARMS[arm].removeprefix('control: ')}"
            ax.errorbar(value, y, xerr=reach, fmt="o", ms=4, color=colour, label=label)
        ax.axvline(0, color="#888888", lw=0.8)
        ax.set_yticks(np.arange(len(names)), names)
        ax.invert_yaxis()
        ax.set_xlabel("accuracy of the position gate, percentage points (95 %, paired by seed)")
        ax.legend(frameon=False, fontsize=8)
        return ax

    def _gates(self, dataset: str, kind: str, arm: str) -> tuple[float | None, float | None, int]:
        chosen = [r for r in self.runs if (r.dataset, r.kind, r.arm) == (dataset, kind, arm)]
        if chosen[0].gates is None:
            return None, None, chosen[0].parameters
        mean = float(np.mean([r.gates for r in chosen if r.gates is not None]))
        spread = float(np.mean([r.spread for r in chosen if r.spread is not None]))
        return mean, spread, chosen[0].parameters


def compare_gates(
    datasets: Sequence[str],
    model: str,
    out: str | Path,
    *,
    grid: int = 4,
    T: int = 2,
    seeds: Sequence[int] = (0, 1, 2),
    config: TrainConfig | None = None,
    train_samples: int = 1000,
    test_samples: int = 1000,
    root: Path | None = None,
) -> GateComparison:
    """Train every arm; what is finished in ``out`` is read back.

    Args:
        datasets: names or paths of labelled images.
        model: a registered vision network.
        out: run directory.
        grid: about the side of the token grid, by halving the image in the first stages of the
            stem; networks without ``pools`` keep their own grid.
        T: timesteps of the spiking network.
        seeds: of weights, order and subsets.
        config: training; its seed is replaced.
        train_samples, test_samples: at most so many, stratified.
        root: folder of data samples.

    Raises:
        ConfigError: fewer than two seeds, T below 1, no data set, or two of one name.
        DataError, ModelError, StorageError: as :func:`spikedim.training.fit`.
    """
    if len(set(seeds)) < 2 or not datasets:
        raise ConfigError(
            f"{len(set(seeds))} seeds and {len(datasets)} data sets: an interval needs 2 seeds or "
            "more, on one data set or more"
        )
    names = [Path(name).stem for name in datasets]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"data sets {', '.join(datasets)}: give each once, under a name of its own"
        )
    check_timesteps(T)
    base = TrainConfig(epochs=12, batch_size=32, validation=0.0) if config is None else config
    settings = {
        "what": "gate comparison", "datasets": list(datasets), "model": model, "grid": grid,
        "T": T, "seeds": list(seeds), "config": asdict(base) | {"seed": None},
        "train_samples": train_samples, "test_samples": test_samples,
    }  # fmt: skip
    cells = [
        (d, kind, seed, arm) for seed in seeds for d in datasets for kind in KINDS for arm in GATES
    ]
    with Run(out, settings) as place:
        runs = []
        for name, kind, seed, arm in track(cells, "gate comparison"):
            key = f"{Path(name).stem}-{kind}-{arm}-{seed}"
            work = _Cell(name, kind, arm, seed, model, grid, T, base)
            made = place.step(
                key, partial(work.train, place, key, train_samples, test_samples, root)
            )
            runs.append(GateRun(**made))
    return GateComparison(model, grid, T, train_samples, asdict(base) | {"seed": None}, tuple(runs))


@dataclass(frozen=True)
class _Cell:
    """One training of the comparison."""

    dataset: str
    kind: str
    arm: str
    seed: int
    model: str
    grid: int
    T: int
    config: TrainConfig

    def train(
        self, place: Run, key: str, train_samples: int, test_samples: int, root: Path | None
    ) -> GateRun:
        data = load_dataset(self.dataset, root).limited(train_samples, test_samples, 0)
        shape = data.input_shape
        options: dict[str, Any] = {
            "gate": self.arm,
            "seed": self.seed,
            "num_classes": data.num_classes,
        }
        if hasattr(model_entry(self.model).config, "pools"):
            options["pools"] = tuple(reversed(pools_for(shape, self.grid)))
        net: SpikingModel = create_model(self.model, input_shape=shape, **options)
        T = self.T
        if self.kind == "continuous":
            net, T = net.continuous("surrogate"), 1
        config = TrainConfig(**(asdict(self.config) | {"seed": self.seed}))
        folder = place.file("trainings", key, "fit.json").parent
        result = fit(net, data, config, T, folder, label=key)
        x, y = samples(data, "test", T)
        test = evaluate(net, x, y, T, seed=self.seed)
        first, _ = next(iter(Batches(x[:1], y[:1], 1, T)))
        mean, spread = gate_statistics(net, first, T)
        return GateRun(
            self.dataset, self.kind, self.arm, self.seed, test.accuracy[-1].value, len(x),
            result.history[-1].train_loss,
            test.spikes_per_sample[-1].value if self.kind == "spiking" else None,
            spread, mean, sum(p.numel() for p in net.parameters()), result.train_seconds,
        )  # fmt: skip


def gate_statistics(model: SpikingModel, x: Any, T: int) -> tuple[float | None, float | None]:
    """Mean gate and its mean standard deviation over positions; ``None`` without gates."""
    found = []
    gates = [module for module in model.modules() if isinstance(module, PositionGate)]

    def keep(gate: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values = gate.gates(tuple(inputs[0].shape[2:-1])).detach().double()
        found.append(values.reshape(-1, gate.heads))  # [n, H]

    with hooked(*(gate.register_forward_hook(keep) for gate in gates)):
        run(model, x, T)
    if not found:
        return None, None
    mean = float(np.mean([float(g.mean()) for g in found]))
    return mean, float(np.mean([float(g.std(0).mean()) for g in found]))


def _mean(values: np.ndarray, unit: str) -> Estimate:
    low, high = mean_interval(float(values.mean()), float(values.std(ddof=1)), len(values))
    return Estimate(
        float(values.mean()), low, high, len(values), unit, method="Student t over seeds"
    )


def _share(values: np.ndarray) -> Estimate:
    """Mean of percentages; its bounds stay within 0 and 100."""
    e = _mean(values, "%")
    assert e.low is not None
    assert e.high is not None
    return replace(e, low=max(0.0, e.low), high=min(100.0, e.high))


def _excludes_zero(e: Estimate) -> bool:
    return e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)
