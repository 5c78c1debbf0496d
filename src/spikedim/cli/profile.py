"""``spikedim profile``: spikes, synaptic operations and energy of a network."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from spikedim.cli import options
from spikedim.cli.network import network_inputs, opened, ready_network, tested
from spikedim.cli.output import PICTURES, check_suffix, emit, save_figure, say, working
from spikedim.errors import DataError

#: Samples behind membrane potentials.
_ACTIVE = 8


def profile(
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    timesteps: options.OneT = 4,
    checkpoint: options.Checkpoint = None,
    samples: Annotated[
        int,
        typer.Option(
            help="Test samples to average over; held out as for training if the data have none."
        ),
    ] = 64,
    convention: Annotated[
        list[str] | None,
        typer.Option(help="Energy convention (name or YAML file); repeat for several."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw heat maps by layer and timestep, spike counts, energies, a raster and "
            "membrane potentials into this PNG/PDF/SVG."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write all tables and pictures to this page.")
    ] = None,
    explain_literature: Annotated[
        bool,
        typer.Option(
            "--explain-literature",
            help="Instead: recompute published operations and energies from the architectures and "
            "say which do not add up.",
        ),
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Count spikes and operations layer by layer and charge them by named energy conventions.

    Without --checkpoint a network of ours is untrained, its batch norm calibrated on the data, and
    no cost per correct prediction is given; one of FILE.py:FUNCTION that brings batch-norm
    statistics is taken as it is. Texts are read as words by SpikingBERT, as bytes by SpikeGPT.

    Example: spikedim profile --data digits --model spikformer_nano --timesteps 4
    """
    check_suffix("plot", plot, *PICTURES)
    check_suffix("html", html, ".html")
    if explain_literature:
        from spikedim.profiling.literature import explain_literature as explained

        with working(quiet):
            found = explained()
        emit(found, as_json)
        return

    from spikedim.neurons import LIF
    from spikedim.profiling import profile as profiled
    from spikedim.profiling.activity import activity
    from spikedim.training import resolve_device

    with working(quiet):
        dataset = opened(data, data_root, checkpoint)
        with suppress(DataError):  # too few to hold any out
            dataset = tested(dataset, seed)
        split = "train" if dataset.test is None else "test"
        x, y, T = network_inputs(model, dataset, split, samples, timesteps, seed)
        ready = ready_network(model, dataset, timesteps, checkpoint, seed)
        place = resolve_device(device)
        network, x = ready.network.to(place), x.to(place)
        result = profiled(
            network,
            x,
            T,
            conventions=convention or None,
            labels=None if ready.trained is False else y,
            state=f"{ready.state}; {split} samples of {dataset.name}",
        )
        result = replace(result, model=model)
    emit(result, as_json)
    if plot is None and html is None:
        return
    with working(quiet):
        seen = None
        if network.kept:
            say(f"No potentials of {', '.join(network.kept)}: neurons kept as they are.")
        if any(isinstance(m, LIF) and m.known for m in network.modules()):
            seen = activity(network, x[:_ACTIVE] if x.ndim < 5 else x[:, :_ACTIVE], T)
        if plot is not None:
            from spikedim.profiling.figures import overview

            save_figure(overview(result, seen), plot)
            say(f"Plot: {plot}")
        if html is not None:
            from spikedim.report.profile import write_profile

            say(f"Page: {write_profile(result, seen, html, data=data, network=model)}")
