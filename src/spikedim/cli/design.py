"""``spikedim design``: the main job."""

from __future__ import annotations

from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, say, working
from spikedim.errors import ConfigError


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
    target_d_eff: Annotated[
        float | None,
        typer.Option(help="Also find the neuron whose tangent kernel has this d_eff."),
    ] = None,
    target_reduction: Annotated[
        float | None,
        typer.Option(
            "--target-reduction",
            "--target-R",
            help="The same for R, d_eff over that of the continuous twin.",
        ),
    ] = None,
    rate: Annotated[
        tuple[float, float],
        typer.Option(metavar="LOW HIGH", help="Its firing rate: spikes per step, or Hz with --dt."),
    ] = (0.0, 1.0),
    dt: Annotated[float | None, typer.Option(help="Seconds per step, for --rate in Hz.")] = None,
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
    from spikedim.design import NeuronTarget, Target
    from spikedim.design import design as plan_for
    from spikedim.design.neuron_inversion import require_feasible
    from spikedim.report import write_report

    with working(quiet):
        target = Target(epsilon, tolerance)
        wanted = None
        if target_d_eff is not None or target_reduction is not None:
            wanted = NeuronTarget(target_d_eff, target_reduction, rate, dt)
        elif dt is not None or rate != (0.0, 1.0):
            raise ConfigError("--rate and --dt are of --target-d-eff or --target-reduction")
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
        if wanted is not None:
            settings["neuron target"] = asdict(wanted)
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
                neuron=wanted,
            )
            page = write_report(plan, run.file("report.html"))
    emit(plan, as_json)
    say(f"Report: {page}   Numbers: {run.file('results.json')}")
    require_feasible(plan.inversion)
