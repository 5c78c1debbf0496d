"""Words of texts as the numbers that a network reads."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

PADDING, _UNKNOWN, _FIRST = 0, 1, 2
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Vocabulary:
    """Words and marks of texts as numbers, in lower case.

    Number 0 is padding, 1 is any word that is not here, the others follow in their order.

    Args:
        words: the words known.
        length: numbers of a text; a longer one is cut.
    """

    words: tuple[str, ...] = field(repr=False)
    length: int

    @classmethod
    def of(
        cls, texts: Iterable[str], size: int = 4096, length: int = 64, least: int = 2
    ) -> Vocabulary:
        """The most frequent words of ``texts``, ``size`` numbers in all.

        A word that occurs less than ``least`` times is none of them, so that number 1 is learned.
        The length is that of the longest of them, ``length`` at most.
        """
        split = [tokens_of(text) for text in texts]
        counts = Counter(word for words in split for word in words)
        known = [word for word, count in counts.items() if count >= least]
        ordered = sorted(known, key=lambda word: (-counts[word], word))
        longest = max(map(len, split), default=1)
        return cls(tuple(ordered[: size - _FIRST]), max(1, min(length, longest)))

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """What :meth:`to_json` wrote."""
        stored = json.loads(text)
        return cls(tuple(stored["words"]), int(stored["length"]))

    def to_json(self) -> str:
        """Words and length, to stand beside weights."""
        return json.dumps({"words": self.words, "length": self.length}, ensure_ascii=False)

    def losses(self, texts: list[str]) -> tuple[float, float]:
        """Share of texts that are cut, and of the words read that are not known."""
        split = [tokens_of(text) for text in texts]
        read = [word for words in split for word in words[: self.length]]
        cut = sum(len(words) > self.length for words in split) / max(len(split), 1)
        return cut, sum(word not in self._index for word in read) / max(len(read), 1)

    @property
    def size(self) -> int:
        """Different numbers."""
        return len(self.words) + _FIRST

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words, _FIRST)}

    def ids(self, texts: list[str]) -> np.ndarray:
        """Numbers of the words of each text, int64 [N, length]."""
        found = np.full((len(texts), self.length), PADDING, dtype=np.int64)
        for row, text in zip(found, texts, strict=True):
            ids = [self._index.get(word, _UNKNOWN) for word in tokens_of(text)[: self.length]]
            row[: len(ids)] = ids
        return found


def tokens_of(text: str) -> list[str]:
    """Words and marks in their order, in lower case."""
    return _TOKEN.findall(text.lower())
