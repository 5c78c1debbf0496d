"""Loops in machine code, for what tensor operations would pass over memory several times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

Place = TypeVar("Place")


@cache
def compiled(function: Callable[..., Any]) -> Any:
    """The function in machine code, kept on disk where a folder for it can be written."""
    from numba import njit

    plain = njit(function, nogil=True, fastmath={"reassoc", "contract"})
    try:
        stored = njit(function, cache=True, nogil=True, fastmath={"reassoc", "contract"})
    except RuntimeError:
        return plain

    def call(*arguments: Any) -> Any:
        try:
            return stored(*arguments)
        except Exception:  # a full disk, or whatever reading a damaged file raises
            return plain(*arguments)

    return call


def parts(count: int, most: int) -> list[tuple[int, int]]:
    """At most so many spans that together are ``count``."""
    most = min(most, count)
    return [(count * i // most, count * (i + 1) // most) for i in range(most)]


def in_threads(function: Callable[[Place], None], places: Iterable[Place]) -> None:
    """Call the function, which releases the interpreter lock, in a thread for each place."""
    several = list(places)
    if len(several) <= 1:
        list(map(function, several))
    else:
        with ThreadPoolExecutor(len(several)) as pool:
            list(pool.map(function, several))
