"""``spikedim report``: the HTML page of a finished design run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikedim.cli.output import say


def report(
    run: Annotated[Path, typer.Argument(help="Run directory or results.json of a design run.")],
    to: Annotated[
        Path | None, typer.Option(help="Page to write; default report.html beside the results.")
    ] = None,
) -> None:
    """Write the self-contained HTML report of a finished design run, without recomputing.

    Example: spikedim report runs/design-digits-spikformer_nano-1a2b3c4d
    """
    from spikedim.report import from_run
    from spikedim.storage import write_text

    page = from_run(run)
    say(f"Report: {write_text(to or (run if run.is_dir() else run.parent) / 'report.html', page)}")
