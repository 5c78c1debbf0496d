"""``spikedim data``: what data sets there are, what one holds, and downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, say, working

app = typer.Typer(
    help="List the data sets, show one, or download one. Example: spikedim data show digits",
    invoke_without_command=True,
    no_args_is_help=False,
)


@app.callback()
def list_all(
    context: typer.Context, data_root: options.DataRoot = None, as_json: options.Json = False
) -> None:
    """List the data sets that load by name, and what can be downloaded."""
    if context.invoked_subcommand is None:
        from spikedim.data import Catalog, list_datasets

        emit(Catalog(tuple(list_datasets(data_root))), as_json)


@app.command()
def show(
    spec: Annotated[str, typer.Argument(help="Data set name or path.")],
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
) -> None:
    """Load a data set and show what it holds: splits, classes, shape, fingerprint, terms."""
    from spikedim.data import load_dataset

    emit(load_dataset(spec, data_root).summary(), as_json)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="Name of a public data set, or a URL.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder to put it in; default the cache folder.")
    ] = None,
    checksum: Annotated[
        str | None, typer.Option(help="For a URL: expected sha256:HEX or md5:HEX.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Download a public data set, verify its checksum and unpack it; a broken download resumes."""
    from spikedim.data import download as fetch

    with working(quiet):
        path = fetch(name, to, checksum)
    say(f"{path}   (use it with --data {name if to is None else path})")
