"""``spikedim models``: what networks there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from spikedim.cli import options
from spikedim.cli.output import emit
from spikedim.results import Result, Table

app = typer.Typer(
    help="List the networks, or show one. Example: spikedim models show spikformer_4_384",
    invoke_without_command=True,
    no_args_is_help=False,
)


@dataclass(frozen=True)
class Catalogue(Result):
    """The registered networks."""

    models: tuple[Any, ...]

    def tables(self) -> list[Table]:
        """One row per network."""
        rows = [
            (
                entry.name,
                entry.parameters,
                entry.gmac_per_step,
                " × ".join(map(str, entry.config.input_shape)),
                _best(entry.published),
                entry.description,
            )
            for entry in self.models
        ]
        columns = ("network", "parameters", "GMAC/step", "input", "best published top-1", "what")
        note = "Any of them takes another input size and number of classes: they follow the data."
        return [Table("Networks", columns, rows, (note,))]


def _best(published: tuple[Any, ...]) -> str | None:
    results = [p for p in published if p.accuracy is not None]
    if not results:
        return None
    best = max(results, key=lambda p: p.accuracy)
    return f"{best.accuracy} % on {best.dataset}, T = {best.T}"


@app.callback()
def list_all(
    context: typer.Context,
    pattern: Annotated[str, typer.Option(help="Shell pattern, e.g. 'spikformer_*384'.")] = "*",
    as_json: options.Json = False,
) -> None:
    """List the networks with their size and the published accuracy they belong to."""
    if context.invoked_subcommand is None:
        from spikedim.models import list_models, model_entry

        emit(Catalogue(tuple(model_entry(name) for name in list_models(pattern))), as_json)


@dataclass(frozen=True)
class Shown(Result):
    """One registered network and its block diagram."""

    entry: Any
    diagram: Any

    def tables(self) -> list[Table]:
        """The entry, the diagram, the published results."""
        about, *published = self.entry.tables()
        return [about, *self.diagram.tables(), *published]


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Network name.")],
    depth: Annotated[int, typer.Option(help="Levels of nesting in the block diagram.")] = 2,
    as_json: options.Json = False,
) -> None:
    """Show one network: configuration, sizes, block diagram with shapes, published results."""
    from spikedim.models import diagram, model_entry

    emit(Shown(model_entry(name), diagram(name, depth=depth)), as_json)
