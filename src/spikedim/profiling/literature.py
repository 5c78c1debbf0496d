"""Published operations and energies, recomputed from architectures and stated firing rates.

Each row of ``literature.csv`` is one published number as printed; its rule says what its authors
charged. The arithmetic is redone with the dense operations of the registered network of that
name; where it does not close, the calculation that does, or the closest, is shown.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources

from spikedim.profiling.baselines import DENSE_MAC_PJ
from spikedim.profiling.shapes import Shapes, shapes
from spikedim.progress import track
from spikedim.results import Result, Table

MAC, ADD, SPIKE, PREPRINT = DENSE_MAC_PJ, 0.9, 14.0, 0.077
#: First layer of the 64-channel stem (D = 512) at four steps as the Spikformer tables hold it,
#: in G: 4 x 224² x 27 x 64 = 0.3468, rounded.
_STEM_64_G = 0.347
_PAPER_SIZE = 224


@dataclass(frozen=True)
class Published:
    """One row of the literature, numbers as printed.

    Attributes:
        network: as its source calls it.
        model: registered name of the architecture; empty where there is none.
        size: height and width of the image.
        T: timesteps.
        rule: what the energy is said, or found, to be made of.
        sops_G, macs_G, energy_mJ: as printed; empty where not reported.
        source, url, place: where.
    """

    network: str
    model: str
    size: int
    T: int
    rule: str
    sops_G: str
    macs_G: str
    energy_mJ: str
    source: str
    url: str
    place: str


@dataclass(frozen=True)
class Explained:
    """A published energy beside its recomputation.

    Attributes:
        published: the row.
        recomputed: mJ; ``None`` where the printed numbers do not determine it.
        verdict: ``closes``; ``flag`` (the printed digits follow, but from a number that is not
            this network's or not an energy); ``fails``; ``open`` (too little is printed; the
            calculation says what it implies).
        calculation: in words and numbers.
    """

    published: Published
    recomputed: float | None
    verdict: str
    calculation: str


@dataclass(frozen=True)
class StatedRate:
    """A published firing rate and what it costs on this architecture.

    Attributes:
        network, model, size, T: as in :class:`Published`.
        operations: pattern of the operations that read these spikes.
        called: the source's name for them.
        rate: spikes per neuron and step.
        dense_G: dense MACs of these operations per timestep, 1e9.
        sops_G: ``rate · T · dense``, 1e9.
        energy_mJ: at 0.9 pJ.
        source, url, place: where.
    """

    network: str
    model: str
    size: int
    T: int
    operations: str
    called: str
    rate: float
    dense_G: float
    sops_G: float
    energy_mJ: float
    source: str
    url: str
    place: str


@dataclass(frozen=True)
class Literature(Result):
    """Every published energy that was recomputed, and every stated firing rate.

    Attributes:
        rows: published energies.
        rates: stated rates, priced.
        remainders: per network with stated rates, what the rest of it must do.
    """

    rows: tuple[Explained, ...]
    rates: tuple[StatedRate, ...]
    remainders: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Flags first, then what closes, what is left open, and the stated rates."""
        titles = {
            "flag": "Flagged: the printed digits follow, but not from this network",
            "fails": "Does not close",
            "closes": "Closes: printed digits follow from printed operations and the architecture",
            "open": "Open: too little is printed to recompute the energy; what it implies",
        }
        columns = ("network", "px", "T", "SOPs G", "printed mJ", "recomputed", "where")
        tables = []
        for verdict, title in titles.items():
            chosen = [row for row in self.rows if row.verdict == verdict]
            rows = [
                (
                    r.published.network,
                    r.published.size,
                    r.published.T,
                    r.published.sops_G or None,
                    r.published.energy_mJ,
                    None if r.recomputed is None else _like(r.recomputed, r.published.energy_mJ),
                    f"{r.published.source}, {r.published.place}",
                )
                for r in chosen
            ]
            notes = [
                f"{r.published.network}, {r.published.size} px, T = {r.published.T}: "
                f"{r.calculation}."
                for r in chosen
            ]
            if rows:
                tables.append(Table(f"{title} ({len(rows)})", columns, rows, notes))
        tables.append(self._rate_table())
        return tables

    def _rate_table(self) -> Table:
        columns = ("network", "operations", "input", "rate", "dense G", "SOPs G", "mJ", "where")
        rows = [
            (r.network, r.operations, r.called, r.rate, r.dense_G, r.sops_G, r.energy_mJ, r.source)
            for r in self.rates
        ]
        return Table("Stated firing rates, priced", columns, rows, self.remainders)


