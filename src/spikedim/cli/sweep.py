"""``spikedim sweep``: accuracy against timesteps, and T*; with ``--study``, of many networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from spikedim.cli import options
from spikedim.cli.output import emit, say, working
from spikedim.errors import ConfigError

_TRIALS, _OUTPUT_SAMPLES = 20, 500
_OF_SEARCH = ("trials", "storage")


def sweep(
    context: typer.Context,
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    timesteps: options.Timesteps = "1,2,4,8",
    mode: Annotated[
        Literal["train", "inference"],
        typer.Option(
            help="train: one training per T. inference: train at the largest T, read out earlier."
        ),
    ] = "train",
    tolerance: Annotated[
        float, typer.Option(help="Accuracy that may be lost, in percentage points.")
    ] = 1.0,
    encoder: options.Encoder = "direct",
    epochs: options.Epochs = None,
    train_samples: options.TrainSamples = None,
    test_samples: options.TestSamples = None,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Run a study of this name: all combinations of --data and --model (lists, "
            "separated by commas), --timesteps, --seeds and --grid, into one tidy table.",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Study: number of seeds from --seed on, or a list, e.g. 0,5,7.")
    ] = "1",
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LIST",
            help="Study: values of beta, v_th, t_ref or reset, e.g. beta=0.3,0.5. Repeatable.",
        ),
    ] = None,
    eval_t: Annotated[
        str | None,
        typer.Option(
            "--eval-T", help="Study: test every network after these steps too, also beyond its T."
        ),
    ] = None,
    outputs_t: Annotated[
        str | None,
        typer.Option("--outputs-T", help="Study: store the outputs of networks trained at these."),
    ] = None,
    output_samples: Annotated[
        int, typer.Option(min=1, help="Study: test samples whose outputs are stored.")
    ] = _OUTPUT_SAMPLES,
    image_size: Annotated[
        int | None, typer.Option(min=2, help="Study: shrink images to this side, by area.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="Study: only the first so many classes.")
    ] = None,
    repool: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Study: pool training and test samples and cut N test samples anew, for data "
            "whose own test split is too small.",
        ),
    ] = None,
    training: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Study: a training setting, e.g. lr=0.03 or batch_size=64. Repeatable.",
        ),
    ] = None,
    search: Annotated[
        Literal["timesteps", "spikes"] | None,
        typer.Option(
            help="Study: search with Optuna instead of the whole grid, for the smallest T or the "
            "fewest spikes within --tolerance of the best held-out accuracy."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Search: settings to try per data set and network.")
    ] = _TRIALS,
    storage: Annotated[
        str | None,
        typer.Option(help="Search: URL of Optuna's database; default SQLite in the run directory."),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Study: where trainings run.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Ray: cluster to join, e.g. auto or ray://head:10001; default: start."),
    ] = None,
    cpus_per_trial: Annotated[
        float | None, typer.Option(help="Ray: CPUs of each training, fractions allowed.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="Ray: GPUs of each training, fractions allowed.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="Ray: how often a training whose worker died is retried.")
    ] = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = None,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Measure accuracy against timesteps and T*, the smallest T within tolerance of the plateau.

    Example: spikedim sweep --data digits --model spikformer_nano --timesteps 1,2,4,8

    A study: spikedim sweep --study first --data digits,fashion_mnist --model
    spikformer_nano,qkformer_nano -T 1,2,4 --seeds 3 --image-size 8
    """
    if study is None:
        _refuse_study_options(context)
        _single(
            data, model, timesteps, mode, tolerance, encoder, epochs, train_samples, test_samples,
            out, seed, device, workers, data_root, as_json, quiet,
        )  # fmt: skip
        return
    from spikedim.cli.study import Choices, engine_of, integers, run_directory
    from spikedim.training.study import run_study

    if mode != "train":
        raise ConfigError("--mode inference applies without --study; a study takes --eval-T")
    if search is None:
        unused = (*_OF_SEARCH, "tolerance")  # a study has no T*
        options.refuse_given(context, unused, "applies to searches; add --search timesteps")
    result: Any
    with working(quiet):
        where = engine_of(engine, workers, address, cpus_per_trial, gpus_per_trial, retries, device)
        chosen = Choices(
            study, data, model, timesteps, seeds, grid or (), integers(eval_t),
            integers(outputs_t), output_samples, encoder, image_size, classes, repool, epochs,
            training or (), train_samples, test_samples, seed, device, data_root,
        ).study()  # fmt: skip
        if search is None:
            with run_directory(chosen, out, {}) as run:
                result = run_study(chosen, run, where)
        else:
            from spikedim.training.search import SearchSettings, run_search

            settings = SearchSettings(search, trials, tolerance, seed, storage)
            extra = {"search": {"objective": search, "tolerance": tolerance, "seed": seed}}
            with run_directory(chosen, out, extra) as run:
                result = run_search(chosen, run, settings, where)
    emit(result, as_json)
    say(f"Table: {result.path}")


def _refuse_study_options(context: typer.Context) -> None:
    """Options that only a study knows must not be ignored in silence."""
    names = (
        "seeds", "grid", "eval_t", "outputs_t", "output_samples", "image_size", "classes",
        "repool", "training", "search", *_OF_SEARCH, "engine", "address",
        "cpus_per_trial", "gpus_per_trial", "retries",
    )  # fmt: skip
    options.refuse_given(context, names, "applies to studies; add --study NAME")
    for option in ("data", "model"):
        text = str(context.params[option])
        if "," in text and not Path(text).exists():
            raise ConfigError(f"--{option} {text}: several of them are a study; add --study NAME")


def _single(
    data: str,
    model: str,
    timesteps: tuple[int, ...],
    mode: Literal["train", "inference"],
    tolerance: float,
    encoder: str,
    epochs: int | None,
    train_samples: int | None,
    test_samples: int | None,
    out: Path | None,
    seed: int,
    device: str,
    workers: int | None,
    data_root: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from spikedim.cli.job import prepare
    from spikedim.training import sweep_timesteps
    from spikedim.training.batches import check_trainable

    with working(quiet):
        job = prepare(
            data,
            data_root,
            model,
            timesteps if mode == "train" else timesteps[-1:],
            epochs,
            train_samples,
            test_samples,
            seed,
            device,
        )
        check_trainable(job.dataset, timesteps, encoder)
        workers = workers or job.workers
        job.announce(timesteps if mode == "train" else timesteps[-1:], workers)
        settings = {
            "timesteps": timesteps,
            "mode": mode,
            "tolerance": tolerance,
            "encoder": encoder,
        }
        with job.run("sweep", settings, out) as run:
            result = sweep_timesteps(
                job.dataset,
                model,
                timesteps,
                job.config,
                run,
                tolerance=tolerance,
                mode=mode,
                encoder=encoder,
                workers=workers,
            )
    emit(result, as_json)
    say(f"Table: {run.file('sweep.parquet')}")
