"""Texts as sparse bags of n-grams, and words as vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from spikedim.data.formats.common import read_npy, read_text
from spikedim.errors import ConfigError, DataError

_WORD = r"(?u)\b\w+\b"
_SMOOTHING = 0.75


def bag_of_ngrams(
    fitted: list[str], chosen: list[str], ngrams: int, unit: str, weights: str, least: int
) -> Any:
    """CSR matrix ``[len(chosen), vocabulary]``; vocabulary and weights are learned on ``fitted``.

    Raises:
        DataError: no n-gram occurs in ``least`` texts.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    kind = TfidfVectorizer if weights == "tfidf" else CountVectorizer
    pattern = {"token_pattern": _WORD} if unit == "word" else {}
    vectorizer = kind(
        analyzer=unit, ngram_range=(1, ngrams), min_df=least, dtype=np.float64, **pattern
    )
    try:
        vectorizer.fit(fitted)
    except ValueError as error:
        raise DataError(
            f"no n-gram of up to {ngrams} {unit}s occurs in at least {least} of "
            f"{len(fitted)} texts; lower least or give more text"
        ) from error
    return vectorizer.transform(chosen)


def learn_embeddings(
    texts: list[str], dimensions: int, window: int, least: int, seed: int
) -> tuple[dict[str, int], np.ndarray]:
    """Word → row, and float32 rows U√S of the rank-``dimensions`` SVD of the PPMI matrix.

    PPMI(w, c) = max(0, ln(#(w,c)·Σ#(c')^0.75 / (#(w)·#(c)^0.75))) over pairs of words at most
    ``window`` apart in one text; the matrix stays sparse.

    Raises:
        ConfigError: an option is below 1, or the vocabulary is not larger than ``dimensions``.
        DataError: no word is frequent enough, or no two words occur together.
    """
    for name, value in (("dimensions", dimensions), ("window", window), ("least", least)):
        if value < 1:
            raise ConfigError(f"{name}={value}; expected a whole number of at least 1")
    split = _words(texts)
    names, counts = np.unique([w for words in split for w in words], return_counts=True)
    names = names[counts >= least]
    if not len(names):
        raise DataError(f"no word occurs {least} times in {len(texts)} texts; lower least")
    if len(names) <= dimensions:
        raise ConfigError(
            f"dimensions={dimensions} needs more than {dimensions} words, the texts have "
            f"{len(names)}; lower dimensions or least"
        )
    index = {str(name): place for place, name in enumerate(names)}
    positive = _positive_information(_pairs(split, index, window))
    start = np.random.default_rng(seed).standard_normal(len(index))
    left, values, _ = svds(positive, k=dimensions, v0=start)
    order = np.argsort(-values, kind="stable")
    return index, (left[:, order] * np.sqrt(values[order])).astype(np.float32)


def read_table(table: Path, vocabulary: Path) -> tuple[dict[str, int], np.ndarray]:
    """Word → row, and the float32 rows of a ``.npy`` or ``.safetensors`` matrix.

    Raises:
        DataError: a file is missing or unreadable, not one matrix of finite numbers, or the
            vocabulary has another length or repeats a word.
    """
    vectors = _matrix(table)
    names = read_text(vocabulary).splitlines()
    index = {name.strip(): place for place, name in enumerate(names)}
    if len(names) != len(vectors) or len(index) != len(names):
        raise DataError(
            f"{vocabulary} holds {len(names)} words, {len(index)} of them different, but {table} "
            f"has {len(vectors)} rows; expected one different word per row"
        )
    return index, vectors


def word_ids(texts: list[str], index: dict[str, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """Row of every known word and the text it stands in, and the share of unknown words."""
    split = _words(texts)
    known = [(index[w], text) for text, words in enumerate(split) for w in words if w in index]
    total = sum(map(len, split))
    ids, sample = np.array(known, dtype=np.int64).reshape(-1, 2).T
    return ids, sample, 1 - len(known) / total if total else 0.0


def mean_vectors(ids: np.ndarray, sample: np.ndarray, vectors: np.ndarray, n: int) -> np.ndarray:
    """Mean vector of the words of each of ``n`` texts, float32 [n, d]; zeros without words."""
    weights = 1 / np.maximum(np.bincount(sample, minlength=n), 1)
    bag = sparse.csr_matrix((weights[sample], (sample, ids)), shape=(n, len(vectors)))
    return np.asarray(bag @ vectors, dtype=np.float32)


def _words(texts: list[str]) -> list[list[str]]:
    from sklearn.feature_extraction.text import CountVectorizer

    analyse = CountVectorizer(token_pattern=_WORD).build_analyzer()
    return [analyse(text) for text in texts]


def _pairs(split: list[list[str]], index: dict[str, int], window: int) -> Any:
    """Symmetric sparse counts of two words at most ``window`` apart, unknown words left out."""
    ids = np.array([index.get(w, -1) for words in split for w in words], dtype=np.int64)
    text = np.repeat(np.arange(len(split)), [len(words) for words in split])
    size = len(index)
    counts = sparse.csr_matrix((size, size))
    for apart in range(1, window + 1):
        left, right = ids[:-apart], ids[apart:]
        kept = (left >= 0) & (right >= 0) & (text[:-apart] == text[apart:])
        ones = np.ones(int(kept.sum()))
        counts += sparse.csr_matrix((ones, (left[kept], right[kept])), shape=(size, size))
    return counts + counts.T


def _positive_information(counts: Any) -> Any:
    pairs = counts.tocoo()
    if not pairs.nnz:
        raise DataError("no two words of the vocabulary occur together; give longer texts")
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**_SMOOTHING
    expected = word[pairs.row] * context[pairs.col] / context.sum()
    information = np.log(pairs.data / expected)
    kept = information > 0
    entries = (information[kept], (pairs.row[kept], pairs.col[kept]))
    return sparse.csr_matrix(entries, shape=counts.shape)


def _matrix(path: Path) -> np.ndarray:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot read {path} as safetensors: {error}") from error
        if len(tensors) != 1:
            raise DataError(f"{path} holds {len(tensors)} tensors; expected one matrix")
        array = next(iter(tensors.values()))
    else:
        array = read_npy(path)
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise DataError(f"{path} has shape {array.shape}, type {array.dtype}; expected [words, d]")
    if not np.isfinite(array).all():
        raise DataError(f"{path} holds NaN or infinite values; expected finite embeddings")
    return np.asarray(array, dtype=np.float32)
