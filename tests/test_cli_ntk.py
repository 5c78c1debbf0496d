from __future__ import annotations

import json

import numpy as np
import pytest

from spikedim.cli import main
from spikedim.models import create_model, save_checkpoint

NANO = ("--model", "spikformer_nano", "--samples", "10", "-T", "2", "--quiet")


def run(*words):
    """Run ``spikedim ntk`` in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["ntk", *NANO, *map(str, words)])
    return caught.value.code or 0


def fails(capsys, *words):
    """Run a command that must fail as a user's mistake; return its one line."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


def test_the_kernel_with_its_dimensions_and_labels(capsys, tmp_path):
    assert run("--out", tmp_path / "a", "--json", "--surrogate", "atan", "--width", 3) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 10
    assert found["surrogate"][0][:2] == ["atan", 3.0]
    assert 1 <= found["uncentred"]["estimates"]["pr"]["value"] <= 10
    assert found["centred"]["centered"] is True
    assert sum(found["layers"].values()) == pytest.approx(1)
    assert -1 <= found["alignment"] <= 1
    values = np.load(tmp_path / "a" / "kernel.npy")
    assert values.shape == (10, 10)
    square = values - values.mean(0)
    square -= square.mean(1, keepdims=True)
    ratio = np.trace(square) ** 2 / (square**2).sum()
    assert found["centred"]["estimates"]["pr"]["value"] == pytest.approx(ratio)
    assert json.loads((tmp_path / "a" / "ntk.json").read_text()) == found
    assert (tmp_path / "a" / "ntk.png").stat().st_size > 0


def test_one_output_is_shown_as_tables(capsys):
    assert run("--outputs", "3") == 0
    shown = capsys.readouterr().out
    assert "centred" in shown
    assert "Share of each layer" in shown
    assert "alignment with labels" in shown


