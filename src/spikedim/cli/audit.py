"""``spikedim audit``: check the published claims and print their verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import check_suffix, emit, say, working


def audit(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Claims to check, e.g. RATE; all when omitted.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Minutes with trainings, or seconds without.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a Markdown page.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page.")] = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Check published claims live: each verdict is computed from numbers measured now.

    A claim that fails is a result: the exit code stays 0.

    Example: spikedim audit RATE SOFTMAX-SUBTRACTIVE --full
    """
    from spikedim.claims import audit as check
    from spikedim.report.audit import render_audit
    from spikedim.storage import write_text

    check_suffix("out", out, ".md")
    check_suffix("report", report, ".html")
    with working(quiet):
        result = check(ids or (), "full" if full else "quick", seed, data_root)
    emit(result, as_json)  # first: minutes of work outlive a place that cannot be written
    if out is not None:
        say(f"Page: {write_text(out, result.markdown())}")
    if report is not None:
        say(f"Report: {write_text(report, render_audit(result))}")
