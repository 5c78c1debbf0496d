"""The rank profile, spikedim rank, and the comparison of gates."""

import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from spikedim.cli import main
from spikedim.errors import ConfigError, ModelError, StorageError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.models.features import representations
from spikedim.rank import (
    GateComparison,
    GateRun,
    affine_rank,
    compare_gates,
    diagnose,
    matrix_rank,
    rank_profile,
)
from spikedim.report.rank import render_rank
from spikedim.training import TrainConfig

matplotlib.use("Agg")


def run(*words):
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return caught.value.code


@pytest.fixture(scope="module")
def network():
    net = create_model("spikformer_nano", input_shape=(1, 8, 8), depth=2).double()
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calibrate_batchnorm(net, [x], 3)
    return net, x[:5]


def test_profile_is_the_rank_of_every_matrix(network):
    net, x = network
    profile = rank_profile(net, x, 3, layers="block.*.attn,block.1", twin="none", batch_size=2)
    found = representations(
        net, x, 3, "features", layers="block.*.attn,block.1", tokens="samples", time="each"
    )
    assert [row.layer for row in profile.layers] == list(found)
    for row in profile.layers:
        matrices = found[row.layer].reshape(3, 5, row.tokens, row.channels)
        for key, rank in (("rank", matrix_rank), ("affine", affine_rank)):
            each = np.array([[rank(m) for m in step] for step in matrices])
            assert row.values[key].value == pytest.approx(each.mean())
            assert row.steps[key] == pytest.approx(each.mean(1))
            assert row.values[key].n == 5
        assert row.values["affine"].value <= row.largest


def test_profile_has_the_continuous_twin_beside_it(network):
    net, x = network
    for activation in ("surrogate", "rate"):
        profile = rank_profile(net, x, 3, twin=activation)
        names = [row.layer for row in profile.of("spiking")]
        assert names == ["patch_embed", "block.0", "block.1"]
        assert [row.layer for row in profile.of("continuous")] == names
        assert {len(row.steps["affine"]) for row in profile.of("spiking")} == {3}
        assert {len(row.steps["affine"]) for row in profile.of("continuous")} == {1}
    twin = rank_profile(net.continuous("surrogate"), x, 1, twin="none")
    again = rank_profile(net, x, 3).of("continuous")
    for a, b in zip(twin.layers, again, strict=True):
        assert a.values["affine"] == b.values["affine"]


def test_a_collapsed_network_is_said_to_be(network):
    net, x = network
    profile = rank_profile(net, torch.zeros_like(x), 2, what="spikes", twin="none")
    silent = create_model("spikformer_nano", input_shape=(1, 8, 8)).double().eval()
    profile = rank_profile(silent, torch.zeros_like(x), 2, twin="none")
    assert all(row.collapsed == 1.0 for row in profile.layers)
    assert "all tokens equal in 100 %" in profile.verdict
    axes = profile.plot()
    axes.get_figure().canvas.draw()
    lines = {line.get_label(): line for line in axes.get_lines()}
    heights = axes.transAxes.inverted().transform(axes.transData.transform([(0, 0), (0, 32)]))
    assert set(lines["stable rank"].get_ydata()) == {0}
    assert 0 < heights[0, 1] < heights[1, 1] < 1  # zeros and the largest rank are inside
    bar = axes.get_figure().axes[-1]
    assert bar.get_ylabel() == "affine rank"
    assert list(bar.get_yticks()) == [1, 2]
    plt.close("all")


def test_profile_refuses_what_has_no_tokens(network):
    net, x = network
    with pytest.raises(ModelError, match="two tokens or more"):
        rank_profile(net, x, 2, layers="head")
    with pytest.raises(ConfigError, match="twin='other'"):
        rank_profile(net, x, 2, twin="other")
    with pytest.raises(ConfigError, match="use 'spikes'"):
        rank_profile(net, x, 2, what="rates")


