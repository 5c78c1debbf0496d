"""What the verbs that look into a network share: its inputs, and the network ready to be run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from spikedim.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from spikedim.data import Dataset
    from spikedim.models import SpikingModel

SAMPLES = 256
_BATCH = 64
_BYTES = 64  # read of a text


class Inputs(NamedTuple):
    """What a network reads of a data set.

    Attributes:
        x: images [N, C, H, W], event frames [T, N, C, H, W], or words or bytes of texts [N, S].
        labels: classes [N]; ``None`` where there are none.
        T: timesteps: those asked for, or S where the time of a network is the sequence.
    """

    x: Tensor
    labels: Tensor | None
    T: int


def opened(data: str, root: Path | None, checkpoint: Path | None = None) -> Dataset:
    """The data set ``data``, read as the checkpoint's training read it, where that is known."""
    from spikedim.data import load_dataset
    from spikedim.training.network import read_like

    dataset = load_dataset(data, root)
    return dataset if checkpoint is None else read_like(dataset, checkpoint)


def tested(dataset: Dataset, seed: int) -> Dataset:
    """The data set with a test split: its own, or the samples that every training holds out.

    Raises:
        DataError: too few samples.
    """
    from spikedim.progress import note

    if dataset.test is not None:
        return dataset
    found = dataset.with_test(seed=seed)
    assert found.test is not None
    note(
        f"{dataset.name} has no test split: {len(found.test):,} of its {len(dataset.train):,} "
        f"samples are held out as one (--seed {seed})",
        topic="split",
    )
    return found


def tell_words(dataset: Dataset) -> None:
    """Say how the texts of a data set reach a network, and what is lost."""
    if dataset.kind != "text":
        return
    from spikedim.progress import note

    words = dataset.vocabulary
    split = dataset.test or dataset.train
    cut, unknown = words.losses(cast("list[str]", split.inputs))
    which = "training" if dataset.test is None else "test"
    note(
        f"texts of {dataset.name} are read as their first {words.length} words and marks, of which "
        f"{len(words.words):,} are known; of the {which} texts {100 * cut:.3g} % are cut, "
        f"{100 * unknown:.3g} % of the words are unknown",
        topic="texts",
    )


def tell_pixels(name: str, dataset: Dataset, checkpoint: Path | None) -> None:
    """Say how images reach a network that may have learned to read them otherwise."""
    from spikedim.models.checkpoint import is_ours
    from spikedim.models.registry import is_file
    from spikedim.progress import note

    elsewhere = is_file(name) if checkpoint is None else not is_ours(checkpoint)
    if dataset.kind == "image" and elsewhere:
        how, other = "pixels as they are, integers scaled to [0, 1]", ""
        if dataset.standardised:
            how = "pixels standardised by channel over the training split"
            other = "; add @raw to the name after --data to leave them in [0, 1]"
        note(f"{name} reads {how}{other}", topic="pixels")


def network_inputs(
    name: str, dataset: Dataset, split: str, limit: int, T: int, seed: int
) -> Inputs:
    """Samples of the data set as the network ``name`` reads them.

    Raises:
        DataError: the data set holds something else.
    """
    from spikedim.models.registry import reads_in_time
    from spikedim.training.network import check_reads

    check_reads(name, dataset)
    if reads_in_time(name):
        return _bytes_of(name, dataset, split, limit, seed)
    tell_words(dataset)
    return Inputs(*dataset.network_input(T, split, limit, seed), T)


def unpadded(inputs: Inputs, name: str) -> Inputs:
    """Texts cut to their median number of words, shorter ones left out: no row is padding.

    Args:
        inputs: of a network that reads words; others come back as they are.
        name: of the data set.
    """
    from spikedim.data.vocabulary import PADDING
    from spikedim.progress import note

    ids = inputs.x
    if ids.ndim != 2 or not (ids == PADDING).any():
        return inputs
    lengths = (ids != PADDING).sum(1)
    length = max(1, int(lengths.median()))
    kept = lengths >= length
    note(
        f"tokens of {name} are those of the first {length} words; {int((~kept).sum())} of "
        f"{len(ids)} texts are shorter and left out",
        topic="unpadded",
    )
    labels = None if inputs.labels is None else inputs.labels[kept]
    return Inputs(ids[kept, :length], labels, inputs.T)


