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
Category = Literal["normalisation", "pooling", "softmax", "reduction", "elementwise"]
Picojoules = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_RULES = {
    "spikes": {
        "rate": "binary inputs: nonzero fraction x dense MACs accumulations (padding included)",
        "fanout": "binary inputs: an accumulation per synapse a spike reaches (exact at borders)",
    },
    "ternary": {
        "spikes": "values -1, 0, 1 are spikes",
        "integers": "values -1, 0, 1 are integers",
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
    "weights": {
        "all": "every weight is a synapse",
        "nonzero": "weights that are exactly zero are no synapses",
    },
    "judged": {
        "run": "inputs are of the widest kind seen in the whole run",
        "call": "inputs are classified anew in every execution",
    },
    "first_layer": {
        "mac": "layers before the first neuron are MACs when the input is static",
        "by-kind": "layers before the first neuron are charged by the kind of their input",
    },
    "first_layer_repeats": {
        "per-step": "a static input is charged in the first layer T times, computed once or not",
        "once": "a static input is charged in the first layer once",
        "as-run": "a static input is charged in the first layer as often as it was computed",
    },
}
# Left unsaid where a convention keeps to them.
_DEFAULTS = (
    _RULES["ternary"]["integers"],
    _RULES["weights"]["all"],
    _RULES["judged"]["run"],
)
_PRICES = {
    "mac": "MAC",
    "accumulate": "accumulation",
    "neuron_update": "neuron update",
    "spike": "spike",
    "weight_read": "weight read",
    "value_access": "value read or written",
    "spike_access": "spike bit read or written",
    "state_access": "membrane potential read or written",
}


@dataclass(frozen=True, config=_STRICT)
class UnitEnergy:
    """Energy of one operation of each sort, in pJ; a sort that is not charged stays 0.

    Attributes:
        mac, accumulate: arithmetic of a synapse.
        neuron_update: one neuron, one timestep.
        spike: one spike emitted, however many synapses it reaches.
        weight_read: one weight. An operation reads its weights once per timestep and sample.
        value_access: one integer or real activation read by an operation, or one value it writes.
        spike_access: one binary activation read by an operation, or one neuron's output written.
        state_access: one membrane potential; a neuron reads and writes its own at every timestep.
        other: one operation of a category without synapses, see :data:`CATEGORIES`.
    """

    mac: Picojoules = 0.0
    accumulate: Picojoules = 0.0
    neuron_update: Picojoules = 0.0
    spike: Picojoules = 0.0
    weight_read: Picojoules = 0.0
    value_access: Picojoules = 0.0
    spike_access: Picojoules = 0.0
    state_access: Picojoules = 0.0
    other: dict[Category, Picojoules] = Field(default_factory=dict)

    @property
    def memory(self) -> bool:
        """Whether traffic is charged."""
        return any((self.weight_read, self.value_access, self.spike_access, self.state_access))


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
        ternary: values -1, 0 and 1 count as ``spikes`` or as ``integers``.
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
        weights: ``all``, or ``nonzero`` for networks whose zero weights are not stored.
        judged: whether the kind of an input is that of the whole ``run`` or of each ``call``, as
            tools that look at one batch at a time have it (figures then depend on the batches).
        first_layer: ``mac`` charges layers ahead of the first neuron as MACs of a real input when
            the input is static, even if its values happen to be binary; ``by-kind`` does not.
        first_layer_repeats: static input only: ``per-step`` charges those layers T times even if
            the network computed them once; ``once`` charges them once even if it did not;
            ``as-run`` charges what was computed.
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
    first_layer_repeats: Literal["per-step", "once", "as-run"]
    includes: tuple[str, ...]
    excludes: tuple[str, ...]
    ternary: Literal["spikes", "integers"] = "integers"
    weights: Literal["all", "nonzero"] = "all"
    judged: Literal["run", "call"] = "run"

    @property
    def scope(self) -> str:
        """The convention in words: unit energies, rules, what is in and what is out."""
        prices = {what: getattr(self.energy, name) for name, what in _PRICES.items()}
        prices |= {f"operation of {name}": pj for name, pj in self.energy.other.items()}
        units = ", ".join(f"{pj:g} pJ per {what}" for what, pj in prices.items() if pj)
        synaptic = self.energy.mac or self.energy.accumulate
        stated = [texts[getattr(self, rule)] for rule, texts in _RULES.items() if synaptic]
        rules = "; ".join(text for text in stated if text not in _DEFAULTS)
        return (
            f"{self.name}: {self.description} {units or 'no unit energies'} ({self.technology}). "
            f"{rules + '. ' if rules else ''}"
            f"Includes {', '.join(self.includes) or 'nothing else'}. "
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


@cache
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
