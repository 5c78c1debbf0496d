"""Options shared by the verbs, so that one name means one thing everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from spikedim.errors import ConfigError


def _load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults from a YAML file whose keys are this command's long option names."""
    if path is None:
        return None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path} must be a mapping of option names to values")
    known = {p.name for p in context.command.params if p.name} - {"config"}
    defaults = {str(key).replace("-", "_"): value for key, value in values.items()}
    unknown = sorted(set(defaults) - known)
    if unknown:
        raise ConfigError(
            f"config {path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def integers(text: Any) -> tuple[int, ...]:
    """Parse ``1,2,4`` (or a YAML list) into positive whole numbers."""
    words = text if isinstance(text, (list, tuple)) else str(text).split(",")
    try:
        values = tuple(sorted({int(word) for word in words}))
    except ValueError:
        values = ()
    if not values or values[0] < 1:
        raise ConfigError(
            f"--timesteps {text!r} (-T): expected whole numbers of at least 1, e.g. 1,2,4,8"
        )
    return values


def refuse(given: Mapping[str, Any], why: str) -> None:
    """Refuse the first option that was given although it does not apply.

    Args:
        given: option name -> value, ``None`` where it was left out.
        why: the rest of the sentence after ``--NAME VALUE``.

    Raises:
        ConfigError: one was given.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name} {value} {why}")


Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Data set: a built-in name, a sample name, or a path (spikedim data); FOLDER@N brings "
        "the images of a folder to N x N pixels; NAME@raw gives networks pixels in [0, 1] instead "
        "of standardised ones.",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data samples and downloads.", envvar="SPIKEDIM_DATA", show_envvar=True
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Network name (spikedim models), or FILE.py:FUNCTION that returns your own network.",
    ),
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights to load (.pt, .pth, .ckpt, .safetensors).")
]
Timesteps = Annotated[
    Any,
    typer.Option(
        "--timesteps", "-T", parser=integers, metavar="LIST", help="Timesteps, e.g. 1,2,4,8."
    ),
]
OneT = Annotated[int, typer.Option("--timesteps", "-T", help="Number of timesteps T.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Run directory; default runs/COMMAND-DATA-MODEL-DIGEST."),
]
Epochs = Annotated[
    int | None, typer.Option(help="Training epochs at each setting; default by model and device.")
]
TrainSamples = Annotated[
    int | None,
    typer.Option(help="At most this many training samples (stratified); 0 for all of them."),
]
TestSamples = Annotated[
    int | None, typer.Option(help="At most this many test samples (stratified); 0 for all.")
]
Encoder = Annotated[
    Literal["direct", "bernoulli", "latency"],
    typer.Option(
        help="How images become input: repeated values, Bernoulli or latency spikes. Event "
        "recordings are their counts in T frames, texts their words."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Trainings at once; default one per CPU core, one on a GPU."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file of option values.", callback=_load_config, is_eager=True
    ),
]
