"""What the verbs that look into a network share: its inputs, and the network ready to be run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedim.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from spikedim.data import Dataset
    from spikedim.models import SpikingModel

SAMPLES = 256
_BATCH = 64


def network_inputs(
    dataset: Dataset, split: str, limit: int, T: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Images [N, C, H, W] or event frames [T, N, C, H, W], and the classes [N] if there are any.

    Raises:
        DataError: the data set holds neither images nor events.
    """
    if dataset.kind not in ("image", "events"):
        raise DataError(
            f"data set {dataset.name} holds {dataset.kind}; --model needs images or events"
        )
    return dataset.network_input(T, split, limit, seed)


def calibration_batches(dataset: Dataset, T: int, samples: int, seed: int) -> Iterator[Tensor]:
    """Training inputs that an untrained network takes its batch-norm statistics from."""
    from spikedim.models.features import batch_axis

    x, _ = network_inputs(dataset, "train", samples, T, seed)
    yield from x.split(_BATCH, batch_axis(x))


def shaped_network(
    name: str, dataset: Dataset, checkpoint: Path | None, seed: int, **options: Any
) -> SpikingModel:
    """The network shaped for the data, with the weights of the checkpoint where there is one.

    Args:
        name: of a network, or FILE.py:FUNCTION.
        dataset: gives the number of classes and the shape of an input.
        checkpoint: weights, or ``None``.
        seed: of fresh weights.
        options: of :func:`spikedim.models.create_model`.

    Raises:
        ModelError, CheckpointError: as ``create_model`` and ``load_checkpoint``.
    """
    from spikedim.models import create_model, load_checkpoint

    network = create_model(
        name,
        num_classes=dataset.num_classes or None,
        input_shape=dataset.input_shape,
        seed=seed,
        **options,
    )
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    return network


def ready_network(
    name: str,
    dataset: Dataset,
    T: int,
    checkpoint: Path | None,
    seed: int,
    samples: int = SAMPLES,
    **options: Any,
) -> tuple[SpikingModel, bool]:
    """:func:`shaped_network` with batch-norm statistics, and whether it is a trained one.

    Fresh batch norm is calibrated on the data. A checkpoint and a network that brings statistics
    of its own are taken as they are.

    Args:
        T: timesteps that the statistics are taken over.
        samples: of the training split, for the statistics.
        name, dataset, checkpoint, seed, options: as there.
    """
    from spikedim.models import settle_batchnorm
    from spikedim.progress import note

    network = shaped_network(name, dataset, checkpoint, seed, **options)
    if checkpoint is not None:
        return network, True
    batches = calibration_batches(dataset, T, samples, seed)
    trained, how = settle_batchnorm(network, batches, T)
    note(f"{name}: {how}")
    return network, trained
