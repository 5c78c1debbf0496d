"""The neuron for a wanted effective dimension, inside the main job."""

import json
from dataclasses import replace
from importlib import import_module

import pytest

from spikedim.cli import main
from spikedim.data import load_dataset
from spikedim.design import NeuronTarget, design, neuron_inversion
from spikedim.design.neuron_inversion import find_neuron
from spikedim.errors import ConfigError
from spikedim.models import create_model, save_checkpoint
from spikedim.ntk.invert import Inversion, Trial
from spikedim.report import render_dict
from spikedim.report.wording import text

WINDOW = (0.02, 0.3)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(neuron_inversion, "KERNEL_SAMPLES", 10)
    monkeypatch.setattr(neuron_inversion, "_CALIBRATION_SAMPLES", 32)
    # The package offers a function of the module's name.
    monkeypatch.setattr(import_module("spikedim.ntk.invert"), "_RATE_HALVINGS", 6)


def inversion(feasible, reachable, found=True):
    trial = Trial(0.4, 0.5, 1, 3.0, None, 0.1)
    return Inversion(
        "d_eff",
        8.0,
        0.05,
        WINDOW,
        None,
        trial if found else None,
        feasible,
        reachable,
        0.3,
        (trial,),
    )


def test_a_plan_holds_the_neuron_and_the_report_shows_it():
    plan = design(
        load_dataset("digits"),
        "spikformer_nano",
        profile_samples=8,
        neuron=NeuronTarget(d_eff=2.0, rates=WINDOW),
    )
    found = plan.inversion
    assert found.feasible
    assert abs(found.found.dimension / 2.0 - 1) <= 0.05
    assert WINDOW[0] <= found.found.rate <= WINDOW[1]
    found.require()
    assert "Inversion, feasible" in str(plan)
    data = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert data["inversion"]["found"]["threshold"] == found.found.threshold
    page = render_dict(data)
    assert "Neuron for a wanted effective dimension" in page
    assert "allowed firing rate" in page
    assert text(data["inversion"]["estimate"]) in page
    del data["inversion"]["estimate"]  # a result of an earlier version
    assert "measured d_eff" in render_dict(data)
    del data["inversion"]  # a result of an earlier version
    assert "allowed firing rate" not in render_dict(data)


def test_a_trained_network_keeps_its_statistics(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(neuron_inversion, "invert", lambda *a, **k: asked.append((a, k)))
    data = load_dataset("digits")
    options = {"num_classes": data.num_classes, "input_shape": data.input_shape}
    save_checkpoint(create_model("spikformer_nano", seed=3, **options), tmp_path / "w.safetensors")
    network = create_model("spikformer_nano", seed=0, **options)
    target = NeuronTarget(reduction=0.7, rates=(5.0, 75.0), dt=0.004)
    find_neuron(network, data, target, 3, tmp_path / "w.safetensors")
    (model, x), how = asked[0]
    expected = create_model("spikformer_nano", seed=3, **options).state_dict()
    assert all((value == expected[name]).all() for name, value in model.state_dict().items())
    assert (len(x), how["T"], how["target_reduction"], how["dt"]) == (10, 3, 0.7, 0.004)
    assert how["prepare"] is None
    find_neuron(network, data, target, 3)
    assert callable(asked[1][1]["prepare"])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (inversion(False, (2.0, 5.5)), "no neuron has d_eff = 8 .* reachable: 2 to 5.5"),
        (
            replace(inversion(False, (2.0, 5.5)), most=7.0),
            "2 to 5.5; a kernel of so few samples has d_eff 7 at most",
        ),
        (replace(inversion(False, (2.0, 5.5)), most=9.0), r"2 to 5\.5$"),
        (inversion(False, None, found=False), "none of those tried fires at such a rate"),
    ],
)
def test_what_cannot_be_reached_is_said_with_what_can(found, message):
    with pytest.raises(ConfigError, match=message):
        found.require()
    inversion(True, (2.0, 9.0)).require()


def test_the_command_line_shows_the_plan_and_fails_where_infeasible(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "spikedim.design.neuron_inversion.invert", lambda *a, **k: inversion(False, (2.0, 5.5))
    )
    words = ["--data", "digits", "--model", "spikformer_nano", "--out", str(tmp_path / "run")]
    words += ["--target-d-eff", "8", "--rate", "0.02", "0.3", "--quiet"]
    with pytest.raises(SystemExit) as caught:
        main(["design", *words])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "infeasible: the nearest neuron" in captured.out
    assert "reachable: 2 to 5.5" in captured.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["inversion"]["target"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target-d-eff", "3", "--target-R", "0.5"), "give one target"),
        (("--dt", "0.004"), "are of --target-d-eff"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        main(["design", "--data", "digits", "--quiet", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
