"""``spikedim ntk``: the tangent kernel of a spiking network and what its neurons do to it."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spikedim.cli import options
from spikedim.cli.network import (
    calibration_batches,
    network_inputs,
    opened,
    require_distinct,
    shaped_network,
)
from spikedim.cli.ntk_reports import ApproximateReport, Initialisations, KernelReport
from spikedim.cli.output import emit, save_figure, say, working
from spikedim.errors import ConfigError, DataError

if TYPE_CHECKING:
    from spikedim.models.base import SpikingModel

CALIBRATION = 128
APPROXIMATE = ("sketch", "matrix-free")
PRODUCTS = 32
EIGENVALUES = 10


def ntk(
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    timesteps: options.OneT = 4,
    checkpoint: options.Checkpoint = None,
    samples: Annotated[int, typer.Option(min=8, help="Training samples of the kernel.")] = 64,
    outputs: Annotated[
        str, typer.Option(help="trace over outputs, full (every pair of them), or one's index.")
    ] = "trace",
    method: Annotated[
        Literal["auto", "structured", "jacobian", "loop", "sketch", "matrix-free"],
        typer.Option(
            help="Exact: auto, structured, jacobian, loop. Estimates with intervals, for more "
            "samples or outputs: sketch, matrix-free."
        ),
    ] = "auto",
    probes: Annotated[
        int | None,
        typer.Option(
            min=3,
            help="Random sums or sketches of --method sketch (8), products of matrix-free (32).",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Numbers kept of each gradient by --method sketch (1,021 to 16,381, by memory).",
        ),
    ] = None,
    surrogate: Annotated[
        str | None, typer.Option(help="Surrogate of every neuron, e.g. atan; default its own.")
    ] = None,
    width: Annotated[float | None, typer.Option(help="Sharpness of the surrogate.")] = None,
    neuron: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Neuron parameter, e.g. v_th=0.5, t_ref=1, tau_m=2, v_reset=-0.5, "
            "decay_input=false; repeat.",
        ),
    ] = None,
    per_timestep: Annotated[
        bool, typer.Option("--per-timestep", help="Also the share of every timestep.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where the kernel's pieces are computed.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; one on this machine by default.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Pieces worked on at once with --engine ray.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB the kernel may take; half of what is free by default.")
    ] = None,
    initialisations: Annotated[
        int, typer.Option(min=1, help="Untrained networks that intervals cover, with other seeds.")
    ] = 1,
    reduction: Annotated[
        bool,
        typer.Option("--reduction", help="Factor of d_eff by each mechanism of the neuron."),
    ] = False,
    sweep: Annotated[
        Literal["v_th", "v_reset", "t_ref", "tau_m"] | None,
        typer.Option(help="Effect of one neuron parameter on d_eff."),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Values of --sweep, or surrogate widths of --one-sided: 0.5,1,2."
        ),
    ] = None,
    regimes: Annotated[
        bool, typer.Option("--regimes", help="Reduction at the published firing rates.")
    ] = False,
    one_sided: Annotated[
        bool,
        typer.Option(
            "--one-sided",
            help="Kernels of surrogate training against the true one of escape-noise neurons.",
        ),
    ] = False,
    invert: Annotated[
        bool, typer.Option("--invert", help="Find v_th, beta and t_ref for a target.")
    ] = False,
    target_d_eff: Annotated[
        float | None,
        typer.Option(help="Wanted d_eff of --invert, participation ratio of the centred kernel."),
    ] = None,
    target_reduction: Annotated[
        float | None,
        typer.Option(help="Wanted R = d_eff / d_eff of the continuous twin, of --invert."),
    ] = None,
    rate: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Firing rates of --invert: spikes per step, or Hz with --dt; any by default.",
        ),
    ] = None,
    dt: Annotated[
        float | None, typer.Option(help="Seconds per step, for rates in Hz (--regimes: 0.004).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for ntk.json, ntk.png and the kernel (.npy). A killed exact kernel "
            "(auto, structured) or sketch goes on there.",
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Effective dimension of the neural tangent kernel, and which neuron gives the wanted one.

    Without --checkpoint a network of ours is untrained, and the batch norm of every variant of it
    is calibrated on the data; one of FILE.py:FUNCTION that brings batch-norm statistics keeps them.
    Texts are read as words by SpikingBERT, as bytes by SpikeGPT.

    Example: spikedim ntk --data digits --model spikformer_nano --reduction --neuron refractory=1
    """
    from spikedim.models import settle_batchnorm
    from spikedim.models.calibration import is_trained, weights_in_words
    from spikedim.ntk.effects import sweep as swept
    from spikedim.ntk.invert import invert as inverted
    from spikedim.ntk.one_sided import one_sided as compared
    from spikedim.ntk.reduction import reduction as reduced
    from spikedim.ntk.regimes import regimes as regimes_of
    from spikedim.ntk.variants import calibrated, over_networks, samples_of
    from spikedim.progress import note
    from spikedim.storage import Run
    from spikedim.training import resolve_device

    asked = {
        "--reduction": reduction,
        "--sweep": sweep is not None,
        "--regimes": regimes,
        "--one-sided": one_sided,
        "--invert": invert,
    }
    modes = [name for name, on in asked.items() if on]
    _check(
        modes, outputs, values, target_d_eff, target_reduction, rate, dt, initialisations,
        checkpoint,
    )  # fmt: skip
    _check_plain(modes, method, outputs, per_timestep, engine, address, workers)
    _check_approximate(modes, method, outputs, per_timestep, engine, probes, size)
    about = {
        "data": data,
        "model": model,
        "timesteps": timesteps,
        "checkpoint": checkpoint,
        "samples": samples,
        "outputs": outputs,
        "method": method,
        "probes": probes,
        "size": size,
        "surrogate": surrogate,
        "width": width,
        "neuron": neuron,
        "per timestep": per_timestep,
        "initialisations": initialisations,
        "question": [*modes, sweep],
        "values": values,
        "target": [target_d_eff, target_reduction, rate, dt],
        "seed": seed,
    }
    with working(quiet), nullcontext() if out is None else Run(out, about):
        dataset = opened(data, data_root, checkpoint)
        place = resolve_device(device)
        x, labels, T = network_inputs(model, dataset, "train", samples, timesteps, seed)
        count = samples_of(x)
        if count < samples and dataset.kind != "text":
            note(f"--samples {samples:,}: {dataset.name} has {count:,} for training")
        x = x.to(place)
        calibration = calibration_batches(model, dataset, timesteps, CALIBRATION, seed)
        batches = [batch.to(place) for batch in calibration]
        networks = [
            shaped_network(model, dataset, checkpoint, seed + place_in_line)
            for place_in_line in range(initialisations)
        ]
        require_distinct(model, networks, seed)
        trained = is_trained(model, checkpoint)
        for network in networks:
            if fields := _neuron(network, neuron, surrogate, width):
                network.set_neurons(**fields)
            network.to(place).eval()
            if checkpoint is None:
                found = settle_batchnorm(network, batches, T)
                trained = is_trained(model, None, found)
                state = weights_in_words(model, None, sum(map(samples_of, batches)), T, found)
                note(f"{model}: {state}", topic="weights")
            if trained and initialisations > 1:
                raise ConfigError(
                    f"--initialisations {initialisations} is for untrained networks; {model} "
                    "brings batch-norm statistics of its own and is taken as it is: leave the "
                    "option out"
                )
        prepare = None if trained else calibrated(*batches)
        shared: dict[str, Any] = {
            "T": T,
            "prepare": prepare,
            "method": method,
            "memory": memory,
        }
        result: Any
        if reduction:
            result = reduced(networks, x, seed=seed, **shared)
        elif sweep is not None:
            result = swept(networks, x, sweep, _numbers(values), seed=seed, **shared)
        elif one_sided:
            result = compared(
                networks,
                x,
                widths=_numbers(values),
                T=T,
                prepare=prepare,
                memory=memory,
                seed=seed,
            )
        elif regimes:
            result = regimes_of(networks, x, dt=dt or 0.004, seed=seed, **shared)
        elif invert:
            result = inverted(
                networks[0],
                x,
                target_d_eff=target_d_eff,
                target_reduction=target_reduction,
                rate_window=rate,
                dt=dt,
                **shared,
            )
        else:
            subject = _Subject(
                (model, dataset.name, T),
                x,
                labels,
                int(outputs) if outputs.isdecimal() else outputs,
                seed,
            )
            how: dict[str, Any] = {"memory": memory, "fallback": True}
            if method == "sketch":
                given = {"probes": probes, "size": size}
                how |= {name: value for name, value in given.items() if value is not None}
            elif method != "matrix-free":
                how |= {"method": method, "engine": engine, "address": address, "workers": workers}
            reports: list[KernelReport | ApproximateReport] = []
            for index, network in enumerate(networks):
                fresh = None if trained else seed + index
                folder = out / f"seed-{fresh}" if out is not None and index else out
                if method == "sketch":
                    reports.append(_sketched(network, subject, fresh, folder, how))
                elif method == "matrix-free":
                    reports.append(_matrix_free(network, subject, fresh, probes or PRODUCTS, how))
                else:
                    steps_too = per_timestep and not index
                    reports.append(_kernel(network, subject, fresh, folder, steps_too, how))
            result = reports[0]
            if len(reports) > 1:
                each = tuple(report.headline for report in reports)
                seeds = tuple(range(seed, seed + len(reports)))
                mean = over_networks([e.value for e in each]).within(1.0, result.rows - 1)
                result = replace(result, over=Initialisations(seeds, each, mean))
        if out is not None:
            _write(result, out)
    emit(result, as_json)
    if invert:
        result.require()


