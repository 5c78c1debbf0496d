"""One name or path in, one data set out; and the list of everything that has a name."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from spikedim.data import builtin
from spikedim.data.dataset import Dataset
from spikedim.data.download import PUBLIC_SETS, location
from spikedim.data.formats import hf, load_path
from spikedim.data.samples import ENVIRONMENT, SAMPLES, load_sample, missing_files
from spikedim.errors import ConfigError, DataError
from spikedim.results import Result, Table


@dataclass(frozen=True)
class DatasetEntry(Result):
    """A data set that has a name.

    Args:
        name: what to pass to :func:`load_dataset`.
        kind: "image", "text" or "events".
        available: whether it can be loaded now.
        origin: what it is.
        obtain: how to get it where it is not available.
        terms: licence or terms of use, as far as known.
    """

    name: str
    kind: str
    available: bool
    origin: str
    obtain: str
    terms: str


@dataclass(frozen=True)
class Catalog(Result):
    """All named data sets, as a table."""

    entries: tuple[DatasetEntry, ...]

    def tables(self) -> list[Table]:
        """One row per data set."""
        rows = [
            (e.name, e.kind, e.available, e.origin, "" if e.available else e.obtain)
            for e in self.entries
        ]
        return [Table("Data sets", ("name", "kind", "available", "origin", "obtain"), rows)]


_RAW = "@raw"


def load_dataset(
    spec: str | Path, root: str | Path | None = None, size: int | None = None
) -> Dataset:
    """Load a data set by name or path.

    Args:
        spec: ``"digits"`` (built in), the name of a reference sample or of a downloaded public
            set (:func:`list_datasets`), ``"hf:NAME"``, or the path of a file or folder in any of
            the formats of :data:`spikedim.data.LAYOUTS`. A name wins over a path; write ``./NAME``
            for a path of the same name.
        root: folder of the reference samples (default: SPIKEDIM_DATA); downloads are looked for
            there and in the cache folder.
        size: side of the images, of image folders only: all are brought to it. ``"FOLDER@N"`` as
            ``spec`` means the same, where there is nothing of that very name, and ``"NAME@raw"``
            the data set's :meth:`Dataset.raw`.

    Returns:
        The data set, checked.

    Raises:
        DataError: unknown name, nothing there, or content that cannot be used.
        ConfigError: ``size`` for something that is not an image folder, or not that of ``spec``.

    Example:
        >>> load_dataset("digits")
        Dataset('digits', image, 1,437 train, 360 test, 10 classes)
    """
    spec = str(spec)
    if spec.endswith(_RAW) and not Path(spec).expanduser().exists():
        return load_dataset(spec.removesuffix(_RAW), root, size).raw()
    name, size = _sized(spec, size)
    place = None if root is None else Path(root)
    named = name == "digits" or name in SAMPLES or name.startswith(hf.PREFIX)
    if named and size is not None:
        raise ConfigError(f"size={size} applies to image folders; {name} is a named data set")
    if name == "digits":
        return builtin.digits()
    if name in SAMPLES:
        return load_sample(SAMPLES[name], place)
    if name.startswith(hf.PREFIX):
        return hf.read_hub(name)
    path = Path(name).expanduser()
    if name in PUBLIC_SETS:
        path = location(name, place)
        if not path.exists():
            raise DataError(
                f"the data set {name} is not in {path.parent}; {_how_to_download(name)}"
            )
    elif not path.exists():
        raise DataError(
            f"{name!r} is neither a file, a folder nor a known data set; {_known(name)}"
        )
    return load_path(path, size)


def list_datasets(root: str | Path | None = None) -> list[DatasetEntry]:
    """All data sets that have a name, with whether they can be loaded now.

    ``root`` is the folder of the samples or downloads, as in :func:`load_dataset`.
    """
    place = None if root is None else Path(root)
    entries = [
        DatasetEntry("digits", "image", True, builtin.ORIGIN, "built in", "CC BY 4.0"),
    ]
    for sample in SAMPLES.values():
        entries.append(
            DatasetEntry(
                sample.name,
                sample.kind,
                not missing_files(sample, place),
                sample.origin,
                f"set {ENVIRONMENT} to the reference data folder",
                sample.terms,
            )
        )
    for public in PUBLIC_SETS.values():
        entries.append(
            DatasetEntry(
                public.name,
                public.kind,
                location(public.name, place).exists(),
                public.origin,
                _how_to_download(public.name),
                public.terms,
            )
        )
    return entries


def _sized(spec: str, size: int | None) -> tuple[str, int | None]:
    """``FOLDER@N`` taken apart; anything else as it is."""
    name, at, side = spec.rpartition("@")
    if not (at and name and side.isdecimal()) or Path(spec).expanduser().exists():
        return spec, size
    if size not in (None, int(side)):
        raise ConfigError(f"{spec} asks for images of side {side}, size={size} for another")
    return name, int(side)


def _how_to_download(name: str) -> str:
    return f"fetch it with: spikedim data download {name}"


def _known(name: str) -> str:
    names = ["digits", *SAMPLES, *PUBLIC_SETS]
    close = difflib.get_close_matches(os.path.basename(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known names: {', '.join(names)}"
