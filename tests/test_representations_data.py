import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import spikedim.data.representations as floor
from spikedim.data import Events, load_dataset, make_dataset
from spikedim.data.representations import (
    Represented,
    list_representations,
    represent,
    representation,
    represented,
)
from spikedim.dimension import measure, per_class
from spikedim.dimension.clusters import measure_clustered
from spikedim.errors import ConfigError, DataError

TEXTS = [
    "the cat sat on the mat",
    "The dog sat on the log",
    "a cat and a dog",
    "mat, log and cat: all on the mat",
    "dogs are not cats",
]


def images(shape=(6, 5, 7, 3), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(shape[0]) % 2
    return make_dataset("made", (pixels, labels), None, source="made")


def texts(train=TEXTS, test=None):
    def part(t):
        return None if t is None else (t, np.arange(len(t)) % 2)

    return make_dataset("texts", part(train), part(test), source="made")


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    lengths = [40, 0, 7, 25]
    total = sum(lengths)
    t = np.concatenate([np.sort(rng.integers(0, 300_000, n)) for n in lengths])
    columns = (rng.integers(0, high, total) for high in (6, 5, 2))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return make_dataset(
        "cam", (Events(*columns, t, offsets, 5, 6), np.array([0, 1, 0, 1])), None, source="made"
    )


def test_pixels_are_the_features():
    data = images()
    assert_array_equal(represent(data), data.features())
    assert_array_equal(represent(data, "pixels", limit=4, seed=2), data.features(limit=4, seed=2))
    assert represent(data).max() <= 1


@given(size=st.integers(1, 5), stride=st.integers(0, 6))
def test_patches_are_windows_of_the_image(size, stride):
    data = images()
    x = data.features().reshape(6, 3, 5, 7)
    step = stride or size
    expected = [
        x[i, :, r : r + size, c : c + size].ravel()
        for i in range(6)
        for r in range(0, 5 - size + 1, step)
        for c in range(0, 7 - size + 1, step)
    ]
    found = represented(data, "patches", size=size, stride=stride)
    assert_array_equal(found.x, expected)
    assert_array_equal(found.sample, np.repeat(np.arange(6), len(expected) // 6))
    options = {"size": size, "stride": stride}
    flat = represented(data, "patches", **options, tokens="flatten")
    assert flat.sample is None
    assert_array_equal(flat.x, np.reshape(expected, (6, -1)))
    mean = represent(data, "patches", **options, tokens="mean")
    assert_allclose(mean, np.reshape(expected, (6, -1, found.x.shape[1])).mean(1), atol=1e-6)


def test_tiling_patches_of_one_image_have_the_spectrum_of_its_pixels():
    data = load_dataset("digits").limited(300)
    pixels = measure(represent(data), ["pca95", "pr", "ridge"], interval="none")
    tiles = measure(
        represent(data, "patches", size=4, tokens="flatten"), pixels.estimates, interval="none"
    )
    assert_allclose(tiles.spectrum.eigenvalues, pixels.spectrum.eigenvalues, atol=1e-5)


def test_tfidf_is_its_formula():
    data = texts()
    x = represent(data, "tfidf")
    assert sp.issparse(x)
    words = [t.lower().replace(",", "").replace(":", "").split() for t in TEXTS]
    vocabulary = sorted({w for text in words for w in text})
    counts = np.array([[text.count(w) for w in vocabulary] for text in words], float)
    weights = counts * (np.log((1 + 5) / (1 + (counts > 0).sum(0))) + 1)
    assert_allclose(x.toarray(), weights / np.linalg.norm(weights, axis=1, keepdims=True))
    assert_array_equal(represent(data, "tfidf", weights="counts").toarray(), counts)


def test_the_vocabulary_comes_from_the_training_texts():
    data = texts(test=["an unseen cat", "nothing known"])
    whole = represent(data, "tfidf", weights="counts")
    test = represent(data, "tfidf", "test", weights="counts")
    assert test.shape == (2, whole.shape[1])
    assert_array_equal(np.asarray(test.sum(axis=1)).ravel(), [1, 0])
    part = represent(data, "tfidf", limit=2)
    assert part.shape == (2, whole.shape[1])


def test_ngrams_units_and_rare_words():
    data = texts()
    sizes = [represent(data, "tfidf", ngrams=n).shape[1] for n in (1, 2, 3)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert represent(data, "tfidf", least=3).shape[1] < sizes[0]
    assert represent(data, "tfidf", unit="char").shape[1] < 30


def test_sparse_bags_are_measured_without_a_dense_copy():
    """Dense, 1,000 texts x 34,000 words and bigrams would be 275 MB."""
    rng = np.random.default_rng(0)
    made = [" ".join(f"w{k}" for k in rng.zipf(1.3, 20) % 20_000) for _ in range(4000)]
    data = texts(made)
    tracemalloc.start()
    x = represent(data, "tfidf", ngrams=2, limit=1000)
    report = measure(x, ["pca95", "pr", "pr_corrected", "stable_rank", "entropy_rank", "ridge"])
    classes = per_class(x, np.arange(1000) % 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dense = 8 * x.shape[0] * x.shape[1]
    assert dense > 200e6
    assert peak < dense / 3
    assert report["pr"].value > 1
    assert len(classes.estimates) == 2


def test_sst2_never_densifies(shared):
    data = load_dataset("sst2", shared)
    tracemalloc.start()
    x = represent(data, "tfidf", ngrams=2, limit=1000)
    report = measure(x, ["pca95", "pr", "pr_corrected", "stable_rank", "entropy_rank", "ridge"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sp.issparse(x)
    assert peak < 0.5 * 8 * x.shape[0] * x.shape[1]
    assert 50 < report["pr_corrected"].value < x.shape[1]


@pytest.mark.slow
def test_all_of_sst2_stays_far_below_its_dense_size(shared):
    """Word trigrams of 10,000 texts: the participation ratio from two traces."""
    from spikedim.dimension import participation_ratio

    x = represent(load_dataset("sst2", shared), "tfidf", ngrams=3)
    tracemalloc.start()
    value = participation_ratio(x).value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert value > 100
    assert peak < 0.25 * 8 * x.shape[0] * x.shape[1]


def ppmi(documents, vocabulary, window):
    """Dense positive pointwise mutual information, counted pair by pair."""
    counts = np.zeros((len(vocabulary),) * 2)
    for text in documents:
        for i, a in enumerate(text):
            for b in text[max(0, i - window) : i] + text[i + 1 : i + 1 + window]:
                if a in vocabulary and b in vocabulary:
                    counts[vocabulary.index(a), vocabulary.index(b)] += 1
    context = counts.sum(0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(counts * context.sum() / np.outer(counts.sum(1), context))
    return np.maximum(np.nan_to_num(pmi, neginf=0.0), 0)


def test_learned_embeddings_are_the_truncated_svd_of_ppmi():
    data = texts()
    documents = [t.lower().replace(",", "").replace(":", "").split() for t in TEXTS]
    words, counts = np.unique([w for t in documents for w in t], return_counts=True)
    vocabulary = [str(w) for w in words[counts >= 2]]
    left, values, _ = np.linalg.svd(ppmi(documents, vocabulary, 2))
    table = left[:, :3] * np.sqrt(values[:3])
    found = represented(data, "tokens", dimensions=3, window=2, tokens="samples")
    ids = [vocabulary.index(w) for text in documents for w in text if w in vocabulary]
    assert_allclose(found.x @ found.x.T, (table @ table.T)[np.ix_(ids, ids)], atol=1e-5)
    lengths = [sum(w in vocabulary for w in text) for text in documents]
    assert_array_equal(found.sample, np.repeat(np.arange(5), lengths))
    mean = represented(data, "tokens", dimensions=3, window=2)
    expected = np.array([found.x[found.sample == i].sum(0) / max(1, k)
                         for i, k in enumerate(lengths)])  # fmt: skip
    assert_allclose(mean.x, expected, atol=1e-6)
    assert "of the words are not in the vocabulary" in mean.notes[0]
    assert "1 texts without a known word" in mean.notes[1]
    assert_array_equal(mean.x, represent(data, "tokens", dimensions=3, window=2))


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_given_embedding_table(tmp_path, suffix):
    from safetensors.numpy import save_file

    table = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    path, words = tmp_path / f"e.{suffix}", tmp_path / "words.txt"
    if suffix == "npy":
        np.save(path, table)
    else:
        save_file({"embedding.weight": table}, path)
    words.write_text("cat\ndog\nmat\n")
    found = represent(texts(), "tokens", table=path, vocabulary=str(words))
    assert_allclose(found[2], (table[0] + table[1]) / 2, rtol=1e-6)
    words.write_text("cat\ndog\n")
    with pytest.raises(DataError, match="2 words"):
        represent(texts(), "tokens", table=path, vocabulary=words)
    with pytest.raises(ConfigError, match="belong together"):
        represent(texts(), "tokens", table=path)
    words.write_text("x\ny\nz\n")
    with pytest.raises(DataError, match="no word of the texts"):
        represent(texts(), "tokens", table=path, vocabulary=words)
    path.write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot read"):
        represent(texts(), "tokens", table=path, vocabulary=words)
    with pytest.raises(DataError, match="does not exist"):
        represent(texts(), "tokens", table=tmp_path / "none.npy", vocabulary=words)


def test_event_counts_and_time_surfaces(events):
    stream = events.train.inputs
    assert_array_equal(represent(events), events.features())
    steps = represent(events, "events", steps=3)
    assert_array_equal(steps, np.moveaxis(stream.frames(3), 1, 0).reshape(4, -1))
    surface = represent(events, "time_surface", tau=1e5).reshape(4, 2, 5, 6)
    for i in range(4):
        place = slice(stream.offsets[i], stream.offsets[i + 1])
        expected = np.zeros((2, 5, 6))
        rows = zip(*(getattr(stream, k)[place] for k in "xypt"), strict=True)
        for x, y, p, t in rows:
            expected[p, y, x] = np.exp((t - stream.t[place][-1]) / 1e5)
        assert_allclose(surface[i], expected, rtol=1e-5)
    with pytest.raises(ConfigError, match="tau=0"):
        represent(events, "time_surface", tau=0)


@pytest.mark.parametrize("kind", ["uint64", "uint8", "bool"])
def test_polarities_of_any_type(events, kind):
    known = events.train.inputs
    other = replace(known, p=known.p.astype(kind))
    assert_array_equal(other.frames(3), known.frames(3))
    same = make_dataset("cam", (other, None))
    assert_array_equal(represent(same, "time_surface"), represent(events, "time_surface"))


def test_a_user_adds_a_representation():
    name = "row_means_of_a_test"

    @representation(name, "image")
    def row_means(dataset, chosen, scale=1.0):
        """Mean of every pixel row."""
        return scale * chosen.inputs.mean(axis=2).reshape(len(chosen), -1)

    try:
        assert represent(images(), name, scale=2.0, limit=3).shape == (3, 15)
        assert name in [entry.name for entry in list_representations("image")]
        with pytest.raises(ConfigError, match="registered already"):
            representation(name, "text")(lambda dataset, chosen: None)
    finally:
        del floor._REGISTRY[name]


@pytest.mark.parametrize(
    ("data", "kind", "options", "error", "words"),
    [
        (images, "tfidf", {}, DataError, "use pixels, patches"),
        (images, "pixel", {}, ConfigError, "did you mean 'pixels'"),
        (images, "patches", {"sise": 4}, ConfigError, "has no option 'sise'"),
        (images, "patches", {"size": 6}, ConfigError, "between 1 and 5"),
        (images, "patches", {"size": "4"}, ConfigError, "whole number"),
        (images, "patches", {"size": True}, ConfigError, "whole number"),
        (images, "patches", {"stride": -1}, ConfigError, "stride=-1"),
        (images, "patches", {"tokens": "all"}, ConfigError, "tokens='all'"),
        (texts, "tfidf", {"ngrams": 0}, ConfigError, "ngrams=0"),
        (texts, "tfidf", {"unit": "byte"}, ConfigError, "'word' or 'char'"),
        (texts, "tfidf", {"weights": "binary"}, ConfigError, "weights"),
        (texts, "tfidf", {"least": 6}, DataError, "lower least"),
        (texts, "tokens", {}, ConfigError, "lower dimensions"),
        (texts, "tokens", {"tokens": "flatten"}, ConfigError, "differ in length"),
        (texts, "tokens", {"window": 0}, ConfigError, "window=0"),
        (texts, "tokens", {"least": 50}, DataError, "lower least"),
    ],
)
def test_mistakes_are_named(data, kind, options, error, words):
    with pytest.raises(error, match=words):
        represent(data(), kind, **options)


def test_measuring_degenerate_representations():
    constant = make_dataset("c", (np.full((9, 4, 4), 7, np.uint8), np.arange(9) % 3), None,
                            source="made")  # fmt: skip
    report = measure(represent(constant))
    assert {e.value for e in report.estimates.values()} == {0.0}
    tiles = represented(constant, "patches", size=2)
    found = measure_clustered(tiles.x, tiles.sample)
    assert {e.value for e in found.estimates.values()} == {0.0}
    with pytest.raises(DataError, match="1 sample"):
        measure(represent(constant, limit=1))
    two = measure(represent(images(), limit=2), ["pca95", "pr"])
    assert two["pca95"].value == two["pr"].value == 1
    empty = texts(["a b", "a b", "c", "..."])
    x = represent(empty, "tfidf")
    assert_allclose(measure(x, ["pr"], center=False, interval="none")["pr"].value, 9 / 5)


def test_boolean_and_memory_mapped_images(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.random((20, 6, 6, 1)) < 0.5)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for pixels in (mapped, mapped[::-1]):
        data = make_dataset("b", (pixels.astype(np.uint8), np.arange(20) % 2), None, source="made")
        x = represent(data, "patches", size=3, tokens="flatten")
        assert np.isfinite(measure(x, ["pr"])["pr"].value)


def test_labels_follow_the_rows():
    data = images()
    found = represented(data, "patches", size=2)
    assert_array_equal(found.labels(data.train.labels), np.repeat(data.train.labels, 6))
    assert_array_equal(Represented(found.x).labels(np.arange(36)), np.arange(36))
