from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from spikedim.circuits import convergence, from_nir
from spikedim.circuits.catalog import EXAMPLES
from spikedim.cli import main

STEPS = ("-T", "16,32,64,128", "--trials", "5", "--quiet")


def run(*words):
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return caught.value.code or 0


def fails(capsys, *words):
    """Run a command that must fail as a user's mistake; return its one line."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


def test_without_a_name_the_circuits_are_listed(capsys):
    assert run("circuits") == 0
    shown = capsys.readouterr().out
    assert all(key in shown for key in EXAMPLES)
    assert run("circuits", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["circuits"]
    assert [row["circuit"] for row in listed] == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_circuit_runs_on_its_default_inputs(name, capsys):
    assert run("circuits", name, *STEPS, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["T"] for point in found["points"]] == [16, 32, 64, 128]
    assert found["claim"] == EXAMPLES[name].circuit.claim
    assert all(point["error"]["value"] > 0 for point in found["points"])
    assert len(EXAMPLES[name].takes) == len(EXAMPLES[name].draw(torch.Generator()))


def test_a_run_is_the_convergence_of_the_circuit_and_repeats(capsys):
    words = ("circuits", "softmax-race", "--logits", "0,1,2.5", *STEPS, "--seed", "3", "--json")
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)
    z = torch.tensor([0, 1, 2.5], dtype=torch.float64)
    expected = convergence(
        EXAMPLES["softmax-race"].circuit, z, T_values=(16, 32, 64, 128), trials=5, seed=3
    )
    errors = [point["error"]["value"] for point in found["points"]]
    assert errors == pytest.approx([p.error.value for p in expected.points])
    assert found["slope"]["value"] == pytest.approx(expected.slope.value)


def test_it_prints_slope_floor_and_verdict_and_draws(tmp_path, capsys):
    picture = tmp_path / "softmax.png"
    words = ("circuits", "softmax-subtractive", "-T", "16,64,256,1024", "-q", "--plot", picture)
    assert run(*words) == 0
    shown = capsys.readouterr().out
    assert "slope of log error" in shown
    assert "floor: 0.0" in shown
    assert "does not converge" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_several_inputs_and_rows_are_given_by_repeating_values(capsys):
    matrices = ("--values", "0.1,0.2;0.3,0.4", "--values", "1;0.5")
    assert run("circuits", "matrix-product", *matrices, *STEPS) == 0
    assert "matrix product" in capsys.readouterr().out
    assert run("circuits", "matrix-product", "--values", "0.5", "--values", "0.5", *STEPS) == 0
    assert "matrix product" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nonsense",), "choose one of bernoulli, integrate-fire"),
        (("veto", "--values", "1,two"), "expected numbers such as"),
        (("matrix-product", "--values", "1,2;3", "--values", "1"), "different lengths"),
        (("product", "--values", "0.5"), "takes 2 inputs: x, y"),
        (("bernoulli", "--values", "1.5"), "scale it to a rate"),
        (("bernoulli", "-T", "16,64"), "timesteps T 16, 64: expected at least four"),
        (("--values", "1"), "--values is of one circuit; name it"),
        (("--plot", "a.png"), "--plot is of one circuit; name it"),
    ],
)
def test_mistakes_are_one_line(words, says, capsys):
    assert says in fails(capsys, "circuits", *words, "-q")


def test_export_writes_a_graph_that_runs(tmp_path, capsys):
    pytest.importorskip("nir", reason="the package nir is not installed")
    path = tmp_path / "code.nir"
    assert run("export", "--nir", "integrate-fire", "--units", 3, "--out", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nodes"]["encoder"] == "I"
    assert ["encoder_spike", "output"] in found["edges"]
    spikes = from_nir(path)(torch.tensor([0.0, 0.25, 1.0]).expand(8, 3))
    assert spikes.sum(0).tolist() == [0, 2, 8]
    assert run("export", "--nir", "softmax-subtractive", "-o", path) == 0
    shown = capsys.readouterr().out
    assert "inhibition" in shown
    assert "one step is 0.0001 s" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("softmax-race", "--out", "a.nir"), "no Poisson source and no first-to-fire"),
        (("spikformer_nano", "--out", "a.nir"), "no product of two signals"),
        (("nonsense", "--out", "a.nir"), "no circuit (bernoulli"),
        (("leaky", "--out", "a.h5"), "name a .nir file"),
    ],
)
def test_export_refuses_in_one_line(words, says, capsys):
    pytest.importorskip("nir", reason="the package nir is not installed")
    assert says in fails(capsys, "export", "--nir", *words)


def test_errors_that_are_all_zero_are_no_verdict_and_are_drawn(tmp_path, capsys):
    words = ("circuits", "integrate-fire", "--values", "0.5", *STEPS)
    assert run(*words, "--plot", tmp_path / "zero.png") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "exact on these inputs, which says nothing about convergence" in shown
    assert (tmp_path / "zero.png").read_bytes().startswith(b"\x89PNG")
    assert run(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["converges"] is None


def test_help_says_how_many_timesteps_are_needed(capsys):
    assert run("circuits", "--help") == 0
    assert "Timesteps, at least four." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", ["circuits", "export"])
def test_the_verbs_explain_themselves_without_loading_torch(verb, capsys):
    assert run(verb, "--help") == 0
    assert f"Example: spikedim {verb}" in " ".join(capsys.readouterr().out.split())
    code = (
        "import sys, spikedim.cli.circuits, spikedim.cli.export; "
        "sys.exit('torch' in sys.modules or 'nir' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
