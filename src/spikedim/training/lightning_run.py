"""The Lightning side of :func:`spikedim.training.fit`: imported only when a training starts."""

from __future__ import annotations

import io
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from spikedim import progress
from spikedim.errors import CheckpointError, ModelError
from spikedim.models import SpikingModel
from spikedim.storage import write_bytes
from spikedim.training.batches import Batches
from spikedim.training.config import TrainConfig, resolve_device

_CHECK_EVERY = 16
_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


class AtomicCheckpoints(CheckpointIO):
    """Checkpoint files that appear whole or not at all, and load without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Serialise in memory, then write atomically: a full disk keeps the previous file."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(path, bytes(buffer.getbuffer()))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain data.

        Raises:
            CheckpointError: the file is unreadable.
        """
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load ``path`` on the CPU.

    Raises:
        CheckpointError: the file is unreadable.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, KeyError):  # whose text is a key, of no use to a reader
            reason = "it is damaged"
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {reason}; remove it to train from the start"
        ) from error
    return content


class Learner(pl.LightningModule):
    """AdamW, warm-up and cosine, cross-entropy on the mean logits."""

    def __init__(
        self, model: SpikingModel, config: TrainConfig, T: int, encoder: str, batches: int
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.steps = T if encoder == "direct" else None
        self.batches = batches
        self.train_sums = self.val_sums = torch.zeros(3)

    def _score(self, batch: tuple[Tensor, Tensor], smoothing: float) -> tuple[Tensor, Tensor]:
        x, y = batch
        logits = self.model(x, self.steps).float()
        loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
        hits = (logits.detach().argmax(-1) == y).sum()
        return loss, torch.stack([loss.detach() * len(y), hits, hits.new_tensor(len(y))])

    def on_train_epoch_start(self) -> None:
        """Forget the sums of the last epoch and reseed random layers for this one."""
        self.train_sums = torch.zeros(3, device=self.device)
        self.val_sums = torch.zeros(3, device=self.device)
        torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch.

        Raises:
            ModelError: the loss is not finite.
        """
        loss, sums = self._score(batch, self.config.label_smoothing)
        self.train_sums = self.train_sums + sums
        if (index + 1) % _CHECK_EVERY == 0:
            self.check_finite()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Add one held-out batch."""
        self.val_sums = self.val_sums + self._score(batch, 0.0)[1]

    def check_finite(self) -> None:
        """Refuse to go on, or to save, with a network that has diverged.

        Raises:
            ModelError: a loss of this epoch is not finite.
        """
        for loss in (float(self.train_sums[0]), float(self.val_sums[0])):
            if not math.isfinite(loss):
                raise ModelError(
                    f"the loss became {loss} in epoch {self.current_epoch + 1}: training "
                    f"diverged; lower the learning rate (now {self.config.lr:g}) or the "
                    "threshold, or check the data for NaN"
                )

    def configure_optimizers(self) -> Any:
        """AdamW with decay on matrices and kernels only, scheduled per step."""
        config = self.config
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)
        factor = learning_rate_factor(
            config.epochs * self.batches, round(config.warmup_epochs * self.batches)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def learning_rate_factor(steps: int, warmup: int) -> Callable[[int], float]:
    """Linear warm-up over ``warmup`` steps, then half a cosine down to 0 at ``steps``."""
    warmup = min(warmup, max(steps - 1, 0))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup))))

    return factor


