"""The reference samples: small subsets of public sets in one folder, loaded by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.formats.common import read_npy, read_npz
from spikedim.data.formats.numpy_files import read_events
from spikedim.data.formats.text import read_running_text, read_table
from spikedim.data.sampling import split_indices
from spikedim.errors import DataError

ENVIRONMENT = "SPIKEDIM_DATA"
_BY = f"--data-root (in Python root) or {ENVIRONMENT}"
_CIFAR = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"
_IMAGENET = "Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge"
_NO_LICENCE = "no licence stated; cite the authors"
_RESEARCH = "non-commercial research and education only; do not publish the images"


@dataclass(frozen=True)
class Sample:
    """One reference sample: the files it needs, what it is, and its reader."""

    name: str
    kind: str
    files: tuple[str, ...]
    origin: str
    terms: str
    citation: str
    read: Callable[[Path, Sample], Dataset]


def folder(root: Path | None = None) -> Path | None:
    """The folder of the sample files: ``root`` or SPIKEDIM_DATA, itself or its ``data`` folder.

    ``None`` where neither is given or there is no such folder.
    """
    named = _named(root)
    if not named:
        return None
    path = Path(named)
    inner = path / "data"
    return inner if inner.is_dir() else path if path.is_dir() else None


def _named(root: Path | None) -> str | Path | None:
    return root if root is not None else os.environ.get(ENVIRONMENT)


def missing_files(sample: Sample, root: Path | None = None) -> list[str]:
    """Files of ``sample`` that are not there."""
    place = folder(root)
    return [f for f in sample.files if place is None or not (place / f).is_file()]


def load_sample(sample: Sample, root: Path | None = None) -> Dataset:
    """Load a reference sample.

    Raises:
        DataError: the folder or one of its files is not there, or a file is corrupt.
    """
    place, missing = folder(root), missing_files(sample, root)
    if place is None:
        named = _named(root)
        found = f"{named} is no folder" if named else "none is given"
        raise DataError(
            f"the sample {sample.name} needs the reference data folder, but {found}; name it by "
            f"{_BY}, or use the built-in data set 'digits'"
        )
    if missing:
        raise DataError(
            f"{place} lacks {', '.join(missing)} of the sample {sample.name}; name the complete "
            f"reference data folder by {_BY}"
        )
    return sample.read(place, sample)


def _build(
    sample: Sample,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None,
    names: np.ndarray,
) -> Dataset:
    return make_dataset(
        sample.name,
        train,
        test,
        class_names=names.tolist(),
        source=sample.origin,
        terms=sample.terms,
        citation=sample.citation,
    )


def _cifar(place: Path, sample: Sample) -> Dataset:
    train, test, table = (place / name for name in sample.files)
    labels = read_npz(table)
    return _build(
        sample,
        (read_npy(train), labels["train_labels"]),
        (read_npy(test), labels["test_labels"]),
        labels["class_names"],
    )


def _fashion(place: Path, sample: Sample) -> Dataset:
    stored = read_npz(place / sample.files[0])
    return _build(
        sample,
        (stored["train_images"], stored["train_labels"]),
        (stored["test_images"], stored["test_labels"]),
        stored["class_names"],
    )


def _imagenet(place: Path, sample: Sample) -> Dataset:
    images, table = (place / name for name in sample.files)
    labels = read_npz(table)
    side = sample.name.removeprefix("imagenet")
    return _build(sample, (read_npy(images), labels[f"labels_{side}"]), None, labels["class_names"])


def _imagenet32(place: Path, sample: Sample) -> Dataset:
    images, table = (place / name for name in sample.files)
    pixels, stored = read_npy(images), read_npz(table)
    labels = stored["labels"]
    train, test = split_indices(labels, len(labels), len(labels) // 5, seed=0)
    return _build(
        sample, (pixels[train], labels[train]), (pixels[test], labels[test]), stored["wnids"]
    )


def _sst2(place: Path, sample: Sample) -> Dataset:
    return read_table(
        place / sample.files[0],
        name=sample.name,
        class_names=("negative", "positive"),
        source=sample.origin,
        terms=sample.terms,
        citation=sample.citation,
    )


def _shakespeare(place: Path, sample: Sample) -> Dataset:
    return read_running_text(
        place / sample.files[0],
        name=sample.name,
        source=sample.origin,
        terms=sample.terms,
        citation=sample.citation,
    )


def _nmnist(place: Path, sample: Sample) -> Dataset:
    return read_events(
        place / sample.files[0],
        name=sample.name,
        sensor=(34, 34),
        source=sample.origin,
        terms=sample.terms,
        citation=sample.citation,
    )


_ALL = (
    Sample(
        "cifar10",
        "image",
        ("cifar10_train_images.npy.xz", "cifar10_test_images.npy.xz", "cifar10_labels.npz"),
        "CIFAR-10 subset, 1,000 + 200 per class from the official train and test sets",
        _NO_LICENCE,
        _CIFAR,
        _cifar,
    ),
    Sample(
        "cifar100",
        "image",
        ("cifar100_train_images.npy.xz", "cifar100_test_images.npy.xz", "cifar100_labels.npz"),
        "CIFAR-100 subset, 100 + 20 per fine class, not the official train/test membership",
        _NO_LICENCE,
        _CIFAR,
        _cifar,
    ),
    Sample(
        "fashion_mnist",
        "image",
        ("fashion_mnist.npz",),
        "Fashion-MNIST subset, 1,000 + 200 per class, not the official train/test membership",
        "MIT (Zalando)",
        "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
        _fashion,
    ),
    Sample(
        "imagenet128",
        "image",
        ("imagenet_128_images.npy.xz", "imagenet_labels.npz"),
        "1,200 ImageNet images of 805 classes at 128 x 128; for dimension, no test split",
        _RESEARCH,
        _IMAGENET,
        _imagenet,
    ),
    Sample(
        "imagenet224",
        "image",
        ("imagenet_224_images.npy.xz", "imagenet_labels.npz"),
        "100 ImageNet images of 100 classes at 224 x 224; for dimension, no test split",
        _RESEARCH,
        _IMAGENET,
        _imagenet,
    ),
    Sample(
        "imagenet32",
        "image",
        ("imagenet32_jpeg_images.npy.xz", "imagenet32_jpeg_labels.npz"),
        "Tiny-ImageNet subset at 32 x 32, lossy JPEG; stratified split 12 + 3 per class, seed 0",
        _RESEARCH,
        _IMAGENET,
        _imagenet32,
    ),
    Sample(
        "sst2",
        "text",
        ("sst2.tsv.gz",),
        "SST-2: 10,000 training phrases, test split = the 872 development sentences",
        _NO_LICENCE,
        "Socher et al. 2013, Stanford Sentiment Treebank",
        _sst2,
    ),
    Sample(
        "tinyshakespeare",
        "text",
        ("tinyshakespeare.txt.gz",),
        "first 90 % of tiny shakespeare in blocks of 256 characters, last tenth as test split",
        "public domain text",
        "Karpathy 2015, char-rnn",
        _shakespeare,
    ),
    Sample(
        "nmnist",
        "events",
        ("nmnist_events.npz",),
        "N-MNIST: 500 + 60 recordings on a 34 x 34 sensor",
        "CC BY-SA 4.0 (authors' page)",
        "Orchard et al. 2015, doi:10.3389/fnins.2015.00437",
        _nmnist,
    ),
)
SAMPLES = {sample.name: sample for sample in _ALL}
