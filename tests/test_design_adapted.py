"""The main job on networks of a user's own: what is not known of them is not made up."""

import json

import pytest

from spikedim.adapters.files import fingerprint
from spikedim.cli import main
from spikedim.data import load_dataset
from spikedim.design import NeuronTarget, design, planner
from spikedim.errors import ConfigError, ModelError
from spikedim.models import create_model, model_entry
from spikedim.report import render
from spikedim.storage import Run
from spikedim.training import TimestepSweep, TrainConfig, sweep_neurons

pytestmark = pytest.mark.filterwarnings("ignore:Odd at .* is kept as it is")

FILE = '''
import torch
from torch import nn

from spikedim.adapters import register_neuron, wrap
from spikedim.neurons import LIFParams, spike, surrogate


class Leaky(nn.Module):
    def __init__(self, beta, threshold):
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, x):
        u, out = torch.zeros_like(x[0]), []
        for x_t in x:
            u = self.beta * u + x_t
            s = spike(u - self.threshold, surrogate("atan", 2.0))
            u = u - s.detach() * self.threshold
            out.append(s)
        return torch.stack(out)


class Odd(Leaky):
    """Kept as it is."""


@register_neuron(Leaky)
def known(neuron):
    return LIFParams(
        beta=neuron.beta, threshold=neuron.threshold, reset="soft", decay_input=False,
        surrogate=surrogate("atan", 2.0),
    )


@register_neuron(Odd)
def unknown(neuron):
    return None


class Net(nn.Sequential):
    def __init__(self, *neurons):
        layers = [nn.Flatten(2)]
        for width, neuron in zip((64, 32), neurons, strict=False):
            layers += [nn.Linear(width, 32), neuron]
        super().__init__(*layers, nn.Linear(32, 10))


def odd():
    return wrap(Net(Odd(0.9, 0.3)), input_shape=(1, 8, 8))


def bare():
    return Net(Odd(0.9, 0.3))


def mixed():
    return wrap(Net(Leaky(0.8, 0.4), Odd(0.9, 0.3)), input_shape=(1, 8, 8))


def plain():
    return wrap(Net(Leaky(0.8, 0.4)), input_shape=(1, 8, 8))


def sized():
    return wrap(Net(Leaky(0.8, 0.4)), input_shape=(1, 8, 8), tokens=49, embed_dim=100)
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


def planned(name, **options):
    return design(load_dataset("digits"), name, profile_samples=16, **options)


def test_settings_of_a_kept_neuron_are_not_made_up(file):
    plan = planned("mine.py:odd")
    advice = plan.recommendation
    assert (advice.threshold, advice.beta, advice.refractory) == (None, None, None)
    assert plan.case.threshold is None
    assert "not known (2: neurons kept as they are" in advice.reasons[1]
    said = str(plan)
    assert "v_th 1" not in said
    assert said.count("kept as it is") == 3
    assert render(plan).count("kept as it is") == 3
    assert model_entry("mine.py:odd").config.neuron is None
    assert model_entry("mine.py:bare").config.neuron is None


def test_other_neurons_than_kept_ones_are_refused_before_any_work(file, capsys, monkeypatch):
    def never(*given, **options):
        raise AssertionError

    monkeypatch.setattr(planner, "profile", never)
    monkeypatch.setattr(planner, "sweep_timesteps", never)
    message = "neurons 4 are kept as they are and cannot be varied"
    with pytest.raises(ModelError, match=message):
        planned("mine.py:mixed", neuron=NeuronTarget(d_eff=4.0))
    with pytest.raises(SystemExit) as caught:
        main(["design", "--model", "mine.py:mixed", "--target-d-eff", "4", "--verify", "--quiet"])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_known_neurons_beside_kept_ones_are_named(file):
    plan = planned("mine.py:mixed")
    assert plan.recommendation.threshold == pytest.approx(0.4)
    assert "where they are known (4: neurons kept as they are" in plan.recommendation.reasons[1]


def test_verification_of_kept_neurons_leaves_their_sweep_out_and_says_so(file, capsys):
    words = ["design", "--model", "mine.py:odd", "--verify", "-T", "1,2", "--epochs", "1"]
    words += ["--train-samples", "100", "--workers", "1", "--out", "out", "--json"]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--forget"])
    said = capsys.readouterr()
    assert caught.value.code in (0, None), said.err
    assert "neurons are not compared: 2 kept as they are" in said.err
    plan = json.loads(said.out)
    assert plan["neurons"] is None
    assert plan["recommendation"]["threshold"] is None


def test_a_sweep_of_kept_neurons_is_refused_with_its_name(file, tmp_path):
    data, config, grid = load_dataset("digits"), TrainConfig(epochs=1), {"threshold": (1.0,)}
    run = Run(tmp_path / "r", {})
    with run, pytest.raises(ConfigError, match=r"neurons of mine.py:odd are kept"):
        sweep_neurons(data, "mine.py:odd", 1, grid, config, run)


@pytest.mark.parametrize(
    ("name", "size"), [("plain", (1, 32)), ("sized", (49, 100)), ("odd", (1, 32))]
)
def test_bounds_take_the_size_that_is_given_or_that_the_head_reads(file, name, size):
    plan = planned(f"mine.py:{name}")
    assert (plan.model.tokens, plan.model.channels) == size
    worst = next(b for b in plan.bounds if b.claim == "BOUND-WORST")
    assert worst.value == pytest.approx(size[0] * size[1] / 0.05**2)
    data = [b for b in plan.bounds if b.claim == "BOUND-INPUT"]
    assert all("of whole inputs (64 features)" in b.assumption for b in data)


def test_nothing_changes_before_a_kept_neuron_refuses(file):
    network = create_model("mine.py:mixed")
    with pytest.raises(ModelError, match="Odd is kept as it is and has no threshold to change"):
        network.set_neurons(threshold=0.8)
    assert network.get_submodule("2").params.threshold == pytest.approx(0.4)
    assert network.set_neurons() is network


def test_an_answer_with_other_neurons_does_not_borrow_the_plateau_of_the_networks_own(
    file, monkeypatch
):
    def other(points, tolerance):
        return next(p for p in points if p.parameter == "threshold" and not p.base)

    monkeypatch.setattr(planner, "_cheapest", other)
    monkeypatch.setattr(TimestepSweep, "learned", True)
    with Run(file.parent / "r", {}) as run:
        plan = planned(
            "mine.py:plain",
            verify=True,
            timesteps=(1, 2),
            config=TrainConfig(epochs=1, validation=0.2),
            run=run,
        )
    setting = plan.recommended.setting
    assert setting == "threshold = 0.5"
    T = plan.recommended.timesteps
    assert f"Use T = {T} with {setting}: " in plan.verdict[0]
    assert f"own neurons; with {setting} only T = {T} was trained" in plan.verdict[0]
    assert plan.verdict[1].startswith(f"At T = {T} with {setting} it fires")
    table = next(t for t in plan.tables() if t.title.startswith("Accuracy"))
    (chosen,) = [row for row in table.rows if "←" in row[0]]
    assert chosen[0] == f"{T}, {setting} ←"
    assert chosen[1] == plan.recommended.accuracy
    assert f"not of the recommended {setting}" in render(plan).replace("\u00a0", " ")


@pytest.mark.parametrize("name", ["odd", "mixed"])
def test_a_profile_draws_what_kept_neurons_show(file, capsys, name):
    words = ["profile", "--model", f"mine.py:{name}", "--samples", "8", "--quiet"]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--html", "p.html", "--plot", "p.png"])
    said = capsys.readouterr()
    assert caught.value.code in (0, None), said.err
    assert "neurons kept as they are" in said.err
    page = (file.parent / "p.html").read_text()
    assert ("Membrane potentials" in page) is (name == "mixed")
    assert f"network: weights as mine.py:{name} makes them, no batch norm" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), None),
        (("--width", "2"), "Odd is kept as it is and has no surrogate to change"),
        (("--reduction",), "neurons 2 are kept as they are and cannot be varied"),
    ],
)
def test_tangent_kernels_of_kept_neurons_vary_nothing(file, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        main(["ntk", "--model", "mine.py:odd", "--samples", "12", "--quiet", *words])
    said = capsys.readouterr()
    assert caught.value.code in ((0, None) if message is None else (2,)), said.err
    assert (message or "") in said.err


def test_a_network_file_is_known_by_what_it_imports_too(tmp_path):
    (tmp_path / "parts" / "inner").mkdir(parents=True)
    (tmp_path / "net.py").write_text("import torch\nfrom parts import layers\nimport near\n")
    (tmp_path / "near.py").write_text("WIDTH = 8\n")
    (tmp_path / "parts" / "layers.py").write_text("from .inner.deep import GAIN\nfrom . import *\n")
    (tmp_path / "parts" / "inner" / "deep.py").write_text("from ..... import far\nGAIN = 1\n")
    (tmp_path / "other.py").write_text("")
    name = f"{tmp_path / 'net.py'}:f"
    before = fingerprint(name)
    (tmp_path / "other.py").write_text("WIDTH = 2\n")
    assert fingerprint(name) == before
    for changed in ("near.py", "parts/layers.py", "parts/inner/deep.py", "net.py"):
        with (tmp_path / changed).open("a") as file:
            file.write("# changed\n")
        assert fingerprint(name) != before
        before = fingerprint(name)
    (tmp_path / "net.py").write_text("def (")
    assert fingerprint(name) != before
