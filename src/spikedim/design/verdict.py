"""Plain-language conclusions, computed from the numbers."""

from __future__ import annotations

import math
from dataclasses import replace

from spikedim.design.budget import BudgetAnswer
from spikedim.design.forecast import Forecast
from spikedim.design.plan import (
    Agreement,
    DataSummary,
    Operating,
    Recommendation,
    Target,
    predictable,
)
from spikedim.results import Estimate, number, points_of
from spikedim.theory import TimestepPrediction
from spikedim.training import TimestepSweep


def agreement(prediction: TimestepPrediction, sweep: TimestepSweep | None) -> Agreement:
    """Compare the published prediction's interval with the interval of the measured T*.

    Overlapping intervals agree. A network that has not learned decides nothing, nor does a T*
    whose interval spans the whole tested grid, or is open-ended while the prediction is not below
    it.
    """
    if sweep is None:
        return "not measured"
    if not sweep.learned:
        return "not learned"
    tested = [point.T for point in sweep.points]
    low, high = sweep.t_star.low, sweep.t_star.high
    predicted_low, predicted_high = prediction.timesteps.low, prediction.timesteps.high
    assert low is not None
    assert predicted_low is not None
    if predicted_high is not None and predicted_high < low:
        return "underestimates"
    if high is None or (low <= min(tested) and high >= max(tested)):
        return "undecided"
    if predicted_low > high:
        return "overestimates"
    return "agrees"


def verdict(
    recommendation: Recommendation,
    prediction: TimestepPrediction,
    said: Forecast,
    budget: BudgetAnswer | None,
    agreed: Agreement,
    sweep: TimestepSweep | None,
    point: Operating,
    target: Target,
    model: str,
    data: DataSummary,
) -> tuple[str, ...]:
    """Sentences that answer the question, the headline first.

    Args:
        recommendation: the settings to use.
        prediction, agreed: the published rule, and whether it agrees with the measurement.
        said: what the predictors say.
        budget: the answer to a budget, if one was given.
        sweep: accuracy against T, where it was measured.
        point: what the network does at the recommended settings.
        target, model, data: what was asked.
    """
    lines = [_headline(recommendation, said, sweep, point, target, model, data), _cost(point)]
    if budget is not None:
        lines.insert(0, budget.text)
    if sweep is None:
        lines += _expectation(point)
    else:
        if agreed != "not learned" and predictable(data.kind):
            lines.append(_score(said, sweep))
    lines.append(_rule(prediction, agreed, sweep, target))
    if sweep is None:
        lines += said.notes
        lines.append(
            "T* was not measured: add --verify to measure it on this network and data"
            + (
                "."
                if point.expected
                else ", or --pilot for a prediction from one training at the largest T."
            )
        )
    else:
        lines.extend(sweep.notes)
        lines.append(
            "Intervals cover the finite test set, not other training seeds or a longer training."
        )
    return tuple(lines)


def _expectation(point: Operating) -> list[str]:
    """What accuracy the predictors expect at T, where one says."""
    if point.expected is not None:
        covers = "" if point.expected.low is None else " (90 %)"
        return [f"Expected at T = {point.timesteps}: {point.expected} accuracy{covers}."]
    if point.lost is None:
        return []
    covers = " (90 %)"
    if point.lost.low is None:
        known = ", by definition: the predictors know no larger T"
        covers = known if point.lost.value == 0 else ""
    return [
        f"Expected at T = {point.timesteps}: {point.lost} below the accuracy of large T{covers}."
    ]


def _score(said: Forecast, sweep: TimestepSweep) -> str:
    """How the prediction did against the measurement.

    Of a T* with no upper end only the lower one is known, which can contradict but not confirm.
    """
    best, measured = said.best, sweep.t_star
    low, high = best.timesteps.low or 1, best.timesteps.high or math.inf
    text = f"Prediction ({best.name}): T = {_span(best.timesteps)}; "
    if measured.high is None and high >= (measured.low or 1):
        return (
            f"{text}the measured T* = {_span(measured)} is open-ended and does not decide whether "
            "its 90 % interval holds."
        )
    inside = "holds" if low <= measured.value <= high else "misses"
    shown = number(measured.value) if measured.high is not None else _span(measured)
    return f"{text}its 90 % interval {inside} the measured T* = {shown}."


