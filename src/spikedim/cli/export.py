"""``spikedim export``: a circuit as a file that other simulators read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from spikedim.cli import options
from spikedim.cli.output import check_suffix, emit
from spikedim.errors import ConfigError
from spikedim.results import Result, Table


@dataclass(frozen=True)
class Exported(Result):
    """A NIR file that was written.

    Attributes:
        path: the file.
        source: what it holds.
        dt: seconds of NIR's time per step.
        nodes: kind of every node, by name.
        edges: (from, to).
    """

    path: str
    source: str
    dt: float
    nodes: dict[str, str]
    edges: tuple[tuple[str, str], ...]

    def tables(self) -> list[Table]:
        """One row per node."""
        rows = [
            (name, kind, ", ".join(to for source, to in self.edges if source == name) or "–")
            for name, kind in self.nodes.items()
        ]
        note = f"{self.path}: one step is {self.dt:g} s"
        return [Table(f"{self.source} as NIR", ("node", "kind", "to"), rows, (note,))]


def export(
    nir: Annotated[
        str, typer.Option("--nir", help="Circuit (spikedim circuits) or network to write as NIR.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .nir.")],
    units: Annotated[
        int, typer.Option(min=1, help="Rates that a code encodes, or logits of a softmax.")
    ] = 8,
    as_json: options.Json = False,
    config: options.ConfigFile = None,
) -> None:
    """Write a circuit as a NIR graph (neuroir.org) for SpikingJelly, snnTorch, Norse and others.

    NIR has no product, no maximum and no random source: what it cannot express is refused, node by
    node. Sequences of layers are written from Python: spikedim.circuits.to_nir.

    Example: spikedim export --nir softmax-subtractive --units 8 --out softmax.nir
    """
    from spikedim.circuits import to_nir, write_nir
    from spikedim.circuits.catalog import EXAMPLES

    check_suffix("out", out, ".nir")
    if nir in EXAMPLES:
        graph = to_nir(EXAMPLES[nir].circuit, (units,))
    else:
        network = _network(nir, tuple(EXAMPLES))
        graph = to_nir(network, network.input_shape)
    write_nir(out, graph)
    nodes = {name: type(node).__name__ for name, node in graph.nodes.items()}
    edges = tuple(graph.edges)
    emit(Exported(str(out), nir, graph.metadata["dt"], nodes, edges), as_json)


def _network(name: str, circuits: tuple[str, ...]) -> Any:
    from spikedim.models import create_model, list_models

    if name not in list_models():
        raise ConfigError(
            f"--nir {name} is no circuit ({', '.join(circuits)}) and no network (spikedim models)"
        )
    return create_model(name)