@pytest.mark.parametrize("name", ["spikingbert_small", "spikegpt_small"])
def test_text_networks_are_profiled(name):
    net = create_model(name, depth=1).eval()
    x = torch.randint(0, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    result = diagnose(net, x, None if "gpt" in name else 2)
    assert {row.tokens for row in result.profile.layers} == {7}
    assert result.norms.layers
    assert len(result.profile.of("spiking")) == len(result.profile.of("continuous"))


def test_command_prints_draws_and_writes_a_page(tmp_path, capsys):
    plot, page = tmp_path / "rank.png", tmp_path / "rank.html"
    words = ["--data", "digits", "--model", "spikformer_nano", "-T", "2", "--limit", "4", "-q"]
    files = ["--plot", str(plot), "--report", str(page)]
    assert run("rank", *words, "--gate", "position", "--json", *files) == 0
    data = json.loads(capsys.readouterr().out)
    assert {row["network"] for row in data["profile"]["layers"]} == {"spiking", "continuous"}
    assert data["heads"]["layers"][0]["per_step"] == 64 * 1 * 16
    assert data["heads"]["layers"][0]["gate_rank"] == 1  # fresh gates
    assert plot.stat().st_size > 10_000
    html = page.read_text()
    assert "Rank of spikformer_nano on digits" in html
    assert "What the sum over heads hides" in html
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", html)
    assert run("rank", *words) == 0
    out = capsys.readouterr().out
    assert "Rank of features through depth, spikformer_nano, T=2" in out
    assert "Affine rank through time, spiking" in " ".join(out.split())


def test_command_reads_events_and_text(shared, capsys):
    few = ("-T", "2", "--limit", "2", "-q", "--data-root", str(shared))
    assert run("rank", "--data", "nmnist", "--model", "spikformer_nano", *few) == 0
    assert "of 33" in capsys.readouterr().out
    assert run("rank", "--data", "sst2", "--model", "spikingbert_small", *few) == 0
    assert "network_s4.LayerNorm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--report", "page.pdf"], "name a .html file"),
        (["--out", "x"], "--out is the run directory of --compare-gates"),
        (["--compare-gates", "--layers", "block.*"], "--layers is of one network"),
        (["--compare-gates", "--gate", "position"], "--gate is of one network"),
        (["--compare-gates", "-r", "spikes"], "--representation is of one network"),
        (["--compare-gates", "--limit", "9"], "--limit is of one network"),
        (["--compare-gates", "--twin", "rate"], "--twin is of one network"),
        (["--seeds", "3"], "--seeds is of a comparison; add --compare-gates"),
        (["--epochs", "1"], "--epochs is of a comparison"),
        (["--train-samples", "50"], "--train-samples is of a comparison"),
        (["-T", "0"], "T=0"),
        (["--model", "spikingbert_small"], "reads text"),
        (["--model", "nothing"], "unknown model"),
        (["--layers", "nothing"], "no module matches"),
    ],
)
def test_mistakes_are_one_line(words, says, capsys):
    assert run("rank", "--data", "digits", "-q", *words) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert error.count("\n") == 0


def test_a_comparison_of_no_timesteps_is_refused(tmp_path, capsys):
    assert run("rank", "--compare-gates", "-T", "0", "--out", str(tmp_path / "run"), "-q") == 2
    assert "T=0" in capsys.readouterr().err


