"""The main job: measure the data, predict T, check the prediction by training, recommend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from spikedim.adapters import AdaptedModel
from spikedim.data import Dataset, as_dataset, represent
from spikedim.design.bounds import lower_bounds
from spikedim.design.budget import Budget, BudgetAnswer, invert
from spikedim.design.cases import Case, reference_cases
from spikedim.design.forecast import STEPS, Forecast, forecast
from spikedim.design.neuron_inversion import NeuronTarget, find_neuron
from spikedim.design.piloting import case_of
from spikedim.design.plan import (
    WORDS,
    DataSummary,
    ModelSummary,
    Operating,
    Plan,
    Recommendation,
    Target,
    predictable,
)
from spikedim.design.verdict import agreement, verdict
from spikedim.dimension import measure
from spikedim.errors import ConfigError, DataError
from spikedim.models import (
    SpikingModel,
    batchnorm_of,
    calibrate_batchnorm,
    load_checkpoint,
)
from spikedim.models.calibration import weights_in_words
from spikedim.models.features import batch_axis, layer_shapes
from spikedim.neurons import LIFParams
from spikedim.ntk.variants import as_networks
from spikedim.profiling import Profile, convention, profile
from spikedim.profiling.profile import DEFAULT_CONVENTIONS
from spikedim.provenance import provenance
from spikedim.results import SLACK, Estimate, number, plain, points_of
from spikedim.storage import Run, digest, write_json
from spikedim.theory import timestep_rule
from spikedim.training import (
    NeuronPoint,
    NeuronSweep,
    TimestepSweep,
    TrainConfig,
    default_config,
    sweep_neurons,
    sweep_timesteps,
)
from spikedim.training.fit import load_trained
from spikedim.training.network import network_for
from spikedim.training.sweep import majority

#: Timesteps that are trained and tested unless the user names others.
DEFAULT_TIMESTEPS = (1, 2, 4, 8)

#: Neuron settings tried one at a time around the network's own.
NEURON_GRID = {"threshold": (0.5, 1.0, 1.5), "beta": (0.25, 0.5, 0.75), "refractory": (0, 1)}

#: Largest T at which an untrained network is profiled for a prediction that was not verified.
_MOST_UNVERIFIED = 32
_CALIBRATION_SAMPLES = 256

#: Texts whose Gram matrix can still be taken apart often enough for intervals.
_TEXTS = 2000

#: What the predictors, which were fitted on static images, do not know of other data.
_UNKNOWN = {
    "events": "The predictors were fitted on static images that are shown T times; here T frames "
    "share out each recording, about which they know nothing.",
    "text": "The predictors were fitted on static images and the effective dimension of their "
    "pixels; that of texts is of TF-IDF weights, about which they know nothing.",
}

#: Counts what a network does on inputs at T.
Count = Callable[[SpikingModel, Tensor, int], Profile]


def design(
    dataset: Dataset,
    model: str = "spikformer_tiny",
    *,
    target: Target | None = None,
    verify: bool = False,
    pilot: bool = False,
    budget: Budget | None = None,
    timesteps: Sequence[int] = DEFAULT_TIMESTEPS,
    neurons: bool = True,
    config: TrainConfig | None = None,
    checkpoint: str | Path | None = None,
    profile_samples: int = 512,
    seed: int = 0,
    workers: int = 1,
    population: Dataset | None = None,
    known: tuple[Sequence[Case], int] | None = None,
    run: Run | None = None,
    neuron: NeuronTarget | None = None,
) -> Plan:
    """Say how many timesteps a spiking transformer needs on a data set, at what cost, how surely.

    Measures the effective dimension of the training inputs, and asks every predictor of T*. The
    cheapest one that does as well as any on data sets left out of its fit, within the noise, is
    followed; the published rule and the others stand beside it. With ``pilot`` it trains one
    network at the largest of ``timesteps``, whose read-out after fewer steps more predictors can
    use. With ``verify`` it trains the network at each of ``timesteps``, measures T* (the smallest T
    within the target's tolerance of the accuracy plateau), spikes and energy at each T, and the
    effect of threshold, leak and refractory period at T*; without either, spikes and energy come
    from ``checkpoint``, from a network that brings batch-norm statistics as it is, or from the
    untrained network with calibrated batch norm, and say so.

    Args:
        dataset: images, event recordings or texts with labels; a torch ``Dataset`` of (image,
            class) or a pair of arrays too. Of a recording, T is the number of frames it is
            accumulated into; a text is read as a whole at each of T steps.
        model: a name from :func:`spikedim.models.list_models`.
        target: ε of the rule and tolerated accuracy loss.
        verify: measure T* by training at every T.
        pilot: train once, at the largest T.
        budget: most spikes or energy of one inference: T is then the one of the largest accuracy
            within it, and of the neuron settings tried at that T only those within it count.
        timesteps: T values to train at.
        neurons: also sweep neuron settings at T* (with ``verify``).
        config: training settings; default by model and data.
        checkpoint: weights to profile instead of an untrained network.
        profile_samples: test samples behind spikes and energy.
        seed: seed of weights, subsamples and training.
        workers: trainings at once; under a million parameters the numbers stay the same.
        population: the data set whose effective dimension is measured, where ``dataset`` is a part
            of it that a training budget allows; ``dataset`` itself by default.
        known: earlier cases that predictors are fitted on, and how many of them are the user's
            (:func:`spikedim.design.store.known_cases`); by default those that ship with spikedim.
        run: run directory that makes the work resumable and receives ``results.json``; required
            with ``verify`` or ``pilot``.
        neuron: also find the neuron that gives the network, at the recommended T, this effective
            dimension of its tangent kernel (``Plan.inversion``, feasible or not).

    Raises:
        ConfigError: ``verify`` or ``pilot`` without ``run`` or together with ``checkpoint``, or
            both; recordings or texts without ``verify``, or a T that the frames of recordings
            cannot be brought to.
        DataError: the data set holds feature vectors, no labels, or samples that are all the same;
            the network reads another kind of data.
        ModelError: ``neuron`` for a network of which neurons are kept as they are.
    """
    target = target or Target()
    dataset = as_dataset(dataset)
    check_designable(dataset, verify)
    if verify and pilot:
        raise ConfigError("verify trains at every T, a pilot at one: leave out either")
    trains = verify or pilot
    if trains and run is None:
        raise ConfigError(
            "verify=True trains networks: pass run=Run(directory, config) to keep them"
        )
    if trains and checkpoint is not None:
        raise ConfigError("verify trains its own networks: leave out either verify or checkpoint")

    population = population or dataset
    most = _TEXTS if dataset.kind == "text" else None
    dimension = measure(represent(population, limit=most, seed=seed), seed=seed)
    d_eff = dimension.estimates["pca95"]
    if d_eff.value <= 0:
        raise DataError(
            f"{population.name}: the training samples that were read are all the same, so that "
            "there is nothing to tell apart; check the file"
        )
    predictions = (
        timestep_rule(d_eff, target.epsilon, "percent"),
        timestep_rule(d_eff, target.epsilon / 100, "fraction"),
    )
    network = network_for(model, dataset, seed=seed)
    if neuron is not None:
        as_networks(network)  # refuses here rather than after all training
    batchnorm = batchnorm_of(network)
    sweep, neuron_sweep = None, None
    if trains:
        assert run is not None
        config = config or default_config(model, dataset)
        sweep = sweep_timesteps(
            dataset,
            model,
            tuple(timesteps),
            config,
            run,
            tolerance=target.tolerance,
            mode="train" if verify else "inference",
            workers=workers,
        )
        if neurons and verify and (grid := neuron_grid(network)):
            best = int(sweep.t_star.value)
            neuron_sweep = sweep_neurons(dataset, model, best, grid, config, run, workers=workers)
        epochs = f"{config.epochs} epoch{'' if config.epochs == 1 else 's'}"
        out = f", {number(100 * config.validation)} % of them held out" if config.validation else ""
        state = f"trained, {epochs} on {len(dataset.train):,} samples{out}"
    else:
        if checkpoint is not None:
            load_checkpoint(network, checkpoint)
        state = weights_in_words(model, checkpoint, _CALIBRATION_SAMPLES, batchnorm=batchnorm)

    case = case_of(dataset, model, network, d_eff.value, seed, sweep, run)
    cases, own = known or (reference_cases(), 0)
    # The user's own convention replaces a shipped one of its name.
    asked = (*DEFAULT_CONVENTIONS, *([budget.convention] if budget else []))
    rules = {rule.name: rule for rule in map(convention, asked)}
    count = partial(profile, conventions=tuple(rules.values()))
    steps = tuple(sorted({*STEPS, *(timesteps if trains else ())}))
    said = forecast(case, cases, steps, target.tolerance, own)
    if not predictable(dataset.kind):
        said = replace(said, notes=(_UNKNOWN[dataset.kind], *said.notes))
    if not verify:
        sweep = None  # a pilot is read out, not measured at each T

    split = "train" if dataset.test is None else "test"
    inputs = _inputs(dataset, split, profile_samples, seed)
    choice = None
    if sweep is None:
        wanted = _around(int(said.best.timesteps.value), budget is not None)
        images = None
        if checkpoint is None and not pilot and batchnorm == "fresh":
            images, _ = dataset.tensors("train", _CALIBRATION_SAMPLES, seed)
        operating = tuple(
            _predicted(said, T, _profiled(network, inputs(T), T, images, count)) for T in wanted
        )
        recommended = next(p for p in operating if p.timesteps == int(said.best.timesteps.value))
    else:
        operating = _operating(dataset, network, sweep, inputs, count)
        recommended = next(p for p in operating if p.timesteps == sweep.t_star.value)
    answer = None if budget is None else invert(operating, budget, _quality(operating, sweep))
    if answer is not None and answer.timesteps is not None:
        recommended = next(p for p in operating if p.timesteps == answer.timesteps)
    # Neurons were compared at T* only.
    if neuron_sweep is not None and recommended.timesteps == neuron_sweep.T:
        at = partial(_chosen, dataset, network, T=neuron_sweep.T, inputs=inputs, count=count)
        tried = neuron_sweep.points
        if budget is not None and answer is not None and answer.timesteps is not None:
            tried = tuple(point for point in tried if point.base or budget.fits(at(point)))
        choice = _cheapest(tried, target.tolerance)
        if not choice.base:
            recommended = at(choice)
    advice = _recommend(network, sweep, neuron_sweep, choice, said, answer, target)
    summary = ModelSummary(
        model,
        sum(p.numel() for p in network.parameters()),
        *_tokens(network, inputs(1)),
        state,
    )
    data = _data_summary(dataset)
    agreed = agreement(predictions[0], sweep)
    plan = Plan(
        verdict=verdict(
            advice, predictions[0], said, answer, agreed, sweep, recommended, target, model, data
        ),
        agreement=agreed,
        recommendation=advice,
        data=data,
        model=summary,
        target=target,
        dimension=dimension,
        predictions=predictions,
        operating=operating,
        recommended=recommended,
        bounds=lower_bounds(
            summary,
            dimension,
            d_eff.value,
            None
            if dataset.kind == "text"
            else dataset.features("train", limit=_CALIBRATION_SAMPLES, seed=seed),
            target.epsilon / 100,
            recommended.profile,
        ),
        sweep=sweep,
        neurons=neuron_sweep,
        provenance=provenance(
            seed=seed,
            config={
                **(run.config if run else {"model": model, "verify": verify}),
                "calibration": digest([plain(case) for case in cases]),
            },
            data_fingerprint=dataset.fingerprint,
            device=config.device if config else "cpu",
            notes=() if sweep is None else (f"trained: {sweep.provenance.created}",),
        ),
        forecast=said,
        case=case,
        budget=answer,
        inversion=None
        if neuron is None
        else find_neuron(
            network,
            dataset,
            neuron,
            recommended.timesteps,
            checkpoint if sweep is None else sweep.at(recommended.timesteps).checkpoint,
            seed,
            trained=batchnorm == "own",
        ),
    )
    if run is not None:
        write_json(run.file("results.json"), plan)
    return plan


def neuron_grid(network: SpikingModel) -> dict[str, tuple[float, ...]]:
    """Settings of :data:`NEURON_GRID` besides the network's own that its neurons can have."""
    found = {}
    for name, values in NEURON_GRID.items():
        own = None if network.kept else getattr(network.config.neuron, name)
        if own is None or isinstance(own, Tensor):  # not known, or another one in every channel
            continue
        others = tuple(v for v in values if v != own and network.can_have(**{name: v}))
        if others:
            found[name] = others
    return found


def check_designable(dataset: Dataset, verify: bool) -> None:
    """Check whether there is a design for a data set.

    Raises:
        DataError: it holds other data, or no labels.
        ConfigError: it needs ``verify``.
    """
    if dataset.kind not in WORDS:
        raise DataError(
            f"{dataset.name} ({dataset.kind}) cannot be designed for: give images, event "
            "recordings or texts with labels"
        )
    dataset.labels_of(dataset.train)
    if not predictable(dataset.kind) and not verify:
        raise ConfigError(
            f"{dataset.name} holds {WORDS[dataset.kind]}, about which the predictors of T know "
            "nothing (they were fitted on static images): measure it with verify (--verify); "
            "spikedim profile shows what a network does at a T"
        )


def _inputs(dataset: Dataset, split: str, limit: int, seed: int) -> Callable[[int], Tensor]:
    """What a network reads at each T; images and texts are the same at all of them."""
    if dataset.kind != "events":
        x, _ = dataset.network_input(1, split, limit, seed)
        return lambda T: x
    return lambda T: dataset.network_input(T, split, limit, seed)[0]


def _tokens(network: SpikingModel, x: Tensor) -> tuple[int, int]:
    """Tokens and channels of what the head reads, unless the user said them.

    They are those of the last spiking layer that has tokens; without tokens, one vector as long as
    the last spiking layer.
    """
    shapes = layer_shapes(network, x.split(2, batch_axis(x))[0], 1)
    read = next((shape for shape in reversed(shapes) if shape.grid), shapes[-1])
    given = network.config if isinstance(network, AdaptedModel) else None
    return (
        (given and given.tokens) or read.tokens,
        (given and given.embed_dim) or read.channels,
    )


def _profiled(
    network: SpikingModel, x: Tensor, T: int, images: Tensor | None, count: Count
) -> Profile:
    """Profile at T; an untrained network takes its batch-norm statistics from ``images`` at T."""
    if images is not None:
        calibrate_batchnorm(network, images.split(64), T)
    return count(network, x, T)


def _around(T: int, everything: bool) -> tuple[int, ...]:
    """T with its neighbours on the grid of the predictors, or with all of them for a budget."""
    T = min(T, _MOST_UNVERIFIED)
    if everything:
        return tuple(sorted({*STEPS, T}))
    below = [step for step in STEPS if step < T][-1:]
    above = [step for step in STEPS if step > T][:1]
    return (*below, T, *above)


def _predicted(said: Forecast, T: int, measured: Profile) -> Operating:
    """An operating point that was not tested, with what the predictors expect of it."""
    return Operating(T, None, measured, "", said.expected(T), said.lost(T))


def _quality(operating: Sequence[Operating], sweep: TimestepSweep | None) -> list[float]:
    """Accuracy of each point up to a constant: measured and smoothed, or predicted.

    Where no predictor says what is lost, more steps count as better: they do not hurt on average.
    """
    if sweep is not None:
        return list(sweep.fitted)
    return [p.timesteps * 1e-9 if p.lost is None else -p.lost.value for p in operating]


def _operating(
    dataset: Dataset,
    network: SpikingModel,
    sweep: TimestepSweep,
    inputs: Callable[[int], Tensor],
    count: Count,
) -> tuple[Operating, ...]:
    """Profile the trained network of every T."""
    points = []
    for point in sweep.points:
        load_trained(network, point.checkpoint, dataset)
        measured = count(network, inputs(point.T), point.T)
        points.append(Operating(point.T, point.accuracy, measured))
    return tuple(points)


def _chosen(
    dataset: Dataset,
    network: SpikingModel,
    choice: NeuronPoint,
    T: int,
    inputs: Callable[[int], Tensor],
    count: Count,
) -> Operating:
    """Profile the network trained with a neuron setting."""
    own = network.config.neuron
    network.set_neurons(**{choice.parameter: _typed(own, choice)})
    load_trained(network, choice.checkpoint, dataset)
    point = Operating(
        T,
        choice.accuracy,
        count(network, inputs(T), T),
        f"{choice.parameter} = {number(choice.value)}",
    )
    network.set_neurons(**{choice.parameter: getattr(own, choice.parameter)})
    return point


def _typed(neuron: LIFParams, choice: NeuronPoint) -> Any:
    """The chosen value in the type of the parameter: a refractory period is a whole number."""
    return type(getattr(neuron, choice.parameter))(choice.value)


def _recommend(
    network: SpikingModel,
    sweep: TimestepSweep | None,
    neurons: NeuronSweep | None,
    choice: NeuronPoint | None,
    said: Forecast,
    answer: BudgetAnswer | None,
    target: Target,
) -> Recommendation:
    own: LIFParams | None = network.config.neuron
    settings: dict[str, Any] = {name: getattr(own, name, None) for name in NEURON_GRID}
    basis: Literal["measured", "predicted", "budget"]
    if answer is not None and answer.timesteps is not None:
        T, basis = Estimate(answer.timesteps, unit="timesteps"), "budget"
        why = answer.text
    elif sweep is None:
        T, basis = said.best.timesteps, "predicted"
        why = f"{said.best.name}: {said.best.text} Not checked on this network."
    else:
        T, basis = sweep.t_star, "measured"
        why = (
            f"smallest T within {points_of(target.tolerance)} of the plateau {sweep.plateau}"
            f"{'' if sweep.learned else ', where the network is at chance: it says nothing'}."
        )
    if neurons is not None and choice is not None:
        assert own is not None
        settings[choice.parameter] = _typed(own, choice)
        tried = sum(not point.base for point in neurons.points) + 1
        neuron = (
            f"of {tried} settings trained at T = {neurons.T}, the one with the "
            f"fewest spikes ({choice.spikes_per_sample} per sample) among those "
            f"{'that keep the budget and lie ' if basis == 'budget' else ''}within "
            f"{points_of(target.tolerance)} of the best accuracy on held-out training samples; "
            f"it reaches {choice.accuracy} on the test set."
        )
    else:
        neuron = _own_neurons(network)
        if neurons is not None:
            neuron += f"; others were tried at T = {neurons.T} only"
        elif sweep is not None:
            neuron += "; no others were tried"
        elif not network.kept:
            neuron += "; verify to compare others"
        neuron += "."
    return Recommendation(
        T, **settings, basis=basis, reasons=(f"T: {why}", f"v_th, β and t_ref: {neuron}")
    )


def _own_neurons(network: SpikingModel) -> str:
    """What the settings that are not swept stand for."""
    if not network.kept:
        return "the network's own"
    kept = f"{', '.join(network.kept)}: neurons kept as they are, whose settings are not known"
    if network.config.neuron is None:
        return f"not known ({kept}; register an equivalent to compare others)"
    return f"the network's own where they are known ({kept})"


def _cheapest(points: Sequence[NeuronPoint], tolerance: float) -> NeuronPoint:
    """The setting with the fewest spikes within ``tolerance`` points of the best one.

    Accuracies are those on held-out training samples, so that the test accuracy of the chosen
    setting is not the luckiest of several; without held-out samples there is only the test set.
    """

    def score(point: NeuronPoint) -> float:
        return (point.held_out or point.accuracy).value

    best = max(map(score, points))
    good = [point for point in points if score(point) >= best - tolerance - SLACK]
    return min(good, key=lambda point: point.spikes_per_sample.value)


def _data_summary(dataset: Dataset) -> DataSummary:
    return DataSummary(
        dataset.name,
        dataset.kind,
        len(dataset.train),
        0 if dataset.test is None else len(dataset.test),
        (dataset.vocabulary.length,) if dataset.kind == "text" else dataset.input_shape,
        dataset.num_classes,
        majority(dataset),
        dataset.source,
        dataset.fingerprint,
    )
