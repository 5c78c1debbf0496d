"""``spikedim rank``: rank collapse, layer norm, residuals and heads of a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spikedim.cli import options
from spikedim.cli.network import network_inputs, opened, ready_network, unpadded
from spikedim.cli.output import PICTURES, check_suffix, emit, save_figure, say, working
from spikedim.errors import ConfigError

if TYPE_CHECKING:
    from spikedim.rank import GateComparison, RankDiagnosis

CALIBRATION = 128
_ONE = ("checkpoint", "split", "representation", "layers", "twin", "gate", "limit")
_COMPARED = ("seeds", "epochs", "train_samples")


def rank(
    context: typer.Context,
    data: options.Data = "digits",
    model: options.Model = "spikformer_nano",
    checkpoint: options.Checkpoint = None,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    timesteps: Annotated[
        int | None, typer.Option("--timesteps", "-T", help="Timesteps; default 4, compared: 2.")
    ] = None,
    representation: Annotated[
        Literal["features", "spikes", "potential"],
        typer.Option("--representation", "-r", help="What is measured in a layer."),
    ] = "features",
    layers: Annotated[
        str | None, typer.Option(help="Layers, shell patterns, comma-separated, e.g. 'block.*'.")
    ] = None,
    twin: Annotated[
        Literal["surrogate", "rate", "none"],
        typer.Option(help="Continuous twin beside the network: its activation, or none."),
    ] = "surrogate",
    gate: Annotated[
        Literal["none", "position", "constant"],
        typer.Option(help="Gate in front of the attention's output projection."),
    ] = "none",
    limit: Annotated[int, typer.Option(min=1, help="At most this many samples.")] = 32,
    compare_gates: Annotated[
        bool,
        typer.Option(
            "--compare-gates",
            help="Train without gate, with the position gate and with its control, spiking and "
            "continuous; --data takes several names, comma-separated.",
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(min=2, help="Compared: trainings of each kind.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Compared: epochs of each training.")] = 12,
    train_samples: Annotated[int, typer.Option(min=20, help="Compared: training samples.")] = 1000,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Compared: run directory.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the picture: PNG, PDF or SVG.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page.")] = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Measure rank and affine rank of a network's tokens, and check what changes them.

    Without --checkpoint a network of ours is untrained, its batch norm calibrated on the data; one
    of FILE.py:FUNCTION that brings batch-norm statistics is taken as it is. Texts are read as
    words by SpikingBERT, as bytes by SpikeGPT.

    Example: spikedim rank --data digits --model spikformer_nano -T 4 --plot rank.png

    Example: spikedim rank --compare-gates --data digits,fashion_mnist --out runs/gates
    """
    from spikedim.report.rank import render_rank
    from spikedim.storage import write_text

    check_suffix("plot", plot, *PICTURES)
    check_suffix("report", report, ".html")
    result: Any
    with working(quiet):
        if compare_gates:
            options.refuse_given(context, _ONE, "is of one network; leave it out to compare gates")
            T = 2 if timesteps is None else timesteps
            result = _compared(data, model, T, seeds, epochs, train_samples, out, seed, data_root)
        else:
            if out is not None:
                raise ConfigError("--out is the run directory of --compare-gates; use --report")
            options.refuse_given(context, _COMPARED, "is of a comparison; add --compare-gates")
            T = 4 if timesteps is None else timesteps
            result = _diagnosed(
                data, model, checkpoint, split, T, representation, layers, twin, gate, limit, seed,
                data_root,
            )  # fmt: skip
    emit(result, as_json)
    if plot is not None:
        save_figure(result, plot)
        say(f"Plot: {plot}")
    if report is not None:
        say(f"Report: {write_text(report, render_rank(result))}")


def _diagnosed(
    data: str,
    model: str,
    checkpoint: Path | None,
    split: str,
    T: int,
    what: str,
    layers: str | None,
    twin: str,
    gate: str,
    limit: int,
    seed: int,
    root: Path | None,
) -> RankDiagnosis:
    from spikedim.rank import diagnose

    dataset = opened(data, root, checkpoint)
    chosen: dict[str, Any] = {} if gate == "none" else {"gate": gate}
    inputs = network_inputs(model, dataset, split, limit, T, seed)
    x, _, steps = unpadded(inputs, dataset.name)
    ready = ready_network(model, dataset, T, checkpoint, seed, CALIBRATION, **chosen)
    found = diagnose(
        ready.network,
        x,
        steps,
        what,
        layers=layers,
        twin=twin,
        network=model,
        dataset=dataset.name,
        trained=ready.trained,
        seed=seed,
        split=split,
        state=ready.state,
    )
    return replace(found, profile=replace(found.profile, model=model))


def _compared(
    data: str,
    model: str,
    T: int,
    seeds: int,
    epochs: int,
    train_samples: int,
    out: Path | None,
    seed: int,
    root: Path | None,
) -> GateComparison:
    from spikedim.rank import compare_gates
    from spikedim.storage import write_json, write_text
    from spikedim.training import TrainConfig

    place = Path("runs/gates") if out is None else out
    result = compare_gates(
        data.split(","),
        model,
        place,
        T=T,
        seeds=range(seed, seed + seeds),
        config=TrainConfig(epochs=epochs, batch_size=32, validation=0.0),
        train_samples=train_samples,
        root=root,
    )
    write_json(place / "comparison.json", result)
    write_text(place / "comparison.md", result.markdown())
    say(f"Written to {place}")
    return result
