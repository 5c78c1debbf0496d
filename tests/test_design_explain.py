import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from spikedim.cli.explain import run_explain
from spikedim.data import Dataset, Split
from spikedim.design.published.candidates import (
    definitions,
    grey,
    pool,
    prepared,
    random_stem,
    representations,
    roots,
)
from spikedim.design.published.conclusion import REFERENCE, conclude
from spikedim.design.published.explain import explain_published
from spikedim.design.published.explanation import Measurement, SetSummary
from spikedim.design.published.fits import joint_fits, order_counts, reproducing
from spikedim.design.published.search import Rows, spectra_of
from spikedim.dimension import Spectrum, pca_count, spectrum
from spikedim.errors import ConfigError, DataError
from spikedim.results import Estimate


def image_set(name, directions=40, n=120, side=32, seed=0):
    """Images [n, side, side, 3] that vary equally along a number of random directions."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((3 * side * side, directions)))
    x = 0.5 + 0.1 * rng.standard_normal((n, directions)) @ basis.T
    x = x.reshape(n, side, side, 3).astype(np.float32)
    return Dataset(name, "image", Split(x, np.arange(n) % 4), None, tuple("abcd"), "synthetic")


def text_set(n=80):
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(70)]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(n)]
    return Dataset("reviews", "text", Split(texts, np.arange(n) % 2), None, ("no", "yes"), "made")


def summary(name, target, n=100):
    return SetSummary(name, target, n, "", "")


def measured(name, value, width=1.0, size="own", definition="pca95", n=100, limited=False):
    estimate = Estimate(value, value - width, value + width)
    return Measurement(
        name, size, "pixels", True, definition, n, 3072, estimate, value, limited
    )  # fmt: skip


SETS = (summary("a", "cifar10"), summary("b", "cifar100"), summary("c", "imagenet"))


def test_a_planted_explanation_is_found():
    """Images that vary along 50, 72 and 96 directions have PCA-95 % of about 47, 68 and 89."""
    sets = [
        image_set("cifar10", 50, 520), image_set("cifar100", 72, 520, seed=1),
        image_set("imagenet", 96, 520, seed=2),
    ]  # fmt: skip
    found = explain_published(sets, only=["pixels"])
    assert [m.dataset for m in found.reference] == ["cifar10", "cifar100", "imagenet"]
    fits = joint_fits(found.measurements, found.sets)
    fit = next(f for f in fits if f.definition == "pca95" and f.centered)
    assert fit.reproduces
    assert fit.ordered
    assert fit.surely
    assert fit.error < 0.08
    assert found.nearest[0].error <= fit.error
    assert "meets 47 / 68 / 89 within the intervals" in found.conclusion[0]
    text = found.to_markdown("the command")
    assert "the command" in text
    assert all(table.title in text for table in found.tables())
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_same_call_gives_the_same_numbers():
    sets = [image_set("cifar10", n=40)]
    first, again = (explain_published(sets, only=["stem", "grey"]) for _ in range(2))
    assert again.measurements == first.measurements


def test_sizes_classes_and_sets_without_a_target():
    small, large = image_set("cifar10", n=60), image_set("mine", n=100, side=64)
    found = explain_published([small, large], only=["pixels"])
    sizes = {(m.dataset, m.size, m.n) for m in found.measurements if m.definition == "pca95"}
    assert sizes == {("cifar10", "own", 60), ("mine", "matched", 60), ("mine", "own", 100)}
    assert found.target_of("mine") is None
    assert not found.nearest
    assert not any("explains" in line for line in found.conclusion)
    per_class = [m for m in found.measurements if m.representation == "pixels per class"]
    value = next(m for m in per_class if (m.dataset, m.definition) == ("mine", "pr")).estimate
    x = prepared(large, None, 0).features().reshape(100, -1)
    ratios = []
    for label in range(4):
        values = spectrum(x[large.train.labels == label]).eigenvalues
        ratios.append(values.sum() ** 2 / (values @ values))
    assert_allclose(value.value, np.mean(ratios))
    assert value.low < value.value < value.high


def test_texts_are_read_without_images():
    found = explain_published([text_set()], only=["tf-idf", "embedding50"])
    assert {m.representation for m in found.measurements} == {"tf-idf", "embedding50"}
    assert found.conclusion[0].startswith("Text, published 50–60")


def test_joint_fits_compare_equal_sizes_only():
    values = [("a", 47), ("b", 68), ("c", 89)]
    own = [measured(name, v) for name, v in values]
    assert [f.size for f in joint_fits(own, SETS)] == ["own"]
    mixed = [*own, measured("a", 40, size="matched", n=50), measured("b", 60, size="matched", n=50)]
    assert [f.size for f in joint_fits(mixed, SETS)] == ["own"]
    mixed[2] = measured("c", 89, n=50)
    fits = joint_fits(mixed, SETS)
    assert [(f.size, f.values[0].value) for f in fits] == [("own", 47), ("matched", 40)]
    assert fits[1].error == pytest.approx(7 / 47)


@pytest.mark.parametrize(
    ("values", "width", "reproduces", "ordered", "surely"),
    [
        ((47, 68, 89), 1, True, True, True),
        ((47, 68, 89), 15, True, True, False),
        ((68, 47, 89), 1, False, False, False),
        ((50, 72, 82), 0.1, True, True, True),
        ((50.2, 72, 82), 0.1, False, True, True),
        ((47, float("nan"), 89), 1, None, None, None),
    ],
)
def test_a_fit_is_judged_by_its_intervals(values, width, reproduces, ordered, surely):
    found = [measured(n, v, width) for n, v in zip("abc", values, strict=True)]
    fits = joint_fits(found, SETS)
    if reproduces is None:
        assert fits == ()
        return
    assert (fits[0].reproduces, fits[0].ordered, fits[0].surely) == (reproduces, ordered, surely)
    count = order_counts(fits)[0]
    assert (count.definitions, count.ordered, count.surely) == (1, ordered, surely)


def test_the_verdict_follows_the_numbers():
    exact = [measured(n, v) for n, v in zip("abc", (47, 68, 89), strict=True)]
    wrong = [measured(n, v) for n, v in zip("abc", (200, 190, 180), strict=True)]
    capped = [measured(n, v, limited=True) for n, v in zip("abc", (47, 68, 89), strict=True)]
    for found, starts in ((exact, "pca95 on centred pixels meets"), (wrong, "Nothing"),
                          (capped, "Nothing")):  # fmt: skip
        fits = joint_fits(found, SETS)
        assert conclude(found, fits, [], SETS)[0].startswith(starts)
        assert (REFERENCE in reproducing(fits)) == (found is exact)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (30, 80)])
@pytest.mark.parametrize("per_sample", [1, 3])
def test_spectra_of_four_fifths_are_those_of_their_samples(n, d, per_sample):
    x = np.random.default_rng(0).standard_normal((n, per_sample, d)).astype(np.float32) + 2
    rows = Rows.of(x, n)
    found = spectra_of(rows, (True, False), seed=3)
    folds = np.array_split(np.random.default_rng(3).permutation(n), 5)
    for centered, both in found.items():
        assert_allclose(
            both.whole.eigenvalues, spectrum(x.reshape(-1, d), centered).eigenvalues, rtol=1e-5,
            atol=1e-6,
        )  # fmt: skip
        kept = np.setdiff1d(np.arange(n), folds[2])
        want = spectrum(x[kept].reshape(-1, d), centered)
        assert both.without[2].n == len(kept) * per_sample
        assert_allclose(both.without[2].eigenvalues, want.eigenvalues, rtol=1e-5, atol=1e-6)


def test_definitions_on_a_known_spectrum():
    flat = Spectrum(np.ones(100), 1000, 100, True, 100.0)
    read = {d.key: d.curve(flat) for d in definitions() if d.curve and d.key != "pr_corrected"}
    assert read["pca95"] == read["sv95"] == 95
    assert read["pr"] == read["stable_rank"] == pytest.approx(100)
    assert read["ridge0.01"] == pytest.approx(100 / 1.01)
    steep = Spectrum(np.array([100.0, 1.0]), 10, 2, True, 101.0)
    assert_allclose(roots(steep).eigenvalues, [10, 1])
    assert (pca_count(steep, 0.95), pca_count(roots(steep), 0.95)) == (1, 2)


def test_representations_have_the_shapes_they_name():
    data = prepared(image_set("x", n=6, side=64), None, 0)
    assert data.input_shape == (3, 32, 32)
    shapes = {}
    for item in representations():
        if item.kind == "image":
            rows = Rows.of(item.build(data, 0), 6)
            shapes[item.key] = rows.x.shape
            assert np.isfinite(rows.x).all()
    assert shapes == {
        "pixels": (6, 3072), "standardised": (6, 3072), "whitened": (6, 3072), "grey": (6, 1024),
        "pool2": (6, 768), "pool4": (6, 192), "patches4": (384, 48), "patches8": (96, 192),
        "stem": (6, 2048), "stem tokens": (384, 128),
    }  # fmt: skip


def test_image_operations():
    x = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    assert_allclose(pool(x, 2)[0, 0], [[2.5, 4.5], [10.5, 12.5]])
    assert_allclose(grey(x)[0, 0, 0, 0], 0.299 * 0 + 0.587 * 16 + 0.114 * 32, rtol=1e-6)
    assert_allclose(grey(x[:, :2])[:, 0], x[:, :2].mean(axis=1))
    images = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    first = random_stem(images, 0)
    assert first.shape == (5, 128, 8, 8)
    assert_array_equal(first, random_stem(images, 0))
    assert np.abs(first - random_stem(images, 1)).max() > 0.1


def test_mistakes_are_named(tmp_path):
    good = image_set("cifar10", n=40)
    with pytest.raises(ConfigError, match="no data sets"):
        explain_published([])
    with pytest.raises(ConfigError, match="cifar10=mnist"):
        explain_published([good], {"cifar10": "mnist"})
    with pytest.raises(ConfigError, match="not among"):
        explain_published([good], {"other": "text"})
    with pytest.raises(ConfigError, match="unknown representation wavelets"):
        explain_published([good], only=["wavelets"])
    with pytest.raises(DataError, match="too few"):
        explain_published([good], limit=5)
    with pytest.raises(DataError, match="40 x 40"):
        explain_published([image_set("cifar10", n=40, side=40)])
    with pytest.raises(ConfigError, match="twice"):
        explain_published([good, good])
    vectors = Dataset("v", "features", Split(np.ones((40, 3)), None), None, (), "made")
    with pytest.raises(ConfigError, match="holds features"):
        explain_published([vectors])
    with pytest.raises(ConfigError, match="no reference samples"):
        run_explain(data_root=tmp_path)


def test_markdown_is_a_table():
    found = explain_published([image_set("cifar10", n=40)], only=["pool4"])
    for table in found.tables():
        lines = table.to_markdown()
        assert len({line.count("|") for line in lines}) == 1


def test_command_on_the_reference_samples(shared, tmp_path, capsys):
    page = tmp_path / "page.md"
    data = "imagenet32=imagenet,sst2"
    run_explain(data, shared, only="pool4,tf-idf", limit=150, out=page, as_json=True, quiet=True)
    printed = json.loads(capsys.readouterr().out)
    assert [s["target"] for s in printed["sets"]] == ["imagenet", "text"]
    text = page.read_text()
    assert "--data imagenet32=imagenet,sst2 -r pool4,tf-idf --limit 150" in text
    assert str(shared) not in text
