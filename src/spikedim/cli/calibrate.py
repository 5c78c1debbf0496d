"""``spikedim calibrate``: refit the predictors from your own verified designs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, say, working

Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Calibration store; default calibration.jsonl in the user's data folder.",
        envvar="SPIKEDIM_CALIBRATION",
        show_envvar=True,
    ),
]


def calibrate(
    store: Store = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Use only what ships with spikedim again.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Refit the predictors of T* with your verified designs, and show what changed.

    Every spikedim design --verify of images that the network has learned appends what it predicted
    and what it measured to the store; this command adopts them, and later designs use them.

    Example: spikedim calibrate
    """
    from spikedim.design.store import forget, recalibrate, store_path

    path = store_path(store)
    if reset:
        done = forget(path)
        say("Back to the cases that ship with spikedim." if done else "Nothing was adopted.")
        return
    with working(quiet):
        result = recalibrate(path)
    emit(result, as_json)
    say(f"Store: {path}")