def _bytes_of(name: str, dataset: Dataset, split: str, limit: int, seed: int) -> Inputs:
    """First bytes of texts as token ids, cut to the median length; shorter texts are left out."""
    import torch

    from spikedim.progress import note

    chosen = dataset.split(split).limited(limit, seed)
    texts = cast("list[str]", chosen.inputs)
    lines = [text.encode()[:_BYTES] for text in texts]
    length = max(2, sorted(map(len, lines))[len(lines) // 2])
    kept = [i for i, line in enumerate(lines) if len(line) >= length]
    if not kept:
        raise DataError(f"data set {dataset.name}: no text of 2 bytes or more")
    note(
        f"texts of {dataset.name} are read as their first {length} bytes; "
        f"{len(lines) - len(kept)} of {len(lines)} are shorter and left out",
        topic="texts",
    )
    ids = torch.tensor([list(lines[i][:length]) for i in kept])
    labels = None if chosen.labels is None else torch.as_tensor(chosen.labels[kept]).long()
    return Inputs(ids, labels, length)


def calibration_batches(
    name: str, dataset: Dataset, T: int, samples: int, seed: int
) -> Iterator[Tensor]:
    """Training inputs that an untrained network takes its batch-norm statistics from."""
    from spikedim.models.features import batch_axis

    x = network_inputs(name, dataset, "train", samples, T, seed).x
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
        ConfigError: a checkpoint of a network that reads bytes.
    """
    from spikedim.models import create_model, load_checkpoint, model_entry
    from spikedim.models.registry import reads_in_time
    from spikedim.training.network import network_for

    if reads_in_time(name):
        if checkpoint is not None:
            raise ConfigError(
                f"--checkpoint of {name}: a trained language model needs its tokeniser, the "
                "command line reads texts as bytes; call the function of this verb in Python with "
                "token ids"
            )
        room = max(256, model_entry(name).config.num_classes)  # for every byte
        return create_model(name, seed=seed, num_classes=room, **options)
    tell_pixels(name, dataset, checkpoint)
    network = network_for(name, dataset, seed=seed, **options)
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    return network


class Ready(NamedTuple):
    """A network to look into.

    Attributes:
        network: the network.
        trained: as :func:`spikedim.models.calibration.is_trained` tells.
        state: which weights it has, in words.
    """

    network: SpikingModel
    trained: bool | None
    state: str


def ready_network(
    name: str,
    dataset: Dataset,
    T: int,
    checkpoint: Path | None,
    seed: int,
    samples: int = SAMPLES,
    **options: Any,
) -> Ready:
    """:func:`shaped_network` with batch-norm statistics.

    Fresh batch norm is calibrated on the data. A checkpoint and a network that brings statistics
    of its own are taken as they are.

    Args:
        T: timesteps that the statistics are taken over.
        samples: of the training split, for the statistics.
        name, dataset, checkpoint, seed, options: as there.
    """
    from spikedim.models import settle_batchnorm
    from spikedim.models.calibration import is_trained, weights_in_words
    from spikedim.progress import note

    network = shaped_network(name, dataset, checkpoint, seed, **options)
    samples = min(samples, len(dataset.train))
    if checkpoint is not None:
        return Ready(
            network, is_trained(name, checkpoint), weights_in_words(name, checkpoint, samples)
        )
    batches = calibration_batches(name, dataset, T, samples, seed)
    found = settle_batchnorm(network, batches, T)
    state = weights_in_words(name, None, samples, T, found)
    note(f"{name}: {state}")
    return Ready(network, is_trained(name, None, found), state)


def require_distinct(name: str, networks: Sequence[SpikingModel], seed: int) -> None:
    """Refuse several initialisations of a network whose weights do not depend on the seed.

    Args:
        name: of the network.
        networks: made with ``seed``, ``seed + 1`` and so on, their batch norm as it was made.
        seed: of the first.

    Raises:
        ConfigError: two of them are the same.
    """
    for second, network in enumerate(networks):
        for first, other in enumerate(networks[:second]):
            if _same_state(network, other):
                raise ConfigError(
                    f"--initialisations {len(networks)}: {name} makes the same weights with seeds "
                    f"{seed + first} and {seed + second}, so they say nothing about others: leave "
                    "the option out"
                )


def _same_state(a: SpikingModel, b: SpikingModel) -> bool:
    import torch

    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))
