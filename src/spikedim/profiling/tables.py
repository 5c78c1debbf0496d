"""A profile as tables a person reads in a terminal, a notebook or a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spikedim.profiling.result import Profile
from spikedim.results import UNCHARGED, Table, charged, number

_BLOCKS = " ▁▂▃▄▅▆▇█"
_MOST_STEPS = 16


def profile_tables(profile: Profile) -> list[Table]:
    """All tables of a profile, the most important first."""
    tables = [_energy(profile), _comparison(profile)]
    if profile.gates:
        rows = [(g.layer, g.gate, g.severity, g.message, g.mend) for g in profile.gates]
        tables.append(Table("Findings", ("layer", "gate", "severity", "what", "mend"), rows))
    tables += [_distribution(profile), _layers(profile), _operations(profile)]
    if profile.others:
        tables.append(_others(profile))
    if profile.unsupported:
        tables.append(_unsupported(profile))
    return tables


def _unsupported(profile: Profile) -> Table:
    rows = [(u.name, u.calls, u.operations, f"{u.share:.2%}") for u in profile.unsupported]
    columns = ("operation", "calls a pass", "values per sample", "share of operations, at least")
    note = "One operation is taken for every value read or written; register_rule counts more."
    return Table("Operations without a counting rule", columns, rows, (note,))


def blocks(values: Sequence[float], top: float | None = None) -> str:
    """Values as a row of blocks, full at ``top`` (the largest value by default)."""
    top = max(values, default=0.0) if top is None else top
    if not top:
        return "".join("·" for _ in values)
    last = len(_BLOCKS) - 1
    return "".join(
        _BLOCKS[max(1, min(last, math.ceil(last * v / top)))] if v else "·" for v in values
    )


def _energy(profile: Profile) -> Table:
    correct = {item.convention: item.energy for item in profile.per_correct}
    columns = ["convention", "energy per sample", "MACs", "accumulations"]
    rows = []
    for item in (*profile.energy, profile.dense, profile.quantised):
        macs = charged(number(item.macs), "MAC", item.uncharged)
        accumulates = charged(number(item.accumulates), "accumulation", item.uncharged)
        row = [item.convention, item.total, macs, accumulates]
        rows.append([*row, correct.get(item.convention)] if correct else row)
    if correct:
        columns.append("energy per correct prediction")
    notes = tuple(item.scope for item in (*profile.energy, profile.dense, profile.quantised))
    if any(item.uncharged for item in profile.energy):
        notes = (UNCHARGED, *notes)
    if profile.state:
        notes = (f"Network: {profile.state}.", *notes)
    accuracy = f", {profile.accuracy} accuracy" if profile.accuracy else ""
    title = (
        f"{profile.model} at T = {profile.T}: energy by convention "
        f"({profile.spikes_per_sample} per sample{accuracy}, "
        f"n = {profile.samples})"
    )
    return Table(title, columns, rows, notes)


def _comparison(profile: Profile) -> Table:
    rows = []
    for item in profile.comparisons:
        if item.crossover == 0:
            verdict = "never: more even without a spike"
        elif item.crossover == math.inf or item.crossover >= 1:
            verdict = "always: less even at one spike per step"
        else:
            verdict = f"below {number(item.crossover, 3)}"
        gain = number(item.gain, 3) + " x" if math.isfinite(item.gain) else "∞"
        rows.append((item.convention, item.baseline, gain, item.rate, verdict))
    columns = ("convention", "against", "conventional / this", "rate now", "spikes win at rates")
    note = (
        "Rates are spikes per neuron and step over all layers; the crossover multiplies every "
        "layer's rate by one factor. The conventional network is priced at 45 nm, pays for the "
        "traffic of weights and activations where the convention does, and for every zero."
    )
    return Table("Against conventional networks of the same shapes", columns, rows, (note,))


def _distribution(profile: Profile) -> Table:
    spikes = profile.sample_spikes
    low, q1, median, q3, high = np.quantile(spikes, (0, 0.25, 0.5, 0.75, 1))
    bars = blocks([float(c) for c in np.histogram(spikes, bins=min(24, max(4, len(spikes))))[0]])
    few = len(spikes) < 2
    spread = None if few else float(np.std(spikes, ddof=1) / max(1.0, spikes.mean()))
    row = (low, q1, median, q3, high, spread, bars)
    columns = ("least", "25 %", "median", "75 %", "most", "std / mean", "least to most")
    title = f"Spikes per sample, over {profile.samples} samples"
    return Table(title, columns, [row])


def _layers(profile: Profile) -> Table:
    top = max((max(layer.rate_per_step, default=0.0) for layer in profile.layers), default=0.0)
    rows = [
        (
            layer.name,
            layer.neurons,
            layer.rate,
            blocks(layer.rate_per_step, top) if profile.T <= 64 else None,
            *(
                [f"{100 * rate:.1f}" for rate in layer.rate_per_step] or ["–"] * profile.T
                if profile.T <= _MOST_STEPS
                else []
            ),
            layer.spikes.value,
            layer.output,
        )
        for layer in profile.layers
    ]
    steps = [f"t{t + 1} %" for t in range(profile.T)] if profile.T <= _MOST_STEPS else []
    columns = ("spiking layer", "neurons", "rate per step", "over time", *steps, "spikes", "output")
    note = f"Blocks are filled at {100 * top:.1f} %, the highest rate of any layer and step."
    return Table("Firing rates by layer and timestep", columns, rows, (note,))


def _operations(profile: Profile) -> Table:
    first = profile.energy[0] if profile.energy else None
    steps = first.layers() if first else {}
    rows = [
        (
            f"{o.layer} {o.operation}",
            " x ".join(o.inputs),
            " x ".join(number(rate, 3) for rate in o.rates),
            o.copies,
            o.dense,
            " | ".join(number(count) for count in o.fanout),
            o.coincident,
            blocks(steps[o.layer][:-1]) if o.layer in steps and profile.T <= 64 else None,
        )
        for o in profile.operations
    ]
    columns = (
        "operation",
        "input",
        "nonzero",
        "runs",
        "dense MACs",
        "events x fan-out",
        "coincident",
        f"{first.convention} energy over time" if first else "over time",
    )
    note = (
        f"MACs and events are sums over runs: {profile.T} where a layer runs at every timestep; "
        "a convention may charge what ran once, for a static input, at every timestep."
    )
    return Table("Synaptic operations by layer, per sample", columns, rows, (note,))


def _others(profile: Profile) -> Table:
    rows = [(c.category, c.calls, c.elements, c.operations) for c in profile.categories]
    columns = ("category", "calls a pass", "values written per sample", "operations per sample")
    note = "By layer in the JSON export (others). Charged only by a convention that prices them."
    return Table("Operations without synapses", columns, rows, (note,))
