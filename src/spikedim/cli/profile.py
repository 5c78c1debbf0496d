"""``spikedim profile``: spikes, synaptic operations and energy of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, save_figure, say, working


def profile(
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    timesteps: options.OneT = 4,
    checkpoint: options.Checkpoint = None,
    samples: Annotated[int, typer.Option(help="Test samples to average over.")] = 64,
    convention: Annotated[
        list[str] | None,
        typer.Option(help="Energy convention (name or YAML file); repeat for several."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write firing rates by layer to this PNG/PDF/SVG.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Count spikes and operations layer by layer and charge them by named energy conventions.

    Without --checkpoint the network is untrained, its batch norm calibrated on the data.

    Example: spikedim profile --data digits --model spikformer_nano --timesteps 4
    """
    from spikedim.data import load_dataset
    from spikedim.models import calibrate_batchnorm, create_model, load_checkpoint
    from spikedim.profiling import profile as profiled
    from spikedim.training import resolve_device

    with working(quiet):
        dataset = load_dataset(data, data_root)
        x, _ = dataset.tensors("train" if dataset.test is None else "test", samples, seed)
        network = create_model(
            model, num_classes=dataset.num_classes, input_shape=dataset.input_shape, seed=seed
        )
        if checkpoint is not None:
            load_checkpoint(network, checkpoint)
        else:
            images, _ = dataset.tensors("train", limit=256, seed=seed)
            calibrate_batchnorm(network, images.split(64), timesteps)
        place = resolve_device(device)
        network, x = network.to(place), x.to(place)
        result = profiled(network, x, timesteps, conventions=convention or None)
        if plot is not None:
            save_figure(result, plot)
            say(f"Plot: {plot}")
    emit(result, as_json)