class Keeper(pl.Callback):
    """Keeps the history and the best weights, stops early, saves both after every epoch."""

    def __init__(self, directory: Path, config: TrainConfig, digest: str) -> None:
        self.directory, self.config, self.digest = directory, config, digest
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self._started = 0.0

    @property
    def best_epoch(self) -> int:
        """Epoch (from 1) to keep: ties go to the later one, whose learning rate is lower."""
        if self.config.validation == 0:
            return len(self.history)
        scores = [record["val_accuracy"] for record in self.history]
        return len(scores) - scores[::-1].index(max(scores))

    @property
    def stalled(self) -> bool:
        """Whether patience has run out; repeating the best accuracy is no progress."""
        if self.config.patience is None or not self.history:
            return False
        scores = [record["val_accuracy"] for record in self.history]
        return len(scores) - 1 - scores.index(max(scores)) >= self.config.patience

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.history = list(state_dict["history"])
        self.best = dict(state_dict["best"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Sign the checkpoint with the training it belongs to."""
        checkpoint["spikedim_digest"] = self.digest

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run killed after its last epoch has nothing left to do."""
        trainer.should_stop = self.stalled

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record, keep the best weights, save, and stop when it no longer improves."""
        assert isinstance(pl_module, Learner)
        if len(self.history) > trainer.current_epoch:
            return
        pl_module.check_finite()
        self.history.append(self._record(trainer, pl_module))
        if self.best_epoch == len(self.history):
            state = pl_module.model.state_dict()
            self.best = {name: t.detach().to("cpu", copy=True) for name, t in state.items()}
        trainer.should_stop = trainer.should_stop or self.stalled
        trainer.save_checkpoint(self.directory / "last.ckpt")

    def _record(self, trainer: pl.Trainer, learner: Learner) -> dict[str, Any]:
        loss, hits, count = learner.train_sums.tolist()
        record: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "train_loss": loss / count,
            "train_accuracy": 100 * hits / count,
            "val_loss": None,
            "val_accuracy": None,
            "val_samples": 0,
        }
        loss, hits, count = learner.val_sums.tolist()
        if count:
            record |= {
                "val_loss": loss / count,
                "val_accuracy": 100 * hits / count,
                "val_samples": int(count),
            }
        return record | {"seconds": time.perf_counter() - self._started}


class Bar(pl.Callback):
    """Reports to :mod:`spikedim.progress`."""

    def __init__(self, bar: progress.Task, keeper: Keeper) -> None:
        self.bar, self.keeper = bar, keeper

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the epochs of an earlier, interrupted process, and say so."""
        if trainer.current_epoch:
            done = f"{trainer.current_epoch} of {trainer.max_epochs} epochs"
            progress.note(f"{self.bar.label}: continuing after {done} of an earlier run")
        self.bar.advance(trainer.current_epoch * int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Advance by one batch, showing where training stands."""
        detail = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if self.keeper.history:
            last = self.keeper.history[-1]
            detail += f" loss {last['train_loss']:.3f}"
            if last["val_accuracy"] is not None:
                detail += f" held-out {last['val_accuracy']:.1f} %"
        self.bar.advance(1, detail)


def run(
    model: SpikingModel,
    train: Batches,
    validation: Batches | None,
    config: TrainConfig,
    directory: Path,
    digest: str,
    label: str,
) -> Keeper:
    """Train ``model`` in place with Lightning, resuming from ``directory/last.ckpt``."""
    checkpoint = directory / "last.ckpt"
    keeper = Keeper(directory, config, digest)
    learner = Learner(model, config, train.T, train.encoder, len(train))
    device = resolve_device(config.device)
    on_gpu = device.type == "cuda"
    with (
        _quiet(),
        _interruptible(),
        torch.random.fork_rng(devices=[device.index or 0] if on_gpu else []),
        progress.task(label, config.epochs * len(train)) as bar,
    ):
        trainer = pl.Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=[device.index or 0] if on_gpu else 1,
            precision=_PRECISIONS[config.precision],
            max_epochs=config.epochs,
            gradient_clip_val=config.gradient_clip,
            callbacks=[keeper, Bar(bar, keeper)],
            plugins=[AtomicCheckpoints(), LightningEnvironment()],
            default_root_dir=directory,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        model.train()
        trainer.fit(
            learner,
            replace(train, epoch=lambda: trainer.current_epoch),
            validation,
            ckpt_path=checkpoint if checkpoint.exists() else None,
        )
    return keeper


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's banners, tips and advice for the length of the block."""
    loggers = [logging.getLogger(f"lightning{name}") for name in ("", ".pytorch", ".fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.|torch\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C through as KeyboardInterrupt, and leave with 143 on SIGTERM.

    Lightning exits the process and mutes SIGINT on the one, and exits as if all were done on the
    other.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if isinstance(error, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
