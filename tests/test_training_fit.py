"""Training: bit-exact resume after SIGKILL, atomic checkpoints, silence, errors."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
import torch

from spikedim.data import Dataset, Split
from spikedim.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    ModelError,
    StorageError,
)
from spikedim.models import create_model
from spikedim.training import TrainConfig, evaluate, fit, resolve_device, samples
from spikedim.training.batches import Batches, augment, held_out, stream
from spikedim.training.fit import load_trained

CONFIG = TrainConfig(epochs=3, batch_size=16, lr=1e-2, warmup_epochs=1, seed=1)


def toy(train: int = 40, test: int = 24, side: int = 4) -> Dataset:
    """Bright upper half against bright lower half, with noise."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        labels = np.arange(n) % 2
        images = rng.random((n, side, side)).astype(np.float32) * 0.8
        images[labels == 0, : side // 2] += 1
        images[labels == 1, side // 2 :] += 1
        return Split(images, labels.astype(np.int64))

    return Dataset("toy", "image", split(train), split(test), ("top", "bottom"), "made in a test")


def network(seed: int = 0, classes: int = 2, side: int = 4):
    return create_model(
        "spikformer_nano",
        num_classes=classes,
        input_shape=(1, side, side),
        seed=seed,
        embed_dim=16,
        num_heads=2,
        mlp_ratio=1.0,
    )


def weights(path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted training."""
    folder = tmp_path_factory.mktemp("fit")
    model = network()
    return fit(model, toy(), CONFIG, 2, folder), model


class Stop(Exception):
    """What a broken-off run raises."""


def break_off(monkeypatch, epoch: int, error: BaseException, batch: int = 1) -> None:
    """Raise in the middle of ``epoch`` (from 1)."""
    from spikedim.training import lightning_run

    original = lightning_run.Learner.training_step

    def step(self, data, index):
        if self.current_epoch == epoch - 1 and index == batch:
            raise error
        return original(self, data, index)

    monkeypatch.setattr(lightning_run.Learner, "training_step", step)


def test_learns_and_reports(finished):
    result, model = finished
    assert [row.epoch for row in result.history] == [1, 2, 3]
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.accuracy.n == result.history[0].val_samples == 4
    assert not model.training
    assert equal(weights(result.weights), dict(model.state_dict()))
    assert result.to_dict()["config"]["lr"] == 1e-2


def test_an_accuracy_stands_with_its_samples_and_chance(finished, tmp_path):
    result, _ = finished
    data = toy()
    data.train.labels[:30] = 0
    uneven = fit(network(), data, replace(CONFIG, epochs=1, validation=0.4), 1, tmp_path / "a")
    _, out = held_out(torch.from_numpy(data.train.labels), 0.4, CONFIG.seed)
    share = (data.train.labels[out.numpy()] == 0).mean()
    assert share > 0.5
    assert uneven.chance == pytest.approx(100 * share)
    assert result.chance == 50
    for chance, named in ((0.0, False), (100.0, True)):
        training = replace(result, chance=chance).tables()[0]
        assert ("chance on its samples", f"{chance:g} %") in training.rows
        assert training.notes[0].startswith("At chance: held-out accuracy, ") is named
        assert "of 4 training samples" in training.notes[-1]
        assert not any("test more" in note for note in training.notes)  # it never tests
    whole = fit(network(), toy(), replace(CONFIG, epochs=1, validation=0.0), 1, tmp_path / "b")
    assert (whole.accuracy, whole.chance) == (None, None)
    assert whole.tables()[0].notes == ("No samples were held out.",)


def test_same_arguments_read_the_finished_training_back(finished, monkeypatch):
    result, _ = finished
    break_off(monkeypatch, 1, Stop(), 0)
    model = network()
    again = fit(model, toy(), CONFIG, 2, result.weights.parent)
    assert again.history == result.history
    assert equal(weights(result.weights), dict(model.state_dict()))


def flip(path) -> None:
    """Flip a bit of a weight: the file stays readable."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["lost", "damaged", "flipped", "all lost"])
def test_lost_or_damaged_weights_are_restored(finished, tmp_path, monkeypatch, damage):
    result, _ = finished
    shutil.copytree(result.weights.parent, tmp_path, dirs_exist_ok=True)
    best = tmp_path / result.weights.name
    if damage == "damaged":
        best.write_bytes(b"no weights")
    elif damage == "flipped":
        flip(best)
    else:
        best.unlink()
    if damage == "all lost":
        (tmp_path / "last.ckpt").unlink()
    else:
        break_off(monkeypatch, 1, Stop(), 0)
    model = network()
    fit(model, toy(), CONFIG, 2, tmp_path)
    assert equal(weights(result.weights), weights(best))
    assert equal(weights(result.weights), dict(model.state_dict()))


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_weights_are_restored_where_they_are_loaded(finished, tmp_path, damage):
    result, _ = finished
    shutil.copytree(result.weights.parent, tmp_path, dirs_exist_ok=True)
    best = tmp_path / result.weights.name
    flip(best) if damage == "flipped" else best.unlink()
    model = network(seed=1)
    load_trained(model, best, toy())
    assert equal(weights(result.weights), dict(model.state_dict()))
    assert equal(weights(result.weights), weights(best))
    best.unlink()
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(CheckpointError, match=rf"remove {tmp_path} and .*{tmp_path.name}\*\.json"):
        load_trained(model, best, toy())


def test_provenance_is_that_of_the_training(tmp_path, monkeypatch):
    config = replace(CONFIG, epochs=1)
    first = fit(network(), toy(), config, 1, tmp_path)
    assert first.provenance.config["threads"] == 1
    module = sys.modules[fit.__module__]
    found = module.versions()
    monkeypatch.setattr(module, "versions", lambda: found | {"numpy": "0.0"})
    assert fit(network(), toy(), config, 1, tmp_path).provenance == first.provenance
    monkeypatch.setattr(module, "versions", lambda: found | {"torch": "0.0"})
    with pytest.raises(StorageError, match="versions"):
        fit(network(), toy(), config, 1, tmp_path)


def test_equal_seeds_give_equal_weights(finished, tmp_path):
    result, _ = finished
    torch.manual_seed(123)
    other = fit(network(), toy(), CONFIG, 2, tmp_path)
    assert equal(weights(result.weights), weights(other.weights))


def test_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(network(), toy(), TrainConfig(epochs=1, validation=0, seed=3), 1, tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("epoch", [1, 3])
def test_broken_off_training_resumes_bit_for_bit(tmp_path, monkeypatch, epoch):
    config = replace(CONFIG, augment="shift+flip", patience=2)
    run = (toy(), config, 2)
    whole = fit(network(), *run, tmp_path / "whole", "bernoulli")
    with monkeypatch.context() as patch:
        break_off(patch, epoch, Stop())
        with pytest.raises(Stop):
            fit(network(), *run, tmp_path / "parts", "bernoulli")
    resumed = fit(network(), *run, tmp_path / "parts", "bernoulli")
    assert equal(weights(whole.weights), weights(resumed.weights))
    assert len(resumed.history) == len(whole.history)
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert (a.train_loss, a.val_loss, a.val_accuracy) == (
            b.train_loss,
            b.val_loss,
            b.val_accuracy,
        )
    last = [torch.load(tmp_path / p / "last.ckpt")["state_dict"] for p in ("whole", "parts")]
    assert equal(*last)


def test_sigkill_in_the_middle_of_an_epoch_loses_only_that_epoch(tmp_path, finished):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_training_fit import CONFIG, fit, network, toy
        from spikedim.training import lightning_run

        folder = Path(sys.argv[1])
        original = lightning_run.Learner.training_step

        def step(self, batch, index):
            if self.current_epoch == 2 and index == 1 and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            print("epoch", self.current_epoch + 1, "batch", index)
            return original(self, batch, index)

        lightning_run.Learner.training_step = step
        fit(network(), toy(), CONFIG, 2, folder)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path), os.path.dirname(__file__)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr
    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    assert "epoch 2" not in second.stdout
    assert "epoch 3 batch 0" in second.stdout
    assert equal(weights(tmp_path / "best.safetensors"), weights(finished[0].weights))


def test_early_stop_and_resume_after_the_last_epoch(tmp_path, monkeypatch):
    config = TrainConfig(epochs=20, patience=2, lr=1e-5, warmup_epochs=0, seed=1)
    whole = fit(network(), toy(), config, 1, tmp_path)
    assert whole.stopped_early
    scores = [row.val_accuracy for row in whole.history]
    assert len(scores) == scores.index(max(scores)) + 1 + 2
    (tmp_path / "fit.json").unlink()
    break_off(monkeypatch, len(whole.history) + 1, Stop(), 0)
    resumed = fit(network(), toy(), config, 1, tmp_path)
    assert len(resumed.history) == len(whole.history)
    assert equal(weights(whole.weights), weights(resumed.weights))


def test_full_disk_keeps_the_previous_epoch(tmp_path, monkeypatch, finished):
    from spikedim import storage

    original, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", fsync)
        with pytest.raises(StorageError, match="no disk space left"):
            fit(network(), toy(), CONFIG, 2, folder)
    saved = torch.load(folder / "last.ckpt")
    assert 0 < saved["epoch"] + 1 < CONFIG.epochs
    assert {p.name for p in folder.iterdir()} == {"last.ckpt"}
    resumed = fit(network(), toy(), CONFIG, 2, folder)
    assert equal(weights(finished[0].weights), weights(resumed.weights))


def test_ctrl_c_passes_through_and_leaves_a_resumable_state(tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        break_off(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            fit(network(), toy(), CONFIG, 2, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(fit(network(), toy(), CONFIG, 2, tmp_path).history) == 3


def test_sigterm_is_no_success_and_leaves_a_resumable_state(tmp_path, monkeypatch):
    from spikedim.training import lightning_run

    original = lightning_run.Learner.training_step

    def step(self, data, index):
        if self.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, data, index)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(lightning_run.Learner, "training_step", step)
        with pytest.raises(SystemExit) as left:
            fit(network(), toy(), CONFIG, 2, tmp_path)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(fit(network(), toy(), CONFIG, 2, tmp_path).history) == 3


def test_lightning_is_silent_and_leaves_no_folders(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(network(), toy(), CONFIG, 1, tmp_path)
    assert (out.getvalue(), err.getvalue()) == ("", "")
    assert [str(w.message) for w in seen] == []
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "best.safetensors", "fit.json"}


def test_bf16_trains(tmp_path):
    config = TrainConfig(epochs=2, precision="bf16", lr=1e-2)
    assert np.isfinite(fit(network(), toy(), config, 1, tmp_path).history[-1].train_loss)


def test_diverging_loss_is_one_clear_error(tmp_path, monkeypatch):
    model = network()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"the loss became nan in epoch 1.*learning rate"):
        fit(model, toy(), CONFIG, 1, tmp_path)
    assert not (tmp_path / "last.ckpt").exists()


def test_other_settings_in_the_same_directory_are_refused(finished, tmp_path, monkeypatch):
    folder = finished[0].weights.parent
    with pytest.raises(StorageError, match="other settings"):
        fit(network(), toy(), CONFIG, 3, folder)
    with pytest.raises(StorageError, match="other settings"):
        fit(network(seed=5), toy(), CONFIG, 2, folder)
    with monkeypatch.context() as patch:
        break_off(patch, 2, Stop())
        with pytest.raises(Stop):
            fit(network(), toy(), CONFIG, 2, tmp_path)
    with pytest.raises(StorageError, match="other settings"):
        fit(network(), toy(44), CONFIG, 2, tmp_path)


@pytest.mark.parametrize("content", ["{}", "[1]"])
def test_a_record_of_no_training_is_named(tmp_path, content):
    (tmp_path / "fit.json").write_text(content)
    with pytest.raises(StorageError, match=r"fit\.json is no record of a training; remove it"):
        fit(network(), toy(), CONFIG, 2, tmp_path)


def test_a_key_is_no_reason(tmp_path, monkeypatch):
    (tmp_path / "last.ckpt").touch()
    monkeypatch.setattr(torch, "load", lambda *a, **k: {}[244])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: it is damaged; remove it"):
        fit(network(), toy(), CONFIG, 2, tmp_path)


def test_corrupt_checkpoint_is_named(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*remove it"):
        fit(network(), toy(), CONFIG, 2, tmp_path)


def test_data_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(DataError, match="input_shape"):
        fit(network(side=8), toy(), CONFIG, 1, tmp_path)
    with pytest.raises(DataError, match=r"labels 0\.\.1 but the network has 1 classes"):
        fit(network(classes=1), toy(), CONFIG, 1, tmp_path)
    data = toy()
    data.train.inputs[3, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        fit(network(), data, CONFIG, 1, tmp_path)
    unlabelled = Dataset("bare", "image", Split(toy().train.inputs, None), None, (), "test")
    with pytest.raises(DataError, match="no labels"):
        fit(network(), unlabelled, CONFIG, 1, tmp_path)


@pytest.mark.parametrize("T", [0, -1, 1.5, True])
def test_bad_timesteps_are_refused(tmp_path, T):
    with pytest.raises(ConfigError, match=f"T={T}"):
        fit(network(), toy(), CONFIG, T, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"lr": -1e-3},
        {"lr": float("nan")},
        {"epochs": 0},
        {"batch_size": 1},
        {"label_smoothing": 1.0},
        {"validation": 0.95},
        {"augment": "mixup"},
        {"precision": "int8"},
        {"patience": 3, "validation": 0.0},
        {"gradient_clip": 0.0},
        {"seed": -1},
    ],
)
def test_bad_configuration_names_value_and_mend(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        TrainConfig(**change)


def test_unknown_encoder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="encoder='morse'"):
        fit(network(), toy(), CONFIG, 1, tmp_path, encoder="morse")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="cuda asked for but torch finds no GPU; use --dev"):
        TrainConfig(device="cuda")
    with pytest.raises(DeviceError, match="'warp'"):
        resolve_device("warp")
    assert TrainConfig(device="auto").device == "cpu"


def test_batches_cover_every_sample_once_in_a_new_order_each_epoch():
    epoch = [0]
    x = torch.arange(50.0).view(50, 1, 1, 1)
    batches = Batches(x, torch.arange(50), 16, 1, epoch=lambda: epoch[0], shuffle=True)
    first = [y for _, y in batches]
    assert [len(y) for y in first] == [13, 13, 12, 12]
    assert torch.equal(torch.cat(first).sort().values, torch.arange(50))
    assert torch.equal(torch.cat(first), torch.cat([y for _, y in batches]))
    epoch[0] = 1
    assert not torch.equal(torch.cat(first), torch.cat([y for _, y in batches]))


def test_augmentation_moves_and_mirrors_whole_images():
    x = torch.zeros(200, 1, 16, 16)
    x[:, 0, 8, 5] = 1.0
    moved = augment(x, stream(0), flip=False)
    rows, columns = moved[:, 0].flatten(1).argmax(1) // 16, moved[:, 0].flatten(1).argmax(1) % 16
    assert moved.sum() == 200
    assert (rows.min(), rows.max()) == (6, 10)
    assert (columns.min(), columns.max()) == (3, 7)
    mirrored = augment(x, stream(0), flip=True)[:, 0].flatten(1).argmax(1) % 16
    assert 60 < (mirrored > 7).sum() < 140


def test_held_out_split_is_stratified_and_disjoint():
    labels = torch.arange(100) % 4
    kept, out = held_out(labels, 0.2, seed=0)
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(100))
    assert labels[out].bincount().tolist() == [5, 5, 5, 5]
    assert torch.equal(out, held_out(labels, 0.2, seed=0)[1])
    assert not torch.equal(out, held_out(labels, 0.2, seed=1)[1])


def test_spike_encoders_get_intensities():
    x, _ = samples(toy(), "test", 1, "latency")
    assert 0 <= x.min() < x.max() <= 1


def test_evaluation_of_a_prefix_is_the_shorter_run(finished):
    _, model = finished
    x, y = samples(toy(), "test", 1)
    whole = evaluate(model, x, y, 4, batch_size=7)
    for T in (1, 2, 3):
        part = evaluate(model, x, y, T, batch_size=24)
        np.testing.assert_array_equal(whole.correct(T), part.correct())
        assert whole.accuracy[T - 1] == part.accuracy[-1]
        assert whole.spikes_per_sample[T - 1].value == part.spikes_per_sample[-1].value
        with torch.no_grad():
            expected = (model(x, T).argmax(1) == y).float().mean() * 100
        assert part.accuracy[-1].value == pytest.approx(float(expected))
    assert "spikes per sample" in str(whole)


def test_spike_counts_agree_with_recorded_spikes(finished):
    from spikedim.neurons import record

    _, model = finished
    x, y = samples(toy(), "test", 1)
    result = evaluate(model, x, y, 2)
    with record(model) as recording, torch.no_grad():
        model(x, 2)
    spikes = [recording.spikes[name] for name in recording.spikes]
    total = sum(float(s.sum()) for s in spikes)
    neurons = sum(s[0, 0].numel() for s in spikes)
    assert result.spikes_per_sample[-1].value == pytest.approx(total / len(x))
    assert result.firing_rate[-1].value == pytest.approx(total / len(x) / neurons / 2)


def test_evaluation_leaves_the_model_as_it_was(finished):
    _, model = finished
    model.train()
    x, y = samples(toy(), "test", 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, x, y, 1)
    assert model.training
    assert equal(before, dict(model.state_dict()))
    assert not any(hasattr(m, "_observers") and m._observers for m in model.modules())
    model.eval()
