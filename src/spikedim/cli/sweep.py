"""``spikedim sweep``: accuracy against timesteps, and T*."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, say, working


def sweep(
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    timesteps: options.Timesteps = "1,2,4,8",
    mode: Annotated[
        Literal["train", "inference"],
        typer.Option(
            help="train: one training per T. inference: train at the largest T, read out earlier."
        ),
    ] = "train",
    tolerance: Annotated[
        float, typer.Option(help="Accuracy that may be lost, in percentage points.")
    ] = 1.0,
    encoder: options.Encoder = "direct",
    epochs: options.Epochs = None,
    train_samples: options.TrainSamples = None,
    test_samples: options.TestSamples = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = None,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Measure accuracy against timesteps and T*, the smallest T within tolerance of the plateau.

    Example: spikedim sweep --data digits --model spikformer_nano --timesteps 1,2,4,8
    """
    from spikedim.cli.job import prepare
    from spikedim.training import sweep_timesteps

    with working(quiet):
        job = prepare(
            data,
            data_root,
            model,
            timesteps if mode == "train" else timesteps[-1:],
            epochs,
            train_samples,
            test_samples,
            seed,
            device,
        )
        workers = workers or job.workers
        job.announce(timesteps if mode == "train" else timesteps[-1:], workers)
        settings = {
            "timesteps": timesteps,
            "mode": mode,
            "tolerance": tolerance,
            "encoder": encoder,
        }
        with job.run("sweep", settings, out) as run:
            result = sweep_timesteps(
                job.dataset,
                model,
                timesteps,
                job.config,
                run,
                tolerance=tolerance,
                mode=mode,
                encoder=encoder,
                workers=workers,
            )
    emit(result, as_json)
    say(f"Table: {run.file('sweep.parquet')}")
