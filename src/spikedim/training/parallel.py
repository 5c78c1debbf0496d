"""Independent trainings in parallel processes, one math thread each.

Small networks gain nothing from a second thread, so a CPU with several cores trains several
settings at once. The numbers do not depend on how many processes there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from spikedim import progress
from spikedim.data import Dataset
from spikedim.errors import ConfigError, SpikedimError
from spikedim.neurons import LIFParams
from spikedim.storage import Run
from spikedim.training.config import TrainConfig, resolve_device
from spikedim.training.trial import Trial, run_trial


@dataclass(frozen=True)
class Job:
    """One training of a sweep."""

    T: int
    neuron: LIFParams | None = None


def default_workers(config: TrainConfig) -> int:
    """One process per core on the CPU, one process on a GPU."""
    return (os.cpu_count() or 1) if resolve_device(config.device).type == "cpu" else 1


def run_trials(
    jobs: Sequence[Job],
    dataset: Dataset,
    model_name: str,
    config: TrainConfig,
    run: Run,
    encoder: str,
    workers: int,
    label: str,
) -> list[Trial]:
    """Run every job and return the trials in the order of ``jobs``; finished ones are read back.

    Args:
        jobs: what to train; each is a resumable step of ``run``.
        dataset, model_name, config, run, encoder: as for :func:`~spikedim.training.run_trial`.
        workers: processes at once; 1 stays in this process.
        label: what the progress display says.

    Raises:
        ConfigError: ``workers`` is below 1.
        SpikedimError: the fault of a training, or a process that was killed from outside.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers} must be a whole number of at least 1")
    with progress.task(label, sum(job.T for job in jobs)) as bar:
        # The longest first, so that no process is left alone with a long one at the end.
        order = sorted(set(jobs), key=lambda job: -job.T)
        if workers > 1 and len(order) > 1:
            with _pool(min(workers, len(order))) as pool:
                futures = {
                    pool.submit(_work, dataset, model_name, job, config, run, encoder): job
                    for job in order
                }
                for future in as_completed(futures):
                    future.result()
                    bar.advance(futures[future].T)
        with _one_thread():
            return [
                run_trial(dataset, model_name, job.T, config, run, job.neuron, encoder)
                for job in jobs
            ]


def _work(
    dataset: Dataset, model_name: str, job: Job, config: TrainConfig, run: Run, encoder: str
) -> None:
    """Body of a worker process: the outcome is stored in the run directory, not returned."""
    run_trial(dataset, model_name, job.T, config, run, job.neuron, encoder)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that report progress here and do not outlive this process or an error."""
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    with progress.relay(context) as queue:
        pool = ProcessPoolExecutor(workers, context, _start, (os.getpid(), queue))
        try:
            yield pool
        except BrokenProcessPool as error:
            raise SpikedimError(
                "a training process was killed from outside (out of memory?): run the same "
                "command again to continue, with --workers 1 if it happens again"
            ) from error
        finally:
            # After success nothing runs any more; after an error what runs is of no use.
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()


def _start(parent: int, queue: Any) -> None:
    torch.set_num_threads(1)
    progress.report_to(queue)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, lest an orphan train on in the run directory."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
