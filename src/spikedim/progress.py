"""Progress of long work: silent in the library, live bars in a terminal, sparse lines in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any, ClassVar, TypeVar

from spikedim.errors import SpikedimWarning

Item = TypeVar("Item")
_LOG_EVERY_S = 5.0
_POLL_S = 0.1
_PATIENCE_S = 5.0


class _State:
    live: Any = None
    log: bool = False
    queue: Any = None
    told: ClassVar[dict[str, float]] = {}


@contextmanager
def showing(enabled: bool = True) -> Iterator[None]:
    """Show progress on standard error inside the block; the command line opens it."""
    _State.told.clear()
    if not enabled or sys.stderr is None:  # closed: print would take standard output
        yield
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as live:
            _State.live = live
            try:
                yield
            finally:
                _State.live = None
    else:
        _State.log = True
        try:
            yield
        finally:
            _State.log = False


def note(text: str, topic: str = "", size: float = 0.0) -> None:
    """Tell one line about the work ahead, where progress is shown.

    Args:
        text: the line.
        topic: of lines about the same thing only the first is told, and one whose ``size`` is more
            than half as large again as any told before.
        size: what the line is about, in any unit.
    """
    if topic and size <= 1.5 * _State.told.get(topic, -1.0):
        return
    if topic:
        _State.told[topic] = size
    if _State.live is not None:
        _State.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
    elif _State.log:
        print(text, file=sys.stderr)


class Task:
    """One long piece of work; call :meth:`advance` as it goes."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._started = self._printed = time.monotonic()
        live = _State.live
        self._id = live.add_task(label, total=total) if live is not None else None
        self._send(0, "")

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Record ``steps`` more units of work, with an optional short detail to show."""
        self.done += steps
        self._send(steps, detail)
        if self._id is not None and _State.live is not None:
            label = f"{self.label} {detail}".rstrip()
            _State.live.update(self._id, completed=self.done, description=label)
        elif _State.log and time.monotonic() - self._printed >= _LOG_EVERY_S:
            self._printed = time.monotonic()
            of = f"/{self.total}" if self.total is not None else ""
            seconds = self._printed - self._started
            print(f"{self.label}: {self.done}{of} {detail} ({seconds:.0f} s)", file=sys.stderr)

    def _send(self, steps: int | None, detail: str) -> None:
        if _State.queue is not None:
            _State.queue.put((os.getpid(), id(self), self.label, self.total, steps, detail))

    def close(self) -> None:
        """Remove the bar."""
        self._send(None, "")
        if self._id is not None and _State.live is not None:
            _State.live.remove_task(self._id)
            self._id = None


@contextmanager
def task(label: str, total: int | None = None) -> Iterator[Task]:
    """Open a :class:`Task` for the length of the block."""
    current = Task(label, total)
    try:
        yield current
    finally:
        current.close()


def report_to(queue: Any) -> None:
    """Send progress and warnings of this process to the one that opened the :func:`relay`."""
    queue.cancel_join_thread()
    _State.queue = queue
    shown = warnings.showwarning

    def send(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, SpikedimWarning):
            queue.put(str(message))
        else:
            shown(message, category, *place)

    warnings.showwarning = send  # type: ignore[assignment]


@contextmanager
def relay(context: Any) -> Iterator[Any]:
    """Show progress and warnings of worker processes: yields the queue they :func:`report_to`.

    Nothing waits for a worker: one that is killed while it writes keeps the queue's lock for ever,
    so the end of the block is told to the listener past the queue.

    Args:
        context: the :mod:`multiprocessing` context the workers are started from.
    """
    queue = context.Queue()
    ended = threading.Event()

    def listen() -> None:
        tasks: dict[tuple[int, int], Task] = {}
        while True:
            try:
                told = queue.get(timeout=_POLL_S)
            except Empty:
                if ended.is_set():
                    break
                continue
            if isinstance(told, str):
                warnings.warn(told, SpikedimWarning, stacklevel=1)
                continue
            process, key, label, total, steps, detail = told
            if steps is None:
                tasks.pop((process, key)).close()
            else:
                if (process, key) not in tasks:
                    tasks[process, key] = Task(label, total)
                tasks[process, key].advance(steps, detail)
        for left in tasks.values():
            left.close()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        ended.set()
        listener.join(_PATIENCE_S)
        queue.close()


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over ``items`` showing progress."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with task(label, total) as current:
        for item in items:
            yield item
            current.advance()
