"""Labelled sentences in TSV or CSV tables, and plain running text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.formats.common import TEST_NAMES, read_text, reading, stem
from spikedim.errors import DataError
from spikedim.progress import note

_LABELS = ("label", "labels", "target", "class", "sentiment")
_TEXTS = ("sentence", "text", "review", "content")
_TABLES = (".tsv", ".tsv.gz", ".csv", ".csv.gz")
_INT64_DIGITS = 19  # that some integers of so many digits do not fit
BLOCK = 256

Rows = dict[str, tuple[list[str], list[str]]]


def is_table(path: Path) -> bool:
    """Whether ``path`` is a TSV or CSV file."""
    return path.is_file() and path.name.endswith(_TABLES)


def is_table_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with train.tsv or train.csv."""
    return path.is_dir() and _in_folder(path, "train") is not None


def is_running_text(path: Path) -> bool:
    """Whether ``path`` is a plain text file."""
    return path.is_file() and path.name.endswith((".txt", ".txt.gz"))


def read_table(
    path: Path,
    name: str = "",
    class_names: tuple[str, ...] = (),
    source: str = "",
    terms: str = "",
    citation: str = "",
) -> Dataset:
    """Read a TSV (no quoting) or CSV (quoted) table of labels and sentences.

    With a header, the columns are found by name (label, sentence or text; an optional split
    column says train, or test, dev or validation). Without one there are two columns, the label
    first, or second where only the second is all integers. Of several test splits the first of
    test, dev, validation is taken.

    Raises:
        DataError: a row has another number of columns, an empty label or an unknown split; no label
            or sentence column; no rows.
    """
    splits = _rows(path, ("train", *TEST_NAMES))
    used, *others = [key for key in TEST_NAMES if key in splits] or [""]
    for other in others:
        note(
            f"{path}: its {len(splits[other][0]):,} rows of split {other} are left out; {used} is "
            "the test split"
        )
    return _labelled(
        name or stem(path),
        splits["train"],
        splits.get(used),
        class_names,
        source or str(path),
        terms,
        citation,
    )


def read_table_folder(path: Path) -> Dataset:
    """Read train.tsv (or .csv, .gz) and the first of test, dev, validation that has labels."""
    train_file = _in_folder(path, "train")
    if train_file is None:
        raise DataError(f"{path} lacks train.tsv or train.csv")
    test = None
    for split in TEST_NAMES:
        file = _in_folder(path, split)
        if file is not None and (rows := _rows(file, (split,), labels_needed=False)):
            test = rows[split]
            break
    train = _rows(train_file, ("train",))["train"]
    return _labelled(path.name, train, test, (), str(path), "", "")


def read_running_text(
    path: Path, name: str = "", source: str = "", terms: str = "", citation: str = ""
) -> Dataset:
    """Cut running text into blocks of 256 characters, the last tenth of them the test split.

    There are no labels; a shorter rest at the end is left out.

    Raises:
        DataError: fewer than ten blocks.
    """
    text = read_text(path)
    count = len(text) // BLOCK
    if count < 10:
        raise DataError(
            f"{path} holds {len(text)} characters; expected at least {10 * BLOCK}, "
            "ten blocks of 256"
        )
    blocks = [text[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]
    cut = count - count // 10
    return make_dataset(
        name or stem(path),
        (blocks[:cut], None),
        (blocks[cut:], None),
        source=source or str(path),
        terms=terms,
        citation=citation,
    )


def _in_folder(path: Path, split: str) -> Path | None:
    return next((path / (split + s) for s in _TABLES if (path / (split + s)).is_file()), None)


def _rows(path: Path, known: tuple[str, ...], labels_needed: bool = True) -> Rows:
    """Labels and texts per split; empty where labels are absent and not needed.

    A split column may hold the ``known`` splits; without one, all rows are of the first of them.
    """
    text = read_text(path)
    tabs = ".tsv" in path.name
    with reading(path, "a table of labels and sentences"):
        limit = csv.field_size_limit(len(text))
        try:
            table = list(
                csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
                if tabs
                else csv.reader(io.StringIO(text, newline=""), strict=True)
            )
        except csv.Error as error:
            raise ValueError(str(error)) from error
        finally:
            csv.field_size_limit(limit)
    table = [row for row in table if row]
    if not table:
        raise DataError(f"{path} holds no rows; expected a label and a sentence in each")
    width = len(table[0])
    for number, row in enumerate(table, start=1):
        if len(row) != width:
            raise DataError(
                f"{path}: row {number} has {len(row)} columns but the first has {width}; "
                f"{'remove tabs from the sentences' if tabs else 'quote sentences with commas'}"
            )
    header = [cell.strip().lower() for cell in table[0]]
    text_at = next((header.index(k) for k in _TEXTS if k in header), None)
    label_at = next((header.index(k) for k in _LABELS if k in header), None)
    if text_at is None and label_at is None and width == 2:
        label_at = 1 if _integers(table, 1) and not _integers(table, 0) else 0
        text_at, body = 1 - label_at, table
    else:
        body = table[1:]
    if label_at is None and not labels_needed:
        return {}
    if text_at is None or label_at is None:
        raise DataError(
            f"{path}: columns {', '.join(table[0])[:80]}; expected a header with label and "
            "sentence (or text), or two columns without a header; numbers go into a .npy or .npz "
            "file"
        )
    split_at = header.index("split") if body is not table and "split" in header else None
    splits: Rows = {known[0]: ([], [])}
    for number, row in enumerate(body, start=1 + len(table) - len(body)):
        if not row[label_at].strip():
            raise DataError(
                f"{path}: row {number} has no label; fill it in, or leave out rows without one"
            )
        key = known[0] if split_at is None else row[split_at].strip().lower()
        if key not in known:
            raise DataError(
                f"{path}: row {number} has split {key!r}; expected {' or '.join(known)}"
            )
        labels, texts = splits.setdefault(key, ([], []))
        labels.append(row[label_at].strip())
        texts.append(row[text_at])
    return splits


def _integers(table: list[list[str]], column: int) -> bool:
    return all(row[column].strip().removeprefix("-").isdecimal() for row in table)


def _labelled(
    name: str,
    train: tuple[list[str], list[str]],
    test: tuple[list[str], list[str]] | None,
    class_names: tuple[str, ...],
    source: str,
    terms: str,
    citation: str,
) -> Dataset:
    everything = train[0] + (test[0] if test else [])
    numeric = all(
        label.removeprefix("-").isdecimal() and len(label) < _INT64_DIGITS for label in everything
    )
    kind = np.int64 if numeric else np.str_
    return make_dataset(
        name,
        (train[1], np.array(train[0], dtype=kind)),
        None if test is None else (test[1], np.array(test[0], dtype=kind)),
        class_names=class_names,
        source=source,
        terms=terms,
        citation=citation,
    )
