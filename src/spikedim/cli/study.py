"""What ``spikedim sweep --study`` does: options in, a study or a search run, tables out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from spikedim.cli import job, options
from spikedim.errors import ConfigError
from spikedim.storage import Run
from spikedim.training import TrainConfig
from spikedim.training.engines import Engine
from spikedim.training.study import NEURON, Cell, Study, neuron_grid


@dataclass(frozen=True)
class Choices:
    """What the command line says about a study, before the data are loaded."""

    name: str
    data: str
    model: str
    timesteps: tuple[int, ...]
    seeds: str
    grid: Sequence[str]
    eval_T: tuple[int, ...]
    outputs_T: tuple[int, ...]
    output_samples: int
    encoder: str
    image_size: int | None
    classes: int | None
    repool: int | None
    epochs: int | None
    training: Sequence[str]
    train_samples: int | None
    test_samples: int | None
    seed: int
    device: str
    data_root: Path | None

    def study(self) -> Study:
        """The study, its data loaded and cut."""
        given = parse_training(self.training)
        seeds, neurons = parse_seeds(self.seeds, self.seed), neuron_grid(parse_grid(self.grid))
        cells = []
        for data in _names(self.data, "--data"):
            dataset = job.load(
                data, self.data_root, self.seed, self.image_size, self.classes, self.repool
            )
            for model in _names(self.model, "--model"):
                fitted = job.fitted(
                    dataset, model, self.timesteps, self.epochs, self.train_samples,
                    self.test_samples, self.seed, self.device, given,
                )  # fmt: skip
                cells.append(Cell(fitted.dataset, model, fitted.config))
        return Study(
            self.name,
            tuple(cells),
            self.timesteps,
            seeds,
            neurons,
            self.eval_T,
            self.encoder,
            self.outputs_T,
            output_samples=self.output_samples,
            logit_samples=self.output_samples,
        )


def run_directory(study: Study, out: Path | None, extra: dict[str, Any]) -> Run:
    """``out``, or a directory named after everything that matters."""
    settings = {"command": "sweep", **study.settings(), **extra}
    return Run(out, settings) if out else Run.named(job.RUNS, f"study-{study.name}", settings)


def engine_of(
    name: str,
    workers: int | None,
    address: str | None,
    cpus: float | None,
    gpus: float | None,
    retries: int | None,
    device: str,
) -> Engine:
    """The engine; by default as many workers as this machine has cores, or one on its GPU."""
    from spikedim.training.config import resolve_device
    from spikedim.training.threads import cores

    single = resolve_device(device).type != "cpu"
    return Engine(
        name,
        workers or (1 if single else cores()),
        address,
        1.0 if cpus is None else cpus,
        0.0 if gpus is None else gpus,
        3 if retries is None else retries,
    )


def parse_seeds(text: str, first: int) -> tuple[int, ...]:
    """``"3"`` is three seeds from ``first`` on; ``"0,5,7"`` are these, ``"7,"`` is one."""
    several = "," in str(text)
    words = str(text).rstrip(",").split(",")
    try:
        values = [int(word) for word in words]
    except ValueError:
        values = []
    if not values or min(values) < 0 or (not several and values[0] < 1):
        raise ConfigError(f"--seeds {text}: give a number of seeds, e.g. 3, or a list, e.g. 0,5,7")
    if not several:
        return tuple(range(first, first + values[0]))
    return tuple(values)


def parse_grid(items: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """``beta=0.3,0.5`` and the like: values by neuron parameter."""
    grid: dict[str, tuple[Any, ...]] = {}
    for item in items:
        name, _, values = item.partition("=")
        if name not in NEURON or not values:
            raise ConfigError(
                f"--grid {item}: write NAME=VALUE,VALUE with NAME one of {', '.join(NEURON)}"
            )
        if name in grid:
            raise ConfigError(f"--grid {name} is given twice; list all its values once")
        grid[name] = tuple(_value(name, word) for word in values.split(","))
    return grid


def parse_training(items: Sequence[str]) -> dict[str, Any]:
    """``lr=0.03`` and the like: fields of the training settings."""
    known = {f.name for f in fields(TrainConfig)} - {"seed", "device", "epochs"}
    changes: dict[str, Any] = {}
    for item in items:
        name, _, text = item.partition("=")
        if name not in known or not text:
            raise ConfigError(
                f"--training {item}: write NAME=VALUE with NAME one of {', '.join(sorted(known))}"
            )
        changes[name] = yaml.safe_load(text)
    return changes


def _value(name: str, word: str) -> Any:
    kind: Any = {"t_ref": int, "reset": str}.get(name, float)
    try:
        return kind(word)
    except ValueError as error:
        raise ConfigError(f"--grid {name}: {word!r} is not a {kind.__name__}") from error


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{option} {text}: an empty name; separate names by single commas")
    return names


def integers(text: Any) -> tuple[int, ...]:
    """As ``--timesteps``; for options that may be absent."""
    return () if text in (None, "", ()) else options.integers(text)
