"""The design report: one HTML file that holds everything it needs and requests nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from spikedim.errors import DataError, StorageError
from spikedim.report.plot import DARK, LIGHT
from spikedim.report.view import context
from spikedim.report.wording import tidy
from spikedim.results import plain
from spikedim.storage import read_json, write_text

if TYPE_CHECKING:
    import jinja2

    from spikedim.design.plan import Plan

_HERE = Path(__file__).parent


def render(plan: Plan) -> str:
    """Render a plan as a self-contained HTML page."""
    return render_dict(plan.to_dict())


def render_dict(plan: Mapping[str, Any]) -> str:
    """Render the plain data of a plan (``Plan.to_dict()``, or its JSON read back) as HTML.

    The page embeds plotly.js, its styles and the data; its content security policy forbids every
    request. The data round-trips: the script element ``#plan`` holds exactly ``plan``.

    Raises:
        DataError: the data is not that of a plan; the message names what is missing or odd.
    """
    data = plain(plan)
    try:
        content = context(data)
    except KeyError as error:
        raise DataError(
            f"not a spikedim plan: it has no {error}; run `spikedim design` again"
        ) from (error)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"not a spikedim plan, or damaged ({error}); run `spikedim design` again"
        ) from error
    drawn = {name: figure.spec for name, figure in content["figures"].items() if figure}
    page = template("template.html").render(
        **content,
        css=style(),
        plotly=_plotly(),
        plan_json=_embed(data),
        figures_json=_embed({"specs": drawn, "light": LIGHT, "dark": DARK}),
        config=json.dumps(data["provenance"]["config"], indent=2, ensure_ascii=False),
        download=f"spikedim-{_slug(content['title'])}.json",
    )
    return page.lstrip()


def write_report(plan: Plan | Mapping[str, Any], path: str | Path) -> Path:
    """Write the report of a plan, or of its plain data, to ``path`` atomically; return the path.

    Raises:
        DataError: the data is not that of a plan.
        StorageError: the file cannot be written; an earlier one stays as it was.
    """
    return write_text(path, render_dict(plan if isinstance(plan, Mapping) else plan.to_dict()))


def from_run(run: str | Path) -> str:
    """Render the stored result of a run without computing anything.

    Args:
        run: a run directory, or its ``results.json``.

    Raises:
        StorageError: there is no result, or only that of another verb; the file is not JSON.
        DataError: the file is not the result of ``spikedim design``.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "results.json"
    if not path.is_file() or path.name != "results.json":
        _check_verb(path)
    if not path.is_file():
        raise StorageError(
            f"no result at {path}: give a run directory of `spikedim design` that has finished, "
            "or the path of its results.json"
        )
    data = read_json(
        path,
        "it is no result of `spikedim design`, or a damaged one: give the run directory or "
        "results.json of a finished design, or give its command again",
    )
    if not isinstance(data, Mapping):
        raise DataError(f"{path} is not the result of `spikedim design`: it holds no object")
    try:
        return render_dict(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _check_verb(path: Path) -> None:
    """Refuse the run directory of another verb, or of a design that has not finished.

    Raises:
        StorageError: the ``run.yaml`` beside ``path`` tells that it is one.
    """
    settings = path.parent / "run.yaml"
    try:
        verb = yaml.safe_load(settings.read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return
    if verb != "design":
        raise StorageError(
            f"{settings} is of a run of `spikedim {verb}`; only `spikedim design` has a page: give "
            f"the same `spikedim {verb}` command again, it prints the numbers of finished work"
        )
    if not (path.parent / "results.json").is_file():
        raise StorageError(
            f"{settings} is of a run of `spikedim design` that has not finished: give the same "
            "command again, it goes on from finished work"
        )


def _embed(value: Any) -> str:
    """JSON that no text inside it can end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def style() -> str:
    """The style sheet of every page."""
    return (_HERE / "style.css").read_text(encoding="utf-8")


@cache
def template(name: str) -> jinja2.Template:
    """A page template of this folder; every value put in is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tidy"] = tidy
    return environment.get_template(name)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "plan"