@dataclass(frozen=True)
class _Subject:
    """What a kernel is of: network, data set and T by name, samples, outputs; classes if any."""

    names: tuple[str, str, int]
    x: Any
    labels: Any
    outputs: str | int
    seed: int

    @property
    def asked(self) -> dict[str, Any]:
        """The options that every way of computing it shares."""
        return {"T": self.names[2], "outputs": self.outputs}


def _kernel(
    network: SpikingModel,
    subject: _Subject,
    initialisation: int | None,
    folder: Path | None,
    per_timestep: bool,
    how: dict[str, Any],
) -> KernelReport:
    """The exact kernel; ``how`` are options of :func:`spikedim.ntk.gram`."""
    from spikedim.ntk import by_timestep, gram

    directory = None if folder is None else folder / "tiles"
    kernel = gram(network, subject.x, **subject.asked, directory=directory, **how)
    supervised = kernel.outputs != "full" and subject.labels is not None
    regression, steps = None, None
    if supervised:
        with suppress(DataError):  # too few samples of every class to hold any out
            regression = kernel.regression(subject.labels, seed=subject.seed)
    if per_timestep:
        steps = by_timestep(network, subject.x, **subject.asked, memory=how["memory"])
    return KernelReport(
        *subject.names,
        kernel.samples,
        kernel.parameters,
        kernel.outputs,
        kernel.surrogate,
        kernel.method,
        kernel.dtype,
        kernel.seconds,
        kernel.dimension(center=True, seed=subject.seed),
        kernel.dimension(center=False, seed=subject.seed),
        kernel.alignment(subject.labels) if supervised else None,
        kernel.alignment_by_chance(subject.labels, seed=subject.seed) if supervised else None,
        regression,
        kernel.contributions(),
        None if steps is None else steps.to_dict(),
        initialisation,
        kernel,
        steps,
    )


