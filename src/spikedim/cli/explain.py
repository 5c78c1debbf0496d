"""``spikedim measure --explain-published``: where the published effective dimensions come from.

With ``--out docs/effective-dimension.md`` it writes the page of the documentation.
"""

from __future__ import annotations

from pathlib import Path

from spikedim.cli.output import emit, say, working
from spikedim.errors import ConfigError

SAMPLES = ("cifar10", "cifar100", "imagenet32", "imagenet128", "sst2")


def run_explain(
    data: str | None = None,
    data_root: Path | None = None,
    only: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> None:
    """Search data sets for the published effective dimensions and print what comes nearest.

    Args:
        data: comma-separated data sets, each a name or path, with ``=TARGET`` (cifar10, cifar100,
            imagenet, text) where its name does not tell which value it stands for; the reference
            samples that are there by default.
        data_root: folder of the samples.
        only: comma-separated representations; all by default.
        limit: at most this many samples of each set.
        seed: of every random draw.
        out: Markdown page to write.
        as_json: print JSON.
        quiet: no progress display.

    Raises:
        SpikedimError: as :func:`spikedim.design.explain_published` and ``load_dataset``.
    """
    from spikedim.data import load_dataset
    from spikedim.design.published.explain import explain_published

    with working(quiet):
        pairs = [_parse(word) for word in data.split(",")] if data else _available(data_root)
        sets = [load_dataset(spec, data_root) for spec, _ in pairs]
        targets = {d.name: target for d, (_, target) in zip(sets, pairs, strict=True) if target}
        result = explain_published(
            sets, targets, only=only.split(",") if only else None, limit=limit, seed=seed
        )
    if out is not None:
        result.write_docs(out, _command(data, only, limit, seed, out))
        say(f"Page: {out}")
    emit(result, as_json)


def _parse(word: str) -> tuple[str, str | None]:
    spec, _, target = word.strip().partition("=")
    return spec, target or None


def _available(root: Path | None) -> list[tuple[str, str | None]]:
    from spikedim.data import list_datasets

    there = {entry.name for entry in list_datasets(root) if entry.available}
    found: list[tuple[str, str | None]] = [(name, None) for name in SAMPLES if name in there]
    if not found:
        raise ConfigError(
            "no reference samples to search; set SPIKEDIM_DATA to their folder, or name data "
            "sets: --data PATH=cifar10,PATH=cifar100,PATH=imagenet"
        )
    return found


def _command(data: str | None, only: str | None, limit: int | None, seed: int, out: Path) -> str:
    given = {"--data": data, "-r": only, "--limit": limit, "--seed": seed or None}
    words = [f"{name} {value}" for name, value in given.items() if value is not None]
    verb = "SPIKEDIM_DATA=FOLDER spikedim measure --explain-published"
    return " ".join([verb, *words, f"--out {out}"])