def test_tables_say_what_was_measured(tmp_path, capsys):
    words = ["--data", "digits", "--model", "spikformer_nano", "-T", "2", "-q", "--seed", "3"]
    words += ["--gate", "position", "--split", "train"]
    page = tmp_path / "rank.html"
    assert run("rank", *words, "--limit", "9", "--report", str(page)) == 0
    said = "9 train samples of digits, T=2; untrained, batch norm calibrated at T = 2 on 128"
    for text in (capsys.readouterr().out, page.read_text()):
        text = " ".join(text.split())
        assert said in text
        assert "gate: position; seed 3." in text
        assert text.count("On the first 8 of 9 samples.") == 3  # residuals, norms, heads
    assert run("rank", *words, "--limit", "4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    kept = ("split", "gate", "seed", "trained", "checked")
    assert [found[key] for key in kept] == ["train", "position", 3, False, 4]


def test_a_diagnosis_from_python_says_what_it_knows(network):
    net, x = network
    found = diagnose(net, x, 2, twin="none", trained=None)
    assert found.source == "5 samples, T=2; not known whether trained; gate: none; seed 0."
    assert "On the first" not in str(found)  # all of them


# -- comparison of gates ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    place = tmp_path_factory.mktemp("gates") / "run"
    config = TrainConfig(epochs=1, batch_size=32, validation=0.0)
    options = {"seeds": (0, 1), "config": config, "train_samples": 64, "test_samples": 50}
    return compare_gates(["digits"], "spikformer_nano", place, **options), place, options


def test_arms_are_paired(compared):
    result, _, _ = compared
    assert len(result.runs) == 2 * 2 * 3
    by = {(r.kind, r.arm, r.seed): r for r in result.runs}
    for kind in ("spiking", "continuous"):
        for seed in (0, 1):
            none, gate, control = (by[kind, arm, seed] for arm in ("none", "position", "constant"))
            assert gate.parameters == control.parameters == none.parameters + 16
            assert gate.spread > 0
            assert control.spread < 1e-6
            assert none.gates is None
            assert (none.spikes is None) == (kind == "continuous")
    expected = result.accuracies("digits", "spiking", "position")
    expected = expected - result.accuracies("digits", "spiking", "none")
    found = result.difference("digits", "spiking", "none")
    assert found.value == pytest.approx(expected.mean())
    half = 12.706204736 * expected.std(ddof=1) / 2**0.5  # Student t, one degree of freedom
    assert found.high - found.value == pytest.approx(half)
    assert result.overall("none").n == 4


def test_a_finished_comparison_is_read_back_and_another_refused(compared, monkeypatch):
    result, place, options = compared
    monkeypatch.setattr("spikedim.rank.compare.fit", None)
    again = compare_gates(["digits"], "spikformer_nano", place, **options)
    assert again == result
    with pytest.raises(StorageError, match="other settings"):
        compare_gates(["digits"], "spikformer_nano", place, **options | {"T": 3})
    with pytest.raises(ConfigError, match="an interval needs 2 seeds"):
        compare_gates(["digits"], "spikformer_nano", place, seeds=(0,))


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (["digits"], {"T": 0}, "T=0 must be"),
        (["a/x.npz", "b/x.npz"], {}, "a name of its own"),
        (["digits", "digits"], {}, "give each once"),
    ],
)
def test_an_unusable_comparison_leaves_no_folder(tmp_path, names, changes, words):
    with pytest.raises(ConfigError, match=words):
        compare_gates(names, "spikformer_nano", tmp_path / "run", **changes)
    assert not list(tmp_path.iterdir())


def test_a_comparison_says_what_it_shows(compared):
    result, _, _ = compared
    page = result.markdown()
    assert "Position gate, paired differences" in page
    assert result.verdict in page
    assert "Position gate on spikformer_nano" in render_rank(result)
    assert len(result.plot().get_yticks()) == 3


def test_committed_comparison_is_what_its_runs_say():
    place = Path(__file__).parents[1] / "results" / "rank"
    data = json.loads((place / "comparison.json").read_text())
    result = GateComparison(**data | {"runs": tuple(GateRun(**row) for row in data["runs"])})
    assert result.markdown() == (place / "comparison.md").read_text()
    cells = {(r.dataset, r.kind, r.arm, r.seed) for r in result.runs}
    assert len(cells) == len(result.runs) == 2 * 2 * 3 * 3
    docs = (place.parents[1] / "docs" / "rank.md").read_text()
    for row in result.tables()[1].cells():
        assert f"| {' | '.join(row)} |" in docs


