"""``spikedim design``: the main job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spikedim.cli import options
from spikedim.cli.calibrate import Store
from spikedim.cli.output import emit, say, working
from spikedim.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from spikedim.models import SpikingModel


#: Parameters of trainings, and of trainings at every T.
_TRAINED = ("timesteps", "epochs", "workers")
_VERIFIED = ("neurons", "remember")


def design(
    context: typer.Context,
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    verify: Annotated[
        bool, typer.Option("--verify", help="Train at each T and measure what is really needed.")
    ] = False,
    pilot: Annotated[
        bool,
        typer.Option(
            "--pilot", help="Train once, at the largest T, and predict from its early read-out."
        ),
    ] = False,
    budget_energy: Annotated[
        str | None,
        typer.Option(help="Most energy of one inference, e.g. 0.5uJ (mJ without a unit)."),
    ] = None,
    budget_spikes: Annotated[
        float | None, typer.Option(help="Most spikes of one inference; T is found within it.")
    ] = None,
    energy_convention: Annotated[
        str, typer.Option(help="Energy convention of --budget-energy: a name, or a YAML file.")
    ] = "paper-sop",
    store: Store = None,
    remember: Annotated[
        bool,
        typer.Option(
            "--remember/--forget",
            help="With --verify, of images that the network has learned: add prediction and "
            "measurement to the calibration store.",
        ),
    ] = True,
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
        typer.Option(
            help="Also find the neuron whose tangent kernel has this d_eff (participation ratio)."
        ),
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
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Its firing rate: spikes per step, or Hz with --dt; any by default.",
        ),
    ] = None,
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

    from spikedim.cli.job import fitted, load
    from spikedim.cli.network import tell_pixels
    from spikedim.design import NeuronTarget, Target
    from spikedim.design import design as plan_for
    from spikedim.design.budget import Budget, parse_energy
    from spikedim.design.planner import check_designable
    from spikedim.design.store import (
        check_store,
        known_cases,
        remember_plan,
        store_path,
        why_forgotten,
    )
    from spikedim.report import write_report
    from spikedim.training.network import read_like

    if not verify:
        options.refuse_given(context, _VERIFIED, "is of --verify; add it")
    if budget_energy is None:
        options.refuse_given(context, ("energy_convention",), "is of --budget-energy; add it")
    with working(quiet):
        target = Target(epsilon, tolerance)
        wanted = None
        if target_d_eff is not None or target_reduction is not None:
            wanted = NeuronTarget(target_d_eff, target_reduction, rate, dt)
        elif dt is not None or rate is not None:
            raise ConfigError("--rate and --dt are of --target-d-eff or --target-reduction")
        budget = None
        if budget_energy is not None or budget_spikes is not None:
            energy = None if budget_energy is None else parse_energy(budget_energy)
            budget = Budget(energy, budget_spikes, energy_convention)
        place = store_path(store)
        known = known_cases(place)
        if verify and remember:
            check_store(place)
        trained = timesteps[-1:] if pilot else timesteps
        dataset = load(data, data_root, seed)
        if checkpoint is not None:
            dataset = read_like(dataset, checkpoint)
        if not (verify or pilot):
            tell_pixels(model, dataset, checkpoint)
        check_designable(dataset, verify)
        if not (verify or pilot):
            options.refuse_given(context, _TRAINED, "is of trainings; add --verify or --pilot")
        job = fitted(dataset, model, trained, epochs, train_samples, test_samples, seed, device)
        # What changes no training and no T*, as a budget, is asked of one run folder anew.
        settings = {
            "target": asdict(target),
            "verify": verify,
            "pilot": pilot,
            "timesteps": timesteps if verify or pilot else None,
            "neurons": neurons and verify,
            "checkpoint": str(checkpoint) if checkpoint else None,
        }
        workers = workers or job.workers
        if verify:
            job.announce(timesteps, workers, _afterwards(job.network()) if neurons else "")
        elif pilot:
            job.announce(timesteps[-1:], workers)
        with job.run("design", settings, out) as run:
            plan = plan_for(
                job.dataset,
                model,
                target=target,
                verify=verify,
                pilot=pilot,
                budget=budget,
                timesteps=timesteps,
                neurons=neurons,
                config=job.config,
                checkpoint=checkpoint,
                seed=seed,
                workers=workers,
                population=job.everything,
                known=known,
                run=run,
                neuron=wanted,
            )
            page = write_report(plan, run.file("report.html"))
    emit(plan, as_json)
    say(f"Report: {page}   Numbers: {run.file('results.json')}")
    if verify and remember:
        why = why_forgotten(plan)
        try:
            with working(quiet):
                remember_plan(plan, place)
        except StorageError as error:  # the answer stands without it
            why = str(error)
        if why is None:
            say(f"Remembered in {place}; spikedim calibrate refits the predictors with it.")
        else:
            say(f"Not remembered: {why}.")
    if plan.inversion is not None:
        plan.inversion.require()


def _afterwards(network: SpikingModel) -> str:
    """What follows the trainings at each T."""
    from spikedim.design.planner import neuron_grid

    if network.kept:
        return f"; neurons are not compared: {', '.join(network.kept)} kept as they are"
    count = sum(map(len, neuron_grid(network).values()))
    return f"; then {count} trainings at T* to compare neurons (--no-neurons leaves them out)"
