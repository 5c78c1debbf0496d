"""Options shared by the verbs, so that one name means one thing everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    known = _spellings(context)
    unknown = sorted(str(key) for key in values if _plain(key) not in known)
    if unknown:
        shown = sorted({spelling for spelling, _ in known.values()})
        raise ConfigError(
            f"config {path}: unknown key {', '.join(unknown)}; known: {', '.join(shown)}"
        )
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        spelling, parameter = known[_plain(key)]
        if parameter.name in defaults:
            raise ConfigError(f"config {path}: {key} is given twice")
        try:
            found = _suited(parameter, value)
            if found is not None:
                parameter.process_value(context, found)  # else refused later, without the file
        except (ValueError, ConfigError) as error:
            raise ConfigError(f"config {path}: {key}: {error}") from error
        except typer.BadParameter as error:
            raise ConfigError(f"config {path}: {key}: {value!r}: {error.message}") from error
        opposite = f"--{spelling}" in parameter.secondary_opts
        defaults[parameter.name] = not found if opposite and found is not None else found
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _plain(key: Any) -> str:
    return str(key).replace("-", "_")


def _spellings(context: typer.Context) -> dict[str, tuple[str, Any]]:
    """What a key may be -> how it is shown, and the parameter; its Python name does too."""
    known: dict[str, tuple[str, Any]] = {}
    for parameter in context.command.params:
        every = (*parameter.opts, *parameter.secondary_opts)  # --center, --no-center
        long = [o.removeprefix("--") for o in every if o[:1] != "-" or o[:2] == "--"]
        if parameter.name != "config":
            known[_plain(parameter.name)] = (long[0], parameter)
            known |= {_plain(spelling): (spelling, parameter) for spelling in long}
    return known


def _suited(parameter: Any, value: Any) -> Any:
    """The value as the parameter takes it.

    Raises:
        ValueError: yes or no, where something else is meant, or something else for yes or no.
    """
    values = value if isinstance(value, list) else [value]
    flag = getattr(parameter, "is_flag", False)
    if flag and not isinstance(value, bool | None):
        raise ValueError(f"expected yes or no, got {value!r}")
    if not flag and any(isinstance(v, bool) for v in values):
        raise ValueError("expected a value, not yes or no; quote it if it is a word")
    repeated = getattr(parameter, "multiple", False) or parameter.nargs == -1
    return values if repeated and value is not None else value


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


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter does not keep its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def refuse_given(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse the first of the parameters that does not keep its default, as :func:`refuse`."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in names or source is None or not is_given(context, name):
            continue
        off = context.params[parameter.name] is False and parameter.secondary_opts
        option = (parameter.secondary_opts if off else parameter.opts)[0]
        from_file = f" (in {context.params['config']})" if source.name == "DEFAULT_MAP" else ""
        raise ConfigError(f"{option}{from_file} {why}")


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