def test_the_reduction_of_a_trained_network(capsys, tmp_path):
    network = create_model("spikformer_nano", num_classes=10, input_shape=(1, 8, 8), seed=1)
    path = tmp_path / "trained.safetensors"
    save_checkpoint(network, path)
    assert (
        run(
            "--checkpoint",
            path,
            "--reduction",
            "--json",
            "--neuron",
            "v_th=0.5",
            "--neuron",
            "tau_m=4",
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["neuron"]["threshold"], found["neuron"]["beta"]) == (0.5, 0.75)
    assert [f["mechanism"] for f in found["factors"]] == [
        "threshold",
        "leak",
        "reset",
        "threshold",
        "joint",
    ]


def test_a_sweep_over_two_initialisations(capsys, tmp_path):
    words = ("--sweep", "v_reset", "--values=-0.5,0", "--initialisations", 2)
    assert run(*words, "--out", tmp_path) == 0
    assert "2 networks" in capsys.readouterr().out
    assert (tmp_path / "ntk.png").exists()


def test_an_inversion(capsys):
    words = ("--invert", "--target-d-eff", 2, "--rate", 0.02, 0.3, "--json")
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["window"] == [0.02, 0.3]
    assert found["quantity"] == "d_eff"
    assert found["feasible"]
    assert found["estimate"]["low"] < found["estimate"]["value"] < found["estimate"]["high"]


def test_an_inversion_that_nothing_meets_ends_as_one_of_design_does(capsys):
    assert run("--invert", "--target-d-eff", 500, "--json") == 2
    said = capsys.readouterr()
    assert not json.loads(said.out)["feasible"]
    assert "no neuron has d_eff = 500" in said.err
    assert "reachable" in said.err


def test_timesteps_and_layers_side_by_side(capsys):
    assert run("--per-timestep", "--json") == 0
    found = json.loads(capsys.readouterr().out)["timesteps"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert list(found["shares"]) == ["1", "2"]


def test_kernels_of_surrogate_training(capsys, tmp_path):
    assert run("--one-sided", "--values", "4", "--out", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["width"] for row in found["rows"]] == [4, 4, 4, None]
    assert found["rows"][0]["error"]["value"] < 1e-3  # the network's own surrogate is sigmoid 4
    assert (tmp_path / "ntk.png").exists()


def test_the_memory_of_many_kernels_is_announced_once(capsys):
    words = [word for word in NANO if word != "--quiet"]
    with pytest.raises(SystemExit):
        main(["ntk", *words, "--sweep", "v_th", "--values", "0.5,1"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "NTK of" in line]
    assert len(lines) <= 2  # the spiking network may need more than the twin that comes first


def test_a_sketch_in_the_place_of_the_kernel(capsys, tmp_path):
    words = ("--method", "sketch", "--probes", 4, "--size", 251, "--out", tmp_path, "--json")
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["network"], found["dataset"], found["samples"]) == (
        "spikformer_nano",
        "digits",
        10,
    )
    kernel = found["kernel"]
    assert kernel["growth"][0]["mean"] == kernel["centered"]
    assert "sketches" not in kernel
    assert 1 <= kernel["centered"]["low"] <= kernel["centered"]["value"] <= 9
    assert 0 < found["alignment"]["value"] < 1
    assert json.loads((tmp_path / "ntk.json").read_text()) == found
    assert (tmp_path / "ntk.png").stat().st_size > 0
    stored = tmp_path / "sketch" / "sketches" / "0.npz"
    assert np.load(stored)["rows"].shape == (4, 10, 251)
    before = stored.stat().st_mtime_ns
    assert run(*words) == 0
    again = json.loads(capsys.readouterr().out)["kernel"]
    assert stored.stat().st_mtime_ns == before
    assert again["centered"] == kernel["centered"]


def test_a_kernel_that_is_never_formed(capsys, tmp_path):
    words = ("--method", "matrix-free", "--probes", 20, "--out", tmp_path)
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert run("--json") == 0
    exact = json.loads(capsys.readouterr().out)["centred"]["estimates"]["pr"]["value"]
    # 20 products with a kernel of 10 rows give it all
    assert found["kernel"]["ratio"]["value"] == pytest.approx(exact, rel=1e-3)
    assert len(found["spectrum"]["eigenvalues"]) == 10
    assert run(*words[:-1], tmp_path / "other", "--outputs", "2") == 0
    shown = capsys.readouterr().out
    assert "Leading eigenvalues" in shown
    assert "spikformer_nano on digits" in " ".join(shown.split())
    assert (tmp_path / "ntk.png").stat().st_size > 0


def test_a_folder_belongs_to_one_question(capsys, tmp_path):
    assert run("--out", tmp_path, "--json") == 0
    before = (tmp_path / "ntk.json").read_bytes()
    capsys.readouterr()
    for words, changed in (
        (("--data", "fashion_mnist"), "data: "),
        (("--samples", "12", "--seed", "3"), "samples: 10 → 12, seed: 0 → 3"),
        (("--method", "sketch"), "method: "),
        (("--sweep", "v_th"), "question: "),
    ):
        line = fails(capsys, "--out", tmp_path, *words)
        assert f"holds a run with other settings ({changed}" in line
    assert (tmp_path / "ntk.json").read_bytes() == before
    assert run("--out", tmp_path, "--memory", 1) == 0
    swept = ("--out", tmp_path / "swept", "--values", "0.5,1")
    assert run(*swept, "--sweep", "v_th") == 0
    capsys.readouterr()
    assert "(question: " in fails(capsys, *swept, "--sweep", "v_reset")


@pytest.mark.parametrize("method", ["auto", "sketch"])
def test_recordings_are_counted_by_sample(method, shared, capsys):
    words = ("--data", "nmnist", "--data-root", shared, "--samples", 8, "--method", method)
    assert run(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 8


def test_an_untrained_network_is_said_to_be_one(capsys, tmp_path):
    for method in ("auto", "sketch"):
        assert run("--method", method, "--seed", "4") == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "One untrained network, seed 4: another may differ by more" in shown
    network = create_model("spikformer_nano", num_classes=10, input_shape=(1, 8, 8), seed=1)
    save_checkpoint(network, tmp_path / "trained.safetensors")
    assert run("--checkpoint", tmp_path / "trained.safetensors") == 0
    assert "untrained" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["auto", "sketch", "matrix-free"])
def test_several_initialisations(method, capsys, tmp_path):
    words = ("--method", method, "--samples", 8, "--json")
    words += ("--probes", 6) if method != "auto" else ()
    words += ("--outputs", 2) if method == "matrix-free" else ()  # a tenth of the products
    assert run(*words, "--initialisations", 3, "--out", tmp_path) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["over"]["seeds"] == [0, 1, 2]
    each = [e["value"] for e in found["over"]["each"]]
    mean = found["over"]["mean"]
    assert mean["value"] == pytest.approx(np.exp(np.mean(np.log(each))))
    reach = 4.302653 * np.std(np.log(each), ddof=1) / 3**0.5  # Student, 2 degrees of freedom
    assert mean["high"] == pytest.approx(min(mean["value"] * np.exp(reach), 7))
    assert mean["low"] == pytest.approx(max(mean["value"] / np.exp(reach), 1))
    if method == "auto":
        assert found["centred"]["estimates"]["pr"]["value"] == each[0]
        assert run(*words, "--seed", 0, "--initialisations", 3, "--out", tmp_path) == 0
        assert json.loads(capsys.readouterr().out)["over"]["mean"] == mean


@pytest.mark.parametrize("method", ["auto", "matrix-free"])
def test_a_mean_of_all_pairs_of_outputs_may_exceed_the_number_of_samples(method, capsys):
    words = ("--method", method, "--samples", 8, "--outputs", "full", "--json")
    assert run(*words, "--initialisations", 2) == 0
    over = json.loads(capsys.readouterr().out)["over"]
    each = [e["value"] for e in over["each"]]
    assert max(each) > 7
    assert over["mean"]["value"] == pytest.approx(np.exp(np.mean(np.log(each))))


def test_more_samples_than_there_are(capsys):
    words = [word for word in NANO if word != "--quiet"]
    with pytest.raises(SystemExit):
        main(["ntk", *words, "--samples", "5000", "--method", "sketch", "--size", "61"])
    assert "--samples 5,000: digits has 1,437 for training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--outputs", "half"), "--outputs 'half'"),
        (("--reduction", "--invert"), "--reduction and --invert"),
        (("--reduction", "--outputs", "full"), "leave --outputs full out"),
        (("--values", "1,2"), "--values are those of --sweep"),
        (("--sweep", "v_th", "--values", "1,x"), "--values '1,x'"),
        (("--target-d-eff", "3"), "needs --invert"),
        (("--target-reduction", "0"), "needs --invert"),
        (("--one-sided", "--method", "loop"), "leave --method loop out"),
        (("--rate", "0.1", "0.2"), "--rate is the window of --invert"),
        (("--invert",), "give one target"),
        (("--initialisations", "2", "--invert"), "leave --invert out"),
        (("--initialisations", "2", "--checkpoint", "x.pt"), "leave --checkpoint out"),
        (("--neuron", "beta"), "expected NAME=VALUE"),
        (("--neuron", "betta=1"), "did you mean beta"),
        (("--neuron", "t_ref=0.5"), "whole number of steps"),
        (("--memory", "-1"), "must be above 0"),
        (("--sweep", "beta"), "beta"),
        (("--per-timestep", "--reduction"), "leave --reduction out"),
        (("--per-timestep", "--outputs", "full"), "leave --outputs full out"),
        (("--engine", "ray", "--invert", "--target-d-eff", "3"), "leave --invert out"),
        (("--workers", "2"), "need --engine ray"),
        (("--dt", "0.1"), "--dt is for"),
        (("--probes", "8"), "--probes needs --method sketch"),
        (("--size", "99", "--method", "loop"), "--size needs --method sketch"),
        (("--method", "sketch", "--reduction"), "does not go with --reduction"),
        (("--method", "sketch", "--outputs", "full"), "does not go with --outputs full"),
        (("--method", "sketch", "--per-timestep"), "does not go with --per-timestep"),
        (("--method", "matrix-free", "--engine", "ray"), "does not go with --engine ray"),
        (("--method", "matrix-free", "--memory", "1e-4"), "hold no gradient"),
        (("--method", "matrix-free", "--size", "99"), "does not go with --size"),
        (("--method", "matrix-free", "--probes", "5"), "needs 6 or more"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    assert message in fails(capsys, *words)
