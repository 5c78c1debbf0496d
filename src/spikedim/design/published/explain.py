"""Which definition of effective dimension, on which representation, gives the published values.

``spikedim measure --explain-published`` calls it; the search and its arithmetic are here, the
candidates, the comparison and the wording in the modules beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spikedim.data import Dataset
from spikedim.design.published.candidates import Representation, definitions, representations
from spikedim.design.published.conclusion import REFERENCE, conclude
from spikedim.design.published.explanation import (
    PUBLISHED,
    Explanation,
    Measurement,
    SetSummary,
    Threshold,
)
from spikedim.design.published.fits import (
    joint_fits,
    key_of,
    nearest_fits,
    nearest_single,
    order_counts,
)
from spikedim.design.published.search import GROUPS, search
from spikedim.errors import ConfigError, DataError
from spikedim.progress import task
from spikedim.provenance import provenance

LIMITS_OF = {
    "cifar10": "cifar10 is a subset: 10,000 of the 50,000 official training images.",
    "cifar100": "cifar100 is a subset of 10,000 images whose official split is not known.",
    "imagenet32": "imagenet32 is Tiny-ImageNet (200 classes) at 32 x 32, re-encoded as lossy JPEG, "
    "which removes fine detail: it lowers every dimension.",
    "imagenet128": "imagenet128 holds 1,200 images of 805 classes, 500 of them scaled without "
    "keeping the aspect ratio, here averaged down to 32 x 32; too few for counts of hundreds.",
    "sst2": "sst2 holds 10,000 phrases; the embeddings are learned from them, not taken from a "
    "large pre-trained table, and TF-IDF is read on 3,000 of them.",
}
LIMITS = (
    "The published values do not say which representation, resolution or sample size they used; "
    "features of trained networks are not among the candidates.",
    "The intervals are of sampling at the size used; they do not hold the bias of a count that "
    "would go on rising with more samples (`limited by n`).",
    "Classes of the sets differ in size (1,000, 100 and 12 samples), so their means per class "
    "are not comparable between sets.",
    "The random convolution is one draw; another seed gives other features.",
)


def explain_published(
    datasets: Sequence[Dataset],
    targets: Mapping[str, str] | None = None,
    *,
    only: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Explanation:
    """Search definitions × representations for the published effective dimensions.

    Published (claims DEFF-CIFAR10, DEFF-CIFAR100, DEFF-IMAGENET, DEFF-TEXT): 47 ± 3, 68 ± 4,
    89 ± 7, and 50–60 for text. One spectrum is formed per data set, representation and
    centring; every definition is read from it, with a delete-a-group jackknife interval from
    five spectra of 80 % of the samples.

    Args:
        datasets: image sets (any that are square with a multiple of 32 pixels) and text sets.
        targets: data set name → ``"cifar10"``, ``"cifar100"``, ``"imagenet"`` or ``"text"``;
            by default read off the name, and ``"text"`` for texts. A set without a target is
            measured but not compared.
        only: keys of the representations to search; all of them by default.
        limit: at most this many samples of every set (stratified).
        seed: of subsets, groups and random features.

    Raises:
        ConfigError: an unknown target or representation, or no data sets.
        DataError: a data set that cannot be brought to 32 x 32 images, or too small for groups.

    Example:
        >>> from spikedim.data import load_dataset
        >>> names = ("cifar10", "cifar100", "imagenet32")
        >>> found = explain_published([load_dataset(n) for n in names])  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
    """
    sets = _summaries(datasets, dict(targets or {}), limit)
    searched = _chosen(only)
    sizes = _sizes(datasets, sets)
    items = definitions()
    found: list[Measurement] = []
    thresholds: list[Threshold] = []
    work = [(d, s, size) for d, s in zip(datasets, sets, strict=True) for size in sizes[s.name]]
    with task("searching", len(work) * len(searched)) as bar:
        for dataset, summary, (label, n) in work:
            part = search(dataset, summary, label, n, searched, items, seed, bar)
            found += part[0]
            thresholds += part[1]
    fits = joint_fits(found, sets)
    return Explanation(
        sets=sets,
        published=PUBLISHED,
        reference=tuple(m for m in found if key_of(m) == REFERENCE),
        nearest=nearest_fits(fits),
        ordered=nearest_fits([fit for fit in fits if fit.surely]),
        single=nearest_single(found, sets),
        orders=order_counts(fits),
        thresholds=tuple(thresholds),
        conclusion=conclude(found, fits, thresholds, sets),
        measurements=tuple(found),
        seed=seed,
        limits=(*(LIMITS_OF[s.name] for s in sets if s.name in LIMITS_OF), *LIMITS),
        provenance=provenance(seed=seed, config={"limit": limit}),
    )


def _summaries(
    datasets: Sequence[Dataset], targets: dict[str, str], limit: int | None
) -> tuple[SetSummary, ...]:
    if not datasets:
        raise ConfigError("no data sets to search; give at least one image or text set")
    names = [d.name for d in datasets]
    if len(set(names)) < len(names):
        raise ConfigError(f"a data set is given twice: {', '.join(names)}")
    known = [p.target for p in PUBLISHED]
    wrong = [f"{name}={target}" for name, target in targets.items() if target not in known]
    if wrong:
        raise ConfigError(f"unknown target {', '.join(wrong)}; expected one of {', '.join(known)}")
    unused = sorted(targets.keys() - set(names))
    if unused:
        raise ConfigError(f"target for {', '.join(unused)}, which is not among the data sets")
    found = []
    for dataset in datasets:
        if dataset.kind not in ("image", "text"):
            raise ConfigError(
                f"data set {dataset.name} holds {dataset.kind}; the published values are of "
                "images and texts"
            )
        n = len(dataset.train) if limit is None else min(limit, len(dataset.train))
        if n < 4 * GROUPS:
            raise DataError(
                f"data set {dataset.name}: {n} samples are too few; at least {4 * GROUPS} needed"
            )
        target = targets.get(dataset.name) or _target(dataset, known)
        found.append(SetSummary(dataset.name, target, n, dataset.source, dataset.fingerprint))
    return tuple(found)


def _target(dataset: Dataset, known: Sequence[str]) -> str | None:
    if dataset.kind == "text":
        return "text"
    names = [k for k in known if dataset.name.startswith(k)]
    return max(names, key=len) if names else None


def _chosen(keys: Sequence[str] | None) -> tuple[Representation, ...]:
    known = representations()
    if keys is None:
        return known
    missing = sorted(set(keys) - {r.key for r in known})
    if missing:
        names = ", ".join(r.key for r in known)
        raise ConfigError(f"unknown representation {', '.join(missing)}; known: {names}")
    return tuple(r for r in known if r.key in keys)


def _sizes(
    datasets: Sequence[Dataset], sets: Sequence[SetSummary]
) -> dict[str, tuple[tuple[str, int], ...]]:
    """Sample sizes of every set: its own, and for images also that of the smallest image set."""
    pairs = list(zip(datasets, sets, strict=True))
    smallest = min((s.n for d, s in pairs if d.kind == "image"), default=0)
    return {
        s.name: (("own", s.n),)
        if d.kind != "image" or s.n == smallest
        else (("matched", smallest), ("own", s.n))
        for d, s in pairs
    }
