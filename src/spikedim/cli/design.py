"""``spikedim design``: the main job."""

from __future__ import annotations

from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, say, working


def design(
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    verify: Annotated[
        bool, typer.Option("--verify", help="Train at each T and measure what is really needed.")
    ] = False,
    epsilon: Annotated[
        float, typer.Option(help="Target error ε of the published rule, in percentage points.")
    ] = 5.0,
    tolerance: Annotated[
        float, typer.Option(help="Accuracy that may be lost, in percentage points.")
    ] = 1.0,
    timesteps: options.Timesteps = "1,2,4,8",
    neurons: Annotated[
        bool,
        typer.Option(
            "--neurons/--no-neurons", help="With --verify: also compare v_th, leak and t_ref."
        ),
    ] = True,
    epochs: options.Epochs = None,
    train_samples: options.TrainSamples = None,
    test_samples: options.TestSamples = None,
    checkpoint: options.Checkpoint = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = None,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Say how many timesteps, which threshold, leak and t_ref, at what cost, and how surely.

    Example: spikedim design --data digits --model spikformer_nano --verify
    """
    from dataclasses import asdict

    from spikedim.cli.job import prepare
    from spikedim.design import Target
    from spikedim.design import design as plan_for
    from spikedim.report import write_report

    with working(quiet):
        target = Target(epsilon, tolerance)
        job = prepare(
            data, data_root, model, timesteps, epochs, train_samples, test_samples, seed, device
        )
        settings = {
            "target": asdict(target),
            "verify": verify,
            "timesteps": timesteps if verify else None,
            "neurons": neurons and verify,
            "checkpoint": str(checkpoint) if checkpoint else None,
        }
        workers = workers or job.workers
        if verify:
            then = "; then five trainings at T* to compare neurons (--no-neurons leaves them out)"
            job.announce(timesteps, workers, then if neurons else "")
        with job.run("design", settings, out) as run:
            plan = plan_for(
                job.dataset,
                model,
                target=target,
                verify=verify,
                timesteps=timesteps,
                neurons=neurons,
                config=job.config,
                checkpoint=checkpoint,
                seed=seed,
                workers=workers,
                population=job.everything,
                run=run,
            )
            page = write_report(plan, run.file("report.html"))
    emit(plan, as_json)
    say(f"Report: {page}   Numbers: {run.file('results.json')}")
