"""Sweeps: every T a stored step, tidy table, neuron settings, budgets."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch

from processes import PATIENCE_S, group_is_gone, wait_for
from spikedim.data import Dataset, Split
from spikedim.errors import (
    BudgetError,
    ConfigError,
    DataError,
    ModelError,
    SpikedimError,
    StorageError,
)
from spikedim.models import create_model, load_model, model_entry
from spikedim.neurons import LIFParams
from spikedim.results import Estimate
from spikedim.storage import Run
from spikedim.training import (
    TrainConfig,
    budget,
    default_config,
    evaluate,
    predict_seconds,
    samples,
    sweep_neurons,
    sweep_timesteps,
)

MODEL = "spikformer_nano"
CONFIG = TrainConfig(epochs=2, batch_size=16, lr=1e-2, warmup_epochs=1, seed=1)


def toy(test: int = 24) -> Dataset:
    """Bright upper half against bright lower half, with noise."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        labels = np.arange(n) % 2
        images = rng.random((n, 4, 4)).astype(np.float32) * 0.8
        images[labels == 0, :2] += 1
        images[labels == 1, 2:] += 1
        return Split(images, labels.astype(np.int64))

    return Dataset("toy", "image", split(32), split(test), ("top", "bottom"), "made in a test")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep over T = 1, 3 trained at each."""
    path = tmp_path_factory.mktemp("sweep")
    with Run(path, {"kind": "sweep"}) as run:
        return sweep_timesteps(toy(), MODEL, [3, 1], CONFIG, run), path


def test_a_test_leaves_frozen_statistics_frozen():
    model = create_model(MODEL, input_shape=toy().input_shape, num_classes=2).train()
    (norm, *_) = (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.eval()
    evaluate(model, *samples(toy(), "test", 1), 1)
    assert model.training
    assert not norm.training


def refuse_training(monkeypatch):
    from spikedim.training import trial

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(trial, "fit", refuse)


def test_points_hold_what_was_measured(swept):
    result, path = swept
    assert [p.T for p in result.points] == [1, 3]
    for point in result.points:
        assert point.correct.shape == (24,)
        assert point.accuracy.value == pytest.approx(100 * point.correct.mean())
        assert point.trained_at == point.T
        assert point.epochs == 2
        model = load_model(point.checkpoint)
        x, y = samples(toy(), "test", 1)
        again = evaluate(model, x, y, point.T)
        np.testing.assert_array_equal(again.correct(), point.correct)
    assert result.t_star.value in (1, 3)
    assert path in result.points[0].checkpoint.parents


@pytest.mark.parametrize(
    ("reached", "said"), [((50, 52), True), ((50, 60), False), ((90, 20), False), ((20, 20), True)]
)
def test_accuracies_at_chance_are_said(swept, reached, said):
    result, _ = swept
    assert result.chance == 50.0
    points = [
        replace(point, accuracy=Estimate(float(value), n=1000))
        for point, value in zip(result.points, reached, strict=True)
    ]
    result = replace(result, points=tuple(points))
    (table,) = result.tables()
    assert result.learned is not said
    assert any(note.startswith("At chance: ") for note in table.notes) is said


def test_finished_timesteps_are_not_trained_again(swept, monkeypatch):
    result, path = swept
    refuse_training(monkeypatch)
    with Run(path, {"kind": "sweep"}) as run:
        again = sweep_timesteps(toy(), MODEL, [1, 3], CONFIG, run)
    assert again.to_dict() == result.to_dict()


def test_other_versions_train_anew(tmp_path, monkeypatch):
    from spikedim.training import trial

    with Run(tmp_path, {}) as run:
        old = sweep_timesteps(toy(), MODEL, [1], CONFIG, run)
        monkeypatch.setattr(trial, "decisive_versions", lambda: {"torch": "0.0"})
        new = sweep_timesteps(toy(), MODEL, [1], CONFIG, run)
    assert old.points[0].checkpoint != new.points[0].checkpoint
    assert old.provenance.config["threads"] == 1


def test_a_new_timestep_trains_only_itself(swept, monkeypatch):
    from spikedim.training import trial

    _, path = swept
    trained = []
    original = trial.fit

    def fit(model, dataset, config, T, *rest):
        trained.append(T)
        return original(model, dataset, config, T, *rest)

    monkeypatch.setattr(trial, "fit", fit)
    with Run(path, {"kind": "sweep"}) as run:
        sweep_timesteps(toy(), MODEL, [1, 2, 3], CONFIG, run)
        sweep_timesteps(toy(), MODEL, [1], replace(CONFIG, lr=2e-2), run)
    assert trained == [2, 1]


def test_inference_mode_trains_once_and_reads_prefixes(swept, monkeypatch):
    result, path = swept
    refuse_training(monkeypatch)
    with Run(path, {"kind": "sweep"}) as run:
        prefixes = sweep_timesteps(toy(), MODEL, [1, 2, 3], CONFIG, run, mode="inference")
    assert [p.trained_at for p in prefixes.points] == [3, 3, 3]
    np.testing.assert_array_equal(prefixes.at(3).correct, result.at(3).correct)
    x, y = samples(toy(), "test", 1)
    short = evaluate(load_model(prefixes.at(2).checkpoint), x, y, 2)
    np.testing.assert_array_equal(prefixes.at(2).correct, short.correct())


def test_parquet_is_tidy_and_carries_provenance(tmp_path):
    from pyarrow import parquet

    with Run(tmp_path, {}) as run:
        result = sweep_timesteps(toy(), MODEL, [1, 2], CONFIG, run)
    rows = parquet.read_table(tmp_path / "sweep.parquet").to_pylist()
    assert [(r["trained_T"], r["T"]) for r in rows] == [(1, 1), (2, 1), (2, 2)]
    assert {r["fingerprint"] for r in rows} == {toy().fingerprint}
    assert json.loads(rows[0]["config"])["lr"] == CONFIG.lr
    assert "torch" in json.loads(rows[0]["versions"])
    own = next(r for r in rows if r["trained_T"] == r["T"] == 2)
    assert own["accuracy"] == result.at(2).accuracy.value
    np.testing.assert_array_equal(
        np.frombuffer(own["correct"], dtype=np.uint8), result.at(2).correct
    )


def test_prints_plots_and_exports_without_bulk(swept):
    matplotlib.use("Agg")
    result, _ = swept
    assert "T* =" in str(result)
    axes = result.plot()
    assert axes.get_xlabel() == "timesteps T"
    assert "_correct" not in result.to_dict()["points"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T_values": []}, "T_values is empty"),
        ({"T_values": [0, 1]}, "T=0"),
        ({"T_values": [2, 2]}, "repeats"),
        ({"mode": "guess"}, "mode='guess'"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"mode": "inference", "encoder": "latency"}, "latency"),
    ],
)
def test_bad_sweeps_are_refused_before_training(tmp_path, monkeypatch, change, message):
    refuse_training(monkeypatch)
    arguments = {"T_values": [1, 2], "mode": "train", "encoder": "direct"} | change
    with Run(tmp_path, {}) as run, pytest.raises(ConfigError, match=message):
        sweep_timesteps(toy(), MODEL, config=CONFIG, run=run, **arguments)


def test_missing_test_split_is_refused_before_training(tmp_path, monkeypatch):
    refuse_training(monkeypatch)
    bare = replace(toy(), test=None)
    with Run(tmp_path, {}) as run, pytest.raises(DataError, match="no test split"):
        sweep_timesteps(bare, MODEL, [1], CONFIG, run)


def test_full_disk_keeps_finished_timesteps(tmp_path, monkeypatch):
    from spikedim.training import lightning_run

    def full(self, checkpoint, path, storage_options=None):
        if self.saved == 2:
            raise StorageError("no disk space left while writing x; free some space")
        self.saved += 1
        original(self, checkpoint, path, storage_options)

    original = lightning_run.AtomicCheckpoints.save_checkpoint
    with Run(tmp_path, {}) as run:
        first = sweep_timesteps(toy(), MODEL, [1], CONFIG, run)
        with monkeypatch.context() as patch:
            patch.setattr(lightning_run.AtomicCheckpoints, "saved", 2, raising=False)
            patch.setattr(lightning_run.AtomicCheckpoints, "save_checkpoint", full)
            with pytest.raises(StorageError, match="no disk space"):
                sweep_timesteps(toy(), MODEL, [1, 2], CONFIG, run)
        again = sweep_timesteps(toy(), MODEL, [1], CONFIG, run)
    assert again.at(1).train_seconds == first.at(1).train_seconds


def test_neuron_sweep_changes_one_parameter_at_a_time(tmp_path, monkeypatch):
    grid = {"threshold": [2.0], "refractory": [1]}
    with Run(tmp_path, {}) as run:
        result = sweep_neurons(toy(), MODEL, 2, grid, CONFIG, run)
        refuse_training(monkeypatch)
        again = sweep_neurons(toy(), MODEL, 2, grid, CONFIG, run)
    found = [(p.parameter, p.value, p.base) for p in result.points]
    assert found == [
        ("threshold", 1.0, True),
        ("threshold", 2.0, False),
        ("refractory", 0, True),
        ("refractory", 1, False),
    ]
    assert again.points == result.points
    base, high = result.of("threshold")
    assert base.accuracy == result.of("refractory")[0].accuracy
    assert high.spikes_per_sample.value != base.spikes_per_sample.value
    assert 0 <= high.firing_rate.value <= 1
    assert "threshold" in str(result)
    assert (tmp_path / "neurons.parquet").exists()


def test_neuron_sweep_really_sets_the_neurons(tmp_path):
    silent = LIFParams(threshold=1e6)
    with Run(tmp_path, {}) as run:
        config = replace(CONFIG, epochs=1)
        result = sweep_neurons(toy(), MODEL, 1, {"beta": [0.9]}, config, run, base=silent)
    assert [p.spikes_per_sample.value for p in result.points] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "grid is empty"),
        ({"colour": [1.0]}, "'colour'"),
        ({"beta": [1.5]}, "beta"),
        ({"refractory": [-1]}, "refractory"),
    ],
)
def test_bad_neuron_grids_are_refused(tmp_path, monkeypatch, grid, message):
    refuse_training(monkeypatch)
    with Run(tmp_path, {}) as run, pytest.raises(ConfigError, match=message):
        sweep_neurons(toy(), MODEL, 1, grid, CONFIG, run)


def test_budget_is_kept_and_deterministic():
    data = toy()
    model = create_model(MODEL, num_classes=2, input_shape=(1, 4, 4))
    macs = sum(model.macs_per_step())
    limit = 6.0 * macs * 20 * 4
    cut = budget(data, replace(CONFIG, epochs=8), MODEL, [1, 3], max_macs=limit)
    assert cut.config.epochs * len(cut.dataset.train) * 4 * macs <= limit
    assert cut.note.startswith("Budget: ")
    again = budget(data, replace(CONFIG, epochs=8), MODEL, [1, 3], max_macs=limit)
    assert (again.config, again.note) == (cut.config, cut.note)
    assert again.dataset.fingerprint == cut.dataset.fingerprint
    whole = budget(data, CONFIG, MODEL, [1])
    assert whole == (data, CONFIG, "")
    assert budget(data, CONFIG, MODEL, [1], max_macs=float("inf")) == whole
    limited = budget(data, CONFIG, MODEL, [1], max_train_samples=10, max_test_samples=6)
    assert (len(limited.dataset.train), len(limited.dataset.test)) == (10, 6)
    with pytest.raises(BudgetError, match="smaller model"):
        budget(data, CONFIG, MODEL, [1], max_macs=1.0)


def test_default_config_follows_network_and_data():
    small = default_config(MODEL, toy(), seed=4)
    assert small.augment == "none"
    assert small.seed == 4
    large = default_config("spikformer_4_384", toy())
    assert (large.lr, large.weight_decay, large.epochs) == (5e-4, 0.06, 300)
    assert small.patience is None
    assert large.patience is not None
    assert model_entry("spikformer_4_384").parameters > 1_000_000


def test_predicted_seconds_scale_with_work():
    model = create_model(MODEL, num_classes=2, input_shape=(1, 4, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert predict_seconds(model, toy(), [1, 2], CONFIG) > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_parallel_trainings_give_the_numbers_of_serial_ones(swept, tmp_path):
    serial, _ = swept
    with Run(tmp_path / "r", {"kind": "sweep"}) as run:
        parallel = sweep_timesteps(toy(), MODEL, [3, 1], CONFIG, run, workers=2)
    assert [p.accuracy for p in parallel.points] == [p.accuracy for p in serial.points]
    for one, other in zip(parallel.points, serial.points, strict=True):
        np.testing.assert_array_equal(one.correct, other.correct)
        assert one.spikes_per_sample == other.spikes_per_sample
        first, second = (load_model(point.checkpoint).state_dict() for point in (one, other))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_finished_trainings_start_no_process(swept, monkeypatch):
    def refuse(*args):
        raise AssertionError("started a process")

    monkeypatch.setattr("spikedim.training.parallel.processes", refuse)
    result, path = swept
    with Run(path, {"kind": "sweep"}) as run:
        again = sweep_timesteps(toy(), MODEL, [3, 1], CONFIG, run, workers=2)
    assert again.points == result.points


def test_a_fault_in_a_worker_reaches_the_caller(tmp_path):
    with (
        pytest.raises(ModelError, match="diverged"),
        Run(tmp_path / "r", {}) as run,
    ):
        sweep_timesteps(toy(), MODEL, [1, 2], replace(CONFIG, lr=1e30), run, workers=2)


def test_workers_must_be_a_positive_number(tmp_path):
    with pytest.raises(ConfigError, match="workers=0"), Run(tmp_path / "r", {}) as run:
        sweep_timesteps(toy(), MODEL, [1, 2], CONFIG, run, workers=0)


def test_a_killed_worker_ends_the_sweep_with_a_clear_error(tmp_path):
    before = set(multiprocessing.active_children())

    def kill():
        wait_for(lambda: list(tmp_path.glob("trials/*/last.ckpt")))
        workers = set(multiprocessing.active_children()) - before
        os.kill(max(worker.pid for worker in workers), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(SpikedimError, match="killed from outside"), Run(tmp_path, {}) as run:
        sweep_timesteps(toy(), MODEL, [1, 2], replace(CONFIG, epochs=1000), run, workers=2)
    assert set(multiprocessing.active_children()) <= before
    assert not list(tmp_path.glob(".tmp-*"))


def test_ctrl_c_stops_parent_and_workers_without_their_tracebacks(tmp_path):
    script = textwrap.dedent(
        """
        import signal, sys
        from dataclasses import replace
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        sys.path.insert(0, sys.argv[2])
        from test_training_sweep import CONFIG, MODEL, Run, sweep_timesteps, toy
        long = replace(CONFIG, epochs=10_000)
        try:
            with Run(sys.argv[1], {}) as run:
                sweep_timesteps(toy(), MODEL, [1, 2], long, run, workers=2)
        except KeyboardInterrupt:
            sys.exit(7)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path), os.path.dirname(__file__)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    try:
        wait_for(lambda: list(tmp_path.glob("trials/*/last.ckpt")), lambda: process.poll() is None)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (7, "")
        wait_for(lambda: group_is_gone(process.pid))
    finally:
        if not group_is_gone(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def test_small_networks_get_one_thread_and_large_ones_share_the_cores(monkeypatch):
    from spikedim.training import threads

    monkeypatch.setattr(threads, "cores", lambda: 8)
    assert threads.threads_for(25_000, running=2) == 1
    assert [threads.threads_for(5_000_000, running=n) for n in (1, 3, 16)] == [8, 2, 1]
    before = torch.get_num_threads()
    with threads.math_threads(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