def _headline(
    recommendation: Recommendation,
    said: Forecast,
    sweep: TimestepSweep | None,
    point: Operating,
    target: Target,
    model: str,
    data: DataSummary,
) -> str:
    t = recommendation.timesteps
    setting = f" with {point.setting}" if point.setting else ""
    if sweep is None or point.accuracy is None:
        if recommendation.basis == "budget":
            t = said.best.timesteps
        error = 2 ** said.ranked[0].error
        return (
            f"Predicted: T = {_span(t)} for {model} on {data.name} ({said.best.name}, off by a "
            f"factor of {number(error, 3)} on average on data sets it had not seen). Not yet "
            "checked by training at this T."
        )
    if not sweep.learned:
        last = sweep.points[-1]
        return (
            f"No answer: {model} has not learned {data.name} (at T = {last.T}: {last.accuracy}; "
            f"always the most frequent class: {number(sweep.chance)} %). Train longer, on more "
            "samples, or a larger network."
        )
    if recommendation.basis == "budget":
        t = sweep.t_star
        return (
            f"Without the budget: T = {_span(t)}, the smallest T within "
            f"{points_of(target.tolerance)} of the plateau {sweep.plateau}; at T = "
            f"{point.timesteps}{setting}, {model} reaches {point.accuracy} accuracy on {data.name}."
        )
    reaches = (
        f"{model} reaches {point.accuracy} accuracy on {number(point.accuracy.n or 0)} test "
        f"samples of {data.name}"
    )
    within = f"the smallest T within {points_of(target.tolerance)} of the plateau {sweep.plateau}"
    if not setting:
        return f"Use T = {_span(t)}: {reaches}; T* is {within}."
    return (
        f"Use T = {point.timesteps}{setting}: {reaches}. T* = {_span(t)}, {within}, "
        f"was measured with the network's own neurons;{setting} only T = "
        f"{point.timesteps} was trained."
    )


def _cost(point: Operating) -> str:
    parts = [f"{energy.total} per sample ({energy.convention})" for energy in point.profile.energy]
    setting = f" with {point.setting}" if point.setting else ""
    return (
        f"At T = {point.timesteps}{setting} it fires {point.profile.spikes_per_sample} per sample "
        f"and needs {' or '.join(parts)}; {point.profile.dense.total} for the dense network of the "
        "same shapes in one pass."
    )


def _rule(
    prediction: TimestepPrediction,
    agreed: Agreement,
    sweep: TimestepSweep | None,
    target: Target,
) -> str:
    text = (
        f"The published rule C·d_eff/ε² gives T = {_span(prediction.timesteps)}, by its inputs "
        f"C = {prediction.constant} and d_eff = {prediction.d_eff} at ε = "
        f"{number(target.epsilon)} %"
    )
    if sweep is None:
        return text + "."
    measured = _span(sweep.t_star)
    if agreed == "agrees":
        return f"{text}; the measured T* = {measured} overlaps it: they agree here."
    if agreed == "undecided":
        return f"{text}; the measured T* = {measured} is too uncertain to judge it."
    if agreed == "not learned":
        return (
            f"{text}; the measured T* = {measured} says nothing about it, because the network has "
            "not learned more than to answer with one class."
        )
    ratio = prediction.timesteps.value / sweep.t_star.value
    factor = ratio if ratio >= 1 else 1 / ratio
    verb = "too many" if agreed == "overestimates" else "too few"
    return f"{text}; the measured T* = {measured}: the rule asks for {number(factor, 2)}× {verb}."


def _span(estimate: Estimate) -> str:
    """``2 [1, 4]`` or ``2 [1 or more]``, without the unit."""
    return str(replace(estimate, unit=""))
