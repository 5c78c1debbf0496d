"""Search with Optuna instead of a whole grid: which T, leak and threshold, at what cost.

Two objectives at once: held-out accuracy, to be maximised, and T (or spikes per sample), to be
minimised. The answer is the cheapest setting whose accuracy is within the tolerance of the best
found, ``argmin {cost : accuracy >= max accuracy − tolerance}``; the test set has no say in it.

The search is resumable: its trials are in a database, its trainings are trials of the study, so
that a setting suggested again costs no training. Every suggestion is drawn from (seed, number of
the trial), so a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from spikedim.errors import ConfigError, StorageError
from spikedim.results import SLACK, Estimate, Result, Table, points_of
from spikedim.storage import Run, digest
from spikedim.training.chance import at_chance
from spikedim.training.engines import Engine
from spikedim.training.study import (
    Study,
    finish,
    mean_accuracy,
    measure_trials,
    setting_label,
)
from spikedim.training.study_table import StudyRow, StudyTable
from spikedim.training.study_trial import Measurement, StudyTrial, rows_of
from spikedim.training.sweep import majority
from spikedim.training.timestep import check_tolerance

Objective = Literal["timesteps", "spikes"]


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        objective: what is minimised beside accuracy: ``"timesteps"`` or ``"spikes"`` per sample.
        trials: settings to try for each data set and network, repetitions included.
        tolerance: accepted loss of held-out accuracy, percentage points.
        seed: of the suggestions.
        storage: URL of Optuna's database, e.g. ``"postgresql://…"``, which several machines may
            share; a SQLite file in the run directory by default.

    Raises:
        ConfigError: a value out of its domain.
    """

    objective: Objective = "timesteps"
    trials: int = 20
    tolerance: float = 1.0
    seed: int = 0
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ConfigError(f"objective={self.objective!r}; use 'timesteps' or 'spikes'")
        if self.trials < 1:
            raise ConfigError(f"trials={self.trials} must be a whole number of at least 1")
        check_tolerance(self.tolerance)


@dataclass(frozen=True)
class Tried:
    """One setting of a search, with means over the study's seeds.

    Attributes:
        T, neuron: the setting; ``neuron`` holds what differs from the network's own.
        accuracy: held-out, which decides, percent.
        test_accuracy: :func:`~spikedim.training.study.mean_accuracy`; ``None`` where another run
            of a shared database tested it.
        spikes: per test sample.
    """

    T: int
    neuron: dict[str, Any]
    accuracy: float
    test_accuracy: Estimate | None
    spikes: float

    def cost(self, objective: Objective) -> float:
        """What is minimised."""
        return float(self.T) if objective == "timesteps" else self.spikes


@dataclass(frozen=True)
class Found:
    """The outcome for one data set and network.

    Attributes:
        dataset, model: of the search.
        best: the cheapest setting within the tolerance; ``None`` if every training failed.
        tried: distinct settings, in the order they were first suggested.
        suggestions: trials of Optuna, repetitions included.
        trainings: networks trained, ``len(seeds)`` for each distinct setting.
        chance: percent of the test samples that a constant answer gets right.
    """

    dataset: str
    model: str
    best: Tried | None
    tried: tuple[Tried, ...]
    suggestions: int
    trainings: int
    chance: float


@dataclass(frozen=True)
class SearchResult(Result):
    """A finished search; ``path`` is the study's table of every network it trained."""

    name: str
    settings: SearchSettings
    found: tuple[Found, ...]
    storage: str
    path: Path
    _table: StudyTable[StudyRow] = field(repr=False)

    @property
    def table(self) -> StudyTable[StudyRow]:
        """Every network that was trained."""
        return self._table

    def tables(self) -> list[Table]:
        """The chosen settings."""
        rows = []
        for f in self.found:
            best: tuple[Any, ...] = (None,) * 5
            if f.best:
                neuron = " ".join(f"{k}={v}" for k, v in f.best.neuron.items())
                test = f.best.test_accuracy
                best = (f.best.T, neuron, f.best.accuracy, test, f.best.spikes)
            tested = best[3].n if best[3] else None
            rows.append(
                (f.dataset, f.model, *best, f.chance, tested, f.suggestions, f.trainings)
            )  # fmt: skip
        columns = (
            "data", "network", "T", "neuron", "held-out, %", "test", "spikes per sample",
            "chance, %", "test samples", "trials", "trainings",
        )  # fmt: skip
        what = "smallest T" if self.settings.objective == "timesteps" else "fewest spikes"
        note = f"Chosen: the {what} within {points_of(self.settings.tolerance)} of the best "
        note += "held-out accuracy, which this choice makes look better than it is. Test accuracy "
        note += "with 95 % intervals over test samples, and seeds where there are several; chance: "
        note += "always answering the most frequent class."
        chosen = [
            (setting_label(f.model, f.dataset, f.best.T, f.best.neuron), f.best.test_accuracy,
             f.chance)
            for f in self.found if f.best and f.best.test_accuracy
        ]  # fmt: skip
        notes = (*at_chance(chosen), note, f"Database: {self.storage}")
        return [Table(f"Search {self.name}", columns, rows, notes)]