def published_energies() -> tuple[Published, ...]:
    """The rows that ship with the package."""
    return tuple(
        Published(**{**row, "size": int(row["size"]), "T": int(row["T"])})  # type: ignore[arg-type]
        for row in _read("literature.csv")
    )


def explain_literature() -> Literature:
    """Recompute every published energy that ships with the package.

    Example:
        >>> found = explain_literature()
        >>> {row.verdict for row in found.rows} <= {"closes", "flag", "fails", "open"}
        True
    """
    listed = track(published_energies(), "recomputing published energies")
    rows = tuple(_RULES[row.rule](row) for row in listed)
    rates = tuple(_stated(row) for row in _read("literature_rates.csv"))
    return Literature(rows, rates, _remainders(rates, rows))


def _read(name: str) -> list[dict[str, str]]:
    text = (resources.files("spikedim.profiling") / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def _shapes(model: str, size: int) -> Shapes:
    return shapes(model, size)


def _of(row: Published) -> Shapes:
    return _shapes(row.model, row.size)


def _decimals(printed: str) -> int:
    return len(printed.partition(".")[2])


def _like(value: float, printed: str) -> str:
    """``value`` with as many decimals as the printed number."""
    return f"{value:.{_decimals(printed)}f}"


def _slack(printed: str) -> float:
    return 0.5 * 10.0 ** -_decimals(printed)


def _meets(value: float, printed: str, spread: float = 0.0) -> bool:
    """Whether ``value ± spread`` rounds to the printed number somewhere."""
    return abs(value - float(printed)) <= spread + _slack(printed) * (1 + 1e-9)


def _first_G(row: Published) -> float:
    """Dense MACs of the layers before the first neuron in all T steps, 1e9."""
    return row.T * _of(row).macs(stem=True) / 1e9


def _first_layer(row: Published) -> Explained:
    """Spikformer's table: 0.9 pJ per SOP and a first layer that should be the network's own."""
    sops, own = float(row.sops_G), _first_G(row)
    value, spread = MAC * own + ADD * sops, ADD * _slack(row.sops_G)
    constant = MAC * _STEM_64_G + ADD * sops
    text = f"{ADD} x {row.sops_G} + {MAC} x {own:.4f} (own first layer, G MAC) = {value:.3f}"
    table = (
        f"{ADD} x {row.sops_G} + {MAC} x {_STEM_64_G} = {constant:.3f}: the 1.596 mJ are the "
        "64-channel first layer of the D = 512 network (4 x 224² x 27 x 64, rounded)"
    )
    if _meets(value, row.energy_mJ, spread):
        return Explained(row, constant, "closes", f"{table}, which is this network's own")
    if _meets(constant, row.energy_mJ):
        text = f"{table}, charged to every size; {text} for this one"
        return Explained(row, constant, "flag", text)
    return Explained(row, value, "fails", text)


def _preprint(row: Published) -> Explained:
    value = PREPRINT * float(row.sops_G)
    text = (
        f"0.077 x {row.sops_G} = {value:.4f}: 77 fJ per SOP and no first layer; "
        f"the same operations are {ADD * float(row.sops_G):.3f} mJ at 0.9 pJ"
    )
    return Explained(row, value, "flag" if _meets(value, row.energy_mJ) else "fails", text)


def _integer_mac(row: Published) -> Explained:
    """Layers that read residual sums are MACs: what rate of nonzero inputs would that take?"""
    found = _of(row)
    integer = sum(
        o.dense
        for o in found.operations
        if any(part in o.layer for part in (".q_", ".k_", ".v_", ".fc1_"))
    )
    spikes = MAC * _first_G(row) + ADD * float(row.sops_G)
    extra = float(row.energy_mJ) - spikes
    rate = extra / ((MAC - ADD) * row.T * integer / 1e9)
    text = (
        f"own first layer and SOPs give {spikes:.2f}; the other {extra:.2f} are {MAC} - {ADD} pJ "
        f"on {row.T * integer / 1e9:.2f} G dense MACs of q, k, v and fc1 if {rate:.1%} of "
        "their inputs are nonzero, a rate that is not printed"
    )
    return Explained(row, None, "open", text)


def _first_and_head(row: Published) -> Explained:
    """Spikingformer: own first layer at each step and the head once as MACs."""
    found = _of(row)
    head = sum(o.dense for o in found.operations if o.layer == "head") / 1e9
    macs = _first_G(row) + head
    value = MAC * macs + ADD * float(row.sops_G)
    spread = ADD * _slack(row.sops_G)
    text = (
        f"{ADD} x {row.sops_G} + {MAC} x {macs:.4f} (first layer at {row.T} steps, head once) = "
        f"{value:.4f}"
    )
    if row.macs_G:
        agree = "as" if _meets(macs, row.macs_G) else "not as"
        text += f"; MACs {agree} printed ({row.macs_G} G)"
    if not _meets(value, row.energy_mJ):
        text += f", ± {spread:.4f} for the rounding of the SOPs"
    closes = _meets(value, row.energy_mJ, spread)
    return Explained(row, value, "closes" if closes else "fails", text)


def _no_first_layer(row: Published) -> Explained:
    value, stem = ADD * float(row.sops_G), MAC * _first_G(row)
    closes = _meets(value, row.energy_mJ, ADD * _slack(row.sops_G))
    text = (
        f"{ADD} x {row.sops_G} = {value:.3f}; the first layer and the classifier are left out: "
        f"the first would add {stem:.2f} mJ at every step, {stem / row.T:.2f} mJ computed once"
    )
    return Explained(row, value, "closes" if closes else "fails", text)


def _stem_repeats(row: Published) -> Explained:
    once = float(row.place.split(":")[1].split()[0])
    added = MAC * _first_G(row) * (row.T - 1) / row.T
    value = once + added
    text = (
        f"{once} + {row.T - 1} x {MAC} x {_first_G(row) / row.T:.4f} (first layer, G MAC) = "
        f"{value:.4f}"
    )
    closes = _meets(value, row.energy_mJ, 0.0005)
    return Explained(row, value, "closes" if closes else "fails", text)


def _mean_rate(row: Published) -> Explained:
    """Only an energy is printed: the mean rate at which the rest of the network would cost it."""
    first = _first_G(row)
    rest, rate = _implied(row, row.size)
    text = (
        f"({row.energy_mJ} - {MAC} x {first:.3f}) / ({ADD} x {rest:.2f} G dense beyond the first "
        f"layer, {row.T} step{'s' if row.T > 1 else ''}) = mean rate {rate:.3f}; no SOPs printed"
    )
    if row.size != _PAPER_SIZE:
        text += f"; of images of {_PAPER_SIZE} px it would be {_implied(row, _PAPER_SIZE)[1]:.3f}"
    if not 0 <= rate <= 1:
        bare = float(row.energy_mJ) / (ADD * rest)
        text += f", impossible: without the first layer it is {bare:.3f}"
        return Explained(row, None, "fails", text)
    return Explained(row, None, "open", text)


def _implied(row: Published, size: int) -> tuple[float, float]:
    """Dense MACs beyond the first layer in all steps, 1e9, and the mean rate they must run at."""
    found = _shapes(row.model, size)
    first, rest = (row.T * found.macs(stem=stem) / 1e9 for stem in (True, False))
    return rest, (float(row.energy_mJ) - MAC * first) / (ADD * rest)


def vit_macs(
    size: int, patch: int = 16, dim: int = 768, depth: int = 12, classes: int = 1000
) -> int:
    """Dense MACs of a vision transformer with a class token and MLPs of ratio 4.

    ``(n-1)·3·patch²·D + L·(12·n·D² + 2·n²·D) + D·classes`` with ``n = (size/patch)² + 1``.
    """
    n = (size // patch) ** 2 + 1
    block = 12 * n * dim**2 + 2 * n**2 * dim
    return (n - 1) * 3 * patch**2 * dim + depth * block + dim * classes


def _ann(row: Published) -> Explained:
    """A conventional network at 4.6 pJ per MAC."""
    printed = float(row.macs_G)
    value = MAC * printed
    own = ""
    if row.model == "vit_b_16":
        exact = vit_macs(row.size) / 1e9
        own = f"; the architecture has {exact:.2f} G, {MAC * exact:.1f} mJ"
    elif row.model:
        found = _of(row)
        own = f"; the spiking network of these shapes has {found.macs() / 1e9:.2f} G"
    text = f"{MAC} x {row.macs_G} G MAC = {value:.2f}{own}"
    if _meets(value, row.energy_mJ, MAC * _slack(row.macs_G)):
        return Explained(row, value, "closes", text)
    per = float(row.energy_mJ) / printed
    if math.isclose(per, 1.0):
        text = (
            f"{row.energy_mJ} is the network's MACs in G, or {per:.2f} pJ per MAC; "
            f"{text}, {value / float(row.energy_mJ):.1f} times as much"
        )
        return Explained(row, value, "flag", text)
    return Explained(row, value, "fails", f"{text}; printed: {per:.2f} pJ per MAC")


def _per_spike(row: Published) -> Explained:
    """A table that charges 14 pJ per spike: what spikes would that be?"""
    neurons = _of(row).neurons
    spikes = float(row.energy_mJ) * 1e9 / SPIKE
    rate = spikes / (row.T * neurons)
    own = [
        p
        for p in published_energies()
        if p.model == row.model and p.rule != "per-spike" and (p.size, p.T) == (row.size, row.T)
    ]
    known = f"; {own[0].energy_mJ} mJ by {own[0].source}, {own[0].place}" if own else ""
    text = (
        f"{row.energy_mJ} mJ / {SPIKE:g} pJ = {spikes / 1e6:.1f} M spikes, {rate:.3f} per neuron "
        f"and step of {neurons / 1e6:.2f} M neurons; each spike's fan-out, the first layer and all "
        f"MACs are free{known}"
    )
    return Explained(row, None, "flag" if own else "open", text)


_RULES: Mapping[str, Callable[[Published], Explained]] = {
    "first-layer": _first_layer,
    "77-fJ": _preprint,
    "integer-mac": _integer_mac,
    "first-and-head": _first_and_head,
    "no-first-layer": _no_first_layer,
    "stem-repeats": _stem_repeats,
    "rate": _mean_rate,
    "ann": _ann,
    "per-spike": _per_spike,
}


def _stated(row: Mapping[str, str]) -> StatedRate:
    size, T, rate = int(row["size"]), int(row["T"]), float(row["rate"])
    dense = sum(
        o.dense
        for o in _shapes(row["model"], size).operations
        if fnmatchcase(f"{o.layer} {o.operation}", row["operations"])
    )
    sops = rate * T * dense / 1e9
    return StatedRate(
        row["network"], row["model"], size, T, row["operations"], row["called"], rate,
        dense / 1e9, sops, ADD * sops, row["source"], row["url"], row["place"],
    )  # fmt: skip


def _remainders(rates: Sequence[StatedRate], rows: Sequence[Explained]) -> tuple[str, ...]:
    """What the operations without a stated rate must do for the printed energy to hold."""
    found = []
    for key in dict.fromkeys((r.network, r.model, r.size, r.T) for r in rates):
        stated = [r for r in rates if (r.network, r.model, r.size, r.T) == key]
        printed = [
            e.published
            for e in rows
            if (e.published.network, e.published.size, e.published.T) == (key[0], key[2], key[3])
        ]
        if not printed:
            continue
        network = _shapes(key[1], key[2])
        first = key[3] * network.macs(stem=True) / 1e9
        dense = sum(r.dense_G for r in stated)
        rest = key[3] * ((network.macs() - network.macs(stem=True)) / 1e9 - dense)
        spent = sum(r.energy_mJ for r in stated)
        rate = (float(printed[0].energy_mJ) - MAC * first - spent) / (ADD * rest)
        found.append(
            f"{key[0]} at {key[2]} px, T = {key[3]}: the stated rates cost {spent:.3f} mJ on "
            f"{dense:.3f} G dense MACs per step (mean rate "
            f"{sum(r.rate * r.dense_G for r in stated) / dense:.3f}); for the printed "
            f"{printed[0].energy_mJ} mJ the other {rest / key[3]:.2f} G must run at a mean rate "
            f"of {rate:.3f}."
        )
    return tuple(found)