def _sketched(
    network: SpikingModel,
    subject: _Subject,
    initialisation: int | None,
    folder: Path | None,
    how: dict[str, Any],
) -> ApproximateReport:
    """``how`` are options of :func:`spikedim.ntk.sketched_gram`."""
    from spikedim.ntk import sketched_gram

    directory = None if folder is None else folder / "sketch"
    how = how | {"seed": subject.seed, "directory": directory}
    kernel = sketched_gram(network, subject.x, **subject.asked, **how)
    aligned = None
    if subject.labels is not None:
        with suppress(DataError):  # labels of one class
            aligned = kernel.alignment(subject.labels)
    about = (*subject.names, kernel.samples, "sketch")
    return ApproximateReport(*about, kernel, aligned, None, initialisation)


def _matrix_free(
    network: SpikingModel,
    subject: _Subject,
    initialisation: int | None,
    products: int,
    how: dict[str, Any],
) -> ApproximateReport:
    """``how`` are options of :class:`spikedim.ntk.KernelOperator`."""
    from spikedim.ntk import KernelOperator, kernel_spectrum, kernel_traces
    from spikedim.ntk.variants import samples_of

    operator = KernelOperator(network, subject.x, **subject.asked, **how)
    traces = kernel_traces(operator, products=products, seed=subject.seed)
    spectrum = kernel_spectrum(operator, count=EIGENVALUES, seed=subject.seed)
    about = (*subject.names, samples_of(subject.x), "matrix-free")
    return ApproximateReport(*about, traces, None, spectrum, initialisation)


def _write(result: Any, out: Path) -> None:
    """Result, figure and, of a kernel, its values."""
    import io

    import numpy as np

    from spikedim.storage import write_bytes, write_json

    write_json(out / "ntk.json", result)
    save_figure(result, out / "ntk.png")
    if isinstance(result, KernelReport):
        buffer = io.BytesIO()
        np.save(buffer, result._kernel.values)
        write_bytes(out / "kernel.npy", buffer.getvalue())
    say(f"Written to {out}")


