"""The network of a training, shaped for its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from spikedim.data import Dataset
from spikedim.data.vocabulary import PADDING, Vocabulary
from spikedim.errors import DataError, ModelError
from spikedim.models import SpikingModel, create_model, model_entry
from spikedim.models.base import override
from spikedim.models.checkpoint import stored_beside
from spikedim.models.registry import reads_in_time, reads_text
from spikedim.neurons import LIFParams

_WORDS, _PIXELS, _RAW = "vocabulary", "pixels", "raw"


def network_for(
    model_name: str, dataset: Dataset, *, seed: int | None = 0, **options: Any
) -> SpikingModel:
    """:func:`spikedim.models.create_model` with the classes and the input of a data set.

    A network of images or recordings takes their (C, H, W); one of texts the size and length of
    their vocabulary, with padding masked.

    Args:
        model_name: see :func:`spikedim.models.list_models`.
        dataset: what it reads.
        seed: of the weights.
        options: further ones of ``create_model``.

    Raises:
        DataError: the network reads another kind of data.
        ModelError: as ``create_model``; or a network whose timesteps are the tokens of a text.
    """
    check_reads(model_name, dataset)
    if dataset.kind != "text":
        options["input_shape"] = dataset.input_shape
    elif reads_in_time(model_name):
        raise ModelError(
            f"the timesteps of {model_name} are the tokens of a text: there is no T to choose; for "
            "instance spikingbert_nano classifies texts in T timesteps"
        )
    else:
        words = dataset.vocabulary
        options |= {"vocabulary": words.size, "positions": words.length, "padding": PADDING}
    classes = dataset.num_classes or None
    return create_model(model_name, num_classes=classes, seed=seed, **options)


def check_neuron(model_name: str, neuron: LIFParams | None) -> None:
    """Raise ConfigError if the network cannot have these neurons."""
    config = model_entry(model_name).config
    if neuron is not None and hasattr(config, "neuron"):
        override(config, {"neuron": neuron})


def reading_of(dataset: Dataset) -> dict[str, str]:
    """What :func:`spikedim.models.save_checkpoint` stores beside weights: how data are read."""
    if dataset.kind == "text":
        return {_WORDS: dataset.vocabulary.to_json()}
    return {} if dataset.standardised else {_PIXELS: _RAW}


def read_like(dataset: Dataset, checkpoint: str | Path) -> Dataset:
    """Texts and images as the network of a checkpoint learned to read them."""
    if dataset.kind == "text" and (stored := stored_beside(checkpoint, _WORDS)) is not None:
        return replace(dataset, words=Vocabulary.from_json(stored))
    if dataset.kind == "image" and stored_beside(checkpoint, _PIXELS) == _RAW:
        return dataset.raw()
    return dataset


def check_reads(model_name: str, dataset: Dataset) -> None:
    """Raise DataError if the network reads another kind of data than the data set holds."""
    text = reads_text(model_name)
    if dataset.kind not in (("text",) if text else ("image", "events")):
        wanted = "texts, e.g. --data sst2" if text else "images or events, e.g. --data digits"
        other = "spikformer_tiny" if text else "spikingbert_nano"
        mend = f", or take --model {other}"
        if dataset.kind == "features":
            mend = "; features without a network are for spikedim measure"
        raise DataError(
            f"data set {dataset.name} holds {dataset.kind}; {model_name} reads {wanted}{mend}"
        )
