"""``spikedim measure``: effective dimension of data and of the layers of a network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spikedim.cli import options
from spikedim.cli.explain import run_explain
from spikedim.cli.network import SAMPLES, network_inputs, opened, ready_network
from spikedim.cli.output import PICTURES, check_suffix, emit, save_figure, say, working
from spikedim.errors import ConfigError, DataError, SpikedimWarning
from spikedim.results import Result

if TYPE_CHECKING:
    from spikedim.data import Dataset

LARGE = 5000
NETWORK_ONLY = ("spikes", "potential", "rates")
_EXPLAINED = (
    "explain", "data", "data_root", "representation", "limit", "seed", "out", "as_json", "quiet",
    "config",
)  # fmt: skip


def measure(
    context: typer.Context,
    data: options.Data = "digits",
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    representation: Annotated[
        str | None,
        typer.Option(
            "--representation",
            "-r",
            help="Of data: pixels, patches, features, tfidf, tokens, events, time_surface. With "
            "--model: spikes, potential, rates, features. Default by the kind of data; spikes.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the data representation, e.g. size=8; repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Measure the layers of this network (name or FILE.py:FUNCTION)."
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers, shell patterns, comma-separated, e.g. 'block.0.*'."),
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option("--timesteps", "-T", help="With --model: timesteps, default 4.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="flatten (one vector per sample), samples or mean.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="With --model: mean, flatten, samples or each timestep.")
    ] = None,
    per: Annotated[
        Literal["none", "class", "neighbourhood"],
        typer.Option(help="One number per class, or around every sample."),
    ] = "none",
    growth: Annotated[
        bool, typer.Option("--growth", help="Against the number of samples, extrapolated.")
    ] = False,
    estimators: Annotated[
        str | None, typer.Option(help="Comma-separated estimators; default all that apply.")
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(help="Share of the variance PCA-q % must reach, in (0, 1), default 0.95."),
    ] = None,
    center: Annotated[
        bool, typer.Option("--center/--no-center", help="Subtract the mean first.")
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option(help="At most this many samples (stratified); 256 with --model."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain-published",
            help="Search definitions and representations for the published values 47, 68, 89; "
            "--data takes SPEC or SPEC=TARGET, comma-separated, default the reference samples.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="With --explain-published: Markdown page to write."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the picture of the result to this PNG/PDF/SVG.")
    ] = None,
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Measure the effective dimension of data, or of every layer of a network, with intervals.

    Without --checkpoint a network of ours is untrained, its batch norm calibrated on the data; one
    of FILE.py:FUNCTION that brings batch-norm statistics is taken as it is. With --model
    texts are read as bytes.

    Example: spikedim measure --data digits --plot spectrum.png

    Example: spikedim measure --data cifar10 --model spikformer_tiny -T 4 --time each

    Example: spikedim measure --data cifar10 -r patches --option size=8 --per class
    """
    check_suffix("plot", plot, *PICTURES)
    if explain:
        others = [name for name in context.params if name not in _EXPLAINED]
        options.refuse_given(context, others, "has no effect with --explain-published")
        chosen_data = data if options.is_given(context, "data") else None
        run_explain(chosen_data, data_root, representation, limit, seed, out, as_json, quiet)
        return
    options.refuse_given(context, ["out"], "is of --explain-published; use --json or --plot")
    keys = estimators.split(",") if estimators else None
    if keys or per != "none":
        why = "is of the default PCA count; name one instead, e.g. --estimators pca90"
        options.refuse({"quantile": quantile}, why)
    how = How(per, growth, keys, 0.95 if quantile is None else quantile, center, seed)
    how.check()
    with working(quiet):
        if model is None:
            only = {
                "checkpoint": checkpoint,
                "layers": layers,
                "timesteps": timesteps,
                "time": time,
            }
            options.refuse(only, "needs --model, the network whose layers are measured")
            chosen = _parsed(option)
            if tokens is not None:
                chosen["tokens"] = tokens
            result = _of_data(data, data_root, split, limit, representation, chosen, how)
        else:
            alone = "is of data representations; leave it out with --model"
            options.refuse({"option": option}, alone)
            network = Network(
                model,
                checkpoint,
                layers,
                4 if timesteps is None else timesteps,
                tokens or "flatten",
                time or "mean",
            )
            count = SAMPLES if limit is None else limit
            result = _of_network(data, data_root, split, count, representation, network, how)
    emit(result, as_json)
    if plot is not None:
        save_figure(result, plot)
        say(f"Plot: {plot}")


@dataclass(frozen=True)
class How:
    """How vectors are measured."""

    per: str
    growth: bool
    keys: list[str] | None
    quantile: float
    center: bool
    seed: int

    @property
    def pca(self) -> str:
        """Key of the PCA count at the chosen quantile."""
        from spikedim.dimension.estimators import pca_key

        return pca_key(self.quantile)

    @property
    def whole(self) -> bool:
        """One measurement of all vectors, not per class, neighbourhood or sample size."""
        return self.per == "none" and not self.growth

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if not 0 < self.quantile < 1:
            raise ConfigError(f"quantile={self.quantile}; expected a fraction between 0 and 1")
        if self.growth and self.per != "none":
            raise ConfigError(f"--growth and --per {self.per} are two measurements; choose one")
        if not self.whole and self.keys and len(self.keys) > 1:
            verb = "--growth" if self.growth else f"--per {self.per}"
            raise ConfigError(f"{verb} measures one estimator, {len(self.keys)} were given")

    def one(self, default: str) -> str:
        """The one estimator of a finer measurement."""
        return self.keys[0] if self.keys else default


