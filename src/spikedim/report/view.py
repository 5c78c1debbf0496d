"""What the page says: from the plain data of a plan to text, tables and figures. No HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikedim.report import figures, tables
from spikedim.report.plot import Figure
from spikedim.report.wording import Number, coverage, ending, or_nan, timesteps
from spikedim.results import Estimate, number, points_of, readable_unit
from spikedim.training.timestep import above_chance

Data = Mapping[str, Any]

#: What the vectors hold whose effective dimension is measured, by kind of data.
_FEATURES = {"image": "pixel values", "events": "event counts", "text": "TF-IDF weights"}
_SEVERITIES = ("error", "warning", "note")
_AGREEMENT = {
    "agrees": ("agrees", "good", "with the measured T*"),
    "overestimates": ("asks for too many", "bad", "timesteps, against the measured T*"),
    "underestimates": ("asks for too few", "bad", "timesteps, against the measured T*"),
    "undecided": ("undecided", "open", "the measured T* is too uncertain to judge it"),
    "not learned": ("undecided", "open", "the network has not learned, so its T* says nothing"),
    "not measured": ("not tested", "open", "T* was not measured here"),
}


@dataclass(frozen=True)
class Tile:
    """One figure of the headline: name, value with unit, and what stands behind it."""

    name: str
    value: str
    detail: str
    unit: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Setting:
    """One recommended setting."""

    name: str
    value: str


@dataclass(frozen=True)
class Finding:
    """One line of findings and warnings."""

    kind: str
    text: str
    tone: str


@dataclass(frozen=True)
class Scope:
    """What an energy convention counts."""

    name: str
    text: str


def context(plan: Data) -> dict[str, Any]:
    """Everything the template needs, from ``Plan.to_dict()``.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the data is not that of a plan.
    """
    plan = _readable_energy(plan)
    point = plan["recommended"]
    origin = plan["provenance"]
    return {
        "title": f"{plan['model']['name']} on {plan['data']['name']}",
        "headline": plan["verdict"][0],
        "verdict": list(plan["verdict"][1:]),
        "tiles": _tiles(plan, point),
        "settings": _settings(plan["recommendation"]),
        "reasons": list(plan["recommendation"]["reasons"]),
        "basis": _basis(plan),
        "sweep_lead": _sweep_lead(plan),
        "dimension_lead": _dimension_lead(plan),
        "rates_lead": _measured_on(plan, point),
        "energy_lead": _measured_on(plan, point)
        + " An energy is a convention, never one number: each bar names its own.",
        "neurons_lead": _neurons_lead(plan),
        "provenance_lead": _provenance_lead(plan),
        "figures": _figures(plan, point),
        "tables": {
            "operating": tables.operating(plan),
            "forecast": tables.forecast(plan),
            "predictions": tables.predictions(plan),
            "dimension": tables.dimension(plan),
            "energy": tables.energy(point),
            "neurons": tables.neurons(plan),
            "inversion": tables.inversion(plan),
            "bounds": tables.bounds(plan),
            "provenance": tables.provenance(plan),
        },
        "scopes": [_scope(energy) for energy in tables.energies(point)],
        "alarm": _alarm(plan, point),
        "findings": _findings(plan, point),
        "version": origin["versions"].get("spikedim", ""),
        "created": origin["created"],
    }


def _readable_energy(plan: Data) -> Data:
    """The plan with all energies in one unit that needs no exponents; the stored one stays."""
    totals = [
        energy["total"]["value"]
        for point in plan["operating"]
        for energy in tables.energies(point)
        if energy["total"]["value"]
    ]
    if not totals:
        return plan
    factor, unit = readable_unit(max(totals), "mJ")
    if factor * min(totals) < 1e-3:
        factor, unit = readable_unit(min(totals), "mJ")

    def scaled(energy: Data) -> Data:
        total = energy["total"]
        ends = {key: total[key] for key in ("value", "low", "high")}
        ends = {key: value if value is None else factor * value for key, value in ends.items()}
        return {**energy, "total": {**total, **ends, "unit": unit}}

    def converted(point: Data) -> Data:
        profile = point["profile"]
        energies = {"energy": [scaled(e) for e in profile["energy"]]}
        return {**point, "profile": {**profile, **energies, "dense": scaled(profile["dense"])}}

    return {
        **plan,
        "operating": [converted(point) for point in plan["operating"]],
        "recommended": converted(plan["recommended"]),
    }


def _tiles(plan: Data, point: Data) -> list[Tile]:
    profile = point["profile"]
    steps = plan["recommendation"]["timesteps"]
    at = f"at T = {point['timesteps']}"
    at += f", {point['setting']}" if point["setting"] else ""
    tiles = [
        Tile(
            "Timesteps T",
            number(steps["value"]),
            _behind(steps, plan["recommendation"]["basis"]),
        )
    ]
    if point["accuracy"] is not None:
        tiles.append(_tile("Test accuracy", point["accuracy"], at))
    tiles.append(_tile("Spikes per sample", profile["spikes_per_sample"], at))
    if profile["energy"]:
        first = profile["energy"][0]
        tiles.append(
            _tile("Energy per sample", first["total"], f"{first['convention']} convention, {at}")
        )
    rule = plan["predictions"][0]
    said, tone, detail = _AGREEMENT[plan["agreement"]]
    steps = f"T = {timesteps(rule['timesteps'])} by its inputs, at ε = {tables.epsilon_label(rule)}"
    tiles.append(Tile("Published rule", said, f"{detail}; {steps}", tone=tone))
    return tiles


def _tile(name: str, estimate: Data, about: str) -> Tile:
    shown = number(or_nan(estimate["value"]))
    return Tile(name, shown, _behind(estimate, about), estimate.get("unit") or "")


def _behind(estimate: Data, about: str) -> str:
    """Interval, confidence, sample size and origin of an estimate, in one line."""
    low, high, n = estimate.get("low"), estimate.get("high"), estimate.get("n")
    parts = []
    if low is not None:
        parts.append(f"{coverage(estimate)} interval {number(low, 3)} {ending(high)}")
    if n is not None:
        parts.append(f"n = {number(n)}")
    return ", ".join([*parts, about])


def _settings(advice: Data) -> list[Setting]:
    return [
        Setting("Timesteps T", timesteps(advice["timesteps"])),
        Setting("Threshold v_th", _known(advice["threshold"])),
        Setting("Leak β (membrane kept per step)", _known(advice["beta"])),
        Setting(
            "Refractory period t_ref",
            _known(advice["refractory"], " step" if advice["refractory"] == 1 else " steps"),
        ),
    ]


def _known(value: float | None, unit: str = "") -> str:
    return "kept as it is" if value is None else f"{number(value)}{unit}"


def _basis(plan: Data) -> str:
    if plan["recommendation"]["basis"] == "measured":
        return "Measured here: the network was trained and tested on this data."
    if plan["recommendation"]["basis"] == "budget":
        return "From the budget: the T of the largest accuracy within it."
    best = plan["forecast"]["ranked"][0]["prediction"]
    return (
        f"Predicted by {best['name']}, the cheapest predictor that does as well as any, within the "
        "noise, on data sets it had not seen; not checked by training at this T."
    )


def _sweep_lead(plan: Data) -> str:
    if plan["sweep"] is None:
        return (
            "Accuracy was not measured at each T. What is lost against large T is predicted, with "
            "the interval that holds 9 of 10 new cases."
        )
    setting = plan["recommended"]["setting"]
    own = ""
    if setting:
        own = f" Both are those of the network's own neurons, not of the recommended {setting}."
    return (
        "T* is the smallest T whose accuracy is within "
        f"{points_of(plan['sweep']['tolerance'])} of the plateau.{own} Intervals cover the finite "
        "test set, not other training seeds."
    )


def _dimension_lead(plan: Data) -> str:
    found = plan["dimension"]
    about = "mean subtracted" if found["centered"] else "mean kept"
    features = _FEATURES[plan["data"]["kind"]]
    return (
        f"{number(found['n'])} training samples of {number(found['d'])} {features} ({about}). The "
        "estimators answer different questions, so they need not agree; the published rule uses "
        "PCA-95 %."
    )


def _measured_on(plan: Data, point: Data) -> str:
    samples = point["profile"]["samples"]
    return (
        f"Network: {plan['model']['state']}. Measured at T = {point['timesteps']} on "
        f"{number(samples)} samples."
    )


def _neurons_lead(plan: Data) -> str:
    if not plan["neurons"]:
        return ""
    return (
        f"One setting changed at a time around the network's own, at T = {plan['neurons']['T']}; "
        "one training each."
    )


def _provenance_lead(plan: Data) -> str:
    data, model = plan["data"], plan["model"]
    shape = " × ".join(str(side) for side in data["input_shape"])
    if data["kind"] == "text":
        shape = f"of which {shape} words are read"
    return (
        f"Data {data['name']}: {number(data['train_samples'])} training and "
        f"{number(data['test_samples'])} test samples, {shape}, {data['classes']} classes; "
        f"{data['source']}. Network {model['name']}: {number(model['parameters'])} parameters, "
        f"{model['tokens']} tokens of {model['channels']} channels; {model['state']}."
    )


def _figures(plan: Data, point: Data) -> dict[str, Figure | None]:
    scree, cumulative = _spectrum_figures(plan["dimension"])
    return {
        "accuracy": _accuracy_figure(plan),
        "tradeoff": _tradeoff_figure(plan),
        "scree": scree,
        "cumulative": cumulative,
        "rates": _rates_figure(point["profile"]),
        "energy": _energy_figure(point["profile"]),
        "neurons": _neurons_figure(plan),
    }


def _accuracy_figure(plan: Data) -> Figure | None:
    tested = [(point["timesteps"], point["accuracy"]) for point in _tested(plan)]
    if not tested:
        return None
    sweep = plan["sweep"] or {}
    return figures.accuracy(
        tested,
        t_star=sweep.get("t_star"),
        plateau=sweep.get("plateau"),
        tolerance=sweep.get("tolerance"),
        predictions=[
            (f"published rule, ε = {tables.epsilon_label(rule)}", rule["timesteps"])
            for rule in plan["predictions"]
        ],
    )


def _spectrum_figures(found: Data) -> tuple[Figure | None, Figure | None]:
    values, total = found["spectrum"]["eigenvalues"], found["spectrum"]["total_variance"]
    if not total:
        return None, None
    marks = [
        (tables.estimator_label(key), estimate)
        for key, estimate in found["estimates"].items()
        if estimate["value"] is not None and estimate["value"] > 0
    ]
    return figures.scree(values, marks), figures.cumulative(values, total, marks)


def _rates_figure(profile: Data) -> Figure | None:
    if not profile["layers"]:
        return None
    faults = {g["layer"]: g["gate"] for g in profile["gates"] if g["gate"] in ("dead", "saturated")}
    return figures.rates(
        [
            (layer["name"], layer["rate"], faults.get(layer["name"], "ok"))
            for layer in profile["layers"]
        ]
    )


def _energy_figure(profile: Data) -> Figure | None:
    if not profile["energy"]:
        return None
    dense = profile["dense"]
    return figures.energy(
        [(energy["convention"], energy["total"]) for energy in profile["energy"]],
        (dense["convention"], dense["total"]),
    )


def _tradeoff_figure(plan: Data) -> Figure | None:
    series: dict[str, list[tuple[int, Number, Number]]] = {}
    shown, quality = _qualities(plan)
    for point, reached in shown:
        for energy in point["profile"]["energy"]:
            row = (point["timesteps"], energy["total"], reached)
            series.setdefault(energy["convention"], []).append(row)
    if len(shown) < 2 or not series:
        return None
    dense = shown[0][0]["profile"]["dense"]["total"]
    chosen = int(plan["recommendation"]["timesteps"]["value"])
    return figures.tradeoff(series, chosen, dense, quality=quality, budget=_budget_line(plan))


def _qualities(plan: Data) -> tuple[list[tuple[Data, Number]], str]:
    """Points with what they reach: tested, expected, or points below the plateau (negative)."""
    points = plan["operating"]
    for key, quality in (("accuracy", "test accuracy (%)"), ("expected", "expected accuracy (%)")):
        if all(point.get(key) is not None for point in points):
            return [(point, point[key]) for point in points], quality
    if all(point.get("lost") is not None for point in points):
        return [(p, _negative(p["lost"])) for p in points], "expected, against large T (points)"
    return [(point, point["accuracy"]) for point in _tested(plan)], "test accuracy (%)"


def _negative(lost: Number) -> Number:
    low, high = lost["low"], lost["high"]
    ends = {"low": None if high is None else -high, "high": None if low is None else -low}
    return {**lost, "value": -lost["value"], **ends}


def _budget_line(plan: Data) -> Number | None:
    answer = plan["budget"]
    if not answer or answer["budget"]["energy"] is None:
        return None
    unit = plan["operating"][0]["profile"]["energy"][0]["total"]["unit"]
    factor = {"mJ": 1.0, "µJ": 1e3, "nJ": 1e6}[unit]
    return {"value": factor * answer["budget"]["energy"], "low": None, "high": None, "unit": unit}


def _neurons_figure(plan: Data) -> Figure | None:
    if not plan["neurons"] or not plan["neurons"]["points"]:
        return None
    points = plan["neurons"]["points"]
    return figures.neurons(
        [(tables.neuron_label(p), p["accuracy"]) for p in points], tables.chosen_neurons(plan)
    )


def _findings(plan: Data, point: Data) -> list[Finding]:
    """Faults first; the same fault of several layers in one line."""
    profile = point["profile"]
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    for gate in sorted(profile["gates"], key=lambda gate: _SEVERITIES.index(gate["severity"])):
        what = (gate["gate"], gate["severity"], gate["message"], gate["mend"])
        grouped.setdefault(what, []).append(gate["layer"])
    found = [
        Finding(
            f"{severity}: {kind}",
            f"{_some(layers)}: {message}. Mend: {mend}.",
            "open" if severity == "note" else "bad",
        )
        for (kind, severity, message, mend), layers in grouped.items()
    ]
    found += [
        Finding(
            "not counted",
            f"{item['name']}: {number(item['calls'])} calls, "
            f"{number(100 * item['share'], 2)} % of all output elements, in no energy figure.",
            "bad",
        )
        for item in profile["unsupported"]
    ]
    found += [Finding("data", note, "open") for note in plan["dimension"]["warnings"]]
    notes = plan["sweep"]["notes"] if plan["sweep"] else ()
    return found + [Finding("sweep", note, "open") for note in notes]


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _tested(plan: Data) -> list[Data]:
    return [point for point in plan["operating"] if point["accuracy"] is not None]


def _scope(energy: Data) -> Scope:
    name = energy["convention"]
    return Scope(name, energy["scope"].removeprefix(f"{name}: "))


def _alarm(plan: Data, point: Data) -> str:
    """Warning that belongs beside the headline; empty where nothing makes it doubtful."""
    said = []
    chance = 100 * plan["data"]["majority"]
    tested = [[point["accuracy"]]] if point["accuracy"] else []
    if plan["sweep"]:
        tested.append([p["accuracy"] for p in plan["sweep"]["points"]])
    if not all(above_chance([Estimate(**a) for a in found], chance) for found in tested):
        said.append(
            "Accuracy is not distinguishable from always answering the most frequent class "
            f"({number(chance, 3)} %): the network has "
            "not learned, so neither T nor energy can be judged."
        )
    errors = [gate for gate in point["profile"]["gates"] if gate["severity"] == "error"]
    if errors:
        kinds = sorted({gate["gate"] for gate in errors})
        said.append(
            f"Read the findings first: {len(errors)} fault{'' if len(errors) == 1 else 's'} "
            f"({', '.join(kinds)}) may make spikes and energy meaningless."
        )
    return " ".join(said)
