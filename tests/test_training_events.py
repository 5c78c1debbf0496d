"""Training on event recordings: their frames, what T means for them, and designs for them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from spikedim.cli import main
from spikedim.data import Dataset, Events, Frames, Split, load_dataset
from spikedim.data.reduce import repooled
from spikedim.design import NeuronTarget, Target, design
from spikedim.design.cases import cases_from_rows
from spikedim.design.store import remember_plan
from spikedim.errors import ConfigError, DataError
from spikedim.models import create_model
from spikedim.storage import Run
from spikedim.training import (
    Cell,
    Study,
    TrainConfig,
    budget,
    default_config,
    evaluate,
    fit,
    predict_seconds,
    read_study,
    run_study,
    samples,
    sweep_neurons,
    sweep_timesteps,
)
from spikedim.training.batches import Batches, augment, forward_batch, stream

CONFIG = TrainConfig(epochs=2, batch_size=16, lr=1e-2, validation=0.2)


def moving(train: int = 60, test: int = 40, steps: int = 8, name: str = "moving") -> Dataset:
    """A dot that goes once around a row of 8 pixels, to the right or to the left.

    In one frame, or in two, both directions fill the same pixels: only more tell them apart.
    """
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        labels = np.arange(n) % 2
        values = np.zeros((n, steps, 2, 8, 8), np.float32)
        row, start = rng.integers(0, 8, (2, n))
        for t in range(steps):
            values[np.arange(n), t, 1, row, (start + np.where(labels == 1, t, -t)) % 8] = 1
        return Split(Frames(values), labels)

    return Dataset(name, "events", split(train), split(test), ("left", "right"), "made in a test")


def run(*words):
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return done.value.code


def _never(*args, **kwargs):
    raise AssertionError("trained")


def network(data: Dataset, seed: int = 0):
    return create_model(
        "spikformer_nano", num_classes=data.num_classes, input_shape=data.input_shape, seed=seed
    )


def test_recordings_come_samples_first_and_leave_time_first():
    data = moving()
    x, y = samples(data, "train", 4)
    assert x.shape == (60, 4, 2, 8, 8)
    frames, labels = data.frames(4)
    assert torch.equal(x, frames.transpose(0, 1))
    assert torch.equal(y, labels)
    batches = Batches(x, y, 25, 4, seed=3, shuffle=True)
    seen = list(batches)
    assert [inputs.shape for inputs, _ in seen] == [(4, 20, 2, 8, 8)] * 3
    order = torch.cat([inputs for inputs, _ in seen], 1)
    assert torch.equal(order.sum((0, 2)).sum(0), x.sum((1, 2)).sum(0))
    for inputs, classes in seen:
        for k in range(20):
            match = (x == inputs[:, k]).flatten(1).all(1)
            assert match.any()
            assert classes[k] in y[match]


def test_augmentation_moves_all_frames_of_a_recording_together():
    x = torch.rand(50, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    for flip in (False, True):
        moved = augment(x, stream(1), flip)
        assert moved.shape == x.shape
        for t in range(3):
            assert torch.equal(moved[:, t], augment(x[:, t], stream(1), flip))
    assert not torch.equal(moved, x)


def test_evaluation_of_the_first_frames_is_that_of_the_recording_cut_there(tmp_path):
    data = moving()
    model = network(data)
    fit(model, data, CONFIG, 4, tmp_path)
    x, y = samples(data, "test", 4)
    whole = evaluate(model, x, y, 4, batch_size=7)
    for t in (1, 2, 3):
        part = evaluate(model, x[:, :t], y, t)
        np.testing.assert_array_equal(whole.correct(t), part.correct())
        assert whole.spikes_per_sample[t - 1].value == part.spikes_per_sample[-1].value
    with torch.no_grad():
        expected = (model(x.transpose(0, 1)).argmax(1) == y).float().mean() * 100
    assert whole.accuracy[-1].value == pytest.approx(float(expected))


def test_a_verified_design_finds_the_frames_that_show_their_order(tmp_path):
    data = moving(300, 200)
    with Run(tmp_path, {}) as run:
        plan = design(
            data, "spikformer_nano", target=Target(tolerance=5.0), verify=True, timesteps=(2, 4),
            neurons=False, config=TrainConfig(epochs=8, lr=1e-2), run=run,
        )  # fmt: skip
    blind, seeing = (point.accuracy.value for point in plan.sweep.points)
    assert blind < 65
    assert seeing > 90
    assert plan.recommendation.timesteps.value == 4
    assert plan.verdict[0].startswith("Use T = 4")
    assert not any("Prediction (" in line for line in plan.verdict)
    assert remember_plan(plan, tmp_path / "store.jsonl") is None
    assert not (tmp_path / "store.jsonl").exists()


def test_a_training_of_recordings_resumes_bit_for_bit(tmp_path, monkeypatch):
    from spikedim.training import lightning_run

    data = moving()
    whole = network(data)
    fit(whole, data, CONFIG, 2, tmp_path / "whole")
    record = lightning_run.Keeper._record
    calls = []

    def failing(self, trainer, learner):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return record(self, trainer, learner)

    monkeypatch.setattr(lightning_run.Keeper, "_record", failing)
    with pytest.raises(KeyboardInterrupt):
        fit(network(data), data, CONFIG, 2, tmp_path / "cut")
    monkeypatch.undo()
    resumed = network(data)
    fit(resumed, data, CONFIG, 2, tmp_path / "cut")
    again = resumed.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("encoder", ["bernoulli", "latency"])
def test_events_are_not_encoded_again(encoder):
    with pytest.raises(ConfigError, match="moving holds events; use encoder='direct'"):
        samples(moving(), "train", 4, encoder)


def test_what_a_shorter_run_would_be_is_refused(tmp_path):
    data = moving()
    refused = pytest.raises(ConfigError, match=r"share out whole recordings.*use mode='train'")
    with Run(tmp_path, {}) as run, refused:
        sweep_timesteps(data, "spikformer_nano", (2, 4), CONFIG, run, mode="inference")
    with pytest.raises(ConfigError, match=r"share out whole recordings.*leave out eval_T"):
        Study("s", (Cell(data, "spikformer_nano", CONFIG),), (2, 4), eval_T=(8,))


def test_frames_that_T_does_not_divide_are_refused_before_any_training(tmp_path, monkeypatch):
    from spikedim.training import sweep

    monkeypatch.setattr(sweep, "run_trials", _never)
    data = moving(steps=6)
    with Run(tmp_path, {}) as run, pytest.raises(ConfigError, match=r"to T = 1, 2, 3, 6$"):
        sweep_timesteps(data, "spikformer_nano", (1, 2, 4), CONFIG, run)


@pytest.mark.parametrize("how", [{}, {"pilot": True}])
def test_no_T_is_predicted_for_recordings(how, tmp_path):
    with Run(tmp_path, {}) as run, pytest.raises(ConfigError, match=r"know nothing.*--verify"):
        design(moving(), "spikformer_nano", run=run, **how)


def test_recordings_are_never_mirrored_by_default():
    values = np.zeros((20, 4, 3, 16, 16), np.float32)
    data = Dataset(
        "rgb", "events", Split(Frames(values), np.arange(20) % 2), None, ("a", "b"), "made"
    )
    assert default_config("spikformer_nano", data).augment == "shift"
    assert default_config("spikformer_4_384", data).batch_size == 16


def test_default_settings_and_budget_read_recordings():
    data = moving()
    config = default_config("spikformer_nano", data)
    assert config.augment == "none"  # 8 pixels
    part = budget(data, config, "spikformer_nano", (2, 4), max_train_samples=20)
    assert len(part.dataset.train) == 20
    assert 0 < predict_seconds(network(data), part.dataset, (2, 4), config) < 600


def test_a_study_of_recordings_tests_each_network_at_its_own_T(tmp_path):
    data = moving()
    study = Study("s", (Cell(data, "spikformer_nano", CONFIG),), (2, 4))
    with Run(tmp_path, {}) as run:
        table = read_study(run_study(study, run).path)
    assert sorted((row.train_T, row.eval_T) for row in table) == [(2, 2), (4, 4)]
    assert all(row.energy_exact_fanout_uJ > 0 for row in table)
    assert {row.encoder for row in table} == {"frames"}
    row = next(iter(table))
    rows = [replace(row, train_T=T, eval_T=T, key=f"{T}") for T in (1, 2, 4)]
    assert cases_from_rows(rows) == []
    assert len(cases_from_rows([replace(row, encoder="direct") for row in rows])) == 1


def test_what_would_end_a_study_is_said_before_its_first_training(tmp_path, monkeypatch):
    from spikedim.training import study_trial

    monkeypatch.setattr(study_trial, "run_trial", _never)
    images = load_dataset("digits").limited(40, 20)
    cells = tuple(Cell(data, "spikformer_nano", CONFIG) for data in (images, moving()))
    with Run(tmp_path / "a", {}) as run:
        with pytest.raises(ConfigError, match="moving holds events; use encoder='direct'"):
            run_study(Study("s", cells, (2,), encoder="bernoulli"), run)
        with pytest.raises(ConfigError, match="recordings of moving have 8 frames each"):
            run_study(Study("s", cells, (3,)), run)
        blind = replace(images, test=Split(images.test.inputs, None))
        with pytest.raises(DataError, match="digits has no labels"):
            run_study(Study("s", (Cell(blind, "spikformer_nano", CONFIG),), (2,)), run)


def test_a_sweep_of_recordings_stores_no_T_that_was_not_run(tmp_path):
    from pyarrow import parquet

    with Run(tmp_path, {}) as run:
        found = sweep_timesteps(moving(), "spikformer_nano", (2, 8), CONFIG, run)
        rows = parquet.read_table(run.file("sweep.parquet")).to_pylist()
    assert [(row["trained_T"], row["T"]) for row in rows] == [(2, 2), (8, 8)]
    assert any("number of frames" in note for note in found.notes)
    assert not any("test larger T" in note for note in found.notes)


def test_samples_and_labels_must_belong_together():
    data = moving()
    x, y = samples(data, "test", 4)
    model = network(data)
    with pytest.raises(DataError, match="4 samples but 40 labels; samples come first"):
        evaluate(model, x.transpose(0, 1), y, 4)
    with pytest.raises(DataError, match="recordings of 4 frames"):
        evaluate(model, x, y, 2)
    with pytest.raises(ConfigError, match="T='latency'"):
        samples(data, "test", "latency")


def test_large_recordings_are_run_a_few_at_a_time():
    x = torch.zeros(300, 1, 1, 1, 1)
    assert forward_batch(x.expand(300, 16, 2, 128, 128), 256) == 16
    assert forward_batch(x.expand(300, 4, 2, 8, 8), 256) == 256
    assert forward_batch(torch.zeros(300, 3, 8, 8), 256) == 256


def test_recordings_are_split_anew():
    data = moving(30, 10)
    rng = np.random.default_rng(0)
    raw = np.sort(rng.integers(0, 99, (40, 5)), axis=1).ravel()
    zeros = np.zeros(200, int)
    events = Events(zeros + np.arange(200) % 8, zeros, zeros, raw, np.arange(41) * 5, 8, 8)
    streams = replace(
        data,
        train=Split(events.take(np.arange(30)), data.train.labels),
        test=Split(events.take(np.arange(30, 40)), data.test.labels),
    )
    for one in (data, streams):
        new = repooled(one, 16)
        assert (len(new.train), len(new.test)) == (24, 16)
        total = new.features("train").sum(0) + new.features("test").sum(0)
        old = one.features("train").sum(0) + one.features("test").sum(0)
        assert np.array_equal(total, old)
    other = replace(data, test=Split(Frames(np.zeros((4, 8, 2, 9, 9))), np.arange(4) % 2))
    with pytest.raises(DataError, match="do not fit together"):
        repooled(other, 4)


def test_neuron_settings_are_compared_on_recordings(tmp_path):
    config = TrainConfig(epochs=4, lr=1e-2)
    with Run(tmp_path, {}) as run:
        found = sweep_neurons(
            moving(200), "spikformer_nano", 2, {"threshold": (0.5, 1.0)}, config, run
        )
    spikes = {point.value: point.spikes_per_sample.value for point in found.of("threshold")}
    assert spikes[0.5] > spikes[1.0]


def test_a_design_for_recordings_is_measured_at_each_T(tmp_path):
    data = moving()
    with Run(tmp_path, {}) as run:
        plan = design(
            data, "spikformer_nano", verify=True, timesteps=(1, 2), neurons=False, config=CONFIG,
            run=run, neuron=NeuronTarget(d_eff=2.0),
        )  # fmt: skip
    assert plan.case.pilot is None
    assert [point.timesteps for point in plan.operating] == [1, 2]
    assert plan.data.kind == "events"
    assert any("static images" in note for note in plan.forecast.notes)
    assert plan.inversion.target == 2.0
    from spikedim.profiling import profile

    model = network(data)
    model.load_state_dict(_weights(plan.sweep.points[1].checkpoint))
    x, _ = data.frames(2, "test")
    expected = profile(model, x, 2).spikes_per_sample
    assert plan.operating[1].profile.spikes_per_sample == expected


def _weights(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_the_command_line_trains_and_designs_on_recordings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = moving(24, 16)
    np.savez(
        tmp_path / "moving.npz",
        x=np.concatenate([data.train.inputs.values, data.test.inputs.values]),
        y=np.concatenate([data.train.labels, data.test.labels]),
    )
    options = ["--data", "moving.npz", "--model", "spikformer_nano", "--epochs", "1", "--quiet"]
    assert run("train", *options, "-T", "2") == 0
    capsys.readouterr()
    assert run("sweep", *options, "-T", "1,2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["T"] for point in found["points"]] == [1, 2]
    assert run("design", *options, "--verify", "-T", "1,2", "--no-neurons") == 0
    said = capsys.readouterr().err
    assert "Report:" in said
    assert "Not remembered" in said
    assert run("design", *options) == 2
    assert "--verify" in capsys.readouterr().err
    assert run("sweep", *options, "-T", "1,3") == 2
    assert "8 frames each" in capsys.readouterr().err


@pytest.mark.slow
def test_real_recordings_are_learned(shared, tmp_path):
    data = load_dataset("nmnist", shared / "data")
    model = network(data)
    fit(model, data, default_config("spikformer_nano", data), 4, tmp_path)
    x, y = samples(data, "test", 4)
    assert evaluate(model, x, y, 4).accuracy[-1].low > 30  # ten classes
