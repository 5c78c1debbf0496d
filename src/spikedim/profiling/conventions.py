"""Energy conventions as data: what an operation costs and which operations are charged at all.

An energy of a spiking network is not one number: on the same network and inputs the published
rules differ by more than four times. A convention states every choice that makes the difference;
:func:`convention` loads one by name (shipped YAML) or by path (the user's own).
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from spikedim.errors import ConfigError

_STRICT = ConfigDict(extra="forbid")
Picojoules = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_RULES = {
    "spikes": {
        "rate": "binary inputs: nonzero fraction x dense MACs accumulations (padding included)",
        "fanout": "binary inputs: an accumulation per synapse a spike reaches (exact at borders)",
    },
    "integers": {
        "nonzero": "integer inputs: one event per nonzero value",
        "unit-spikes": "integer inputs: a value k is k unit spikes",
        "effective-mac": "integer inputs: one MAC per nonzero value and synapse",
        "dense-mac": "integer inputs: dense MACs",
    },
    "reals": {
        "dense": "real inputs: dense MACs",
        "effective": "real inputs: one MAC per nonzero value and synapse",
    },
    "products": {
        "driver": "attention products: events of the driving spike operand x its fan-out",
        "coincident": "attention products: pairs of spikes that meet (one spike operand: "
        "its events x fan-out)",
        "excluded": "attention products not charged",
    },
    "first_layer": {
        "mac": "layers before the first neuron are MACs when the input is static",
        "by-kind": "layers before the first neuron are charged by the kind of their input",
    },
    "first_layer_repeats": {
        "per-step": "a static input is charged in the first layer T times, computed once or not",
        "once": "a static input is charged in the first layer once",
    },
}


@dataclass(frozen=True, config=_STRICT)
class UnitEnergy:
    """Energy of one operation of each sort, in pJ; a sort that is not charged stays 0."""

    mac: Picojoules = 0.0
    accumulate: Picojoules = 0.0
    neuron_update: Picojoules = 0.0
    spike: Picojoules = 0.0


@dataclass(frozen=True, config=_STRICT)
class EnergyConvention:
    """Every choice behind an energy figure.

    Attributes:
        name: what tables print beside the figure.
        description: one line.
        energy: pJ per MAC, per accumulation, per neuron update and per emitted spike.
        technology: process node and precision the unit energies belong to.
        source: where the rule and the unit energies come from.
        spikes: how binary inputs of convolutions and linear layers are charged: ``rate``
            (fraction of nonzero inputs x dense MACs) or ``fanout`` (synapses really reached).
        integers: inputs that are whole numbers beyond 0 and 1 (additive residuals): ``nonzero`` and
            ``unit-spikes`` charge accumulations by the rule of ``spikes``, with a value k as
            one or as k events; ``effective-mac`` and ``dense-mac`` charge MACs.
        reals: any other input: ``dense`` or ``effective`` (nonzero only) MACs.
        products: products q kᵀ of two activations. ``driver`` charges the events of one operand
            times its fan-out: the operand of the simpler kind (binary before integer before
            real), the left one if both are alike; an integer driver follows ``integers``.
            ``coincident`` differs where both are binary: it charges the triples (i, k, j) with
            spikes in q[i, k] and kᵀ[k, j]. Two real operands are MACs (``reals``).
            ``excluded`` charges nothing.
        first_layer: ``mac`` charges layers ahead of the first neuron as MACs of a real input when
            the input is static, even if its values happen to be binary; ``by-kind`` does not.
        first_layer_repeats: static input only: ``per-step`` charges those layers T times even if
            the network computed them once; ``once`` charges them once even if it did not.
        includes, excludes: what the figure covers and leaves out, for the reader.
    """

    name: Annotated[str, Field(min_length=1)]
    description: str
    energy: UnitEnergy
    technology: str
    source: str
    spikes: Literal["rate", "fanout"]
    integers: Literal["nonzero", "unit-spikes", "effective-mac", "dense-mac"]
    reals: Literal["dense", "effective"]
    products: Literal["driver", "coincident", "excluded"]
    first_layer: Literal["mac", "by-kind"]
    first_layer_repeats: Literal["per-step", "once"]
    includes: tuple[str, ...]
    excludes: tuple[str, ...]

    @property
    def scope(self) -> str:
        """The convention in words: unit energies, rules, what is in and what is out."""
        prices = {
            "MAC": self.energy.mac,
            "accumulation": self.energy.accumulate,
            "neuron update": self.energy.neuron_update,
            "spike": self.energy.spike,
        }
        units = ", ".join(f"{pj:g} pJ per {what}" for what, pj in prices.items() if pj)
        rules = "; ".join(texts[getattr(self, rule)] for rule, texts in _RULES.items())
        return (
            f"{self.name}: {self.description} {units or 'no unit energies'} ({self.technology}). "
            f"{rules}. Includes {', '.join(self.includes) or 'nothing else'}. "
            f"Leaves out {', '.join(self.excludes) or 'nothing'}. Source: {self.source}"
        )


def list_conventions() -> tuple[str, ...]:
    """Names of the conventions that ship with the package."""
    return tuple(sorted(_shipped()))


def convention(name: str | Path | EnergyConvention) -> EnergyConvention:
    """Return the convention called ``name``, or the one a YAML file describes.

    Args:
        name: a name from :func:`list_conventions`, the path of a ``.yaml``/``.yml`` file with the
            fields of :class:`EnergyConvention`, or a convention, returned as it is.

    Raises:
        ConfigError: unknown name, unreadable file, or a field missing, unknown or out of domain.

    Example:
        >>> convention("paper-sop").energy.mac
        4.6
    """
    if isinstance(name, EnergyConvention):
        return name
    shipped = _shipped()
    if str(name) in shipped:
        return _parse(shipped[str(name)], f"convention {name}")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"unknown energy convention {str(name)!r}; choose one of {', '.join(shipped)}, "
            "or give the path of a .yaml file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read energy convention {path}: {error}") from error
    return _parse(text, str(path))


@cache
def _shipped() -> dict[str, str]:
    folder = resources.files("spikedim.profiling") / "conventions"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files}


def _parse(text: str, where: str) -> EnergyConvention:
    try:
        return TypeAdapter(EnergyConvention).validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{where} is not an energy convention: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first, *others = error.errors()
    place = ".".join(str(part) for part in first["loc"]) or "the whole file"
    more = f" (and {len(others)} more)" if others else ""
    return f"field {place}: {first['msg']}, got {first.get('input')!r:.60}{more}"
