"""Inputs of the user's own in Python: values that are no numbers, torch's containers, layouts."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from spikedim.data import load_dataset, make_dataset
from spikedim.design import design
from spikedim.design.layers import layer_dimensions
from spikedim.dimension import measure
from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import create_model, representations, settle_batchnorm
from spikedim.ntk import KernelOperator, gram, reduction, sketched_gram, sweep
from spikedim.profiling import activity, profile


@pytest.fixture(scope="module")
def network():
    model = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=0)
    settle_batchnorm(model, [images(16)], 2)
    return model


def images(n):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


ENTRIES = {
    "measure": lambda net, x: measure(x),
    "profile": lambda net, x: profile(net, x, 2, batch_size=4),
    "profile of batches": lambda net, x: profile(net, x.split(4), 2),
    "activity": lambda net, x: activity(net, x, 2),
    "layers": lambda net, x: layer_dimensions(net, x, 2),
    "representations": lambda net, x: representations(net, x, 2),
    "gram": lambda net, x: gram(net, x, T=2),
    "gram against others": lambda net, x: gram(net, images(3), x, T=2),
    "sketch": lambda net, x: sketched_gram(net, x, T=2),
    "operator": lambda net, x: KernelOperator(net, x, T=2),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_number_is_refused_with_its_sample(entry, value, network):
    x = images(9)
    x[6, 0, 3, 4] = value
    x[8] = float("nan")
    with pytest.raises(DataError, match=rf"sample 6.*{value}.*remove or impute"):
        ENTRIES[entry](network, x)


def test_the_sample_of_a_recording_is_on_its_second_axis(network):
    x = torch.rand(2, 9, 1, 8, 8)
    x[1, 6, 0, 3, 4] = float("nan")
    for entry in (profile, layer_dimensions):
        with pytest.raises(DataError, match="sample 6"):
            entry(network, x, 2)
    with pytest.raises(DataError, match="sample 6"):
        gram(network, x)


# -- recordings ---------------------------------------------------------------------------------


def recordings(n=12, steps=4):
    return np.random.default_rng(0).poisson(0.5, (n, steps, 2, 8, 8)).astype(np.uint8)


def test_recordings_as_frames_are_summed_to_the_steps_asked_for():
    x = recordings()
    data = make_dataset("own", (x, np.arange(12) % 3))
    assert (data.kind, data.input_shape, data.num_classes) == ("events", (2, 8, 8), 3)
    frames, y = data.frames(4)
    assert torch.equal(frames, torch.from_numpy(x.swapaxes(0, 1).astype(np.float32)))
    assert y.tolist() == [0, 1, 2] * 4
    assert torch.equal(data.frames(2)[0], frames.unflatten(0, (2, 2)).sum(1))
    assert np.array_equal(data.features(), x.sum(1).reshape(12, -1))
    with pytest.raises(ConfigError, match=r"T=3.*4 frames.*T = 1, 2, 4"):
        data.frames(3)
    other = make_dataset("own", (recordings(steps=2), None))
    assert other.fingerprint != data.fingerprint
    assert len(data.with_test(0.25).test) == 3


@pytest.mark.parametrize("entry", [gram, profile, layer_dimensions])
def test_recordings_with_the_sample_first_are_told_their_layout(entry):
    net = create_model("spikformer_nano", input_shape=(2, 8, 8), seed=0)
    settle_batchnorm(net, [torch.rand(8, 2, 8, 8)], 2)
    x = torch.from_numpy(recordings().astype(np.float32))
    with pytest.raises(ModelError, match=r"\[T, B, C, H, W\].*x.transpose\(0, 1\)"):
        entry(net, x, T=4)


# -- torch's containers -------------------------------------------------------------------------


class Own(Dataset):
    """A map-style data set of whatever ``item`` makes."""

    def __init__(self, item, n=9):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.item(index)


def labels(n):
    return torch.arange(n) % 3


@pytest.mark.parametrize(
    "given",
    [
        (images(9), labels(9)),
        (images(9).bfloat16().float(), labels(9).tolist()),
        (images(9).numpy(), labels(9)),
        TensorDataset(images(9), labels(9)),
        Subset(TensorDataset(images(12), labels(12)), range(9)),
        Own(lambda i: (images(9)[i].numpy(), i % 3)),
        (Own(lambda i: images(9)[i]), labels(9)),
    ],
    ids=lambda given: type(given).__name__,
)
def test_torch_data_become_a_data_set(given):
    data = make_dataset("own", given, given)
    x, y = data.tensors("test")
    assert x.shape == (9, 1, 8, 8)
    assert y.tolist() == labels(9).tolist()


def test_samples_without_labels_and_texts():
    assert make_dataset("own", Own(lambda i: images(9)[i])).num_classes == 0
    assert make_dataset("own", Own(lambda i: (f"text {i}", i % 2))).kind == "text"
    found = measure(TensorDataset(images(30), labels(30)), ["pr"])
    assert found["pr"] == measure(images(30), ["pr"])["pr"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_dataset("own", images(9)), r"a Tensor; expected a pair"),
        (lambda: make_dataset("own", DataLoader(TensorDataset(images(9)))), "a DataLoader"),
        (lambda: make_dataset("own", ([[1, 2], [3, 4]], [0, 1])), "list with a list"),
        (lambda: make_dataset("own", Own(lambda i: torch.rand(2, i + 1))), "sample 1 has shape"),
        (
            lambda: make_dataset("own", Own(lambda i: np.array([[0, 1.0 if i else 1]]))),
            r"sample 1 has shape \(1, 2\) of float64, sample 0 has shape \(1, 2\) of int64",
        ),
        (
            lambda: measure(Own(lambda i: np.full(2, 300 * i, np.uint16 if i else np.uint8))),
            "of uint16, sample 0 has shape .* of uint8",
        ),
        (
            lambda: make_dataset("own", Own(lambda i: "abc" if i == 2 else np.zeros(2))),
            r"sample 2 is a text, sample 0 has shape \(2,\) of float64",
        ),
        (
            lambda: make_dataset("own", Own(lambda i: np.zeros(2) if i else "abc")),
            r"sample 1 has shape \(2,\) of float64, sample 0 is a text",
        ),
        (lambda: make_dataset("own", Own(lambda i: (1, 2, 3))), r"expected \(x, y\) or x"),
        (lambda: make_dataset("own", Own(lambda i: {"image": 1})), r"expected \(x, y\) or x"),
        (lambda: make_dataset("own", Own(lambda i: i, 0)), "no samples"),
        (lambda: measure(DataLoader(TensorDataset(images(9)))), "give its dataset"),
        (lambda: measure(make_dataset("own", (images(9), None))), r"features\(\)"),
        (lambda: measure(torch.nn.Linear(2, 2), images(9)), "layer_dimensions"),
    ],
)
def test_what_holds_no_samples_is_said(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_design_takes_a_torch_data_set():
    plan = design(TensorDataset(images(40), labels(40)), "spikformer_nano")
    assert (plan.data.name, plan.data.classes) == ("TensorDataset", 3)


# -- networks that are none of ours -------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        lambda net, x: reduction(net, x),
        lambda net, x: sweep(net, x, "v_th"),
        lambda net, x: profile(net, x, 2),
        lambda net, x: representations(net, x, 2),
        lambda net, x: layer_dimensions(net, x, 2),
    ],
)
def test_a_plain_module_is_sent_to_wrap(entry):
    with pytest.raises(ModelError, match=r"Flatten is a plain torch module.*adapters.wrap\("):
        entry(torch.nn.Flatten(), images(9))


def test_design_names_networks(network):
    with pytest.raises(ModelError, match="a Spikformer, but a name is expected") as caught:
        design(load_dataset("digits"), network)
    assert len(str(caught.value)) < 300
    with pytest.raises(ModelError, match=r"a function, but a name .* path/to/file.py:function"):
        design(load_dataset("digits"), images)
