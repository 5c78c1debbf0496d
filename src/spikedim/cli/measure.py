"""``spikedim measure``: effective dimension of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, save_figure, say, working


def measure(
    data: options.Data = "digits",
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    estimators: Annotated[
        str | None, typer.Option(help="Comma-separated estimators; default all of them.")
    ] = None,
    quantile: Annotated[
        float, typer.Option(help="Share of the variance PCA-q % must reach, in (0, 1).")
    ] = 0.95,
    center: Annotated[
        bool, typer.Option("--center/--no-center", help="Subtract the mean first.")
    ] = True,
    limit: Annotated[
        int | None, typer.Option(help="At most this many samples (stratified).")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the spectrum with its marks to this PNG/PDF/SVG.")
    ] = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Measure the effective dimension of a data set: every estimator with its interval.

    Example: spikedim measure --data digits --plot spectrum.png
    """
    from spikedim.data import load_dataset
    from spikedim.dimension import measure as measured

    with working(quiet):
        features = load_dataset(data, data_root).features(split, limit, seed)
        result = measured(
            features,
            estimators=estimators.split(",") if estimators else None,
            center=center,
            quantile=quantile,
            seed=seed,
        )
        if plot is not None:
            save_figure(result, plot)
            say(f"Plot: {plot}")
    emit(result, as_json)
