"""How verbs print: a readable result, or JSON alone on standard output."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from spikedim.errors import ConfigError, SpikedimWarning
from spikedim.progress import showing
from spikedim.results import Result
from spikedim.storage import write_bytes

#: Kinds of files that pictures are drawn into.
PICTURES = (".png", ".pdf", ".svg")


def emit(result: Result, as_json: bool) -> None:
    """Print ``result`` for a person, or as JSON."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    # A pipe has no width of its own: leave tables whole instead of folding them at 80. rich itself
    # reads COLUMNS.
    terminal = sys.stdout is not None and sys.stdout.isatty()
    whole = not (terminal or os.environ.get("COLUMNS", "").isdecimal())
    Console(width=140 if whole else None).print(result)


@contextmanager
def working(quiet: bool) -> Iterator[None]:
    """Show progress and turn spikedim's warnings into one line each on standard error."""
    errors = Console(stderr=True)
    caught: list[warnings.WarningMessage] = []
    try:
        with showing(not quiet), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", SpikedimWarning)
            yield
    finally:  # a warning often says why the command then fails
        for text in dict.fromkeys(str(warning.message) for warning in caught):
            errors.print(f"warning: {text}", markup=False, highlight=False)


def say(text: str) -> None:
    """Tell the person one line without disturbing what a program reads on standard output."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def check_suffix(option: str, path: Path | None, *kinds: str) -> None:
    """Refuse a file for ``--option`` whose name does not end in one of ``kinds``."""
    if path is not None and path.suffix.lower() not in kinds:
        *others, last = kinds
        named = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"--{option} {path}: name a {named} file")


def save_figure(result: Any, path: Path) -> None:
    """Draw ``result.plot()``, or a matplotlib figure, into an image file, atomically."""
    from spikedim.report.picture import picture

    check_suffix("plot", path, *PICTURES)
    write_bytes(path, picture(result, path.suffix.lstrip(".").lower()))
