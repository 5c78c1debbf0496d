"""Independent trainings in parallel processes.

Small networks gain nothing from a second thread, so a CPU with several cores trains several
settings at once, one thread each, and their numbers do not depend on how many processes there are.
Larger networks share the cores; their last digits may change with the number of threads, which
every trial records.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from spikedim import progress
from spikedim.data import Dataset
from spikedim.errors import ConfigError, SpikedimError
from spikedim.neurons import LIFParams
from spikedim.storage import Run, write_bytes
from spikedim.training.config import TrainConfig, resolve_device
from spikedim.training.threads import cores, math_threads, parameter_count, threads_for
from spikedim.training.trial import Trial, run_trial, trial_key

Item = TypeVar("Item")
_KILL_S = 10.0


@dataclass(frozen=True)
class Setting:
    """What distinguishes one training of a sweep from the others."""

    T: int
    neuron: LIFParams | None = None


@dataclass(frozen=True)
class _Work:
    """What the trainings of a sweep have in common; memory-mapped data travel by value."""

    dataset: Dataset
    model_name: str
    config: TrainConfig
    run: Run
    encoder: str
    threads: int

    def stored(self, setting: Setting) -> bool:
        key = trial_key(
            self.dataset,
            self.model_name,
            setting.T,
            self.config,
            setting.neuron,
            self.encoder,
        )
        return self.run.stored(key)

    def trial(self, setting: Setting) -> Trial:
        with math_threads(self.threads):
            return run_trial(
                self.dataset,
                self.model_name,
                setting.T,
                self.config,
                self.run,
                setting.neuron,
                self.encoder,
            )


def default_workers(config: TrainConfig) -> int:
    """One process per usable core on the CPU, one process on a GPU."""
    return cores() if resolve_device(config.device).type == "cpu" else 1


def run_trials(
    settings: Sequence[Setting],
    dataset: Dataset,
    model_name: str,
    config: TrainConfig,
    run: Run,
    encoder: str,
    workers: int,
    label: str,
) -> list[Trial]:
    """Train every setting and return the trials in their order; finished ones are read back.

    Args:
        settings: what to train; each is a resumable step of ``run``.
        dataset, model_name, config, run, encoder: as for :func:`~spikedim.training.run_trial`.
        workers: processes at once; 1 stays in this process.
        label: what the progress display says.

    Raises:
        ConfigError: ``workers`` is below 1.
        SpikedimError: the fault of a training, or a process that was killed from outside.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers} must be a whole number of at least 1")
    # The longest first, so that no process is left alone with a long one at the end.
    order = sorted(set(settings), key=lambda setting: -setting.T)
    work = _Work(dataset, model_name, config, run, encoder, threads=1)
    order = [setting for setting in order if not work.stored(setting)]
    workers = min(workers, len(order))
    work = replace(work, threads=threads_for(parameter_count(model_name), max(workers, 1)))
    with progress.task(label, sum(setting.T for setting in order)) as bar:
        if workers > 1:
            with processes(workers, work) as pool:
                futures = submit(pool, order)
                for future in as_completed(futures):
                    future.result()
                    bar.advance(futures[future].T)
        return [work.trial(setting) for setting in settings]


class Work(Protocol):
    """What worker processes do; it travels to them by value."""

    @property
    def run(self) -> Run:
        """The run directory, which the parent has locked."""

    def trial(self, setting: Any) -> Any:
        """Train one setting and store the outcome in the run directory."""


@contextmanager
def processes(workers: int, work: Work) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that report progress here and do not outlive this process or an error."""
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    handover = write_bytes(work.run.file(".tmp-work"), pickle.dumps(work))
    try:
        with progress.relay(context) as queue:
            pool = ProcessPoolExecutor(workers, context, _start, (os.getpid(), queue, handover))
            try:
                yield pool
            except BrokenProcessPool as error:
                raise SpikedimError(
                    "a training process was killed from outside (out of memory?): run the same "
                    "command again to continue, with --workers 1 if it happens again; a Python "
                    'script needs `if __name__ == "__main__":` around its calls'
                ) from error
            finally:
                # After success nothing runs any more; after an error what runs is of no use.
                pool.shutdown(wait=False, cancel_futures=True)
                # Killed, because Lightning survives a polite request; the training can resume.
                for child in set(multiprocessing.active_children()) - before:
                    child.kill()
                    child.join(_KILL_S)
    finally:
        handover.unlink(missing_ok=True)


def submit(pool: ProcessPoolExecutor, order: Sequence[Item]) -> dict[Future[None], Item]:
    """Hand out the trainings; the processes this starts never see Ctrl-C, which is the parent's."""

    def hand_out() -> dict[Future[None], Item]:
        futures = {pool.submit(_train, setting): setting for setting in order}
        # The pool watches the processes that existed at its last wake-up, which precedes the start
        # of the last one: without this the death of that one is noticed when another one is done.
        pool.submit(int)
        return futures

    if threading.current_thread() is not threading.main_thread():
        return hand_out()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return hand_out()
    finally:
        signal.signal(signal.SIGINT, handler)


class _Process:
    """State of a worker process."""

    work: Work


def _start(parent: int, queue: Any, handover: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    progress.report_to(queue)
    _Process.work = pickle.loads(handover.read_bytes())


def _train(setting: Any) -> None:
    """Body of a worker process: the outcome is stored in the run directory, not returned."""
    _Process.work.trial(setting)


def die_with(parent: int) -> None:
    """End this process when its parent is gone, lest an orphan train on in the run directory."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