def test_padding_is_no_token_of_a_rank(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [f"{'a b ' * (2 + k % 3)}\t{k % 2}" for k in range(12)]  # 4, 6 and 8 words
    (tmp_path / "t.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    options = ["--data", "t.tsv", "--model", "spikingbert_nano", "-T", "2", "--limit", "12"]
    assert run("rank", *options, "--json") == 0
    out, err = capsys.readouterr()
    assert "first 6 words; 4 of 12 texts are shorter" in err
    found = json.loads(out)["profile"]
    assert found["samples"] == 8
    assert {layer["tokens"] for layer in found["layers"]} == {6}


# -- networks of other libraries ----------------------------------------------------------------

OWN = """
import torch
from torch import nn
from spikedim.adapters import register_neuron, wrap
from spikedim.neurons import LIFParams


class Fires(nn.Module):
    def forward(self, x):
        return (x >= 0.3).to(x)


class Single(nn.Module):
    def forward(self, x):
        return (x >= 0.3).float()


@register_neuron(Fires)
def convert(neuron):
    return LIFParams(beta=0.0, threshold=0.3, reset="none")


@register_neuron(Single)
def keep(neuron):
    return None


class Net(nn.Module):
    def __init__(self, neuron, turned=False):
        super().__init__()
        self.head, self.mix = nn.Linear(6, 10), nn.Linear(5, 6)
        self.conv, self.fire, self.turned = nn.Conv2d(1, 5, 3, stride=2), neuron, turned

    def forward(self, x):
        images = self.conv(x.flatten(0, -4)).unflatten(0, x.shape[:-3])
        fired = self.fire(images.transpose(0, 1) if self.turned else images)
        fired = fired.transpose(0, 1) if self.turned else fired
        return self.head(self.mix(fired.flatten(-2).transpose(-1, -2)).mean(-2))


def made(neuron=Fires, layout="TB"):
    torch.manual_seed(0)
    net = Net(neuron(), turned=layout == "BT")
    return wrap(net, input_shape=(1, 8, 8), layout=layout)


def single():
    return made(Single)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    scope = {"__name__": "mine"}
    exec(OWN, scope)
    return path, scope["made"]


@pytest.mark.parametrize("layout", ["TB", "BT", "step"])
def test_adapted_networks_are_read_in_their_layout(own, layout):
    model = own[1](layout=layout).double().eval()
    x = torch.randn(3, 4, 1, 8, 8, dtype=torch.float64)
    x[0] = 0  # timesteps differ
    profile = rank_profile(model, x, twin="none", batch_size=3)
    assert [row.layer for row in profile.layers] == ["conv", "fire", "mix"]
    assert profile.notes == ()
    with torch.no_grad():
        images = model.conv(x.flatten(0, 1)).unflatten(0, (3, 4))
        fired = (images >= 0.3).to(x).flatten(3).transpose(2, 3)
        tokens = {"conv": images.flatten(3).transpose(2, 3), "fire": fired, "mix": model.mix(fired)}
    found = representations(model, x, what="features", tokens="samples", time="each")
    for row in profile.layers:
        expected = tokens[row.layer].flatten(1, 2).numpy()
        np.testing.assert_allclose(found[row.layer], expected, rtol=1e-6)
        each = [[affine_rank(m) for m in step] for step in tokens[row.layer]]
        assert row.steps["affine"] == pytest.approx(np.mean(each, 1)), row.layer
        assert (row.tokens, row.channels) == tuple(tokens[row.layer].shape[2:])


def test_rank_of_a_network_of_ones_own(own, tmp_path, capsys):
    path, page = own[0], tmp_path / "rank.html"
    words = ("rank", "--data", "digits", "--limit", "6", "-T", "2", "--quiet")
    assert not run(*words, "--model", f"{path}:made", "--report", str(page), "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["heads"]["layers"] == found["residuals"]["layers"] == []
    assert found["precision"] == "float64"
    assert {row["network"] for row in found["profile"]["layers"]} == {"spiking", "continuous"}
    html = page.read_text()
    assert html.count("No attention with a known output projection") == 2
    assert run(*words, "--model", f"{path}:made", "--layers", "head") == 2
    assert "none of the layers has two tokens or more" in capsys.readouterr().err


def test_a_neuron_of_one_precision_keeps_the_network_in_its_own(own, capsys):
    words = ("rank", "--data", "digits", "--limit", "6", "-T", "2", "--quiet")
    assert not run(*words, "--model", f"{own[0]}:single")
    said = capsys.readouterr().out
    assert "In float32: the network does not run in float64." in said
    assert "No continuous twin, since neurons are kept as they are: fire." in said
