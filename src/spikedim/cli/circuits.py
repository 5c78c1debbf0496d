"""``spikedim circuits``: the spike circuits, and the error of one against its timesteps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spikedim.cli import options
from spikedim.cli.output import PICTURES, check_suffix, emit, save_figure, say, working
from spikedim.errors import ConfigError
from spikedim.results import Result, Table

if TYPE_CHECKING:
    from torch import Tensor

    from spikedim.circuits.catalog import Example


@dataclass(frozen=True)
class Listing(Result):
    """The circuits that can be run by name.

    Attributes:
        circuits: name, claim, what it computes, its inputs and the default ones, for each.
    """

    circuits: tuple[dict[str, str], ...]

    def tables(self) -> list[Table]:
        """One row per circuit."""
        rows = [tuple(circuit.values()) for circuit in self.circuits]
        note = "spikedim circuits NAME runs one; other inputs with --values, one for each input."
        return [Table("Circuits", tuple(self.circuits[0]), rows, (note,))]


def circuits(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Circuit to run; none lists them.")] = None,
    timesteps: Annotated[
        Any,
        typer.Option(
            "--timesteps",
            "-T",
            parser=options.integers,
            metavar="LIST",
            help="Timesteps, at least four.",
        ),
    ] = "16,64,256,1024,4096",
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--values",
            "--logits",
            help="Input in place of the default, rows apart by ';': 1,2,3 or '1,2;3,4'. Repeat "
            "for each input of the circuit.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=2, help="Repetitions at each T; default by circuit.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw error against T into this PNG/PDF/SVG.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """List the spike circuits, or measure how the error of one falls with its timesteps.

    Slope and floor of the error come with 95 % intervals; the verdict says whether the circuit
    converges and what decides, or that these runs cannot tell.

    Example: spikedim circuits softmax-race --logits 0,1,2 -T 16,64,256,1024
    """
    from spikedim.circuits import convergence
    from spikedim.circuits.catalog import EXAMPLES
    from spikedim.training import resolve_device

    check_suffix("plot", plot, *PICTURES)
    if name is None:
        options.refuse_given(
            context,
            ("timesteps", "values", "trials", "plot"),
            "is of one circuit; name it, e.g. spikedim circuits softmax-race",
        )
        emit(Listing(tuple(_row(key, example) for key, example in EXAMPLES.items())), as_json)
        return
    if name not in EXAMPLES:
        raise ConfigError(f"circuit {name!r} is unknown; choose one of {', '.join(EXAMPLES)}")
    example = EXAMPLES[name]
    with working(quiet):
        place = resolve_device(device)
        result = convergence(
            example.circuit,
            *(x.to(place) for x in _inputs(name, example, values, seed)),
            T_values=timesteps,
            trials=example.trials if trials is None else trials,
            seed=seed,
            norm=example.norm,
        )
    emit(result, as_json)
    if plot is not None:
        save_figure(result, plot)
        say(f"Plot: {plot}")


def _row(key: str, example: Example) -> dict[str, str]:
    return {
        "circuit": key,
        "claim": example.circuit.claim,
        "computes": example.computes,
        "inputs": ", ".join(example.takes),
        "default inputs": example.default,
    }


def _inputs(name: str, example: Example, values: list[str] | None, seed: int) -> tuple[Tensor, ...]:
    import torch

    defaults = example.draw(torch.Generator().manual_seed(seed))
    if not values:
        return defaults
    if len(values) != len(example.takes):
        raise ConfigError(
            f"--values is given {len(values)} times; {name} takes {len(example.takes)} inputs: "
            f"{', '.join(example.takes)}"
        )
    given = [torch.tensor(_rows(text), dtype=torch.float64) for text in values]
    # A single row has as many axes as the default: a circuit of matrices takes it as [1, k]
    return tuple(
        rows[0] if len(rows) == 1 and default.dim() == 1 else rows
        for rows, default in zip(given, defaults, strict=True)
    )


def _rows(text: str) -> list[list[float]]:
    """``1,2;3,4`` as rows."""
    try:
        rows = [[float(word) for word in row.split(",")] for row in text.split(";")]
    except ValueError as error:
        raise ConfigError(
            f"--values {text!r}: expected numbers such as 0.1,0.5 or rows such as '1,2;3,4'"
        ) from error
    if len({len(row) for row in rows}) > 1:
        raise ConfigError(f"--values {text!r}: its rows have different lengths")
    return rows
