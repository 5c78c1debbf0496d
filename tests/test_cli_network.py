"""Networks and data of the user's own on the command line."""

import json
import re

import numpy as np
import pytest
import torch

from own_files import THRESHOLD
from spikedim.cli import main
from spikedim.data import load_dataset, make_dataset
from spikedim.errors import ConfigError
from spikedim.models import (
    batchnorm_of,
    create_model,
    load_checkpoint,
    save_checkpoint,
    settle_batchnorm,
)
from spikedim.models.calibration import is_trained
from spikedim.profiling import profile
from spikedim.training import evaluate

FILE = (
    THRESHOLD
    + """

class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(64, 16), nn.BatchNorm1d(16)
        self.spike, self.b = Threshold(), nn.Linear(16, 10)

    def forward(self, x):  # [T, B, 1, 8, 8]
        h = self.norm(self.a(x.flatten(2)).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.b(self.spike(h))


def fresh(input_shape, num_classes):
    return Folded()


def trained(input_shape, num_classes):
    network = Folded()
    network.norm.running_mean.fill_(0.4)
    network.norm.running_var.fill_(3.0)
    return network


def bare(input_shape, num_classes):
    network = Folded()
    network.norm = nn.Identity()
    return network


def loaded(input_shape, num_classes):
    network = bare(input_shape, num_classes)
    torch.manual_seed(5)  # stands for the weights of a file
    for p in network.parameters():
        nn.init.normal_(p, 0.2, 0.3)
    return network
"""
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words, code=0):
    """Standard output and error of a command."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert caught.value.code == code, captured.err
    return captured.out, captured.err


# -- batch norm ---------------------------------------------------------------------------------


def test_statistics_of_its_own_are_kept_and_fresh_ones_calibrated():
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=0)
    assert batchnorm_of(network) == "fresh"
    assert settle_batchnorm(network, [x], 2) == "fresh"
    assert batchnorm_of(network) == "own"
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def unread():
        raise AssertionError
        yield

    assert settle_batchnorm(network, unread(), 2) == "own"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_firing_rates_are_statistics_too():
    network = create_model("spikingresformer_nano", input_shape=(1, 8, 8), seed=0)
    assert batchnorm_of(network) == "fresh"
    settle_batchnorm(network, [torch.rand(8, 1, 8, 8)], 2)
    assert batchnorm_of(network) == "own"


def test_profile_takes_a_trained_network_as_it_is(here, capsys):
    words = ["profile", "--data", "digits", "-T", "2", "--samples", "16", "--json"]
    out, err = run(capsys, *words, "--model", "own.py:trained")
    assert "batch norm as the network brings it" in err
    data = load_dataset("digits")
    network = create_model("own.py:trained", num_classes=10, input_shape=(1, 8, 8), seed=0)
    x, _ = data.tensors("test", 16, 0)
    there = profile(network.eval(), x, 2).spikes_per_sample.value
    assert json.loads(out)["spikes_per_sample"]["value"] == there
    assert json.loads(out)["state"].endswith(
        "batch norm as the network brings it; test samples of digits"
    )
    _, err = run(capsys, *words, "--model", "own.py:fresh")
    assert "batch norm calibrated at T = 2 on 256 training samples" in err


def test_measure_takes_a_trained_network_as_it_is(here, capsys):
    words = ["measure", "--data", "digits", "-T", "2", "--limit", "16", "--json"]
    for name, said in (
        ("trained", "as the network brings it"),
        ("fresh", "calibrated at T = 2 on 256"),
    ):
        _, err = run(capsys, *words, "--model", f"own.py:{name}")
        assert f"batch norm {said}" in err


@pytest.mark.parametrize("mode", [[], ["--reduction"]])
def test_a_kernel_of_a_trained_network_has_no_seed(mode, here, capsys):
    words = ["ntk", "--data", "digits", "-T", "2", "--samples", "12", *mode]
    _, err = run(capsys, *words, "--model", "own.py:trained")
    assert "batch norm as the network brings it" in err
    _, err = run(capsys, *words, "--model", "own.py:fresh")
    assert "batch norm calibrated at T = 2 on 128 training samples" in err
    if not mode:
        out, _ = run(capsys, *words, "--model", "own.py:trained", "--json")
        assert json.loads(out)["initialisation"] is None
    several = [*words, "--model", "own.py:trained", "--initialisations", "2", "--quiet"]
    _, err = run(capsys, *several, code=2)
    assert "--initialisations 2 is for untrained networks" in err


def test_what_may_be_trained_is_not_called_untrained(here, capsys):
    words = ["--data", "digits", "-T", "2", "--model", "own.py:loaded", "--quiet"]
    out, _ = run(capsys, "ntk", *words, "--samples", "12")
    assert "untrained" not in out
    assert "One network as its file makes it, seed 0" in " ".join(out.split())
    out, _ = run(capsys, "profile", *words, "--samples", "12", "--json")
    assert json.loads(out)["accuracy"] is not None
    for name, checkpoint, batchnorm, trained in (
        ("own.py:loaded", None, "absent", None),
        ("own.py:loaded", None, "fresh", None),
        ("own.py:loaded", None, "own", True),
        ("own.py:loaded", "x.safetensors", "absent", True),
        ("spikformer_nano", None, "fresh", False),
        ("spikformer_nano", "x.safetensors", "fresh", True),
    ):
        assert is_trained(name, checkpoint, batchnorm) is trained


@pytest.mark.parametrize("mode", [[], ["--reduction"]])
def test_initialisations_that_are_the_same_are_refused(mode, here, capsys):
    words = ["ntk", "--data", "digits", "-T", "2", "--samples", "12", "--quiet", *mode]
    words += ["--initialisations", "3", "--model"]
    _, err = run(capsys, *words, "own.py:loaded", code=2)
    assert "own.py:loaded makes the same weights with seeds 0 and 1" in err
    run(capsys, *words, "own.py:bare")


def test_design_says_what_it_did_to_the_statistics(here, capsys):
    words = ["design", "--data", "digits", "--json", "--quiet"]
    out, _ = run(capsys, *words, "--model", "own.py:trained")
    assert json.loads(out)["model"]["state"].endswith("batch norm as the network brings it")
    out, _ = run(capsys, *words, "--model", "own.py:fresh")
    assert (
        "batch norm calibrated at each T on 256 training samples"
        in json.loads(out)["model"]["state"]
    )


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own.py", "own.py:"])
def test_a_file_without_a_function(name, here, capsys):
    _, err = run(capsys, "profile", "--data", "digits", "--model", name, "--quiet", code=2)
    assert "own.py:FUNCTION" in err
    assert "nearest" not in err


def test_a_network_of_a_file_is_shown(here, capsys):
    (here / "own.py").write_text(
        FILE
        + """

