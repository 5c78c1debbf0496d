"""Networks by name: what exists, what was published about it, and how to build it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any

import torch

from spikedim.errors import ConfigError, ModelError
from spikedim.models.base import SpikingModel, override
from spikedim.models.recipes import recipe
from spikedim.neurons import LIFParams
from spikedim.results import Result, Table


@dataclass(frozen=True)
class PublishedResult:
    """One number from the literature, as printed there.

    Attributes:
        dataset, T: what was classified, in how many timesteps.
        accuracy: top-1 percent; ``None`` where only energy is reported.
        source, table: where it is printed.
        std, runs: spread in percentage points and number of seeds, where reported.
        sops_G, energy_mJ: synaptic operations (1e9) and energy per image, where reported.
    """

    dataset: str
    T: int
    accuracy: float | None
    source: str
    table: str
    std: float | None = None
    runs: int | None = None
    sops_G: float | None = None
    energy_mJ: float | None = None


@dataclass(frozen=True)
class ModelEntry(Result):
    """A registered network.

    Attributes:
        name, family, description: what it is.
        config: the frozen dataclass it is built from.
        source: where the network was defined.
        parameters: exact count with the entry's classes, unused ones included.
        unused_parameters: those the released code stores and never applies.
        gmac_per_step: dense convolution and linear multiply-accumulates (1e9) per timestep
            as published: the head counted at every step, by Spikformer once per four.
        published: results from the literature.
    """

    name: str
    family: str
    description: str
    config: Any
    source: str
    parameters: int | None = None
    unused_parameters: int = 0
    gmac_per_step: float | None = None
    published: tuple[PublishedResult, ...] = ()

    def tables(self) -> list[Table]:
        """The network, then its published results."""
        rows: list[tuple[str, Any]] = [("family", self.family), ("source", self.source)]
        rows += [(f.name, str(getattr(self.config, f.name))) for f in fields(self.config)]
        if self.parameters is not None:
            rows += [("parameters", self.parameters), ("of these unused", self.unused_parameters)]
        notes: tuple[str, ...] = ()
        if self.gmac_per_step is not None:
            rows.append(("dense GMAC per timestep", self.gmac_per_step))
            notes = (
                "GMAC as published: the head at every timestep, in Spikformer a quarter of it.",
            )
        if (published := recipe(self.name)) is not None:
            rows.append(("published training", published))
        tables = [Table(f"{self.name}: {self.description}", ("field", "value"), rows, notes)]
        if self.published:
            columns = ("dataset", "T", "accuracy %", "± (seeds)", "SOPs G", "mJ", "source")
            tables.append(
                Table(
                    "published",
                    columns,
                    [
                        (
                            p.dataset,
                            p.T,
                            p.accuracy,
                            None if p.std is None else f"{p.std} ({p.runs})",
                            p.sops_G,
                            p.energy_mJ,
                            f"{p.source}, {p.table}",
                        )
                        for p in self.published
                    ],
                )
            )
        return tables


_ENTRIES: dict[str, ModelEntry] = {}
_FAMILIES: dict[str, tuple[type[SpikingModel], type]] = {}


def register_family(config: type) -> Callable[[type[SpikingModel]], type[SpikingModel]]:
    """Class decorator: networks of this class are built from, and saved with, ``config``."""

    def decorate(cls: type[SpikingModel]) -> type[SpikingModel]:
        _FAMILIES[cls.family] = (cls, config)
        return cls

    return decorate


def register_model(function: Callable[[], ModelEntry]) -> Callable[[], ModelEntry]:
    """Decorator of a function that returns the :class:`ModelEntry` of its own name.

    Example:
        >>> from spikedim.models import ModelEntry, SpikformerConfig, register_model
        >>> @register_model
        ... def my_spikformer() -> ModelEntry:
        ...     config = SpikformerConfig(embed_dim=96, num_heads=3, depth=1)
        ...     return ModelEntry("my_spikformer", "spikformer", "narrow", config, "this lab")
    """
    entry = function()
    if entry.family not in _FAMILIES:
        raise ConfigError(
            f"model {entry.name!r} names family {entry.family!r}; known: {', '.join(_FAMILIES)}"
        )
    _ENTRIES[entry.name] = entry
    return function


def list_models(pattern: str = "*") -> list[str]:
    """Names of registered networks that match a shell pattern, sorted."""
    return sorted(name for name in _ENTRIES if fnmatchcase(name, pattern))


def model_entry(name: str) -> ModelEntry:
    """The registered network ``name``, or that of ``file.py:function``.

    Raises:
        ModelError: no such network; the message lists the nearest names.
    """
    if isinstance(name, str) and name in _ENTRIES:
        return _ENTRIES[name]
    if is_file(name):
        from spikedim.adapters.files import file_entry

        return file_entry(name)
    if callable(name):  # a network, or the function that makes one
        raise ModelError(
            f"model is a {type(name).__name__}, but a name is expected: networks are built anew "
            "for the data. Name a function that returns yours: path/to/file.py:function"
        )
    file = str(name).removesuffix(":")
    if file.endswith(".py"):
        raise ModelError(
            f"model {name!r} is a file; name the function in it that returns the network: "
            f"{file}:FUNCTION"
        )
    near = get_close_matches(str(name), _ENTRIES, n=3, cutoff=0.4) or list_models()[:3]
    raise ModelError(
        f"unknown model {name!r}; nearest: {', '.join(near)} (all of them: spikedim models, in "
        "Python list_models())"
    )


def is_file(name: str) -> bool:
    """Whether a network is named by a file and a function in it, ``path/to/file.py:function``."""
    path, _, function = name.rpartition(":") if isinstance(name, str) else ("", "", "")
    return path.endswith(".py") and function != ""


def reads_text(name: str) -> bool:
    """Whether the network ``name`` reads token ids."""
    return not is_file(name) and len(model_entry(name).config.input_shape) == 1


def reads_in_time(name: str) -> bool:
    """Whether the network ``name`` reads one token at each timestep."""
    return not is_file(name) and _FAMILIES[model_entry(name).family][0].reads_in_time


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    neuron: LIFParams | None = None,
    seed: int | None = 0,
    **overrides: Any,
) -> SpikingModel:
    """Build a registered network, with fresh weights, in training mode.

    Args:
        name: see :func:`list_models`; or ``path/to/file.py:function``, a function that returns
            your own network, see :func:`spikedim.adapters.files.file_model`.
        num_classes: classes of the head; ``None`` keeps the registered number.
        input_shape: (C, H, W) of one frame; ``None`` keeps the registered one.
        neuron: parameters of every neuron.
        seed: seed of the weights, drawn without touching torch's global generator; ``None``
            draws from that generator, as any torch module does.
        **overrides: further fields of the family's configuration, e.g. ``depth=1``.

    Raises:
        ModelError: an unknown name, or an image too small for the network.
        ConfigError: an unknown override, or a value out of its domain.

    Example:
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_tiny", num_classes=10, input_shape=(1, 8, 8))
    """
    given: dict[str, Any]
    given = {"num_classes": num_classes, "input_shape": input_shape, "neuron": neuron}
    if is_file(name):
        from spikedim.adapters.files import file_model

        return file_model(name, seed=seed, **given, **overrides)
    entry = model_entry(name)
    changes = {key: value for key, value in given.items() if value is not None}
    config = override(entry.config, {**changes, **overrides}, f"option of {name}")
    return build_model(entry.family, config, seed)


def build_model(family: str, config: Any, seed: int | None = 0) -> SpikingModel:
    """Build a network of ``family`` from its configuration dataclass; ``seed`` as above."""
    cls: Any = _FAMILIES[family][0]
    if seed is None:
        model: SpikingModel = cls(config)
        return model
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ConfigError(f"seed={seed!r}: expected a whole number or None")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        model = cls(config)
    return model


def is_family(family: str) -> bool:
    """Whether networks of ``family`` are built from a configuration alone."""
    return family in _FAMILIES


def config_class(family: str) -> type:
    """The configuration dataclass of ``family``.

    Raises:
        ModelError: no such family.
    """
    if family not in _FAMILIES:
        raise ModelError(f"unknown model family {family!r}; known: {', '.join(_FAMILIES)}")
    return _FAMILIES[family][1]
