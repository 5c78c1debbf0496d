"""``docs/validation.md``: written entirely from stored tables, whatever they show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spikedim.design.cases import Case
from spikedim.design.dimension_effect import DimensionEffect
from spikedim.design.forecast import ready
from spikedim.design.literature import published_cases
from spikedim.design.predictors import PREDICTORS
from spikedim.design.search_cost import search_costs, search_table
from spikedim.design.store import parameters
from spikedim.design.validation import (
    GROUPS,
    LEAST,
    RECOMMENDED,
    RECOMMENDED_FREE,
    Fold,
    Paired,
    Score,
    Trial,
    Validation,
    compare,
    paired_table,
    pooled_seeds,
    score_table,
    seed_noise,
    select,
    validate,
)
from spikedim.errors import DataError
from spikedim.results import Table, number, points_of

TARGET = (80.0, 97.0)
LEFT: dict[Fold, str] = {
    "data set": "a data set left out",
    "architecture": "an architecture left out",
}


def document(
    cases: Sequence[Case],
    variants: Mapping[str, Sequence[Case]],
    sources: Sequence[Mapping[str, Any]],
    effect: DimensionEffect | None,
    figure: str | None,
    command: str,
) -> str:
    """The page.

    Args:
        cases: of the study, with the tolerance of the truth.
        variants: other choices of cases or tolerance, by name, to be judged beside; those with
            too few data sets or networks are named with the reason.
        sources: provenance of each table.
        effect: the controlled study of dimension; ``None`` where its table is not given.
        figure: its picture, as a path relative to the page.
        command: that wrote the page.
    """
    found = validate(cases)
    lines = [
        "# Predicting T on data and networks not tuned on",
        "",
        f"Written by `{command}` from stored tables; do not edit.",
        "",
        "## Answer",
        "",
        *[f"- {line}" for line in answer(found, cases)],
        "",
        "## How it is judged",
        "",
        *_method(found),
        "",
        "## The truth: T* by data set and network",
        "",
        *_truth_table(cases).to_markdown(),
    ]
    for fold in GROUPS:
        table = score_table(found.of(fold), fold)
        lines += ["", f"## {table.title}", "", *table.to_markdown(), "", _chosen(found, fold)]
    lines += ["", "## Paired differences", "", *paired_table(found.paired).to_markdown()]
    lines += ["", "## The predictors", "", *_predictors(cases).to_markdown()]
    lines += _search(found)
    lines += _robust({**variants, "seeds pooled, one case per recipe": pooled_seeds(cases)})
    lines += _effect(effect, figure)
    lines += _literature(cases)
    lines += ["", "## What is not shown, and why", "", *[f"- {s}" for s in _limits(cases)]]
    lines += ["", "## Sources", "", *[f"- {_source(source)}" for source in sources]]
    return "\n".join(lines) + "\n"


def answer(found: Validation, cases: Sequence[Case]) -> list[str]:
    """The findings in sentences, each computed."""
    chosen = select(ready(cases)).predictor
    lines = [
        f"`spikedim design` recommends by **{chosen.name}** ({chosen.text.rstrip('.')}); it needs "
        f"{chosen.needs}."
    ]
    same = all(_same(found.trials[fold]) for fold in GROUPS)
    for name in (RECOMMENDED,) if same else (RECOMMENDED, RECOMMENDED_FREE):
        for fold in GROUPS:
            own, pairs = _of(found.of(fold), name), _pairs(found.paired, name, fold)
            lines.append(
                f"The procedure *{name}*, {LEFT[fold]}: {_factor(own)} off on average "
                f"(published rule {_factor(_of(found.of(fold), 'published'))}, T = 4 "
                f"{_factor(_of(found.of(fold), 'constant'))}). "
                + " ".join(_beats(pair) for pair in pairs)
            )
    lines += [_ahead(found, fold) for fold in GROUPS]
    for fold in GROUPS:
        own = _of(found.of(fold), RECOMMENDED)
        inside = TARGET[0] <= own.coverage.value <= TARGET[1]
        lines.append(
            f"90 % intervals, {LEFT[fold]}: hold T* in {own.coverage} of held-out cases, "
            f"{'within' if inside else 'outside'} the target of {TARGET[0]:g} to {TARGET[1]:g} %; "
            f"on average they span a factor of {2**own.width:.1f}."
            + (_ends(cases) if own.coverage.value > TARGET[1] else "")
        )
    noise = seed_noise(cases)
    if noise is not None:
        lines.append(
            "For scale: T* of two seeds of the same network, data and recipe differ by a factor of "
            f"{2**noise:.2f} on average. That is noise of single trainings, which no predictor can "
            "foresee." + _floor(found, noise)
        )
    return lines


def _floor(found: Validation, noise: float) -> str:
    """Why nothing beats T = 4, where seeds alone explain its error.

    Of two equal, normal, independent errors the mean distance is √2 times that of one from its
    centre.
    """
    least = noise / math.sqrt(2)
    errors = [_of(found.of(fold), "constant").error.value for fold in GROUPS]
    if max(errors) > 1.1 * least:
        return ""
    return (
        " Even a predictor that knew the centre of every recipe would be off by about "
        f"{2**least:.2f}, and T = 4 is off by {2 ** max(errors):.2f}: on these cases there is "
        "nothing left to win over T = 4, whatever the theory."
    )


def _ends(cases: Sequence[Case]) -> str:
    """Why an interval on a grid holds too much; empty where the grid is not why."""
    low, high = (
        100 * np.mean([case.truth.t_star == case.truth.steps[end] for case in cases])
        for end in (0, -1)
    )
    if min(low, high) <= 10:
        return ""
    return (
        f" T* is the first T of the grid in {low:.0f} % of all cases and the last in {high:.0f} %: "
        "one interval for all that is to hold 90 % must reach both ends, and then it holds all."
    )


def _same(trials: Sequence[Trial]) -> bool:
    """Whether the recommendation never needed a training."""
    chosen = {trial.chosen for trial in trials if trial.predictor == RECOMMENDED}
    free = {p.name for p in PREDICTORS if p.needs != "one training"}
    return chosen <= free


def _ahead(found: Validation, fold: Fold) -> str:
    """Which predictors beat the constant T = 4 beyond doubt."""
    names = [p.name for p in PREDICTORS if p.name != "constant"]
    trials = found.trials[fold]
    judged = {trial.predictor for trial in trials}
    pairs = [compare(trials, name, "constant", fold) for name in names if name in judged]
    better = [pair.first for pair in pairs if pair.better]
    worse = [p.first for p in pairs if p.difference.low is not None and p.difference.low > 0]
    return (
        f"Other predictors against T = 4, {LEFT[fold]}: better beyond doubt {_names(better)}, "
        f"worse beyond doubt {_names(worse)}, of {len(pairs)}."
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _beats(pair: Paired) -> str:
    names = {"published": "the published rule", "constant": "T = 4", "median": "the median T*"}
    other = names.get(pair.second, pair.second)
    gap = pair.difference
    if {gap.value, gap.low, gap.high} == {0.0}:
        return f"It gives the same T as {other} in every case."
    if pair.better:
        return f"It beats {other}: {gap} in mean abs log2 error, an interval that excludes zero."
    if gap.low is not None and gap.low > 0:
        return f"It is worse than {other}: {gap}."
    return f"It does not beat {other} beyond doubt: {gap} includes zero."


def _of(scores: Sequence[Score], name: str) -> Score:
    return next(score for score in scores if score.predictor == name)


def _pairs(paired: Sequence[Paired], name: str, fold: Fold) -> list[Paired]:
    return [
        p
        for p in paired
        if p.first == name and p.fold == fold and p.second in ("published", "constant")
    ]


def _factor(score: Score) -> str:
    return f"a factor of {2**score.error.value:.2f}, {number(score.steps_off, 3)} steps"


def _method(found: Validation) -> list[str]:
    return [
        f"{found.cases} cases (a data set, a network, a recipe and a seed) in {found.places} "
        "places (a data set and a network). T* of a case is the smallest trained T whose isotonic "
        f"accuracy is within {points_of(found.tolerance)} of the plateau; its own noise is part of "
        "every error below. Seeds count as cases, but seeds of one place are not independent: "
        "the interval of every mean error and difference draws whole places, and that of every "
        "coverage is Wilson's for the effective number of cases, fewer as those of a place agree "
        "(Korn and Graubard 1998). Pooled seeds are shown further down.",
        "",
        "For every data set (or architecture) left out, each predictor is fitted on the others and "
        "its 90 % interval is made of its errors on those, again with one group left out in turn. "
        "*recommended* is the cheapest predictor whose inner error is within two standard errors "
        "of the least, so that the choice does not see the fold either; *least inner error* takes "
        "the least, without that caution. (Decided after looks at the cases, not beforehand: the "
        "caution, at first of one standard error, with which the choice went to and fro between "
        "predictors that say the same; and intervals that hold most nearly 90 % of earlier errors "
        "instead of at least so many, which on a grid of six T means all of them.)",
        "",
        "The ranking measure, fixed beforehand, is the mean of |log2(T̂/T*)|: 1 is a factor of two, "
        "either way. *T̂ suffices* counts cases that lose no more than the tolerance at T̂; a large "
        "T̂ buys that with energy. *Points-lost error* is the mean error of the predicted accuracy "
        "below the plateau over all T but the largest; *accuracy error* that of accuracy itself, "
        "from the accuracy of one training at the largest T less the points lost.",
    ]


def _truth_table(cases: Sequence[Case]) -> Table:
    recipes: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        recipes.setdefault((*case.recipe, case.truth.steps), []).append(case)
    rows = []
    for (dataset, model, *_), group in sorted(recipes.items()):
        first = group[0].truth
        values = np.mean([case.truth.accuracy for case in group], axis=0)
        spans = [f"{c.truth.t_star} [{c.truth.low}, {c.truth.high or 'or more'}]" for c in group]
        rows.append(
            (
                dataset, model, group[0].image_size, group[0].classes, group[0].d_eff,
                group[0].train_samples, first.samples,
                ("" if first.steps == cases[0].truth.steps else f"T = {_listed(first.steps)}: ")
                + ", ".join(f"{v:.1f}" for v in values),
                "; ".join(spans),
            )
        )  # fmt: skip
    steps = _listed(cases[0].truth.steps)
    columns = (
        "data set", "network", "pixels", "classes", "d_eff", "training samples", "test samples",
        f"accuracy (%) at T = {steps}, mean over seeds",
        "T* by seed [95 %]",
    )  # fmt: skip
    return Table("truth", columns, rows)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def _chosen(found: Validation, fold: Fold) -> str:
    parts = []
    for name in (RECOMMENDED, RECOMMENDED_FREE, LEAST):
        counts = _of(found.of(fold), name).chosen
        said = ", ".join(f"{key} ({count} cases)" for key, count in counts.items())
        parts.append(f"*{name}* chose {said}.")
    return " ".join(parts)


def _predictors(cases: Sequence[Case]) -> Table:
    fitted = {item.predictor.name: item.fitted for item in ready(cases)}
    rows = [
        (p.name, p.needs, p.text, parameters(fitted[p.name]) if p.name in fitted else "no data")
        for p in PREDICTORS
    ]
    return Table("predictors", ("predictor", "needs", "how", "fitted on all cases"), rows)


def _search(found: Validation) -> list[str]:
    costs = search_costs(found)
    best = max(costs, key=lambda c: (c.enough >= c.search_enough, c.saved))
    return [
        "",
        "## Against a search over T",
        "",
        "Optuna's TPE sampler asks for T twenty times on the stored accuracies of the held-out "
        "case; a T asked for again costs nothing. It answers with the smallest T within the "
        "tolerance of the best accuracy it has seen; the truth is judged by the plateau of the "
        "isotonic fit. The recommendation pays for the training at its T, and for its pilot "
        "where it needs one.",
        "",
        *search_table(costs).to_markdown(),
        "",
        f"At no less accuracy than the search ({100 * best.search_enough:.0f} % of cases within "
        f"the tolerance): *{best.follow}*, "
        f"{LEFT[best.fold]}, suffices in {100 * best.enough:.0f} % of cases "
        f"with {best.saved:.1f} times fewer trainings."
        if best.enough >= best.search_enough
        else "No recommendation suffices as often as the search does.",
    ]


def _robust(variants: Mapping[str, Sequence[Case]]) -> list[str]:
    lines = ["", "## Does it depend on how it is judged?", ""]
    rows, small = [], []
    for label, group in variants.items():
        try:
            found = validate(group)
        except DataError as error:
            small += ["", f"Not judged: {label}: {error}."]
            continue
        for fold in GROUPS:
            board = found.of(fold)
            rows.append(
                (
                    label, found.cases, fold, board[0].predictor,
                    *(_of(board, name).error for name in (RECOMMENDED, "published", "constant")),
                    _of(board, RECOMMENDED).coverage,
                )
            )  # fmt: skip
    columns = (
        "variant", "cases", "left out", "least error", "error of recommended", "of published",
        "of T = 4", "coverage of recommended",
    )  # fmt: skip
    return [*lines, *Table("variants", columns, rows).to_markdown(), *small]


def _effect(effect: DimensionEffect | None, figure: str | None) -> list[str]:
    lines = ["", "## Does the effective dimension matter?", ""]
    if effect is None:
        return [*lines, "The table of the controlled study was not given."]
    lines += [
        f"{effect.model}, one recipe, inputs that differ in dimension: digits truncated to k "
        "principal components, and ten Gaussian classes in k dimensions whose best possible "
        "accuracy is 95 % for every k. The published rule says T* doubles when d_eff doubles.",
        "",
    ]
    for table in effect.tables():
        lines += [f"**{table.title}**", "", *table.to_markdown(), ""]
    lines += [_slope_sentence(effect, family) for family in _families(effect)]
    if figure:
        lines += ["", f"![Accuracy lost at T = 1 against effective dimension]({figure})"]
    return lines


def _families(effect: DimensionEffect) -> list[str]:
    return list(dict.fromkeys(slope.family for slope in effect.slopes))


def _slope_sentence(effect: DimensionEffect, family: str) -> str:
    slope = effect.slope(family, "log2 T*").estimate
    lost = effect.slope(family, "points lost at T = 1").estimate
    low, high = slope.low or 0.0, slope.high or 0.0
    proportional = "contains" if low <= 1 <= high else "excludes"
    zero = "contains" if low <= 0 <= high else "excludes"
    return (
        f"*{family}*: log2 T* changes by {slope} per doubling of d_eff; the interval "
        f"{proportional} the published 1 and {zero} 0. Points lost at T = 1 change by {lost}."
    )


def _literature(cases: Sequence[Case]) -> list[str]:
    known = [item for item in ready(cases) if item.predictor.needs != "one training"]
    rows = []
    for case in published_cases():
        truth = case.truth
        said = [item.predict(case, truth.steps) for item in known]
        rows.append(
            (
                f"{case.model} on {case.dataset}",
                f"{truth.t_star} [{truth.low}, {truth.high or 'or more'}]",
                *[f"{p.timesteps.value:g}{'' if _holds(p, truth.t_star) else ' (misses)'}"
                  for p in said],
            )
        )  # fmt: skip
    columns = ("published sweep", "T* (1 point)", *[item.predictor.name for item in known])
    return [
        "",
        "## Published accuracy-versus-T sweeps",
        "",
        "Predictors fitted on all cases of the study, published d_eff, no training of those "
        "networks: networks a thousand times larger, trained for hundreds of epochs. *misses* "
        "marks a 90 % interval that does not hold T*. The largest published T (6) stands for the "
        "plateau. Predictors that need one training cannot be asked. Sources: "
        "`src/spikedim/design/sweeps.csv`.",
        "",
        *Table("sweeps", columns, rows).to_markdown(),
    ]


def _holds(prediction: Any, t_star: int) -> bool:
    said = prediction.timesteps
    return bool(said.low <= t_star <= said.high)


def _limits(cases: Sequence[Case]) -> list[str]:
    sizes = sorted({case.parameters for case in cases})
    samples = sorted({case.train_samples for case in cases})
    censored = sum(case.truth.high is None for case in cases)
    last = cases[0].truth.steps[-1]
    seeds = sorted(Counter(case.recipe for case in cases).values())
    most = "" if seeds[0] == seeds[-1] else f" to {seeds[-1]}"
    thresholds = sorted(
        {number(case.threshold) if case.threshold else "not known" for case in cases}
    )
    return [
        f"Networks of {number(sizes[0])} to {number(sizes[-1])} parameters trained on "
        f"{number(samples[0])} to {number(samples[-1])} samples: nothing here shows that larger "
        "networks and full data sets behave the same.",
        f"T* beyond T = {last} was not trained; the interval of T* is open there in {censored} of "
        f"{len(cases)} cases.",
        f"{seeds[0]}{most} seed{'s' if seeds[-1] > 1 else ''} per recipe; the intervals of "
        "averages draw places, and with so few data sets and networks even they speak about "
        "these more than about all there could be.",
        "Event recordings and texts are not in the study: all cases are static images.",
        f"Neuron settings are not varied (v_th = {', '.join(thresholds)}): β, v_th and t_ref "
        "change T*.",
        "Coverage is that of T* as measured, a noisy quantity on a grid; intervals are rounded to "
        "whole steps, so exact 90 % cannot be reached.",
    ]


def _source(source: Mapping[str, Any]) -> str:
    hardware = dict(source.get("hardware") or {})
    versions = ", ".join(f"{k} {v}" for k, v in dict(source.get("versions") or {}).items())
    parts = [
        f"`{source.get('file', '')}`",
        f"command `{source.get('command', '')}`",
        str(hardware.get("given") or source.get("platform") or ""),
        str(source.get("created") or ""),
        versions,
    ]
    return "; ".join(part for part in parts if part and part != "command ``")
