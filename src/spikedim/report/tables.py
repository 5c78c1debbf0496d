"""Tables of the report as text, from the plain data of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikedim.report.wording import amount, coverage, full, or_nan, text
from spikedim.results import UNCHARGED, charged, number

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """A table of text; ``chosen`` holds the indices of highlighted rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    chosen: Sequence[int] = ()


NEURON_NAMES = {"threshold": "v_th", "beta": "β", "refractory": "t_ref"}
ESTIMATORS = {
    "pr": "participation ratio",
    "pr_corrected": "participation ratio, corrected for n",
    "stable_rank": "stable rank",
    "entropy_rank": "entropy rank",
    "ridge": "ridge (statistical dimension)",
    "two_nn": "Two-NN (intrinsic)",
    "mle": "nearest-neighbour MLE (intrinsic)",
}


def operating(plan: Data) -> Grid:
    """Accuracy, spikes and energy at each measured T."""
    points, best = list(plan["operating"]), plan["recommended"]
    points += [best] if best["setting"] else []
    conventions = [e["convention"] for e in points[0]["profile"]["energy"]]
    rows = []
    for point in points:
        totals = {e["convention"]: full(e["total"]) for e in point["profile"]["energy"]}
        rows.append(
            [
                str(point["timesteps"]) + (f", {point['setting']}" if point["setting"] else ""),
                _accuracy(point),
                "–" if point.get("lost") is None else full(point["lost"]),
                full(point["profile"]["spikes_per_sample"]),
                *[totals.get(name, "–") for name in conventions],
            ]
        )
    settings = [(point["timesteps"], point["setting"]) for point in points]
    chosen = (settings.index((best["timesteps"], best["setting"])),)
    columns = ["T", "test accuracy", "expected below large T", "spikes per sample"]
    columns += [f"energy per sample, {name}" for name in conventions]
    share = coverage(points[0]["profile"]["spikes_per_sample"])
    lost = next((point["lost"] for point in points if point.get("lost") is not None), None)
    expected = "" if lost is None else f" ({coverage(lost)} where it is expected, not measured)"
    notes = (
        f"Below each value: its {share} interval{expected} and n. Highlighted: recommended.",
        f"Network: {plan['model']['state']}.",
    )
    return Grid("Accuracy, spikes and energy by timesteps", columns, rows, notes, chosen)


def _accuracy(point: Data) -> str:
    if point["accuracy"] is not None:
        return full(point["accuracy"])
    if point.get("expected") is not None:
        return full(point["expected"]).replace("\n", " expected\n", 1)
    return "not tested"


def forecast(plan: Data) -> Grid:
    """Every predictor's T, the recommended one first."""
    said = plan["forecast"]
    measured = plan["sweep"]["t_star"]["value"] if plan["sweep"] else None
    scored = measured is not None and plan["data"]["kind"] == "image"
    rows = []
    for item in said["ranked"]:
        t = item["prediction"]["timesteps"]
        row = [
            item["prediction"]["name"],
            full(t),
            f"× {number(2 ** item['error'], 3)}" if item["error"] is not None else "–",
            item["prediction"]["needs"],
            item["prediction"]["text"],
        ]
        if scored:
            row.insert(2, "yes" if t["low"] <= measured <= t["high"] else "no")
        rows.append(row)
    columns = ["predictor", "T, 90 % interval", "mean factor off", "needs", "how"]
    if scored:
        columns.insert(2, "holds the measured T*")
    own = f", {said['own']} of them your own" if said["own"] else ""
    case = plan["case"]
    pilot = (
        "no training" if case["pilot"] is None else f"a training at T = {case['pilot']['train_T']}"
    )
    notes = (
        f"Known beforehand: d_eff = {number(case['d_eff'])}, {number(case['parameters'])} "
        f"parameters, {pilot}.",
        f"Ranked by errors on {number(said['cases'])} cases{own}, each predicted without its data "
        "set; the interval is made of the same errors (that of the published rule elsewhere: of "
        "its inputs C and d_eff).",
        *said["notes"],
    )
    return Grid("What each predictor says", columns, rows, notes, (0,))


def predictions(plan: Data) -> Grid:
    """The published rule in each reading of ε."""
    rows = [
        [
            rule["rule"],
            epsilon_label(rule),
            full(rule["constant"]),
            full(rule["d_eff"]),
            full(rule["raw"]),
            full(rule["timesteps"]),
        ]
        for rule in plan["predictions"]
    ]
    columns = ("rule", "ε", "C", "d_eff", "C·d_eff/ε²", "T (rounded up)")
    note = (
        "T's interval here is that of its inputs C and d_eff. Where predictors are compared it is "
        "another: it holds 90 % of the T* of new cases, as the rule's errors on known ones tell."
    )
    return Grid("What the published rule predicts", columns, rows, (note,))


def dimension(plan: Data) -> Grid:
    """Every estimate of d_eff."""
    found = plan["dimension"]
    about = "yes" if found["centered"] else "no"
    rows = [
        [
            estimator_label(key),
            number(or_nan(e["value"])),
            _interval(e),
            "–" if e.get("n") is None else number(e["n"]),
            about,
            e.get("method") or "–",
        ]
        for key, e in found["estimates"].items()
    ]
    columns = ("estimator", "d_eff", "interval", "n", "centred", "how the interval was made")
    return Grid("Effective dimension by estimator (a pure number)", columns, rows)


