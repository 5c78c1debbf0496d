"""How a network is trained: one frozen configuration, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from spikedim.errors import ConfigError, DeviceError

Augment = Literal["none", "shift", "shift+flip"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run besides network, data and T.

    Attributes:
        epochs: passes over the training part, at least 1.
        batch_size: samples per step; the last batches of an epoch are evened out to about it.
        lr: peak learning rate of AdamW.
        weight_decay: decoupled weight decay; norms, biases and scalars get none.
        warmup_epochs: linear warm-up before the cosine to zero; fractions allowed.
        label_smoothing: of the cross-entropy, in [0, 1).
        patience: stop after this many epochs without a better validation accuracy; ``None``
            trains to the end.
        validation: share of the training samples held out (stratified) for early stopping and
            for choosing the epoch; 0 uses the last epoch. The test set is never looked at.
        gradient_clip: largest gradient norm; ``None`` does not clip.
        augment: ``"shift"`` moves images and recordings by up to 1/8 of their side,
            ``"shift+flip"`` also mirrors half of them, ``"none"`` leaves them.
        seed: of data order, augmentation, held-out split and random layers.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``, which becomes the one found.
        precision: ``"fp32"``, or ``"bf16"`` (mixed).

    Raises:
        ConfigError: a value out of its domain.
        DeviceError: the device does not exist here.
    """

    epochs: int = 12
    batch_size: int = 32
    lr: float = 5e-3
    weight_decay: float = 0.02
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    patience: int | None = None
    validation: float = 0.1
    gradient_clip: float | None = 1.0
    augment: Augment = "none"
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, 1, "e.g. 12")
        _whole("batch_size", self.batch_size, 2, "batch statistics need two samples, e.g. 32")
        _whole("seed", self.seed, 0, "e.g. 0")
        if self.patience is not None:
            _whole("patience", self.patience, 1, "or None to train to the end")
        _within("lr", self.lr, 0, math.inf, "must be above 0, e.g. 1e-3", open_low=True)
        _within("weight_decay", self.weight_decay, 0, math.inf, "must be 0 or more, e.g. 0.05")
        _within("warmup_epochs", self.warmup_epochs, 0, math.inf, "must be 0 or more, e.g. 1")
        _within("label_smoothing", self.label_smoothing, 0, 0.999, "must be in [0, 1), e.g. 0.1")
        _within("validation", self.validation, 0, 0.9, "must be in [0, 0.9], e.g. 0.1")
        if self.gradient_clip is not None:
            expected = "must be above 0, or None not to clip"
            _within("gradient_clip", self.gradient_clip, 0, math.inf, expected, open_low=True)
        for name, kind in (("augment", Augment), ("precision", Precision)):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise ConfigError(f"{name}={value!r} is unknown; use {_either(get_args(kind))}")
        if self.patience is not None and self.validation == 0:
            raise ConfigError(
                f"patience={self.patience} needs held-out samples; set validation above 0, e.g. 0.1"
            )
        object.__setattr__(self, "device", str(resolve_device(self.device)))


def resolve_device(name: str) -> torch.device:
    """The torch device called ``name``; ``"auto"`` takes the GPU when there is one.

    Raises:
        DeviceError: unknown name, or a GPU that torch does not find.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise DeviceError(f"device {name!r} is unknown; use cpu, cuda, cuda:0 or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use cpu, cuda, cuda:0 or auto")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"{name} asked for but torch finds no GPU; use --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise DeviceError(f"{name} asked for but torch finds {count} GPU; use --device cuda:0")
    return device


def check_timesteps(T: int) -> int:
    """Return T when it is a usable number of timesteps.

    Raises:
        ConfigError: T is not a whole number of at least 1.
    """
    _whole("T", T, 1, "timesteps, e.g. 4")
    return int(T)


def _whole(name: str, value: int, least: int, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}; {hint}")


def _within(
    name: str, value: float, low: float, high: float, expected: str, open_low: bool = False
) -> None:
    number = isinstance(value, (int, float)) and math.isfinite(value)
    if not number or not low <= value <= high or (open_low and value == low):
        raise ConfigError(f"{name}={value!r} {expected}")


def _either(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]
