"""Which format a path holds, told by its content and names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spikedim.data.dataset import Dataset
from spikedim.data.formats import cifar, folder, hf, idx, numpy_files, text
from spikedim.errors import ConfigError, DataError


@dataclass(frozen=True)
class Layout:
    """A way data may lie on disk: what it looks like, how to know it and how to read it."""

    name: str
    expects: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


LAYOUTS = (
    Layout("Hugging Face folder", "save_to_disk output", hf.is_saved, hf.read_saved),
    Layout("CIFAR pickles", "batches.meta or meta + train", cifar.is_pickled, cifar.read_pickled),
    Layout("CIFAR binary", "test_batch.bin or train.bin", cifar.is_binary, cifar.read_binary),
    Layout("IDX folder", "train-images-idx3-ubyte[.gz]", idx.is_folder, idx.read_folder),
    Layout("IDX file", "NAME-idx3-ubyte[.gz]", idx.is_idx, idx.read_idx),
    Layout("table folder", "train.tsv or train.csv", text.is_table_folder, text.read_table_folder),
    Layout(
        "image folder",
        "*.png|jpg, CLASS/*.png|jpg or train/CLASS/*.png|jpg",
        folder.is_image_folder,
        folder.read_image_folder,
    ),
    Layout(
        "NumPy array", "NAME.npy or NAME.npy.xz", numpy_files.is_npy, numpy_files.read_array_file
    ),
    Layout("NumPy archive", "NAME.npz", numpy_files.is_npz, numpy_files.read_archive),
    Layout("table", "NAME.tsv or .csv[.gz]", text.is_table, text.read_table),
    Layout("running text", "NAME.txt[.gz]", text.is_running_text, text.read_running_text),
)


def load_path(path: Path, size: int | None = None) -> Dataset:
    """Read the data set at ``path`` in whichever known format it is.

    A folder whose only visible content is one folder of a known format stands for that folder.

    Args:
        path: file or folder.
        size: side of the images, of image folders only: all are brought to it.

    Raises:
        DataError: nothing there, or no known format; names what was tried.
        ConfigError: ``size`` for another format.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give the path of a data file or folder")
    for candidate in (path, _only_child(path)):
        layout = next((it for it in LAYOUTS if candidate and it.matches(candidate)), None)
        if candidate is None or layout is None:
            continue
        if layout.read is folder.read_image_folder:
            return folder.read_image_folder(candidate, size)
        if size is not None:
            raise ConfigError(f"size={size} applies to image folders; {path} is a {layout.name}")
        return layout.read(candidate)
    tried = "; ".join(f"{layout.name} ({layout.expects})" for layout in LAYOUTS)
    raise DataError(f"{path} is in no known format{_content(path)}; tried {tried}")


def _only_child(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    visible = [p for p in path.iterdir() if not p.name.startswith(".")]
    return visible[0] if len(visible) == 1 and visible[0].is_dir() else None


def _content(path: Path) -> str:
    if not path.is_dir():
        return ""
    names = sorted(p.name for p in path.iterdir())[:5]
    return f" (it holds {', '.join(names)})" if names else " (it is empty)"
