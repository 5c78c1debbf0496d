"""``spikedim validate``: rank the predictors of T* on data and networks left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spikedim.cli import options
from spikedim.cli.output import check_suffix, emit, save_figure, say, working
from spikedim.errors import ConfigError

if TYPE_CHECKING:
    from spikedim.design.cases import Case
    from spikedim.training.study_table import OutputRow, StudyRow


def validate(
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="study.parquet of a study; may be repeated. outputs.parquet beside it is read too."
        ),
    ] = None,
    dimension: Annotated[
        Path | None,
        typer.Option(help="study.parquet of the controlled study of effective dimension."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Markdown page to write, with its figure.")
    ] = None,
    ship: Annotated[
        Path | None,
        typer.Option(help="Also write the cases into this folder, as they ship with spikedim."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Accuracy that may be lost, in percentage points.")
    ] = 1.0,
    run_dimension: Annotated[
        Path | None,
        typer.Option(
            help="Train the controlled study of dimension in this run directory, and stop."
        ),
    ] = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Rank the predictors of T* by their errors on data sets and networks left out.

    Everything comes from stored tables; nothing is trained, but for --run-dimension.

    Example: spikedim validate --table results/study.parquet --out docs/validation.md
    """
    from spikedim.design.cases import DIMENSION, REFERENCE, cases_from_rows, write_lines
    from spikedim.design.dimension_effect import dimension_effect
    from spikedim.design.document import document
    from spikedim.design.validation import validate as judge
    from spikedim.results import points_of
    from spikedim.storage import write_text
    from spikedim.training.study_table import read_outputs, read_study

    training = {"workers": workers, "device": None if device == "cpu" else device}
    if run_dimension is None:
        options.refuse(training, "is of --run-dimension; stored tables need no training")
    else:
        tables = " ".join(map(str, table)) if table else None
        given = {"table": tables, "dimension": dimension, "out": out, "ship": ship}
        options.refuse(given, "cannot be used with --run-dimension, which trains and stops")
        _run_dimension(run_dimension, workers, device, quiet)
        return
    if not table:
        raise ConfigError("--table is missing: name the study.parquet of at least one study")
    check_suffix("out", out, ".md")
    rows: list[StudyRow] = []
    outputs: list[OutputRow] = []
    variants: dict[str, list[Case]] = {}
    sources = []
    with working(quiet):
        for path in table:
            study = read_study(path)
            rows += study.rows
            sources.append({"file": str(path), **study.provenance})
            beside = path.with_name("outputs.parquet")
            found = read_outputs(beside).rows if beside.is_file() else []
            outputs += found
            variants[f"`{path}` alone"] = cases_from_rows(study.rows, found, tolerance)
        cases = cases_from_rows(rows, outputs, tolerance)
        effect = None
        if dimension is not None:
            study = read_study(dimension)
            sources.append({"file": str(dimension), **study.provenance})
            effect = dimension_effect(study.rows)
        result = judge(cases)
        if out is not None:
            figure = None
            if effect is not None:
                figure = f"{out.stem}-dimension.png"
                save_figure(effect, out.with_name(figure))
            if len(variants) == 1:
                variants.clear()
            label = f"tolerance {points_of(2 * tolerance)}"
            variants[label] = cases_from_rows(rows, outputs, 2 * tolerance)
            command = "spikedim validate " + " ".join(f"--table {path}" for path in table)
            command += f" --dimension {dimension}" if dimension else ""
            command += f" --tolerance {tolerance:g}" if tolerance != 1 else ""
            command += f" --out {out}"
            page = document(cases, variants, sources, effect, figure, command)
            write_text(out, page)
        if ship is not None:
            write_text(ship / REFERENCE, write_lines(cases))
            if dimension is not None:
                controlled = cases_from_rows(read_study(dimension).rows, (), tolerance)
                write_text(ship / DIMENSION, write_lines(controlled))
    emit(result, as_json)
    for written in (out, ship):
        if written is not None:
            say(f"Written: {written}")


def _run_dimension(directory: Path, workers: int | None, device: str, quiet: bool) -> None:
    from spikedim.cli.study import engine_of, run_directory
    from spikedim.design.dimension_study import dimension_study
    from spikedim.training.study import run_study

    with working(quiet):
        study = dimension_study(device=device)
        engine = engine_of("local", workers, None, None, None, None, device)
        with run_directory(study, directory, {}) as run:
            result = run_study(study, run, engine)
    say(f"Table: {result.path}")