def cheapest(tried: Sequence[Tried], tolerance: float, objective: Objective) -> Tried | None:
    """The cheapest setting within ``tolerance`` points of the best accuracy; ties to accuracy."""
    if not tried:
        return None
    enough = max(t.accuracy for t in tried) - tolerance - SLACK
    able = [t for t in tried if t.accuracy >= enough]
    return min(able, key=lambda t: (t.cost(objective), -t.accuracy, t.T))


def run_search(
    study: Study, run: Run, settings: SearchSettings, engine: Engine | None = None
) -> SearchResult:
    """Search the grid of ``study`` for each of its cells, train what is tried, write its tables.

    Optuna's TPE sampler suggests T and a value of every neuron parameter of the grid. With several
    workers as many suggestions are made at once. Every setting is trained with all seeds.

    Raises:
        ConfigError: Optuna is missing, or no samples are held out to decide by.
        StorageError: the database cannot be used.
        As :func:`~spikedim.training.study.run_study` otherwise.
    """
    engine = engine or Engine()
    for cell in study.cells:
        if cell.config.validation == 0:
            raise ConfigError("a search decides by held-out accuracy; set validation above 0")
    url = settings.storage or f"sqlite:///{(run.path / 'optuna.db').resolve()}"
    owner = run.step("search-owner", lambda: uuid.uuid4().hex)
    measured: list[Measurement] = []
    found = []
    with _optuna(url) as (optuna, storage):
        for index in range(len(study.cells)):
            search = _Search(study, index, settings, engine, run, owner, optuna, storage)
            found.append(search.complete())
            measured += search.measured.values()
    table = finish(study, run, measured)
    return SearchResult(study.name, settings, tuple(found), url, table.path, table.table)