@dataclass(frozen=True)
class Network:
    """Which layers of which network, and how their axes become vectors."""

    name: str
    checkpoint: Path | None
    layers: str | None
    timesteps: int
    tokens: str
    time: str


def _of_data(
    data: str,
    root: Path | None,
    split: str,
    limit: int | None,
    representation: str | None,
    chosen: dict[str, Any],
    how: How,
) -> Result:
    from spikedim.data import load_dataset
    from spikedim.data.representations import represented
    from spikedim.dimension import measure as measured
    from spikedim.dimension.clusters import default_spectral, measure_clustered

    if representation in NETWORK_ONLY:
        raise ConfigError(f"--representation {representation} is of a network; add --model NAME")
    dataset = load_dataset(data, root)
    made = represented(dataset, representation, split, limit, how.seed, **chosen)
    for note in made.notes:
        warnings.warn(note, SpikedimWarning, stacklevel=1)
    if not how.whole:
        if made.sample is not None:
            raise ConfigError(
                f"--{'growth' if how.growth else 'per ' + how.per} needs one vector per sample; "
                "add --tokens flatten or --tokens mean"
            )
        classes = dataset.split(split).limited(limit, how.seed).labels
        return _finer(made.x, _names(dataset, classes, how), how)
    if made.sample is None:
        side = min(made.x.shape)
        if side > LARGE:
            text = f"no intervals: each needs many {side:,} x {side:,} decompositions; "
            warnings.warn(f"{text}--limit 2000 gives them", SpikedimWarning, stacklevel=1)
        interval = "auto" if side <= LARGE else "none"
        return measured(
            made.x, how.keys, how.center, how.quantile, seed=how.seed, interval=interval
        )
    keys = how.keys or [how.pca if key == "pca95" else key for key in default_spectral()]
    return measure_clustered(made.x, made.sample, keys, how.center, seed=how.seed)


def _of_network(
    data: str,
    root: Path | None,
    split: str,
    limit: int,
    representation: str | None,
    network: Network,
    how: How,
) -> Result:
    from spikedim.design.layers import ESTIMATORS, layer_dimensions
    from spikedim.models.features import QUANTITIES, checked_axes, representations

    what = representation or "spikes"
    if what not in QUANTITIES:
        raise ConfigError(
            f"--representation {what} is of data; with --model choose {', '.join(QUANTITIES)}"
        )
    axes = checked_axes(what, network.tokens, network.time)
    dataset = opened(data, root, network.checkpoint)
    x, classes, T = network_inputs(network.name, dataset, split, limit, network.timesteps, how.seed)
    model = ready_network(network.name, dataset, T, network.checkpoint, how.seed).network
    common: dict[str, Any] = {"layers": network.layers, "tokens": axes.tokens, "time": axes.time}
    if how.whole:
        keys = how.keys or [how.pca if key == "pca95" else key for key in ESTIMATORS]
        found = layer_dimensions(
            model, x, T, what, keys, center=how.center, seed=how.seed, **common
        )
        return replace(found, model=network.name)
    if "samples" in (axes.tokens, axes.time) or axes.time == "each":
        verb = "growth" if how.growth else f"per {how.per}"
        raise ConfigError(
            f"--{verb} needs one vector per sample; use --tokens flatten or mean and --time mean "
            "or flatten"
        )
    seen = representations(model, x, T, what, **common)
    if len(seen) != 1:
        raise ConfigError(
            f"--{'growth' if how.growth else 'per ' + how.per} measures one layer, --layers "
            f"chooses {len(seen)}; name one, e.g. --layers {next(iter(seen))}"
        )
    return _finer(next(iter(seen.values())), _names(dataset, classes, how), how)


def _finer(x: Any, labels: Any, how: How) -> Result:
    """Per class, per neighbourhood, or against the number of samples."""
    from spikedim.dimension import growth_curve, per_class, per_neighbourhood

    if how.growth:
        return growth_curve(x, how.one(how.pca), how.center, seed=how.seed)
    if how.per == "class":
        key = how.one("pr_corrected")
        return per_class(x, labels, key, how.center, seed=how.seed)
    if hasattr(x, "tocsr"):
        raise ConfigError(
            "--per neighbourhood needs dense vectors, which a bag of n-grams is too large for; "
            "use --representation tokens, or --per class"
        )
    if not how.center:
        raise ConfigError("--per neighbourhood is centred on every neighbourhood; no --no-center")
    neighbours = min(100, max(5, len(x) // 4))
    return per_neighbourhood(x, neighbours, how.one("pr_corrected"), seed=how.seed)


def _names(dataset: Dataset, classes: Any, how: How) -> Any:
    """Class name of every sample, where classes are asked for."""
    import numpy as np

    if how.per != "class":
        return None
    if classes is None:
        raise DataError(f"data set {dataset.name} has no labels; --per class needs them")
    # numbered, so that classes keep their order
    places = len(str(dataset.num_classes - 1))
    names = [f"{k:0{places}d} {name}" for k, name in enumerate(dataset.class_names)]
    if dataset.class_names == tuple(map(str, range(dataset.num_classes))):
        names = [f"{k:0{places}d}" for k in range(dataset.num_classes)]
    return np.array(names)[np.asarray(classes)]


def _parsed(words: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` words; values are read as YAML, so numbers are numbers."""
    import yaml

    found: dict[str, Any] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--option {word!r}: expected NAME=VALUE, e.g. size=8")
        try:
            found[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--option {word!r}: the value cannot be read") from error
    return found
