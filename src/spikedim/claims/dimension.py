"""Claims about the effective dimension of data sets, measured on real samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from spikedim.claims.literature import DIGEST
from spikedim.claims.registry import Measurement, Setting, claim
from spikedim.data import load_dataset, represent
from spikedim.dimension import published_protocol, spectrum
from spikedim.results import Estimate
from spikedim.theory import PUBLISHED_D_EFF

RULE = "smallest k with Σ_{i≤k} λ_i ≥ 0.95·Σλ of the centred covariance, mean of 5 80 % subsamples"


def _images(id: str, key: str, sample: str, words: str) -> None:
    published = PUBLISHED_D_EFF[key]

    @claim(
        id,
        statement=f"The effective dimension of {words} is {published.value:g} ± "
        f"{published.value - (published.low or 0.0):g}.",
        source=DIGEST,
        expression=RULE,
        formula=published_protocol,
    )
    def check(setting: Setting) -> list[Measurement]:
        """The published protocol on pixels, and the share of the variance that would give it.

        The count grows with the number of images, so a part of them bounds it from below. Its
        interval is the spread over the subsamples of the protocol.
        """
        data = load_dataset(sample, setting.data_root)
        x = data.features("train", setting.pick(400, None), setting.seed)
        return _measurements(setting, x, published, f"PCA-95 % of {len(x):,} images")

    check.__qualname__ = f"check_{key}"


def _measurements(
    setting: Setting, x: np.ndarray, published: Estimate, name: str
) -> list[Measurement]:
    found: Any = setting.formula(x, seed=setting.seed)
    shares = np.cumsum(spectrum(x).shares)
    at = float(shares[min(round(published.value), len(shares)) - 1])
    low, high = published.low or 0.0, published.high or 0.0
    return [
        Measurement(name, found, low, high),
        Measurement(
            f"share of the variance in {published.value:g} components",
            Estimate(100 * at, unit="%"),
            form="context",
        ),
    ]


_images("DEFF-CIFAR10", "cifar10", "cifar10", "CIFAR-10")
_images("DEFF-CIFAR100", "cifar100", "cifar100", "CIFAR-100")
_images("DEFF-IMAGENET", "imagenet", "imagenet128", "ImageNet")


@claim(
    "DEFF-TEXT",
    statement="The effective dimension of text is 50 to 60.",
    source=DIGEST,
    expression=f"{RULE}; of which representation is not stated",
    formula=published_protocol,
)
def text(setting: Setting) -> list[Measurement]:
    """Mean word embeddings of SST-2 sentences, learned from them (PPMI and SVD).

    The count follows the width of the embeddings, which the statement does not name: all widths
    tried have to agree with it, or none, else the choice of one decides.
    """
    data = load_dataset("sst2", setting.data_root).limited(setting.pick(3000, None), None, 0)
    published = PUBLISHED_D_EFF["text"]
    widths = setting.pick((50, 60, 100), (50, 56, 60, 64, 70, 100, 200))
    found, context = [], []
    for width in widths:
        x = np.asarray(represent(data, "tokens", dimensions=width))
        count, share = _measurements(setting, x, published, f"PCA-95 %, embeddings of {width}")
        found.append(count.measured)
        context += [replace(count, form="context"), share]
    ends = [end for f in found for end in (f.value, f.low, f.high) if end is not None]
    spread = Estimate(found[-1].value, min(ends), max(ends), method="range over widths")
    name = f"PCA-95 % of sentences, embeddings of {widths[0]} to {widths[-1]} by choice"
    low, high = published.low or 0.0, published.high or 0.0
    return [Measurement(name, spread, low, high, shown=True), *context]
