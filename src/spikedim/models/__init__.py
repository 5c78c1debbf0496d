"""Spiking networks: one readable file per family, a registry, checkpoints, calibration."""

from spikedim.models import spikformer_variants as _variants  # noqa: F401  fills the registry
from spikedim.models.base import Macs, SpikingModel
from spikedim.models.calibration import calibrate_batchnorm
from spikedim.models.checkpoint import LoadReport, load_checkpoint, load_model, save_checkpoint
from spikedim.models.features import Axes, LayerShape, layer_shapes, representations, visit
from spikedim.models.registry import (
    ModelEntry,
    PublishedResult,
    build_model,
    create_model,
    list_models,
    model_entry,
    register_family,
    register_model,
)
from spikedim.models.spikformer import Spikformer, SpikformerConfig

__all__ = [
    "Axes",
    "LayerShape",
    "LoadReport",
    "Macs",
    "ModelEntry",
    "PublishedResult",
    "Spikformer",
    "SpikformerConfig",
    "SpikingModel",
    "build_model",
    "calibrate_batchnorm",
    "create_model",
    "layer_shapes",
    "list_models",
    "load_checkpoint",
    "load_model",
    "model_entry",
    "register_family",
    "register_model",
    "representations",
    "save_checkpoint",
    "visit",
]