def energy(point: Data) -> Grid | None:
    """Energy and operations of one operating point, by convention."""
    if not point["profile"]["energy"]:
        return None
    dense = point["profile"]["dense"]["total"]["value"]
    rows = [
        [
            e["convention"],
            full(e["total"]),
            f"{number(dense / e['total']['value'], 3)} ×" if e["total"]["value"] else "–",
            charged(amount(e["macs"]), "MAC", e.get("uncharged", ())),
            charged(amount(e["accumulates"]), "accumulation", e.get("uncharged", ())),
        ]
        for e in energies(point)
    ]
    notes = (UNCHARGED,) if any(e.get("uncharged") for e in energies(point)) else ()
    columns = (
        "convention",
        "energy per sample",
        "dense network / this",
        "MACs per sample",
        "accumulations per sample",
    )
    return Grid(f"Energy at T = {point['timesteps']}", columns, rows, notes)


def neurons(plan: Data) -> Grid | None:
    """Accuracy, spikes and rate of each neuron setting; ``None`` where none was tried."""
    if not plan["neurons"] or not plan["neurons"]["points"]:
        return None
    rows = [
        [
            neuron_label(p),
            full(p["accuracy"]),
            full(p["held_out"]) if p["held_out"] else "–",
            full(p["spikes_per_sample"]),
            full(p["firing_rate"]),
        ]
        for p in plan["neurons"]["points"]
    ]
    columns = (
        "setting",
        "test accuracy",
        "held out of training",
        "spikes per sample",
        "firing rate",
    )
    return Grid("Neuron settings", columns, rows, (), chosen_neurons(plan))


def inversion(plan: Data) -> Grid | None:
    """The neuron for a wanted d_eff; ``None`` where it was not asked."""
    found = plan.get("inversion")
    if not found:
        return None
    window = found["window"]
    rows = [
        [f"wanted {found['quantity']}", number(found["target"])],
        ["allowed firing rate, spikes per step", f"{number(window[0])} to {number(window[1])}"],
    ]
    if found["reachable"]:
        rows.append(["reachable at such rates", " to ".join(map(number, found["reachable"]))])
    if best := found["found"]:
        value = best["dimension"] if found["quantity"] == "d_eff" else best["reduction"]
        rows += [
            [
                f"measured {found['quantity']}",
                text(found["estimate"]) if found.get("estimate") else number(value),
            ],
            ["v_th", number(best["threshold"])],
            ["β", number(best["beta"])],
            ["t_ref, steps", number(best["refractory"])],
            ["firing rate, spikes per step", number(best["rate"])],
        ]
    answer = "feasible" if found["feasible"] else "infeasible; the nearest neuron"
    return Grid(f"Neuron for {found['quantity']}: {answer}", ("quantity", "value"), rows)


def bounds(plan: Data) -> Grid | None:
    """Each lower bound beside its measurement."""
    if not plan["bounds"]:
        return None
    rows = []
    for bound in plan["bounds"]:
        measured, value = bound["measured"], or_nan(bound["value"])
        said = number(measured)
        if bound["kind"] == "published lower bound":
            said += f" ({'at or above' if measured >= value else 'below'} it)"
        rows.append(
            [
                bound["name"],
                f"{bound['kind']}\n{bound['claim']}",
                f"{number(value, 3)}\n{bound['unit']}",
                said,
                bound["assumption"],
            ]
        )
    columns = ("figure of the theory", "kind and claim", "value", "measured", "assumes")
    note = (
        "The worst case takes n·d of the network's representation, the input-dependent forms d_eff "
        "of the data: where d_eff exceeds d, the worst case can be the smaller figure."
    )
    return Grid("Bounds and code requirements", columns, rows, (note,))


def provenance(plan: Data) -> Grid:
    """Versions, seed, fingerprint and command."""
    origin = plan["provenance"]
    rows = [
        ["command", origin["command"]],
        ["seed", str(origin["seed"])],
        ["device", origin["device"]],
        ["platform", origin["platform"]],
        ["data fingerprint", origin["data_fingerprint"] or "–"],
        ["created", origin["created"]],
        *[[f"{name} version", str(version)] for name, version in origin["versions"].items()],
        *[["note", note] for note in origin.get("notes") or ()],
    ]
    return Grid("Provenance", ("what", "value"), rows)


def energies(point: Data) -> list[Data]:
    """Every convention, then the dense network."""
    return [*point["profile"]["energy"], point["profile"]["dense"]]


def chosen_neurons(plan: Data) -> list[int]:
    """Indices of the points measured at the recommended threshold, leak and refractory period."""
    wanted = {name: plan["recommendation"][name] for name in NEURON_NAMES}
    base = {name: plan["neurons"]["base"][name] for name in NEURON_NAMES}
    return [
        index
        for index, point in enumerate(plan["neurons"]["points"])
        if {**base, point["parameter"]: point["value"]} == wanted
    ]


def neuron_label(point: Data) -> str:
    """``v_th = 1.5``."""
    own = " (the network's own)" if point["base"] else ""
    name = NEURON_NAMES.get(point["parameter"], point["parameter"])
    return f"{name} = {number(point['value'])}{own}"


def estimator_label(key: str) -> str:
    """Readable name of an estimator key."""
    if key.startswith("pca"):
        return f"PCA-{key.removeprefix('pca')} %"
    return ESTIMATORS.get(key, key)


def epsilon_label(rule: Data) -> str:
    """Target error of a rule with its unit."""
    unit = " %" if rule["epsilon_unit"] == "percent" else " (fraction)"
    return f"{rule['epsilon']:g}{unit}"


def _interval(estimate: Data) -> str:
    low, high = estimate.get("low"), estimate.get("high")
    if low is None and high is None:
        return "none"
    ends = f"{'?' if low is None else number(low)} to {'?' if high is None else number(high)}"
    return f"{ends} ({coverage(estimate)})"
