"""Batches of in-memory tensors: order, augmentation and encoding drawn from (seed, epoch).

Because nothing depends on how many batches came before, a resumed run sees exactly the batches
of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikedim.data import Dataset, encode
from spikedim.data.encoders import ENCODERS
from spikedim.data.sampling import split_indices
from spikedim.errors import ConfigError, DataError
from spikedim.training.config import Augment, check_timesteps

_ORDER, _NOISE = 0, 1
_NUMBERS = 1 << 23  # of the inputs of one forward over recordings
_READ_AS = {"events": "frames", "text": "words"}


@dataclass(frozen=True)
class Batches:
    """Iterable of (inputs, labels) over in-memory samples, re-iterable, with a length.

    Attributes:
        inputs, labels: all samples and classes [N], as :func:`samples` gives them.
        batch_size: upper limit of samples per batch; batches are evened out, so none is tiny.
        T, encoder: images come out as [B, C, H, W] (``direct``) or as spikes [T, B, C, H, W],
            recordings as [T, B, C, H, W], texts as [B, S].
        seed: of every draw.
        epoch: says which epoch the next pass is; the draws depend on it.
        shuffle, augment: off for evaluation.
    """

    inputs: Tensor
    labels: Tensor
    batch_size: int
    T: int
    encoder: str = "direct"
    seed: int = 0
    epoch: Callable[[], int] = lambda: 0
    shuffle: bool = False
    augment: Augment = "none"

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise DataError(
                f"{len(self.inputs)} samples but {len(self.labels)} labels; samples come first, as "
                "spikedim.training.samples gives them"
            )
        if self.inputs.ndim == 5 and self.inputs.shape[1] != self.T:
            raise DataError(
                f"recordings of {self.inputs.shape[1]} frames (shape {tuple(self.inputs.shape)}, "
                f"read as [N, T, C, H, W]) for T={self.T}; spikedim.training.samples(data, split, "
                f"T={self.T}) shares them out"
            )

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch()
        order = torch.arange(len(self.inputs))
        if self.shuffle:
            order = torch.randperm(len(order), generator=stream(self.seed, epoch, _ORDER))
        noise = stream(self.seed, epoch, _NOISE)
        for index in order.tensor_split(len(self)):
            x = self.inputs[index]
            if self.augment != "none":
                x = augment(x, noise, flip=self.augment == "shift+flip")
            if self.encoder != "direct":
                x = encode(x, self.T, self.encoder, generator=noise)
            elif x.ndim == 5:
                x = x.transpose(0, 1)
            yield x, self.labels[index]


def stream(*key: int) -> torch.Generator:
    """Generator whose draws are determined by, and independent across, integer keys."""
    word = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word) & (2**63 - 1))


def augment(x: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Shift every sample by up to 1/8 of its side, filling with 0, and mirror half of them.

    All frames of a recording move together.

    Args:
        x: [B, C, H, W], standardised, so that 0 is the mean, or counts of events [B, T, C, H, W].
        generator: of the shifts and flips.
        flip: whether to mirror.
    """
    b, h, w = len(x), *x.shape[-2:]
    reach = (max(1, h // 8), max(1, w // 8))
    padded = F.pad(x.flatten(1, -3), (reach[1], reach[1], reach[0], reach[0]))
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)
    dy = torch.randint(2 * reach[0] + 1, (b,), generator=generator)
    dx = torch.randint(2 * reach[1] + 1, (b,), generator=generator)
    shifted = windows[torch.arange(b), :, dy, dx].view(x.shape)
    if not flip:
        return shifted
    mirrored = torch.rand(b, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, *[1] * (x.ndim - 1)), shifted.flip(-1), shifted)


def samples(
    dataset: Dataset,
    split: str,
    T: int,
    encoder: str = "direct",
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a split as the encoder needs them, samples first.

    ``direct`` takes standardised pixels, event counts and words as they are. Spike encoders need
    intensities, so the standardised pixels are mapped back to [0, 1] per channel with the range of
    the TRAINING samples.

    Args:
        dataset: images, event recordings or texts with labels.
        split: ``"train"`` or ``"test"``.
        T: timesteps, over which recordings are shared out; images do not depend on it.
        encoder: ``"direct"``, or for images ``"bernoulli"`` or ``"latency"``.
        limit: stratified subset of at most this many samples; ``None`` for all.

    Returns:
        Images [N, C, H, W] or recordings [N, T, C, H, W], float32, or words of texts int64 [N, S],
        and classes int64 [N].

    Raises:
        ConfigError: an unknown encoder, or one of images for recordings; a T that the frames of
            recordings cannot be brought to.
        DataError: the split is missing or has no labels, or the data are feature vectors.
    """
    check_timesteps(T)
    check_encoder(dataset, encoder)
    dataset.labels_of(dataset.split(split))
    x, y = dataset.network_input(T, split, limit)
    assert y is not None
    if dataset.kind == "events":
        x = x.transpose(0, 1)
    if encoder == "direct":
        return x, y
    reference = x if split == "train" and limit is None else dataset.tensors("train")[0]
    low = reference.amin(dim=(0, 2, 3), keepdim=True)
    high = reference.amax(dim=(0, 2, 3), keepdim=True)
    return ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1), y


def check_encoder(dataset: Dataset, encoder: str) -> None:
    """Raise ConfigError for an unknown encoder, or one of images for other data."""
    if encoder not in ENCODERS:
        raise ConfigError(f"encoder={encoder!r} is unknown; use {', '.join(ENCODERS)}")
    if encoder != "direct" and dataset.kind in _READ_AS:
        raise ConfigError(
            f"encoder={encoder!r} makes spikes of pixels, but {dataset.name} holds {dataset.kind}; "
            "use encoder='direct'"
        )


def check_trainable(dataset: Dataset, timesteps: Iterable[int], encoder: str) -> None:
    """Check before any training what would end one.

    Raises:
        ConfigError: as :func:`check_encoder`; a T that recordings cannot be brought to.
        DataError: a split is missing or has no labels.
    """
    check_encoder(dataset, encoder)
    for split in ("train", "test"):
        dataset.labels_of(dataset.split(split))
    for T in timesteps:
        dataset.check_steps(T)


def read_as(dataset: Dataset, encoder: str) -> str:
    """How inputs reach a network: by the encoder of images, as ``"frames"`` or as ``"words"``."""
    return _READ_AS.get(dataset.kind, encoder)


def why_no_prefix(dataset: Dataset, encoder: str = "direct") -> str | None:
    """Why the beginning of a run is not a run of fewer timesteps; ``None`` where it is one."""
    if dataset.kind == "events":
        return f"the T frames share out whole recordings of {dataset.name}"
    if encoder == "latency":
        return f"encoder={encoder!r} spreads its spikes over all T steps"
    return None


def forward_batch(x: Tensor, most: int) -> int:
    """Samples of one forward without gradients: ``most``, of large recordings fewer."""
    return min(most, max(1, _NUMBERS // x[0].numel())) if x.ndim == 5 and len(x) else most


def held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending indices (kept, held out) of a stratified split; ``share`` 0 keeps everything.

    Raises:
        DataError: too few samples to hold any out.
    """
    n = len(labels)
    if share == 0:
        return torch.arange(n), torch.arange(0)
    kept, out = split_indices(labels.numpy(), n, max(1, round(share * n)), seed)
    return torch.from_numpy(kept), torch.from_numpy(out)
