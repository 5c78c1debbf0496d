"""Small spiking transformers on the built-in digits, shared by the checks that need one."""

from __future__ import annotations

import logging
from functools import lru_cache
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from spikedim.data import Dataset, load_dataset
from spikedim.models import SpikingModel, calibrate_batchnorm, create_model
from spikedim.training import default_config, fit

NAME = "spikformer_nano"


@lru_cache
def digits() -> Dataset:
    """The built-in data set."""
    return load_dataset("digits")


def network(trained: bool, T: int = 4, heads: int = 2, seed: int = 0) -> SpikingModel:
    """Trained at T by the default recipe, or with fresh weights and calibrated batch norm."""
    return _network(trained, T, heads, seed)


@lru_cache(maxsize=64)
def _network(trained: bool, T: int, heads: int, seed: int) -> SpikingModel:
    data = digits()
    model = create_model(
        NAME, num_classes=10, input_shape=data.input_shape, seed=seed, num_heads=heads
    )
    if not trained:
        images, _ = data.tensors("train", 256, seed)
        calibrate_batchnorm(model, images.split(64), T)
        return model.eval()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = default_config(NAME, data, seed=seed)
    with TemporaryDirectory() as place:
        fit(model, data, config, T, place, label=f"train T={T}, {heads} heads")
    return model.eval()


@torch.no_grad()
def correct(T: int, seed: int = 0) -> np.ndarray:
    """0/1 per test image of the network trained and tested at T."""
    x, y = digits().tensors("test")
    hits: Tensor = network(True, T, seed=seed)(x, T).argmax(1) == y
    return hits.numpy().astype(np.uint8)