def _check(
    modes: list[str],
    outputs: str,
    values: str | None,
    target_d_eff: float | None,
    target_reduction: float | None,
    rate: tuple[float, float] | None,
    dt: float | None,
    initialisations: int,
    checkpoint: Path | None,
) -> None:
    """Refuse options that do not go together."""
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)}: give one of them at a time")
    if outputs not in ("trace", "full") and not outputs.isdecimal():
        raise ConfigError(f"--outputs {outputs!r}: expected trace, full or the index of an output")
    if modes and outputs != "trace":
        raise ConfigError(f"{modes[0]} compares trace kernels; leave --outputs {outputs} out")
    if values is not None and not {"--sweep", "--one-sided"} & {*modes}:
        raise ConfigError("--values are those of --sweep; say which parameter")
    if dt is not None and not {"--regimes", "--invert"} & {*modes}:
        raise ConfigError("--dt is for the rates of --regimes and --invert")
    if rate is not None and "--invert" not in modes:
        raise ConfigError("--rate is the window of --invert; leave it out")
    targets = (target_d_eff, target_reduction)
    if any(target is not None for target in targets) and "--invert" not in modes:
        raise ConfigError("a target needs --invert")
    if initialisations > 1 and (checkpoint is not None or "--invert" in modes):
        raise ConfigError(
            f"--initialisations {initialisations} is for untrained networks, and not for --invert; "
            f"leave {'--invert' if checkpoint is None else '--checkpoint'} out"
        )


def _check_plain(
    modes: list[str],
    method: str,
    outputs: str,
    per_timestep: bool,
    engine: str,
    address: str | None,
    workers: int | None,
) -> None:
    """Refuse options of a single kernel where several are compared, and of Ray without it."""
    if per_timestep and (modes or outputs == "full"):
        raise ConfigError(
            f"--per-timestep is of one trace kernel; leave {(modes or ['--outputs full'])[0]} out"
        )
    if "--one-sided" in modes and method != "auto":
        raise ConfigError(f"--one-sided has a method of its own; leave --method {method} out")
    if modes and engine != "local":
        raise ConfigError(f"--engine {engine} is for a single kernel; leave {modes[0]} out")
    if engine == "local" and (address is not None or workers is not None):
        raise ConfigError("--address and --workers need --engine ray")


def _check_approximate(
    modes: list[str],
    method: str,
    outputs: str,
    per_timestep: bool,
    engine: str,
    probes: int | None,
    size: int | None,
) -> None:
    """Refuse options of exact kernels beside an estimate, and of estimates beside exact ones."""
    if method not in APPROXIMATE:
        if probes is not None or size is not None:
            name = "--probes" if probes is not None else "--size"
            raise ConfigError(f"{name} needs --method sketch or matrix-free")
        return
    extra = [
        *modes,
        *(["--per-timestep"] if per_timestep else []),
        *([f"--engine {engine}"] if engine != "local" else []),
    ]
    if method == "sketch" and outputs == "full":
        extra.append("--outputs full")
    if method == "matrix-free":
        extra += ["--size"] if size is not None else []
        if probes is not None and probes < 6:
            raise ConfigError(f"--probes {probes}: --method matrix-free needs 6 or more products")
    if extra:
        raise ConfigError(f"--method {method} does not go with {extra[0]}; leave one of them out")


def _neuron(
    network: SpikingModel, words: list[str] | None, kind: str | None, width: float | None
) -> dict[str, Any]:
    """Changes of the neuron that the options ask for."""
    import yaml

    from spikedim.neurons import Surrogate
    from spikedim.neurons import surrogate as shaped
    from spikedim.ntk.effects import SWEPT, neuron_fields

    own = network.config.neuron  # where it is not known, set_neurons refuses
    fields: dict[str, Any] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--neuron {word!r}: expected NAME=VALUE, e.g. refractory=1")
        name, given = name.strip(), yaml.safe_load(value)
        if name in SWEPT and isinstance(given, (int, float)) and name != "v_reset":
            fields |= neuron_fields(own, name, given)
        else:
            fields[name] = given
    if kind is not None:
        fields["surrogate"] = shaped(kind, width)
    elif width is not None:
        other = replace(own.surrogate, width=width) if own else Surrogate("sigmoid", width)
        fields["surrogate"] = other
    return fields


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--values {text!r}: expected numbers such as 0.5,1,2") from error
