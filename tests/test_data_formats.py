"""Readers: write -> read round trips, and faults answered with one clear line."""

import csv
import gzip
import lzma
import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spikedim.data import load_dataset
from spikedim.data.build import make_dataset
from spikedim.data.formats.text import _LABELS, _TEXTS
from spikedim.errors import ConfigError, DataError
from spikedim.progress import showing

quick = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A new empty folder at every call, hypothesis examples included."""
    return lambda: tmp_path_factory.mktemp("data")


def images(seed, n=6, side=4, channels=3):
    rng = np.random.default_rng(seed)
    shape = (n, side, side, channels) if channels else (n, side, side)
    return rng.integers(0, 256, shape, dtype=np.uint8), np.arange(n) % 2


def same(data, train, test=None):
    """The content is what was written, and has the fingerprint of the same arrays in memory."""
    expected = make_dataset("expected", train, test, source="memory")
    for split in ("train", "test") if test else ("train",):
        assert np.array_equal(data.split(split).inputs, expected.split(split).inputs)
    assert data.fingerprint == expected.fingerprint
    return True


def refused(path, message, **kw):
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path, **kw)
    assert "\n" not in str(caught.value)


def write_xz(path, array):
    with lzma.open(path, "wb", preset=0) as handle:
        np.save(handle, array)


class TestNumpy:
    @quick
    @given(seeds, st.sampled_from([0, 1, 3, 4]), st.booleans())
    def test_npy(self, fresh, seed, channels, packed):
        x, y = images(seed, channels=channels)
        folder = fresh()
        np.save(folder / "set_labels.npy", y)
        if packed:
            write_xz(folder / "set.npy.xz", x)
        else:
            np.save(folder / "set.npy", x)
        data = load_dataset(folder / ("set.npy.xz" if packed else "set.npy"))
        assert same(data, (x, y))
        assert isinstance(data.train.inputs, np.memmap) is not packed

    def test_float_features_stay_mapped(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        data = load_dataset(tmp_path / "x.npy")
        assert data.kind == "features"
        assert isinstance(data.features(), np.memmap)
        assert np.array_equal(data.features(), x)
        assert data.features(limit=5).shape == (5, 7)
        assert "memory-mapped" in data.summary().stored_as

    @quick
    @given(
        seeds,
        st.sampled_from(
            [
                ("x", "y", None, None),
                ("images", "labels", "test_images", "test_labels"),
                ("x_train", "y_train", "x_test", "y_test"),
                ("train_data", "train_targets", "test_data", "test_targets"),
                ("X", "Y", "X_test", "Y_test"),
                ("inputs", "targets", None, None),
            ]
        ),
    )
    def test_npz(self, fresh, seed, keys):
        path = fresh() / "set.npz"
        x, y = images(seed)
        arrays = {keys[0]: x, keys[1]: y}
        test = (x[:2] // 2, y[:2]) if keys[2] else None
        if test:
            arrays |= {keys[2]: test[0], keys[3]: test[1]}
        np.savez_compressed(path, **arrays, class_names=np.array(["a", "b"]))
        data = load_dataset(path)
        assert same(data, (x, y), test)
        assert data.class_names == ("a", "b")

    @quick
    @given(seeds)
    def test_events(self, fresh, seed):
        rng = np.random.default_rng(seed)
        path, n = fresh() / "events.npz", 60
        columns = {
            "x": rng.integers(0, 9, n),
            "y": rng.integers(0, 7, n),
            "p": rng.integers(0, 2, n),
            "t": np.tile(np.arange(10), 6),
        }
        np.savez(
            path,
            **columns,
            offsets=np.arange(7) * 10,
            labels=[0, 1, 0, 1, 0, 1],
            is_test=np.arange(6) > 3,
            sensor=[7, 9],
        )
        data = load_dataset(path)
        assert (data.kind, len(data.train), len(data.test)) == ("events", 4, 2)
        assert (data.train.inputs.height, data.train.inputs.width) == (7, 9)
        for key, column in columns.items():
            assert np.array_equal(getattr(data.train.inputs, key), column[:40])
            assert np.array_equal(getattr(data.test.inputs, key), column[40:])

    @pytest.mark.parametrize("optional", [{}, {"labels": [0, 1, 0, 1]}, {"is_test": [0] * 4}])
    def test_events_of_one_split(self, tmp_path, optional):
        columns = dict.fromkeys("xyp", np.arange(8) % 2) | {"t": np.arange(8)}
        np.savez(tmp_path / "e.npz", **columns, offsets=np.arange(5) * 2, **optional)
        data = load_dataset(tmp_path / "e.npz")
        assert (len(data.train), data.test, data.num_classes) == (
            4,
            None,
            2 * ("labels" in optional),
        )
        assert np.array_equal(data.train.inputs.t, np.arange(8))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"offsets": [[0], [2], [4]]}, "events offsets: expected recordings"),
            ({"sensor": 1}, "sensor size"),
            ({"is_test": True}, "2 recordings but 1 values in is_test"),
            ({"is_test": np.eye(2)}, "2 recordings but 4 values in is_test"),
            ({"x": 0}, "events x: shape"),
        ],
    )
    def test_misshapen_events(self, tmp_path, wrong, message):
        events = dict.fromkeys("xypt", np.zeros(4, int)) | {"offsets": [0, 2, 4]}
        np.savez(tmp_path / "e.npz", **events | wrong)
        refused(tmp_path / "e.npz", message)

    def test_events_in_capitals(self, tmp_path):
        np.savez(tmp_path / "e.npz", **dict.fromkeys("XYPT", np.zeros(4, int)), offsets=[0, 2, 4])
        assert len(load_dataset(tmp_path / "e.npz").train) == 2

    def test_an_archive_packed_in_an_unknown_way(self, tmp_path):
        np.savez_compressed(tmp_path / "x.npz", x=np.eye(4))
        packed = bytearray((tmp_path / "x.npz").read_bytes())
        for signature, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            packed[packed.index(signature) + at] = 99
        (tmp_path / "x.npz").write_bytes(packed)
        refused(tmp_path / "x.npz", "compression")

    def test_events_without_training_recordings_are_refused(self, tmp_path):
        for n, extra in ((4, {"is_test": [1, 1], "offsets": [0, 2, 4]}), (0, {"offsets": [0]})):
            np.savez(tmp_path / "e.npz", **dict.fromkeys("xypt", np.zeros(n, int)), **extra)
            refused(tmp_path / "e.npz", "e train: no samples")

    def test_faults(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(4000.0).reshape(1000, 4))
        whole = (tmp_path / "x.npy").read_bytes()
        (tmp_path / "cut.npy").write_bytes(whole[:-100])
        refused(tmp_path / "cut.npy", "cut.npy as a NumPy array")
        (tmp_path / "junk.npy").write_bytes(b"junk")
        refused(tmp_path / "junk.npy", "truncated, corrupt")
        np.save(tmp_path / "object.npy", np.array([{}, []], dtype=object))
        refused(tmp_path / "object.npy", "Python objects, .*; save one array of numbers")
        packed = lzma.compress(whole)
        (tmp_path / "cut.npy.xz").write_bytes(packed[:-20])
        refused(tmp_path / "cut.npy.xz", "cut.npy.xz")
        np.savez(tmp_path / "other.npz", foo=np.ones(3))
        refused(tmp_path / "other.npz", "holds foo; expected inputs called x")
        zipped = (tmp_path / "other.npz").read_bytes()
        (tmp_path / "cut.npz").write_bytes(zipped[: len(zipped) // 2])
        refused(tmp_path / "cut.npz", "npz archive")
        np.savez(tmp_path / "short.npz", x=np.ones((3, 2)), y=[0, 1])
        refused(tmp_path / "short.npz", "3 samples but 2 labels")
        np.savez(tmp_path / "e.npz", x=[1], y=[1], p=[1], t=[1], offsets=[0, 1], labels=[0, 1])
        refused(tmp_path / "e.npz", "1 recordings but 2 values in labels")
        np.savez(tmp_path / "object.npz", x=np.array([{}], dtype=object))
        refused(tmp_path / "object.npz", "npz archive: it holds Python objects, .*; save one array")

    def test_decompressed_file_is_refreshed_when_it_changes(self, tmp_path):
        path = tmp_path / "x.npy.xz"
        write_xz(path, np.zeros((3, 2)))
        assert load_dataset(path).train.inputs.sum() == 0
        write_xz(path, np.ones((30, 2)))
        assert load_dataset(path).train.inputs.sum() == 60


def idx(array):
    code = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}[array.dtype.name]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def put(path, content):
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


class TestIdx:
    @quick
    @given(
        seeds,
        st.sampled_from(["", ".gz"]),
        st.sampled_from("-."),
        st.sampled_from(["uint8", "int32", "float32"]),
    )
    def test_folder(self, fresh, seed, suffix, dash, dtype):
        folder = fresh()
        x, y = images(seed, channels=0)
        x, labels = x.astype(dtype), y.astype(np.uint8)
        for prefix, part in (("train", slice(None)), ("t10k", slice(0, 3))):
            put(folder / f"{prefix}-images{dash}idx3-ubyte{suffix}", idx(x[part]))
            put(folder / f"{prefix}-labels{dash}idx1-ubyte{suffix}", idx(labels[part]))
        data = load_dataset(folder)
        assert same(data, (x, y), (x[:3], y[:3]))
        assert isinstance(data.train.inputs, np.memmap) is (suffix == "")

    def test_single_file_and_nesting(self, tmp_path):
        x, y = images(0, channels=0)
        folder = tmp_path / "outer" / "raw"
        folder.mkdir(parents=True)
        put(folder / "train-images-idx3-ubyte", idx(x))
        assert load_dataset(folder / "train-images-idx3-ubyte").train.labels is None
        put(folder / "train-labels-idx1-ubyte", idx(y.astype(np.uint8)))
        assert same(load_dataset(folder / "train-images-idx3-ubyte"), (x, y))
        assert same(load_dataset(tmp_path / "outer"), (x, y))

    def test_faults(self, tmp_path):
        x, y = images(0, channels=0)
        images_file = tmp_path / "train-images-idx3-ubyte"
        put(images_file, idx(x))
        refused(tmp_path, "lacks train-labels")
        put(tmp_path / "train-labels-idx1-ubyte", idx(y[:-1].astype(np.uint8)))
        refused(tmp_path, "6 samples but 5 labels")
        put(images_file, idx(x)[:-5])
        refused(tmp_path, "needs 96 bytes of values but it has 91")
        put(images_file, b"\1\2\3\4")
        refused(tmp_path, "starts with 01 02 03 04")
        put(images_file, idx(x)[:9])
        refused(tmp_path, "inside the header")
        put(images_file, idx(x[:0]))
        refused(tmp_path, "no samples")
        images_file.unlink()
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x))[:-9])
        refused(tmp_path, "idx3-ubyte.gz")


def cifar_rows(seed, n=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8)


def as_images(rows):
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def write_cifar10(folder, rows, protocol=2):
    for i in range(1, 6):
        batch = {b"data": rows + i, b"labels": [0, 1, 2, 1]}
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(batch, protocol))
    (folder / "test_batch").write_bytes(
        pickle.dumps({b"data": rows, b"labels": [2, 2, 0, 1]}, protocol)
    )
    meta = {b"label_names": [b"ant", b"bee", b"cat"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))


class TestCifar:
    @settings(max_examples=6, deadline=None)
    @given(seeds, st.sampled_from([2, 4, 5]))
    def test_pickled_10(self, fresh, seed, protocol):
        folder, rows = fresh(), cifar_rows(seed)
        write_cifar10(folder, rows, protocol)
        data = load_dataset(folder)
        train = as_images(np.concatenate([rows + i for i in range(1, 6)]))
        assert same(data, (train, [0, 1, 2, 1] * 5), (as_images(rows), [2, 2, 0, 1]))
        assert data.class_names == ("ant", "bee", "cat")

    def test_written_by_python_2(self, tmp_path):
        """The official files are Python 2 pickles, whose strings are bytes."""
        rows = cifar_rows(0, n=2)
        write_cifar10(tmp_path, rows)
        batch = (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
            b"K\x00\x85U\x01btR(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + struct.pack("<I", rows.size)
            + rows.tobytes()
            + b"tbU\x06labels](K\x00K\x01eu."
        )
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            (tmp_path / name).write_bytes(batch)
        train = as_images(np.tile(rows, (5, 1)))
        assert same(load_dataset(tmp_path), (train, [0, 1] * 5), (as_images(rows), [0, 1]))

    def test_pickled_100(self, tmp_path):
        rows = cifar_rows(0)
        for split in ("train", "test"):
            batch = {"data": rows, "fine_labels": [0, 1, 2, 1], "coarse_labels": [0] * 4}
            (tmp_path / split).write_bytes(pickle.dumps(batch))
        (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b", "c"]}))
        both = (as_images(rows), [0, 1, 2, 1])
        assert same(load_dataset(tmp_path), both, both)

    @settings(max_examples=6, deadline=None)
    @given(seeds, st.sampled_from([1, 2]))
    def test_binary(self, fresh, seed, label_bytes):
        folder, rows = fresh(), cifar_rows(seed)
        labels = np.array([0, 1, 2, 1], np.uint8)
        coarse = np.full((4, label_bytes - 1), 9, np.uint8)
        content = np.concatenate([coarse, labels[:, None], rows], axis=1).tobytes()
        ten = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        for name in ten if label_bytes == 1 else ("train.bin", "test.bin"):
            (folder / name).write_bytes(content)
        data, times = load_dataset(folder), 5 if label_bytes == 1 else 1
        train = (as_images(np.tile(rows, (times, 1))), np.tile(labels, times))
        assert same(data, train, (as_images(rows), labels))

    def test_code_in_a_pickle_is_not_run(self, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "owned"),)

        write_cifar10(tmp_path, cifar_rows(0))
        (tmp_path / "data_batch_3").write_bytes(pickle.dumps(Attack()))
        refused(tmp_path, r"refused: the pickle asks for posix.mkdir")
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.core.multiarray.foo"])
    def test_other_globals_are_refused(self, tmp_path, name):
        module, _, attribute = name.rpartition(".")
        write_cifar10(tmp_path, cifar_rows(0))
        (tmp_path / "test_batch").write_bytes(f"c{module}\n{attribute}\n.".encode())
        refused(tmp_path, f"refused: the pickle asks for {name}")

    def test_faults(self, tmp_path):
        write_cifar10(tmp_path, cifar_rows(0))
        whole = (tmp_path / "data_batch_2").read_bytes()
        (tmp_path / "data_batch_2").write_bytes(whole[:-500])
        refused(tmp_path, "data_batch_2 as a CIFAR batch")
        (tmp_path / "data_batch_2").write_bytes(pickle.dumps({b"data": np.ones((2, 5))}))
        refused(tmp_path, r"shape \(2, 5\)")
        (tmp_path / "data_batch_2").write_bytes(pickle.dumps([1, 2]))
        refused(tmp_path, "no entry 'data'")
        (tmp_path / "data_batch_2").unlink()
        refused(tmp_path, "lacks data_batch_2; unpack")
        binary = tmp_path / "binary"
        binary.mkdir()
        for split in ("train", "test"):
            (binary / f"{split}.bin").write_bytes(bytes(3074 * 2 - 1))
        refused(binary, "6147 bytes, not a whole number of 3074-byte records")


def write_folder(root, x, y):
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03d}.png")


class TestImageFolder:
    @quick
    @given(seeds, st.sampled_from([0, 3]), st.sampled_from(["", "test", "val"]))
    def test_round_trip(self, fresh, seed, channels, split):
        root, (x, y) = fresh(), images(seed, channels=channels)
        order = np.argsort(y, kind="stable")
        write_folder(root / "train" if split else root, x, y)
        test = None
        if split:
            write_folder(root / split, x[:4], y[:4])
            small = np.argsort(y[:4], kind="stable")
            test = (x[:4][small], y[:4][small])
        data = load_dataset(root)
        assert same(data, (x[order], y[order]), test)
        assert data.class_names == ("class0", "class1")

    def test_sizes(self, tmp_path):
        x, y = images(0)
        write_folder(tmp_path, x, y)
        odd = tmp_path / "class1" / "odd.png"
        Image.fromarray(images(1, n=1, side=9)[0][0][:, :6]).save(odd)
        refused(tmp_path, r"000.png is 4x4 pixels but .*odd.png is 6x9; give size=N")
        data = load_dataset(tmp_path, size=4)
        assert data.input_shape == (3, 4, 4)
        assert np.array_equal(data.train.inputs[0], x[0])
        with pytest.raises(ConfigError, match="size=0"):
            load_dataset(tmp_path, size=0)

    def test_the_size_is_said_in_the_spec(self, tmp_path):
        x, y = images(0)
        write_folder(tmp_path, x, y)
        Image.fromarray(images(1, n=1, side=9)[0][0]).save(tmp_path / "class1" / "odd.png")
        refused(tmp_path, "on the command line --data FOLDER@N")
        data = load_dataset(f"{tmp_path}@4")
        assert data.fingerprint == load_dataset(tmp_path, size=4).fingerprint
        assert data.name == tmp_path.name
        with pytest.raises(ConfigError, match="side 4, size=5 for another"):
            load_dataset(f"{tmp_path}@4", size=5)
        with pytest.raises(ConfigError, match="size=8 applies to image folders; digits"):
            load_dataset("digits@8")
        (tmp_path / "set@4").mkdir()
        Image.fromarray(x[0]).resize((7, 7)).save(tmp_path / "set@4" / "0.png")
        assert load_dataset(tmp_path / "set@4").input_shape == (3, 7, 7)

    @pytest.mark.parametrize("folder", ["", "all"])
    @pytest.mark.parametrize("split", ["", "test"])
    def test_images_without_classes_have_no_labels(self, tmp_path, folder, split):
        x, _ = images(0, channels=0)
        for name, part in (("train", x), ("test", x[:2])):
            place = tmp_path / (name if split else "") / folder
            if name == "test" and not split:
                continue
            place.mkdir(parents=True, exist_ok=True)
            (place / "README.txt").write_text("about")
            for i, image in enumerate(part):
                Image.fromarray(image).save(place / f"{i:03d}.png")
        data = load_dataset(tmp_path)
        assert data.name == tmp_path.name
        assert data.num_classes == 0
        assert data.train.labels is None
        assert np.array_equal(data.train.inputs, x)
        assert (data.test is None) == (not split)
        if data.test is not None:
            assert data.test.labels is None
            assert np.array_equal(data.test.inputs, x[:2])
        assert len(data.features()) == len(x)

    def test_images_beside_class_folders_are_left_out(self, tmp_path):
        x, y = images(0)
        write_folder(tmp_path, x, y)
        Image.fromarray(x[0]).save(tmp_path / "preview.png")
        assert len(load_dataset(tmp_path).train) == len(x)

    def test_test_images_need_the_classes_of_the_training_images(self, tmp_path):
        x, y = images(0)
        write_folder(tmp_path / "train", x, y)
        (tmp_path / "test").mkdir()
        Image.fromarray(x[0]).save(tmp_path / "test" / "0.png")
        refused(tmp_path, "holds images without class folders, the training images have classes")

    def test_grey_and_colour_mix_becomes_colour(self, tmp_path):
        write_folder(tmp_path / "a", images(0, channels=0)[0][:1], [0])
        write_folder(tmp_path, *images(0))
        grey = Image.fromarray(images(0, channels=0)[0][0])
        grey.save(tmp_path / "class0" / "grey.png")
        assert load_dataset(tmp_path).input_shape == (3, 4, 4)

    def test_faults(self, tmp_path):
        x, y = images(0)
        write_folder(tmp_path / "train", x, y)
        write_folder(tmp_path / "test", x[:1], ["x"])
        refused(tmp_path, "'classx' is not among the training classes")
        broken = tmp_path / "train" / "class0" / "broken.png"
        whole = (tmp_path / "train" / "class0" / "000.png").read_bytes()
        broken.write_bytes(whole[:-40])
        (tmp_path / "test" / "classx").rename(tmp_path / "test" / "class0")
        refused(tmp_path, "broken.png as an image")
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(broken)
        refused(tmp_path, "more than 8 bits")

    def test_an_image_beyond_the_limit_of_the_library(self, tmp_path, monkeypatch):
        write_folder(tmp_path, *images(0))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
        refused(tmp_path, "exceeds limit")


texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1).filter(
    lambda text: text.strip().lower() not in (*_TEXTS, *_LABELS)
)


class TestTables:
    @quick
    @given(
        st.lists(texts, min_size=2, max_size=8),
        st.booleans(),
        st.sampled_from(["tsv", "csv", "tsv.gz"]),
    )
    def test_round_trip(self, fresh, sentences, header, suffix):
        path = fresh() / f"set.{suffix}"
        labels = [str(i % 2) for i in range(len(sentences))]
        rows = [*([["label", "sentence"]] if header else []), *zip(labels, sentences, strict=True)]
        plain = path.with_name("plain")
        with plain.open("w", newline="", encoding="utf-8") as handle:
            if suffix == "csv":
                csv.writer(handle).writerows(rows)
            else:
                handle.writelines("\t".join(row) + "\n" for row in rows)
        put(path, plain.read_bytes())
        data = load_dataset(path)
        assert data.train.inputs == sentences
        assert data.train.labels.tolist() == [int(label) for label in labels]
        assert data.kind == "text"

    def test_columns_by_name_and_split(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text('text,id,label,split\n"a, b",1,pos,train\nc,2,neg,train\nd,3,pos,dev\n')
        data = load_dataset(path)
        assert data.train.inputs == ["a, b", "c"]
        assert data.class_names == ("neg", "pos")
        assert data.test.inputs == ["d"]

    @pytest.mark.parametrize("split", ["tset", "training"])
    def test_rows_of_an_unknown_split_are_not_dropped(self, tmp_path, split):
        path = tmp_path / "t.tsv"
        path.write_text(f"split\tlabel\tsentence\ntrain\t0\ta\ntrain\t1\tb\n{split}\t0\tc\n")
        refused(path, f"row 4 has split '{split}'; expected train or test or dev")

    def test_a_second_test_split_is_said_to_be_left_out(self, tmp_path, capsys):
        path = tmp_path / "t.tsv"
        path.write_text("split\tlabel\tsentence\ntrain\t0\ta\ntrain\t1\tb\ndev\t0\tc\ntest\t1\td\n")
        with showing():
            assert load_dataset(path).test.inputs == ["d"]
        assert "its 1 rows of split dev are left out; test is the test" in capsys.readouterr().err

    def test_a_split_column_in_a_folder_agrees_with_its_file(self, tmp_path):
        (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t0\nb\t1\n")
        (tmp_path / "test.tsv").write_text("split\tlabel\tsentence\ntest\t0\tc\n")
        assert load_dataset(tmp_path).test.inputs == ["c"]
        (tmp_path / "train.tsv").write_text("split\tlabel\tsentence\ndev\t0\tc\n")
        refused(tmp_path, r"train.tsv: row 2 has split 'dev'; expected train$")

    def test_labels_beyond_64_bits_are_names(self, tmp_path):
        (tmp_path / "t.tsv").write_text(f"{10**20}\ta\n1\tb\n")
        assert load_dataset(tmp_path / "t.tsv").class_names == ("1", str(10**20))

    def test_long_texts(self, tmp_path):
        (tmp_path / "t.tsv").write_text(f"0\t{'a' * 200_000}\n1\tb\n")
        limit = csv.field_size_limit()
        assert len(load_dataset(tmp_path / "t.tsv").train.inputs[0]) == 200_000
        assert csv.field_size_limit() == limit

    def test_label_in_the_second_column(self, tmp_path):
        (tmp_path / "t.tsv").write_text("good film\t1\nbad\t0\n")
        assert load_dataset(tmp_path / "t.tsv").train.inputs == ["good film", "bad"]

    def test_folder_skips_unlabelled_test(self, tmp_path):
        (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t0\nb\t1\n")
        (tmp_path / "test.tsv").write_text("index\tsentence\n0\tx\n")
        (tmp_path / "dev.tsv").write_text("sentence\tlabel\nc\t1\n")
        assert load_dataset(tmp_path).test.inputs == ["c"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "no rows"),
            ("label\tsentence\n", "no samples"),
            ("label\tsentence\n1\ta\n0\n", "row 3 has 1 columns"),
            ("a\tb\tc\n", r"expected a header .*; numbers go into a .npy or .npz file"),
            ("1\ta\n1\tb\n", "needs two classes"),
            ("label\tsentence\n1\ta\n0\tb\n \tc\n", "row 4 has no label"),
            ("1\ta\n\tb\n0\tc\n", "row 2 has no label"),
        ],
    )
    def test_faults(self, tmp_path, content, message):
        (tmp_path / "t.tsv").write_text(content)
        refused(tmp_path / "t.tsv", message)

    def test_not_utf8(self, tmp_path):
        (tmp_path / "t.tsv").write_bytes(b"1\t\xff\xfe\n")
        refused(tmp_path / "t.tsv", "UTF-8")

    def test_running_text(self, tmp_path):
        text = "".join(chr(97 + i % 26) for i in range(256 * 20 + 7))
        put(tmp_path / "t.txt.gz", text.encode())
        data = load_dataset(tmp_path / "t.txt.gz")
        assert (len(data.train), len(data.test)) == (18, 2)
        assert "".join(data.train.inputs + data.test.inputs) == text[: 256 * 20]
        (tmp_path / "short.txt").write_text("to be")
        refused(tmp_path / "short.txt", "at least 2560")


class FakeColumn:
    def __init__(self, names):
        self.names = names


class FakeSplit:
    info = types.SimpleNamespace(license="mit", citation="someone")

    def __init__(self, names=None, **columns):
        self.columns = columns
        self.column_names = list(columns)
        self.features = {"label": FakeColumn(names)}

    def __getitem__(self, key):
        return self.columns[key]


class TestHuggingFace:
    def library(self, monkeypatch, **functions):
        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(**functions))

    def test_saved_folder(self, tmp_path, monkeypatch):
        (tmp_path / "dataset_dict.json").write_text("{}")
        x, y = images(0)
        pictures = [Image.fromarray(image) for image in x]
        found = {
            "train": FakeSplit(["a", "b"], image=pictures, label=y.tolist()),
            "validation": FakeSplit(image=pictures[:2], label=[1, 0]),
        }
        self.library(monkeypatch, load_from_disk=lambda path: found)
        data = load_dataset(tmp_path)
        assert same(data, (x, y), (x[:2], [1, 0]))
        assert (data.class_names, data.terms) == (("a", "b"), "mit")

    def test_hub_name_and_configuration(self, monkeypatch):
        asked = []

        def load(name, config):
            asked.append((name, config))
            return {"train": FakeSplit(sentence=["x", "y"], label=[0, 1])}

        self.library(monkeypatch, load_dataset=load)
        assert load_dataset("hf:nyu/glue:sst2").train.inputs == ["x", "y"]
        assert asked == [("nyu/glue", "sst2")]

    def test_faults(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        refused("hf:mnist", r"pip install spikedim\[hf\]")

        def fail(*args):
            raise RuntimeError("no\nnetwork")

        self.library(monkeypatch, load_dataset=fail, load_from_disk=fail)
        refused("hf:mnist", "no network")
        (tmp_path / "dataset_dict.json").write_text("{}")
        refused(tmp_path, "save it again")
        self.library(monkeypatch, load_dataset=lambda *a: {"dev": FakeSplit(x=[[1.0]])})
        refused("hf:a", "one called train")
        self.library(monkeypatch, load_dataset=lambda *a: FakeSplit(audio=[1]))
        refused("hf:a", "columns audio")
        ragged = FakeSplit(x=[[1.0], [1.0, 2.0]])
        self.library(monkeypatch, load_dataset=lambda *a: ragged)
        refused("hf:a", r"\(1,\) and \(2,\)")


class TestDetection:
    def test_unknown_content_lists_what_was_tried(self, tmp_path):
        (tmp_path / "song.mp3").write_text("la")
        for path in (tmp_path, tmp_path / "song.mp3"):
            refused(path, r"CIFAR pickles \(batches.meta.*IDX folder.*image folder.*NAME.npz")
        refused(tmp_path, "it holds song.mp3")

    def test_missing(self, tmp_path):
        refused(tmp_path / "nothing.npy", "neither a file, a folder nor a known data set")

    def test_size_only_for_image_folders(self, tmp_path):
        np.save(tmp_path / "x.npy", np.ones((3, 2)))
        with pytest.raises(ConfigError, match="is a NumPy array"):
            load_dataset(tmp_path / "x.npy", size=3)

    def test_one_content_one_fingerprint(self, tmp_path):
        x, y = images(0, channels=0)
        np.save(tmp_path / "a.npy", x)
        np.save(tmp_path / "a_labels.npy", y)
        write_xz(tmp_path / "b.npy.xz", x)
        np.save(tmp_path / "b_labels.npy", y)
        np.savez(tmp_path / "c.npz", images=x, labels=y)
        raw = tmp_path / "raw"
        raw.mkdir()
        put(raw / "train-images-idx3-ubyte.gz", idx(x))
        put(raw / "train-labels-idx1-ubyte.gz", idx(y.astype(np.uint8)))
        names = ("a.npy", "b.npy.xz", "c.npz", "raw")
        assert len({load_dataset(tmp_path / name).fingerprint for name in names}) == 1
