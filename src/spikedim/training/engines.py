"""Where trials run: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from spikedim.cluster import ENGINES, connected, fetch
from spikedim.errors import ConfigError, SpikedimError
from spikedim.storage import Run
from spikedim.training.parallel import die_with, processes, submit

if TYPE_CHECKING:
    from spikedim.training.study_trial import Measurement, StudyTrial, StudyWork


@dataclass(frozen=True)
class Engine:
    """Where and how many trials run at once.

    The numbers do not depend on it, except that networks over one million parameters share the
    cores of a machine and can differ in their last digits with the number of threads.

    Attributes:
        name: ``"local"`` or ``"ray"``.
        workers: trials at once on this machine; with ``address`` the cluster's size decides.
        address: Ray cluster to join, e.g. ``"auto"`` or ``"ray://head:10001"``; ``None`` starts
            Ray on this machine and stops it afterwards.
        cpus, gpus: of each trial, fractions allowed; Ray places trials by them.
        retries: how often a trial is tried again when its Ray worker dies.

    Raises:
        ConfigError: a value out of its domain, or an option of Ray for the local engine.
    """

    name: str = "local"
    workers: int = 1
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ConfigError(f"engine={self.name!r}; expected one of {', '.join(ENGINES)}")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers} must be a whole number of at least 1")
        if not (math.isfinite(self.cpus) and self.cpus > 0):
            raise ConfigError(f"cpus per trial {self.cpus} must be above 0, e.g. 1 or 0.5")
        if not (math.isfinite(self.gpus) and self.gpus >= 0):
            raise ConfigError(f"gpus per trial {self.gpus} must be 0 or more, e.g. 0.25")
        if self.retries < 0:
            raise ConfigError(f"retries={self.retries} must be 0 or more")
        if self.name == "local" and (self.address is not None or self.cpus != 1 or self.gpus):
            raise ConfigError(
                "an address, CPUs and GPUs per trial apply to the engine 'ray' only; add "
                "--engine ray"
            )


def results(
    work: StudyWork, trials: Sequence[StudyTrial], engine: Engine
) -> Iterator[tuple[StudyTrial, Measurement]]:
    """Yield (trial, measurement) as they are finished; stored ones first, without any worker.

    Raises:
        SpikedimError: the fault of a training, or a worker that died too often.
    """
    waiting = []
    for trial in trials:
        if work.stored(trial):
            yield trial, work.trial(trial)
        else:
            waiting.append(trial)
    if not waiting:
        return
    if engine.name == "ray":
        yield from _on_ray(work, waiting, engine)
    elif engine.workers == 1:
        for trial in waiting:
            yield trial, work.trial(trial)
    else:
        with processes(min(engine.workers, len(waiting)), work) as pool:
            futures = submit(pool, waiting)
            for future in as_completed(futures):
                future.result()
                yield futures[future], work.trial(futures[future])


def _on_ray(
    work: StudyWork, trials: Sequence[StudyTrial], engine: Engine
) -> Iterator[tuple[StudyTrial, Measurement]]:
    """Trials as Ray tasks; their measurements come back by value and are stored here.

    A worker on this machine, or on one that shares the run directory, continues the training of a
    predecessor that died; another starts it anew. Either gives the same numbers.
    """
    cpus = math.ceil(engine.workers * engine.cpus) if engine.address is None else None
    with connected(engine.address, cpus) as ray:
        _check_resources(ray.cluster_resources(), engine)
        task = ray.remote(
            num_cpus=engine.cpus, num_gpus=engine.gpus, max_retries=engine.retries
        )(_ray_trial)  # fmt: skip
        # Workers may have another working directory.
        run = Run(work.run.path.resolve(), work.run.config)
        shared = ray.put(replace(work, run=run))
        pending = {task.remote(shared, trial): trial for trial in trials}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            trial = pending.pop(done)
            found = fetch(ray, done, partial(_lost, trial.label(work.study)))
            yield trial, work.keep(trial, found)


def _ray_trial(work: StudyWork, trial: StudyTrial) -> Measurement:
    """Body of a Ray task."""
    die_with(os.getppid())
    return work.trial(trial)


def _lost(label: str, reason: str) -> SpikedimError:
    return SpikedimError(
        f"a Ray worker died again and again while it trained {label} ({reason}); finished "
        "trials are kept: run the same command again with fewer workers or more memory"
    )


def _check_resources(found: dict[str, float], engine: Engine) -> None:
    """Refuse what no machine of the cluster can offer: Ray itself would wait for ever."""
    for name, wanted in (("CPU", engine.cpus), ("GPU", engine.gpus)):
        if wanted > found.get(name, 0):
            raise ConfigError(
                f"a trial needs {wanted:g} {name} but the Ray cluster has {found.get(name, 0):g}; "
                f"lower --{name.lower()}s-per-trial"
            )
