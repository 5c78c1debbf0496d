"""What every result shares: estimates with intervals, tables, and plain-data export."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: What :func:`charged` means.
UNCHARGED = "Operations in brackets are counted but not charged by that convention."
#: Points by which rounding alone may part two accuracies that are equal.
SLACK = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number with its unit and, where it is an estimate, its interval and sample size.

    Args:
        value: point estimate.
        low, high: interval bounds at ``confidence``; ``None`` where the number is exact.
        n: sample size behind the estimate; ``None`` where there is none.
        unit: unit of value and bounds, ``""`` for a pure number.
        confidence: nominal coverage of the interval.
        method: how the interval was made, e.g. ``"Wilson"`` or ``"bootstrap, 200 resamples"``.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    confidence: float = 0.95
    method: str = ""

    def within(self, low: float, high: float) -> Estimate:
        """Value and bounds moved to where the quantity can lie."""

        def cut(value: float) -> float:
            return min(max(value, low), high)

        below, above = (None if v is None else cut(v) for v in (self.low, self.high))
        return dataclasses.replace(self, value=cut(self.value), low=below, high=above)

    @property
    def reach(self) -> tuple[float, float]:
        """Distances of the value from its bounds, as error bars take them; 0 without a bound."""
        low, high = (self.value if v is None else v for v in (self.low, self.high))
        return max(0.0, self.value - low), max(0.0, high - self.value)

    def __str__(self) -> str:
        return self.text(*readable_unit(self.value, self.unit))

    def text(self, factor: float, unit: str) -> str:
        """Value, interval and unit, after multiplication with ``factor``."""
        shown = [None if v is None else v * factor for v in (self.value, self.low, self.high)]
        value, low, high = _rounded(shown)
        if low is not None:
            value = f"{value} [{low}, {high}]" if high is not None else f"{value} [{low} or more]"
        return f"{value} {unit}".rstrip()


@dataclass(frozen=True)
class Table:
    """A small table every front end (terminal, notebook, HTML report) can render.

    One without rows is shown as its title and notes.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default_factory=tuple)

    def cells(self) -> list[list[str]]:
        """Rows as text, numbers rounded for reading; a column of energies has one unit."""
        rows = [list(row) for row in self.rows]
        for column in range(len(self.columns)):
            some = [row for row in rows if isinstance(row[column], Estimate)]
            for row, shown in zip(some, _alike([row[column] for row in some]), strict=True):
                row[column] = shown
        return [[_cell(value) for value in row] for row in rows]

    def to_markdown(self) -> list[str]:
        """The table as Markdown lines, without title and notes."""

        def line(cells: Sequence[Any]) -> str:
            return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

        return [line(self.columns), line(["---"] * len(self.columns)), *map(line, self.cells())]

    def to_html(self) -> str:
        """The table as an HTML fragment, every text escaped."""
        notes = "".join(f"<p class='note'>{html.escape(n)}</p>" for n in self.notes)
        if not self.rows:
            return f"<p>{html.escape(self.title)}: none</p>{notes}"
        head = "".join(f"<th>{html.escape(str(c))}</th>" for c in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
            for row in self.cells()
        )
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{notes}"
        )


class Result:
    """Base of frozen result dataclasses: plain-data export, terminal and notebook rendering.

    A subclass overrides :meth:`tables`; where a picture helps it also has ``plot(ax=None)``.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready plain data (NaN and infinity become ``None``)."""
        return _fields(self)

    def tables(self) -> list[Table]:
        """Tables that present the result, the most important first."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        rows = [(f.name, getattr(self, f.name)) for f in fields]
        return [Table(type(self).__name__, ("field", "value"), rows)]

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        for table in self.tables():
            if not table.rows:
                yield Text(f"{table.title}: none", style="italic")
                yield from map(Text, table.notes)
                continue
            view = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
            for index, column in enumerate(table.columns):
                view.add_column(str(column), overflow="fold", no_wrap=index == 0)
            for row in table.cells():
                view.add_row(*[Text(cell) for cell in row])
            yield view
            for note in table.notes:
                yield Text(note)

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in self.tables())


def number(value: float, digits: int = 4) -> str:
    """Format a number for reading: ``digits`` significant digits, thousands separated."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    value = float(value)
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 1e7 or magnitude < 1e-3:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(magnitude)))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain(value: Any) -> Any:
    """Convert results, dataclasses, arrays, paths and NumPy scalars to JSON-ready plain data."""
    if isinstance(value, Result):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _fields(value: Any) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
    return {name: plain(getattr(value, name)) for name in names}


def charged(count: str, unit: str, uncharged: Sequence[str]) -> str:
    """A number of operations, in brackets where the convention charges nothing for them."""
    return f"({count})" if unit in uncharged else count


def points_of(value: float) -> str:
    """Percentage points in words: ``1 point``, ``0.5 points``."""
    return f"{number(value)} point{'' if value == 1 else 's'}"


def readable_unit(value: float, unit: str) -> tuple[float, str]:
    """Factor and unit that show a small energy without an exponent."""
    if unit == "mJ" and 0 < abs(value) < 0.1:
        return (1e3, "µJ") if abs(value) >= 1e-4 else (1e6, "nJ")
    return 1.0, unit


def _alike(estimates: list[Estimate]) -> list[str]:
    """As text; energies in the unit of the largest, where none is so small as to need its own."""
    sizes = [abs(e.value) for e in estimates]
    if {e.unit for e in estimates} != {"mJ"} or not min(sizes) > max(sizes) / 1000:
        return [str(e) for e in estimates]
    return [e.text(*readable_unit(max(sizes), "mJ")) for e in estimates]


def _rounded(estimate: list[float | None]) -> list[str | None]:
    """Value and bounds as text, to the two leading digits of the interval's half-width.

    However wide the interval, each keeps a digit of its own.
    """
    _, low, high = estimate
    spread = 0.0 if low is None or high is None else (high - low) / 2
    known = [v for v in estimate if v is not None]
    if not (all(map(math.isfinite, known)) and 0 < spread < 1e7) or all(v == int(v) for v in known):
        return [None if v is None else number(v) for v in estimate]
    decimals = 1 - math.floor(math.log10(spread))
    if not -6 <= decimals <= 6:
        return [None if v is None else number(v) for v in estimate]

    def text(value: float) -> str:
        own = -math.floor(math.log10(abs(value))) if value else decimals
        if own > max(decimals, 6):
            return number(value)  # more decimals than are read
        places = max(decimals, own)
        return f"{round(value, places):,.{max(0, places)}f}"

    return [None if v is None else text(v) for v in estimate]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float, np.generic)):
        return number(value)  # type: ignore[arg-type]
    return str(value)
