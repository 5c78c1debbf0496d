"""The built-in data set: real handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.sampling import split_indices

TEST_SIZE = 360
ORIGIN = "scikit-learn load_digits: the test part of UCI Optical Recognition of Handwritten Digits"


def digits() -> Dataset:
    """1,797 real 8 x 8 grey digits, stratified with seed 0 into 1,437 train and 360 test.

    Pixels are counts 0 to 16 of the original ink, stored as uint8; 16 stands for 1.0.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images, labels = raw.images.astype(np.uint8), raw.target
    train, test = split_indices(labels, len(labels), TEST_SIZE, seed=0)
    return make_dataset(
        "digits",
        (images[train], labels[train]),
        (images[test], labels[test]),
        class_names=[str(digit) for digit in range(10)],
        source=ORIGIN,
        terms="CC BY 4.0",
        citation="Alpaydin and Kaynak 1998, doi:10.24432/C50P49",
        scale=16.0,
    )
