"""What is said of an accuracy that a constant answer reaches too."""

from __future__ import annotations

from collections.abc import Iterable

from spikedim.results import Estimate, number
from spikedim.training.timestep import above_chance

_NAMED = 4


def at_chance(found: Iterable[tuple[str, Estimate, float]], split: str = "test") -> tuple[str, ...]:
    """A note that names what is not above chance, if anything is not.

    Args:
        found: name, accuracy and what a constant answer reaches, in percent.
        split: what the samples are, ``test`` or ``held-out``: of these more training has more.
    """
    none = [
        f"{name}, {accuracy}, against {number(chance)} %"
        for name, accuracy, chance in found
        if not above_chance([accuracy], chance)
    ]
    if not none:
        return ()
    more = [f"{len(none) - _NAMED} more"] if len(none) > _NAMED else []
    test_more = ", or test more" if split == "test" else ""
    return (
        f"At chance: {'; '.join(none[:_NAMED] + more)}. So many {split} samples do not tell it "
        "from always answering the most frequent class: no learning is seen; train longer, or on "
        f"more samples{test_more}.",
    )
