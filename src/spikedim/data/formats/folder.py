"""Folders of image files, one subfolder per class or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.formats.common import TEST_NAMES, reading
from spikedim.errors import ConfigError, DataError
from spikedim.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")


def is_image_folder(path: Path) -> bool:
    """Whether ``path`` is DIR/image, DIR/CLASS/image, or one of them in DIR/train."""
    if not path.is_dir():
        return False
    root = path / "train" if (path / "train").is_dir() else path
    return any(_images(folder) for folder in (root, *_folders(root)))


def read_image_folder(path: Path, size: int | None = None) -> Dataset:
    """Read DIR/CLASS/image or DIR/image; in DIR/train with DIR/test or DIR/val beside it.

    Classes are numbered by the sorted names of the training folders, samples come sorted by path.
    Images outside class folders, where no class folder is beside them, and those of a single class
    have no labels.
    A set of grey images only is stored [N, H, W], any other as RGB [N, H, W, 3], uint8.

    Args:
        path: the folder.
        size: bring images that are not ``size`` x ``size`` to it: shorter side resized to
            ``size`` (bicubic), then the centre cut out. Without it all must be of one size.

    Raises:
        DataError: sizes differ and none was given, an unreadable or 16-bit image, a test class
            that is not among the training classes, test images without class folders beside
            training images in classes.
        ConfigError: size below 1.
    """
    if size is not None and size < 1:
        raise ConfigError(f"size={size} pixels: give at least 1")
    root = path / "train" if (path / "train").is_dir() else path
    test_root = next(
        (path / name for name in TEST_NAMES if root != path and (path / name).is_dir()), None
    )
    train_files, names = _listing(root, None)
    test_files = _listing(test_root, names)[0] if test_root is not None else []
    labelled = len(names) > 1
    everything = train_files + test_files
    grey, shape = _common_shape([file for file, _ in everything], size)
    return make_dataset(
        path.name,
        _stack(train_files, grey, shape, size, labelled),
        _stack(test_files, grey, shape, size, labelled) if test_root is not None else None,
        class_names=names if labelled else (),
        source=str(path),
    )


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )


def _listing(root: Path, known: list[str] | None) -> tuple[list[tuple[Path, int]], list[str]]:
    """Image files of a split with the places of their classes, and the names of the classes.

    The only class of images outside class folders is called "".
    """
    folders = {folder.name: images for folder in _folders(root) if (images := _images(folder))}
    if not folders and (images := _images(root)):
        folders = {"": images}
    names = sorted(folders) if known is None else known
    if "" in folders and "" not in names:
        raise DataError(
            f"{root} holds images without class folders, the training images have classes; put "
            "each image into the folder of its class, or take the folder away"
        )
    strangers = sorted(set(folders) - set(names))
    if strangers:
        raise DataError(
            f"{root / strangers[0]}: class {strangers[0]!r} is not among the training classes; "
            "name the folders of both splits alike"
        )
    return [(file, names.index(name)) for name in folders for file in folders[name]], names


def _common_shape(files: list[Path], size: int | None) -> tuple[bool, tuple[int, int]]:
    """Whether all images are grey, and their (height, width)."""
    from PIL import Image

    grey, first = True, None
    for file in track(files, "reading image headers"):
        with reading(file, "an image"), Image.open(file) as image:
            if image.mode.split(";")[0] in _DEEP:
                raise DataError(
                    f"{file} has more than 8 bits per pixel (mode {image.mode}); "
                    "store such images as a .npy array"
                )
            grey = grey and image.mode in _GREY
            shape = (image.height, image.width)
        if first is None:
            first = (file, shape)
        elif size is None and shape != first[1]:
            raise DataError(
                f"{first[0]} is {first[1][1]}x{first[1][0]} pixels but {file} is "
                f"{shape[1]}x{shape[0]}; give size=N, on the command line --data FOLDER@N, to "
                "bring all images to N x N"
            )
    if first is None:
        raise DataError(f"no images found; expected {', '.join(SUFFIXES)} files")
    return grey, first[1] if size is None else (size, size)


def _stack(
    files: list[tuple[Path, int]],
    grey: bool,
    shape: tuple[int, int],
    size: int | None,
    labelled: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    from PIL import Image

    images = np.empty((len(files), *shape) if grey else (len(files), *shape, 3), dtype=np.uint8)
    for index, (file, _) in enumerate(track(files, "reading images")):
        with reading(file, "an image"), Image.open(file) as opened:
            image = opened.convert("L" if grey else "RGB")
            if size is not None and image.size != (size, size):
                image = _resized(image, size)
            images[index] = np.asarray(image)
    if not labelled:
        return images, None
    return images, np.array([label for _, label in files], dtype=np.int64)


def _resized(image: Picture, size: int) -> Picture:
    from PIL import Image

    factor = size / min(image.size)
    width, height = (max(size, round(side * factor)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    grown = image.resize((width, height), Image.Resampling.BICUBIC)
    return grown.crop((left, top, left + size, top + size))