def small():
    return wrap(Folded(), input_shape=(1, 8, 8), num_classes=10)
"""
    )
    out, _ = run(capsys, "models", "show", "own.py:small")
    assert "Linear 16 → 10" in out


# -- data ---------------------------------------------------------------------------------------

VERBS = {"profile": ["--samples", "12"], "measure": ["--limit", "20"], "ntk": ["--samples", "8"]}
NANO = ["--model", "spikformer_nano", "-T", "2", "--json", "--quiet"]


@pytest.mark.parametrize("verb", VERBS)
def test_recordings_in_a_file_are_event_data(verb, here, capsys):
    x = np.random.default_rng(0).poisson(0.5, (24, 4, 2, 8, 8)).astype(np.uint8)
    np.savez("own.npz", x=x, y=np.arange(24) % 3)
    out, _ = run(capsys, verb, "--data", "own.npz", *VERBS[verb], *NANO)
    assert json.loads(out)["T"] == 2
    _, err = run(capsys, verb, "--data", "own.npz", *VERBS[verb], *NANO, "-T", "3", code=2)
    assert "T = 1, 2, 4" in err


def test_what_needs_no_labels_runs_without(here, capsys):
    np.save("bare.npy", np.random.default_rng(0).random((30, 8, 8)).astype(np.float32))
    words = ["--data", "bare.npy", *NANO]
    network = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=0)
    settle_batchnorm(network, [torch.rand(8, 1, 8, 8)], 2)
    save_checkpoint(network, "net.safetensors")
    trained = ["--checkpoint", "net.safetensors", "--samples", "12"]
    found = json.loads(run(capsys, "profile", *words, *trained)[0])
    assert found["spikes_per_sample"]["value"] > 0
    assert (found["accuracy"], found["per_correct"]) == (None, [])
    found = json.loads(run(capsys, "ntk", *words, "--samples", "12")[0])
    assert (found["alignment"], found["regression"]) == (None, None)
    for method in ("sketch", "matrix-free"):
        found = run(capsys, "ntk", *words, "--samples", "12", "--method", method)[0]
        assert json.loads(found)["samples"] == 12
    _, err = run(capsys, "train", "--data", "bare.npy", "--quiet", code=2)
    assert "no labels" in err


TEXT = ["--data", "lines.tsv", "-T", "2"]


@pytest.fixture
def lines(here):
    """Sentences with a class each, some of them short."""
    text = "networks of spiking neurons read the letters of a line one by one"
    rows = [f"{text[i % 20 :]} {i}\t{i % 2}" for i in range(40)]
    (here / "lines.tsv").write_text("sentence\tlabel\n" + "\n".join([*rows, "no\t1"]) + "\n")
    return here


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("model", ["spikingbert_nano", "spikegpt_nano"])
def test_text_networks_read_texts_as_words_or_bytes(verb, model, lines, capsys):
    words = [verb, *TEXT, *VERBS[verb], "--model", model, "--json"]
    if (verb, model) == ("ntk", "spikegpt_nano"):
        _, err = run(capsys, *words, code=2)
        assert "give a readout, e.g. the last token" in err
        return
    out, err = run(capsys, *words)
    length, what = re.search(r"read as their first (\d+) (bytes|words)", err).groups()
    assert what == ("words" if model == "spikingbert_nano" else "bytes")
    assert json.loads(out)["T"] == (2 if what == "words" else int(length))


def test_a_text_with_each_class_of_its_own(lines, capsys):
    words = ["measure", *TEXT, "--limit", "41", "--model", "spikingbert_nano", "--per", "class"]
    out, _ = run(capsys, *words, "--layers", "network_x.lif", "--json", "--quiet")
    found = [estimate["n"] for estimate in json.loads(out)["estimates"].values()]
    assert len(found) == 2
    assert sum(found) == 41


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        ("digits", "spikegpt_nano", "digits holds image; spikegpt_nano reads texts"),
        ("lines.tsv", "spikformer_nano", "holds text; spikformer_nano reads images or events"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_data_of_another_kind_are_said_to_be(verb, data, model, words, lines, capsys):
    _, err = run(capsys, verb, "--data", data, "--model", model, "--quiet", code=2)
    assert words in err


def test_a_checkpoint_of_a_text_network_needs_its_tokeniser(lines, capsys):
    words = ["profile", *TEXT, "--model", "spikegpt_nano", "--checkpoint", "x.safetensors"]
    assert "tokeniser" in run(capsys, *words, "--quiet", code=2)[1]


def test_data_without_a_test_split_are_profiled_on_what_training_holds_out(here, capsys):
    digits = load_dataset("digits")
    np.savez(here / "grey.npz", x=digits.train.inputs[:100], y=digits.train.labels[:100])
    words = ["--data", "grey.npz", "--model", "spikformer_nano", "-T", "1"]
    out, err = run(capsys, "train", *words, "--epochs", "1", "-o", "t", "--json")
    assert "20 of its 100 samples are held out" in err
    out, err = run(
        capsys, "profile", *words, "--checkpoint", "t/best.safetensors", "--json", "--samples", "99"
    )
    assert "20 of its 100 samples are held out" in err
    found = json.loads(out)
    assert found["samples"] == 20
    assert found["state"].endswith("test samples of grey")
    held_out = load_dataset("grey.npz").with_test(seed=0)
    network = create_model("spikformer_nano", num_classes=10, input_shape=(1, 8, 8))
    load_checkpoint(network, "t/best.safetensors")
    x, y = held_out.tensors("test")
    assert found["accuracy"]["value"] == evaluate(network, x, y, 1).accuracy[-1].value


def test_raw_pixels_reach_a_network_and_are_remembered(here, capsys):
    data = load_dataset("digits@raw")
    x, _ = data.tensors("test", 16)
    assert data.name == "digits@raw"
    assert torch.equal(x.flatten(1), torch.from_numpy(data.features("test", 16)))
    assert data.fingerprint != load_dataset("digits").fingerprint
    assert data.raw() is data
    words = ["-T", "1", "--model", "spikformer_nano"]
    few = ["--epochs", "1", "--train-samples", "50"]
    run(capsys, "train", "--data", "digits@raw", *words, *few, "-o", "t", "--json")
    weights = ["--checkpoint", "t/best.safetensors", "--samples", "16", "--json"]
    out, err = run(capsys, "profile", "--data", "digits", *words, *weights)
    found = json.loads(out)
    assert found["state"].endswith("test samples of digits@raw")
    assert "reads pixels" not in err
    network = create_model("spikformer_nano", num_classes=10, input_shape=(1, 8, 8))
    load_checkpoint(network, "t/best.safetensors")
    assert found["spikes_per_sample"]["value"] == profile(network, x, 1).spikes_per_sample.value
    torch.save(network.state_dict(), here / "plain.pt")
    weights[1] = "plain.pt"
    out, err = run(capsys, "profile", "--data", "digits", *words, *weights)
    assert "spikformer_nano reads pixels standardised by channel" in err
    assert "add @raw" in err
    assert json.loads(out)["state"].endswith("test samples of digits")
    with pytest.raises(ConfigError, match="raw is of images"):
        make_dataset("v", (np.zeros((20, 5)), None)).raw()


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "network"),
    [
        ("profile", "own.py:bare"),
        ("measure", "own.py:bare"),
        ("profile", "spikformer_nano"),
        ("rank", "spikformer_nano"),
    ],
)
def test_a_network_is_called_what_it_was_asked_for(verb, network, here, capsys):
    few = ["--samples" if verb == "profile" else "--limit", "12"]
    assert network in run(capsys, verb, "--model", network, *few, "--quiet")[0]
    found = json.loads(run(capsys, verb, "--model", network, *few, "--quiet", "--json")[0])
    assert (found["profile"] if verb == "rank" else found)["model"] == network
