"""``spikedim order``: which variable, layer or population drives which."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spikedim.cli import options
from spikedim.cli.network import SAMPLES, network_inputs, opened, ready_network
from spikedim.cli.output import emit, save_figure, say, working
from spikedim.errors import ConfigError

if TYPE_CHECKING:
    from spikedim.order import CausalOrder, Variables


def order(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Table (.csv or .tsv with a header, .npy, .npz with x and names) or data set.",
        ),
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Order the layers of this network (name or FILE.py:FUNCTION) instead.",
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    what: Annotated[
        Literal["potential", "rates", "spikes"] | None,
        typer.Option(help="With --model: what is recorded, default potential."),
    ] = None,
    units: Annotated[
        Literal["layers", "channels"] | None,
        typer.Option(help="With --model: what a variable is, default layers."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="With --model: layers, shell patterns, comma-separated.")
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option("--timesteps", "-T", help="With --model: timesteps, default 4.")
    ] = None,
    time: Annotated[
        Literal["mean", "samples"] | None,
        typer.Option(help="With --model: mean over time, or every timestep a row."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=50, help="At most this many samples; 256 with --model.")
    ] = None,
    estimator: Annotated[
        Literal["network", "gaussian", "stein"],
        typer.Option(help="Of the score: a network, Gaussian (linear models), kernel Stein."),
    ] = "network",
    marginal: Annotated[
        Literal["schur", "refit"],
        typer.Option(help="How leaves are removed: Schur complement, or a new estimate."),
    ] = "schur",
    objective: Annotated[
        Literal["implicit", "sliced", "denoising"] | None,
        typer.Option(help="Score matching of the network, default implicit."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the network, default 1500.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Leaves are within this share of the smallest entry.")
    ] = 0.05,
    ridge: Annotated[
        float, typer.Option(min=0, help="Ridge of a Schur complement (published: 1e-4).")
    ] = 0.0,
    noise_variance: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Known noise variances, one per variable that varies, e.g. 1,2,1.",
        ),
    ] = None,
    basis: Annotated[
        Literal["linear", "spline"] | None,
        typer.Option(help="Regressions for edges; default by estimator."),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Level of the residual tests together, 0.0001 or more.")
    ] = 0.01,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for order.json, order.png and edges.csv."),
    ] = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Causal order and graph of variables under additive noise of equal variance.

    A residual test says where the data contradict that. Without --checkpoint a network of ours
    is untrained, its batch norm calibrated on the data; one of FILE.py:FUNCTION that brings
    batch-norm statistics is taken as it is.

    Example: spikedim order --data table.csv --estimator gaussian --out found

    Example: spikedim order --data digits --model spikformer_nano -T 4 --layers 'block.*'
    """
    from spikedim.order import ScoreConfig, causal_order

    given = {
        "checkpoint": checkpoint,
        "what": what,
        "units": units,
        "layers": layers,
        "timesteps": timesteps,
        "time": time,
    }
    if model is None:
        options.refuse(given, "needs --model, the network whose layers are ordered")
    if estimator != "network":
        why = f"trains a score network; estimator {estimator} has none"
        options.refuse({"objective": objective, "steps": steps}, why)
    known = _numbers(noise_variance)
    with working(quiet):
        if model is None:
            table = _table(data, data_root, limit, seed)
        else:
            table = _recorded(
                model,
                checkpoint,
                data,
                data_root,
                what or "potential",
                units or "layers",
                layers,
                4 if timesteps is None else timesteps,
                time or "mean",
                limit or SAMPLES,
                seed,
            )
        if known is not None and len(known) != len(table.names):
            raise ConfigError(
                f"--noise-variance gives {len(known)} numbers; {len(table.names)} variables are "
                "ordered, those that vary: give one for each"
            )
        result = causal_order(
            table,
            estimator=estimator,
            marginal=marginal,
            tolerance=tolerance,
            ridge=ridge,
            noise_variance=known,
            basis=basis,
            level=level,
            config=ScoreConfig(objective or "implicit", steps=steps or 1500, seed=seed),
            seed=seed,
        )
        if out is not None:
            _write(result, out)
    emit(result, as_json)


def _table(data: str, root: Path | None, limit: int | None, seed: int) -> Variables:
    from dataclasses import replace

    import numpy as np

    from spikedim.order import read_variables

    table = read_variables(data, root)
    if limit is None or limit >= len(table.values):
        return table
    chosen = np.random.default_rng(seed).choice(len(table.values), limit, replace=False)
    return replace(table, values=table.values[np.sort(chosen)])


def _recorded(
    name: str,
    checkpoint: Path | None,
    data: str,
    root: Path | None,
    what: str,
    units: str,
    layers: str | None,
    T: int,
    time: str,
    limit: int,
    seed: int,
) -> Variables:
    from dataclasses import replace

    from spikedim.order import Recorded, network_variables

    split = "train"
    dataset = opened(data, root, checkpoint)
    x, _, T = network_inputs(name, dataset, split, limit, T, seed)
    ready = ready_network(name, dataset, T, checkpoint, seed)
    found = network_variables(ready.network, x, T, what, units, layers, time)
    return replace(
        found,
        source=f"{found.source} of {name} on {dataset.name}",
        recorded=Recorded(T, time, split, ready.trained, ready.state),
    )


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--noise-variance {text!r}: expected numbers such as 1,2,1") from error


def _write(result: CausalOrder, out: Path) -> None:
    from spikedim.storage import write_json, write_text

    write_json(out / "order.json", result)
    save_figure(result, out / "order.png")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("cause", "effect", "weight", "p"))
    for e in result.edges:
        weight = "" if e.weight is None else e.weight.value
        writer.writerow((e.cause, e.effect, weight, e.p_value))
    write_text(out / "edges.csv", lines.getvalue())
    say(f"Written to {out}")
