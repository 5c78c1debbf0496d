"""Data set: subsets, fingerprints, statistics, checks, events, encoders."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedim.data import Catalog, Events, encode, list_datasets, load_dataset
from spikedim.data import arrays as blockwise
from spikedim.data.build import make_dataset
from spikedim.data.reduce import repooled
from spikedim.data.sampling import split_indices, stratified_order, subset
from spikedim.errors import ConfigError, DataError

quick = settings(max_examples=40, deadline=None)


def rgb(n=40, side=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n) % 4


def made(train=None, test=None, **kw):
    return make_dataset("made", train or rgb(), test, source="test", **kw)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


class TestDigits:
    def test_counts_and_range(self, digits):
        assert (len(digits.train), len(digits.test), digits.num_classes) == (1437, 360, 10)
        assert digits.input_shape == (1, 8, 8)
        assert digits.train.inputs.dtype == np.uint8
        features = digits.features()
        assert features.shape == (1437, 64)
        assert (features.min(), features.max()) == (0.0, 1.0)

    def test_matches_scikit_learn(self, digits):
        from sklearn.datasets import load_digits

        raw = load_digits()
        both = np.concatenate([digits.features("train"), digits.features("test")])
        assert np.array_equal(
            np.unique(both, axis=0), np.unique((raw.data / 16).astype(np.float32), axis=0)
        )

    def test_split_is_stratified_and_reproducible(self, digits):
        train = np.bincount(digits.train.labels)
        test = np.bincount(digits.test.labels)
        assert np.abs(test / (train + test) - 360 / 1797).max() < 0.01
        assert load_dataset("digits").fingerprint == digits.fingerprint

    def test_summary_prints(self, digits):
        text = str(digits.summary())
        assert "1,437" in text
        assert digits.fingerprint in text
        assert digits.summary().to_dict()["classes"] == 10
        assert "1,437" in digits._repr_html_()
        assert repr(digits) == "Dataset('digits', image, 1,437 train, 360 test, 10 classes)"


class TestTensors:
    def test_training_split_is_standardised(self):
        x, y = made().tensors()
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.shape == (40, 3, 5, 5)
        assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
        assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)

    def test_test_split_uses_training_statistics(self):
        images, labels = rgb()
        data = made((images, labels), (images[:8] // 2, labels[:8]))
        pixels = images.astype(np.float64) / 255
        mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
        expected = ((images[:8] // 2) / 255 - mean) / std
        x, _ = data.tensors("test")
        assert np.allclose(x.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)

    def test_constant_channel_is_centred_only(self):
        images, labels = rgb()
        images[..., 1] = 7
        x, _ = made((images, labels)).tensors()
        assert x[:, 1].abs().max() < 1e-6

    def test_tensors_do_not_write_into_the_data(self):
        images, labels = rgb()
        floats = images.astype(np.float32)
        data = made((floats, labels))
        data.tensors()
        assert np.array_equal(floats, images)

    def test_features_flatten_like_tensors(self):
        data = made()
        mean, std = data.channel_statistics
        x, _ = data.tensors()
        back = x.numpy() * std[:, None, None] + mean[:, None, None]
        assert np.allclose(back.reshape(40, -1), data.features(), atol=1e-6)

    @pytest.mark.parametrize("block", [64, 1 << 24])
    def test_moments_do_not_cancel(self, monkeypatch, block):
        monkeypatch.setattr(blockwise, "_BLOCK_BYTES", block)
        values = np.random.default_rng(0).normal(1e6, 1e-2, (500, 1))
        mean, std = blockwise.moments(values, 1.0)
        assert np.allclose(std, values.std(0), rtol=1e-6)
        assert np.allclose(mean, values.mean(0))

    def test_labels_are_needed(self):
        with pytest.raises(DataError, match="no labels"):
            made((rgb()[0], None)).tensors()

    def test_features_are_not_images(self):
        data = made((np.ones((4, 3)), None))
        with pytest.raises(DataError, match="holds features"):
            data.tensors()
        with pytest.raises(DataError, match="needs images"):
            _ = data.input_shape

    def test_unknown_and_missing_splits(self):
        with pytest.raises(ConfigError, match="'train' or 'test'"):
            made().features("valid")
        with pytest.raises(DataError, match=r"--split train.*with_test.*Python"):
            made().features("test")


class TestSubsets:
    @quick
    @given(
        st.lists(st.integers(0, 4), min_size=1, max_size=80),
        st.integers(0, 99),
        st.data(),
    )
    def test_nested_and_proportional(self, labels, seed, data):
        labels = np.array(labels)
        order = stratified_order(labels, len(labels), seed)
        assert sorted(order) == list(range(len(labels)))
        k = data.draw(st.integers(1, len(labels)))
        taken = np.bincount(labels[order[:k]], minlength=5)
        quota = np.bincount(labels, minlength=5) * k / len(labels)
        assert np.abs(taken - quota).max() <= 2
        small, large = (
            subset(labels, len(labels), k, seed),
            subset(labels, len(labels), k + 1, seed),
        )
        assert large is None or set(small) <= set(large)

    @quick
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
    def test_two_classes_stay_within_one(self, a, b, seed):
        labels = np.repeat([0, 1], [a, b])
        taken = np.cumsum(labels[stratified_order(labels, a + b, seed)])
        quota = np.arange(1, a + b + 1) * b / (a + b)
        assert np.abs(taken - quota).max() < 1

    def test_balanced_classes_are_exact(self):
        data = made().limited(train=8)
        assert np.bincount(data.train.labels).tolist() == [2, 2, 2, 2]

    def test_seed_decides(self):
        assert made().limited(20, seed=1).fingerprint == made().limited(20, seed=1).fingerprint
        assert made().limited(20, seed=1).fingerprint != made().limited(20, seed=2).fingerprint

    def test_limit_beyond_the_data_keeps_all(self):
        assert len(made().limited(train=10_000).train) == 40

    @pytest.mark.parametrize("limit", [0, -3])
    def test_limit_below_one(self, limit):
        with pytest.raises(ConfigError, match=rf"{limit} samples were asked for.*at least 1"):
            made().features(limit=limit)

    def test_with_test(self):
        data = made().with_test(0.25)
        assert (len(data.train), len(data.test)) == (30, 10)
        rows = np.concatenate([data.train.inputs, data.test.inputs]).reshape(40, -1)
        assert len(np.unique(rows, axis=0)) == 40
        with pytest.raises(ConfigError, match="already"):
            data.with_test()
        with pytest.raises(ConfigError, match="fraction"):
            made().with_test(1.0)
        with pytest.raises(DataError, match=r"at least one.*smaller test set"):
            split_indices(None, 1, 1, 0)

    @pytest.mark.parametrize(("n", "fraction"), [(1, 0.2), (2, 0.2), (9, 0.99)])
    def test_too_few_for_a_test_split(self, n, fraction):
        data = make_dataset("few", (np.ones((n, 4)), None))
        with pytest.raises(DataError, match=rf"data set few .* {n} sample.*more samples, or"):
            data.with_test(fraction)

    @pytest.mark.parametrize("test", [8, 31])
    def test_a_split_anew_is_the_same_with_and_without_a_test_split(self, test):
        whole = made()
        again = repooled(whole, test, 3)
        assert again.fingerprint == whole.with_test(test / 40, 3).fingerprint
        with pytest.raises(DataError, match="40 samples into a test set of 50"):
            repooled(whole, 50)


class TestFingerprint:
    def test_name_and_layout_do_not_matter(self):
        images, labels = rgb()
        a = make_dataset("a", (images, labels), source="x")
        b = make_dataset(
            "b", (images.transpose(0, 3, 1, 2).copy(), labels.astype(np.uint8)), source="y"
        )
        c = make_dataset("c", (np.asfortranarray(images), labels), source="z")
        assert a.fingerprint == b.fingerprint == c.fingerprint

    @pytest.mark.parametrize("change", ["pixel", "label", "split"])
    def test_content_matters(self, change):
        images, labels = rgb()
        before = made((images, labels)).fingerprint
        images, labels = images.copy(), labels.copy()
        if change == "pixel":
            images[3, 0, 0, 0] ^= 1
        elif change == "label":
            labels[3] = (labels[3] + 1) % 4
        data = made((images, labels), (images, labels) if change == "split" else None)
        assert data.fingerprint != before

    def test_texts_are_delimited(self):
        one = made((["ab", "c"], None)).fingerprint
        assert one != made((["a", "bc"], None)).fingerprint

    def test_byte_order_does_not_matter(self):
        x = np.random.default_rng(0).normal(size=(6, 3))
        assert made((x, None)).fingerprint == made((x.astype(">f8"), None)).fingerprint

    def test_large_arrays_are_sampled_and_say_so(self, monkeypatch):
        x = np.random.default_rng(0).normal(size=(4000, 4))
        assert made((x, None)).fingerprint_method == "every byte"
        monkeypatch.setattr(blockwise, "EXHAUSTIVE_BYTES", 1000)
        monkeypatch.setattr(blockwise, "_BLOCK_BYTES", 320)
        assert "32 blocks" in made((x, None)).fingerprint_method
        assert sum(len(rows) for _, rows in blockwise.blocks(x)) == 320
        last = x.copy()
        last[-1, -1] += 1
        assert made((x, None)).fingerprint != made((last, None)).fingerprint


class TestChecks:
    @pytest.mark.parametrize(
        ("train", "message"),
        [
            ((np.empty((0, 4, 4), np.uint8), np.empty(0, int)), "no samples"),
            ((None, None), "inputs are a NoneType; expected an array"),
            (({"x": 1}, None), "inputs are a dict; expected an array"),
            ((np.zeros(5), None), r"shape \(5,\)"),
            ((np.array(3.0), None), "single number"),
            ((np.zeros((5, 2, 2, 2, 2, 2)), None), "expected features"),
            ((np.zeros((5, 7, 7, 7)), None), "channels"),
            ((np.array([["a", "b"]]), None), "integers or floats"),
            ((np.zeros((3, 2)), [0, 1]), "3 samples but 2 labels"),
            ((np.zeros((2, 2)), [0.0, 1.0]), "astype"),
            ((np.zeros((2, 2)), np.eye(2, dtype=int)), "argmax"),
            ((np.zeros((2, 2)), [3, 3]), "needs two classes"),
            ((np.zeros((3, 2)), ["a", "b", ""]), "label of sample 2 is empty"),
        ],
    )
    def test_refused(self, train, message):
        with pytest.raises(DataError, match=message) as caught:
            made(train)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_names_the_first_bad_value(self, value):
        x = np.zeros((9, 4, 4), np.float32)
        x[7, 2, 3] = x[8, 0, 0] = value
        with pytest.raises(DataError, match=r"index \[7, 2, 3\]"):
            made((x, None))

    def test_the_bad_value_has_the_index_of_the_array_as_given(self):
        x = np.zeros((9, 2, 5, 6), np.float32)
        x[7, 1, 2, 3] = np.nan
        with pytest.raises(DataError, match=r"index \[7, 1, 2, 3\]"):
            made((x, None))

    @pytest.mark.parametrize("dtype", [np.float64, np.int64])
    def test_features_keep_what_float32_would_lose(self, dtype):
        x = (np.arange(40).reshape(20, 2) + 2.0**30).astype(dtype)
        found = made((x, None)).features()
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, x)

    def test_a_value_beyond_float32_is_refused_where_it_stands(self):
        x = np.zeros((9, 5, 6))
        x[7, 2, 3] = -1e39
        with pytest.raises(
            DataError, match=r"value -1e\+39 at index \[7, 2, 3\].*float32.*rescale"
        ):
            made((x, None))
        x[7, 2, 3] = -3e38
        assert np.isfinite(made((x, None)).features()).all()

    def test_label_outside_the_names(self):
        with pytest.raises(DataError, match="label 3 of sample 3"):
            made(class_names=["a", "b", "c"])

    def test_splits_must_agree(self):
        with pytest.raises(DataError, match="same shape"):
            made(rgb(), rgb(side=6))

    def test_labels_are_renumbered(self):
        data = made((np.zeros((4, 2)), np.array([-1, 5, 5, 9])), (np.zeros((1, 2)), [7]))
        assert data.class_names == ("-1", "5", "7", "9")
        assert data.train.labels.tolist() == [0, 1, 1, 3]
        assert data.test.labels.tolist() == [2]

    def test_text_labels_and_column_labels(self):
        data = made((np.zeros((3, 2)), np.array(["cat", "ant", "cat"])))
        assert data.class_names == ("ant", "cat")
        assert made((np.zeros((2, 2)), np.array([[1], [0]]))).train.labels.tolist() == [1, 0]

    @pytest.mark.parametrize(
        ("dtype", "high", "scale"),
        [("uint8", 200, 255), ("uint16", 3, 65535), ("int64", 200, 255), ("int32", 300, 65535)],
    )
    def test_scale_of_integers(self, dtype, high, scale):
        images = np.zeros((2, 3, 3), dtype)
        images[0] = high
        assert made((images, None)).scale == scale

    def test_bad_rows_of_a_mapped_array_are_caught_when_used(self, tmp_path, monkeypatch):
        x = np.zeros((500, 4), np.float32)
        x[101, 1] = np.nan
        np.save(tmp_path / "x.npy", x)
        monkeypatch.setattr(blockwise, "EXHAUSTIVE_BYTES", 1000)
        monkeypatch.setattr(blockwise, "_BLOCK_BYTES", 16)
        data = load_dataset(tmp_path / "x.npy")
        monkeypatch.undo()
        with pytest.raises(DataError, match="NaN"):
            data.features(limit=499)


def recording(rng, n, k, side=6):
    return Events(
        rng.integers(0, side, n * k).astype(np.uint8),
        rng.integers(0, side, n * k).astype(np.uint8),
        rng.integers(0, 2, n * k).astype(np.uint8),
        np.sort(rng.integers(0, 1000, (n, k)), axis=1).ravel().astype(np.uint32),
        np.arange(n + 1) * k,
        side,
        side,
    )


def slow_frames(events, T, height, width, bins):
    out = np.zeros((T, len(events), 2, height, width), np.float32)
    for i in range(len(events)):
        low, high = events.offsets[i : i + 2]
        for j in range(low, high):
            if bins == "time":
                first, last = int(events.t[low]), int(events.t[high - 1])
                step = (int(events.t[j]) - first) * T // (last - first + 1)
            else:
                step = int(j - low) * T // int(high - low)
            row = int(events.y[j]) * height // events.height
            column = int(events.x[j]) * width // events.width
            out[step, i, events.p[j], row, column] += 1
    return out


class TestEvents:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 99), st.integers(1, 5), st.sampled_from(["time", "count"]))
    def test_frames_match_a_plain_loop(self, seed, T, bins):
        events = recording(np.random.default_rng(seed), 3, 12)
        assert np.array_equal(events.frames(T, bins=bins), slow_frames(events, T, 6, 6, bins))
        small = events.frames(T, size=(3, 2), bins=bins)
        assert np.array_equal(small, slow_frames(events, T, 3, 2, bins))
        assert small.sum() == 36

    @pytest.mark.parametrize("bins", ["time", "count"])
    def test_counting_a_few_recordings_at_a_time_changes_nothing(self, monkeypatch, bins):
        events = recording(np.random.default_rng(3), 7, 9)
        whole = events.frames(3, size=(4, 5), bins=bins)
        for cells in (1, 3 * 2 * 4 * 5 * 3):
            monkeypatch.setattr("spikedim.data.events._CELLS", cells)
            assert np.array_equal(events.frames(3, size=(4, 5), bins=bins), whole)

    def test_bins_are_half_open(self):
        zeros = np.zeros(4, int)
        events = Events(zeros, zeros, zeros, np.array([5, 6, 7, 8]), np.array([0, 4]), 1, 1)
        assert events.frames(4).ravel()[::2].tolist() == [1, 1, 1, 1]

    def test_take_and_empty_recordings(self):
        events = recording(np.random.default_rng(0), 3, 4)
        events = dataclasses.replace(events, offsets=np.array([0, 4, 4, 12]), t=np.arange(12))
        assert events.frames(2)[:, 1].sum() == 0
        chosen = events.take(np.array([2, 0]))
        assert np.array_equal(chosen.frames(2), events.frames(2)[:, [2, 0]])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": np.full(8, 9)}, "x=9 at event 0"),
            ({"p": np.full(8, 2)}, "p=2"),
            ({"offsets": np.array([0, 4, 9])}, "truncated"),
            ({"offsets": np.array([0, 9, 8])}, "decrease after recording 1"),
            ({"t": np.array([0, 1, 2, 3, 0, 2, 1, 3])}, "backwards at event 6"),
            ({"y": np.zeros(7, int)}, "one integer per event"),
        ],
    )
    def test_refused(self, change, message):
        events = recording(np.random.default_rng(0), 2, 4)
        with pytest.raises(DataError, match=message):
            dataclasses.replace(events, **change)

    @pytest.mark.parametrize(
        "arguments", [{"T": 0}, {"T": 1, "size": (7, 6)}, {"T": 1, "bins": "x"}]
    )
    def test_bad_arguments(self, arguments):
        with pytest.raises(ConfigError):
            recording(np.random.default_rng(0), 2, 4).frames(**arguments)

    def test_dataset_of_events(self):
        events = recording(np.random.default_rng(0), 4, 5)
        data = made((events, [0, 1, 0, 1]))
        x, y = data.frames(3)
        assert x.shape == (3, 4, 2, 6, 6)
        assert y.tolist() == [0, 1, 0, 1]
        assert np.array_equal(data.features(), x.sum(0).reshape(4, -1).numpy())
        assert data.input_shape == (2, 6, 6)
        assert "20 events" in str(data.summary())
        with pytest.raises(DataError, match="not events"):
            made().frames(2)


class TestEncode:
    def test_direct_is_a_view(self):
        x = torch.rand(2, 3)
        out = encode(x, 5)
        assert out.shape == (5, 2, 3)
        assert out.data_ptr() == x.data_ptr()

    def test_bernoulli_rate_and_reproducibility(self):
        x = torch.tensor([[0.0, 0.3, 1.0]]).repeat(50, 1)
        draw = lambda: encode(x, 400, "bernoulli", torch.Generator().manual_seed(3))  # noqa: E731
        rate = draw().mean((0, 1))
        assert rate[0] == 0
        assert rate[2] == 1
        assert abs(float(rate[1]) - 0.3) < 5 * (0.21 / 20_000) ** 0.5
        assert torch.equal(draw(), draw())

    @quick
    @given(st.floats(0, 1, width=32), st.integers(1, 12))
    def test_latency_formula(self, value, T):
        times = encode(torch.tensor([value]), T, "latency")[:, 0].nonzero().flatten().tolist()
        if value == 0:
            assert times == []
        else:
            first = np.float32(np.float32(1) - np.float32(value)) * np.float32(T)
            assert times == [min(T - 1, int(first))]

    def test_faintest_value_fires_last(self):
        assert encode(torch.tensor([1e-12]), 3, "latency").flatten().tolist() == [0, 0, 1]

    @pytest.mark.parametrize(
        ("x", "encoder", "error", "message"),
        [
            (torch.tensor([1.5]), "bernoulli", DataError, "direct"),
            (torch.tensor([-0.1]), "latency", DataError, r"\[0, 1\]"),
            (torch.tensor([float("nan")]), "latency", DataError, r"\[0, 1\]"),
            (torch.tensor([3], dtype=torch.uint8), "bernoulli", DataError, "255"),
            (torch.tensor([0.5]), "bernoulli", ConfigError, "generator"),
            (torch.tensor([0.5]), "poisson", ConfigError, "expected one of"),
        ],
    )
    def test_refused(self, x, encoder, error, message):
        with pytest.raises(error, match=message):
            encode(x, 2, encoder)

    def test_steps_below_one(self):
        with pytest.raises(ConfigError, match="T=0"):
            encode(torch.rand(1), 0)


class TestNames:
    def test_listing_without_the_samples(self, tmp_path, monkeypatch):
        monkeypatch.delenv("SPIKEDIM_DATA", raising=False)
        entries = {entry.name: entry for entry in list_datasets(tmp_path)}
        assert entries["digits"].available
        assert not entries["cifar10"].available
        assert "SPIKEDIM_DATA" in entries["cifar10"].obtain
        assert "spikedim data download mnist" in entries["mnist"].obtain
        assert "tinyshakespeare" in str(Catalog(tuple(entries.values())))

    def test_sample_without_folder(self, monkeypatch, tmp_path):
        monkeypatch.delenv("SPIKEDIM_DATA", raising=False)
        with pytest.raises(DataError, match=r"none is given; name it by .*SPIKEDIM_DATA"):
            load_dataset("cifar10")
        monkeypatch.setenv("SPIKEDIM_DATA", str(tmp_path))
        with pytest.raises(
            DataError, match=f"{tmp_path}/none is no folder; name it by --data-root"
        ):
            load_dataset("cifar10", tmp_path / "none")

    def test_incomplete_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"lacks sst2.tsv.gz"):
            load_dataset("sst2", tmp_path)

    def test_unknown_name_suggests(self):
        with pytest.raises(DataError, match="did you mean 'cifar10'"):
            load_dataset("cifar_10")

    def test_public_set_not_fetched(self, tmp_path):
        with pytest.raises(DataError, match="spikedim data download mnist"):
            load_dataset("mnist", tmp_path)

    def test_size_is_for_image_folders(self):
        with pytest.raises(ConfigError, match="image folders"):
            load_dataset("digits", size=4)


@pytest.mark.shared
@pytest.mark.usefixtures("shared")
class TestSamples:
    @pytest.mark.parametrize(
        ("name", "train", "test", "shape", "classes"),
        [
            ("cifar10", 10_000, 2_000, (3, 32, 32), 10),
            ("fashion_mnist", 10_000, 2_000, (1, 28, 28), 10),
            ("imagenet32", 2_400, 600, (3, 32, 32), 200),
            ("imagenet224", 100, None, (3, 224, 224), 1000),
            ("nmnist", 500, 60, (2, 34, 34), 10),
        ],
    )
    def test_counts(self, shared, name, train, test, shape, classes):
        data = load_dataset(name, shared)
        assert (len(data.train), data.num_classes, data.input_shape) == (train, classes, shape)
        assert (data.test and len(data.test)) == test
        assert data.terms
        if name in ("cifar10", "fashion_mnist"):
            assert set(np.bincount(data.train.labels)) == {1000}
            assert set(np.bincount(data.test.labels)) == {200}
        if name == "cifar10":
            mean, _ = data.channel_statistics
            assert np.allclose(mean, (0.4924, 0.4833, 0.4474), atol=5e-5)
            assert load_dataset(name, shared / "data").train.inputs is data.train.inputs
        if name == "imagenet32":
            assert set(np.bincount(data.test.labels)) == {3}
        if name == "nmnist":
            assert len(data.train.inputs.x) + len(data.test.inputs.x) == 2_331_174
            assert data.frames(4, limit=10)[0].shape == (4, 10, 2, 34, 34)

    def test_texts(self, shared):
        data = load_dataset("sst2", shared)
        assert (len(data.train), len(data.test)) == (10_000, 872)
        assert np.bincount(data.train.labels).tolist() == [4426, 5574]
        assert np.bincount(data.test.labels).tolist() == [428, 444]
        assert data.class_names == ("negative", "positive")
        with pytest.raises(DataError, match="embed"):
            data.features()
        blocks = load_dataset("tinyshakespeare", shared)
        assert {len(text) for text in blocks.train.inputs} == {256}
        assert len(blocks.train) + len(blocks.test) == 1_003_854 // 256
        assert len(set("".join(blocks.train.inputs + blocks.test.inputs))) == 65

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "train"), [("cifar100", 10_000), ("imagenet128", 1_200)])
    def test_large(self, shared, name, train):
        assert len(load_dataset(name, shared).train) == train