class _Search:
    """The search of one cell: ask for a batch, train it, tell, until there are enough trials."""

    def __init__(
        self,
        study: Study,
        cell: int,
        settings: SearchSettings,
        engine: Engine,
        run: Run,
        owner: str,
        optuna: Any,
        storage: Any,
    ) -> None:
        self.study, self.cell, self.settings, self.engine = study, cell, settings, engine
        self.run, self.owner, self.optuna = run, owner, optuna
        self.measured: dict[str, Measurement] = {}
        self.tried: dict[tuple[Any, ...], Tried | None] = {}
        names = list(study.neurons[0])
        self.axes = {
            name: list(dict.fromkeys(change[name] for change in study.neurons)) for name in names
        }
        where = study.cells[cell]
        what = [
            study.settings()["cells"][cell], where.dataset.fingerprint, study.T, study.seeds,
            study.encoder, self.axes, settings.objective, settings.seed,
        ]  # fmt: skip
        self.optuna_study = optuna.create_study(
            storage=storage,
            study_name=f"{study.name}: {where.model} on {where.dataset.name} ({digest(what)})",
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )

    def complete(self) -> Found:
        """Suggest and train until the number of trials is reached."""
        states = self.optuna.trial.TrialState
        before = self._trials()
        self._train([t for t in before if t.state.is_finished() and self._mine(t)])
        self._learn([t for t in before if t.state == states.COMPLETE and not self._mine(t)])
        while True:
            trials = self._trials()
            left = [t for t in trials if t.state == states.RUNNING and self._mine(t)]
            # A batch ends at a multiple of the number of workers, also after an interruption.
            size = self.engine.workers
            whole = left and len(trials) % size == 0
            end = len(trials) if whole else (len(trials) // size + 1) * size
            numbers = range(len(trials), min(self.settings.trials, end))
            batch = left + [self._ask(number) for number in numbers]
            if not batch:
                break
            for trial, outcome in zip(batch, self._train(batch), strict=True):
                if outcome is None:
                    self.optuna_study.tell(trial.number, state=states.FAIL)
                else:
                    values = [outcome.accuracy, outcome.cost(self.settings.objective)]
                    self.optuna_study.tell(trial.number, values)
        where = self.study.cells[self.cell]
        known = tuple(t for t in self.tried.values() if t is not None)
        return Found(
            where.dataset.name,
            where.model,
            cheapest(known, self.settings.tolerance, self.settings.objective),
            known,
            len(self._trials()),
            len(self.measured),
            100 * majority(where.dataset),
        )

    def _trials(self) -> list[Any]:
        found: list[Any] = self.optuna_study.get_trials(deepcopy=False)
        return found

    def _mine(self, trial: Any) -> bool:
        """Whether this run directory trains it: of a shared database, others train the rest."""
        return self.settings.storage is None or trial.user_attrs.get("owner") == self.owner

    def _ask(self, number: int) -> Any:
        self._seed(number)
        trial = self.optuna_study.ask()
        trial.set_user_attr("owner", self.owner)
        self._suggest(trial)
        return trial

    def _seed(self, number: int) -> None:
        """Make the next suggestion depend on (seed, number) and the trials before it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar is marked experimental
            self.optuna_study.sampler = self.optuna.samplers.TPESampler(
                seed=self.settings.seed * 100_003 + number, constant_liar=self.engine.workers > 1
            )

    def _suggest(self, trial: Any) -> dict[str, Any]:
        """The trial's parameters; what it has already is returned as it is."""
        axes = {"T": list(self.study.T), **self.axes}
        return {name: trial.suggest_categorical(name, axes[name]) for name in axes}

    def _learn(self, trials: Sequence[Any]) -> None:
        """Take over what others have found out in a shared database."""
        for trial in trials:
            accuracy, cost = trial.values
            neuron = {name: trial.params[name] for name in self.axes}
            spikes = cost if self.settings.objective == "spikes" else math.nan
            tried = Tried(trial.params["T"], neuron, accuracy, None, spikes)
            self.tried.setdefault((tried.T, tuple(neuron.items())), tried)

    def _train(self, trials: Sequence[Any]) -> list[Tried | None]:
        """Outcomes of the trials' settings; a setting known already is not trained again."""
        settings = [self._setting(trial) for trial in trials]
        new = [setting for setting in dict.fromkeys(settings) if setting not in self.tried]
        wanted = [
            StudyTrial(self.cell, T, seed, self.study.neuron(self.cell, dict(neuron)))
            for T, neuron in new
            for seed in self.study.seeds
        ]
        measured = iter(measure_trials(self.study, self.run, wanted, self.engine))
        for T, neuron in new:
            group = [next(measured) for _ in self.study.seeds]
            self.measured |= {measurement.key: measurement for measurement in group}
            self.tried[T, neuron] = _outcome(T, dict(neuron), group)
        return [self.tried[setting] for setting in settings]

    def _setting(self, trial: Any) -> tuple[int, tuple[tuple[str, Any], ...]]:
        """T and neuron changes; a trial killed while it was asked for gets what it lacks."""
        params = trial.params
        if len(params) <= len(self.axes):
            self._seed(trial.number)
            params = self._suggest(self.optuna.trial.Trial(self.optuna_study, trial._trial_id))
        return params["T"], tuple((name, params[name]) for name in self.axes)


def _outcome(T: int, neuron: dict[str, Any], group: Sequence[Measurement]) -> Tried | None:
    rows = [row for row in rows_of(group)[0] if row.eval_T == T]
    if any(row.status != "done" for row in rows):
        return None

    def mean(name: str) -> float:
        return float(sum(getattr(row, name) for row in rows) / len(rows))

    return Tried(
        T, neuron, mean("held_out_accuracy"), mean_accuracy(rows), mean("spikes_per_sample")
    )  # fmt: skip


def optuna_module() -> Any:
    """Optuna, its log silent unless something is wrong.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a search needs Optuna; pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def _optuna(url: str) -> Iterator[tuple[Any, Any]]:
    """Optuna with its database, which is closed afterwards."""
    optuna = optuna_module()
    try:
        storage = optuna.storages.RDBStorage(url)
    except Exception as error:  # each database driver raises errors of its own
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"cannot use Optuna's database {url.split('@')[-1]}: {reason}; give a URL like "
            "sqlite:///search.db or postgresql://user@host/name with --storage"
        ) from error
    try:
        yield optuna, storage
    finally:
        storage.remove_session()
        storage.engine.dispose()
