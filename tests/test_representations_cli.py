import json
from pathlib import Path

import numpy as np
import pytest

from spikedim.cli import main
from spikedim.models import create_model, save_checkpoint

NET = ["--model", "spikformer_nano", "-T", "2", "--limit", "40", "--seed", "1"]


def run(*words):
    with pytest.raises(SystemExit) as caught:
        main(["measure", *map(str, words), "--quiet"])
    return 0 if caught.value.code is None else caught.value.code


@pytest.fixture
def result(capsys, tmp_path, monkeypatch):
    """Run ``spikedim measure`` with --json and return what it printed."""
    monkeypatch.chdir(tmp_path)

    def measured(*words):
        assert run(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return measured


def test_patches_are_measured_with_intervals_over_images(result):
    found = result("-r", "patches", "--option", "size=2", "--limit", "100")
    assert (found["n"], found["d"]) == (1600, 4)
    assert found["estimates"]["pca95"]["n"] == 100
    assert "two_nn" not in found["estimates"]
    flat = result("-r", "patches", "--tokens", "flatten", "--limit", "100", "--estimators", "pr")
    assert (flat["n"], flat["d"]) == (100, 64)


def test_finer_than_one_number(result):
    classes = result("--per", "class", "--limit", "300", "--plot", "c.png")
    assert list(classes["estimates"]) == [str(k) for k in range(10)]
    assert Path("c.png").stat().st_size > 1000
    local = result("--per", "neighbourhood", "--limit", "120", "--estimators", "pr")
    assert len(local["values"]) == 120
    curve = result("--growth", "--limit", "400", "--quantile", "0.9", "--plot", "g.svg")
    assert curve["estimator"] == "pca90_real"
    assert curve["sizes"][-1] == 400


def test_a_picture_that_cannot_be_written_leaves_the_result(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--growth", "--limit", "100", "--json", "--plot", tmp_path / "file" / "x.png"]
    assert run(*words) != 0
    assert json.loads(capsys.readouterr().out)["sizes"][-1] == 100


def test_layers_and_timesteps_of_a_network(result):
    profile = result(*NET, "--plot", "layers.png", "--quantile", "0.9")
    assert (profile["what"], profile["T"], profile["samples"]) == ("spikes", 2, 40)
    assert next(iter(profile["layers"][0]["estimates"])) == "pca90"
    steps = result(*NET, "--time", "each", "--layers", "block.0.attn.*", "-r", "potential")
    assert [row["step"] for row in steps["layers"][:3]] == [1, 2, 1]
    again = result(*NET, "--time", "each", "--layers", "block.0.attn.*", "-r", "potential")
    assert steps == again


def test_one_layer_per_class_and_against_n(result):
    one = [*NET[:4], "--limit", "200", "--layers", "block.0.mlp.fc2_lif", "--tokens", "mean"]
    assert len(result(*one, "--per", "class")["estimates"]) == 10
    assert result(*one, "--growth", "--estimators", "pr")["sizes"][-1] == 200


def test_a_trained_network_from_its_checkpoint(result):
    net = create_model("spikformer_nano", input_shape=(1, 8, 8), num_classes=10, seed=5)
    save_checkpoint(net, "w.safetensors")
    found = result(*NET, "--checkpoint", "w.safetensors", "-r", "features", "--tokens", "mean")
    fresh = result(*NET, "-r", "features", "--tokens", "mean")
    assert [row["layer"] for row in found["layers"]] == ["patch_embed", "block.0", "head"]
    assert found["layers"] != fresh["layers"]


def test_text_without_a_word_about_representations(result):
    rows = [f"{k % 2}\t{' '.join(np.random.default_rng(k).choice(list('abcdefgh'), 9))}"
            for k in range(60)]  # fmt: skip
    Path("t.tsv").write_text("label\tsentence\n" + "\n".join(rows) + "\n")
    found = result("--data", "t.tsv", "--estimators", "pr,stable_rank")
    assert (found["n"], found["d"]) == (60, 8)
    learned = ["-r", "tokens", "--option", "dimensions=4", "--estimators", "pr"]
    assert result("--data", "t.tsv", *learned)["d"] == 4


def test_large_data_are_measured_without_intervals_and_say_so(capsys, monkeypatch):
    monkeypatch.setattr("spikedim.cli.measure.LARGE", 50)
    assert run("--estimators", "pca95,pr", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["estimates"]
    assert found["pca95"]["value"] == 28
    assert found["pca95"]["low"] is None
    assert "no intervals" in captured.err
    assert "--limit" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-r", "pixel"], "did you mean 'pixels'"),
        (["-r", "spikes"], "--model"),
        (["--layers", "block.*"], "needs --model"),
        (["--time", "each"], "needs --model"),
        (["-T", "2"], "needs --model"),
        ([*NET, "-r", "patches"], "is of data"),
        ([*NET, "--option", "size=2"], "leave it out with --model"),
        ([*NET, "--layers", "nothing"], "no neuron layer matches"),
        ([*NET, "--per", "class"], "name one, e.g. --layers"),
        ([*NET, "--growth", "--tokens", "samples"], "one vector per sample"),
        ([*NET, "-r", "rates", "--time", "each"], "what='spikes'"),
        ([*NET, "-T", "0"], "timesteps"),
        (["--growth", "--per", "class"], "choose one"),
        (["--growth", "--estimators", "pr,pca95"], "one estimator"),
        (["-r", "patches", "--growth"], "add --tokens"),
        (["-r", "patches", "--option", "size"], "NAME=VALUE"),
        (["-r", "patches", "--estimators", "mle"], "independent samples"),
        (["--quantile", "2"], "fraction"),
        (["--quantile", "0.5", "--per", "class"], "--quantile 0.5 is of the default PCA count"),
        (["--quantile", "0.5", "--estimators", "pr"], "--quantile 0.5 is of the default PCA count"),
        (["--data", "nothing", "--growth", "--plot", "x.jpg"], "name a .png, .pdf or .svg file"),
    ],
)
def test_one_clear_line_for_a_mistake(words, message, capsys):
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
