"""Spiking networks: one readable file per family, a registry, checkpoints, calibration."""

from spikedim.models import qkformer_variants as _qkformer  # noqa: F401  fills the registry
from spikedim.models import spike_driven_v2_variants as _spike_driven_v2  # noqa: F401
from spikedim.models import spike_driven_variants as _spike_driven  # noqa: F401
from spikedim.models import spikegpt_variants as _spikegpt  # noqa: F401
from spikedim.models import spikformer_variants as _variants  # noqa: F401
from spikedim.models import spikingbert_variants as _spikingbert  # noqa: F401
from spikedim.models import spikingresformer_variants as _spikingresformer  # noqa: F401
from spikedim.models.attention import attention_maps
from spikedim.models.base import Macs, SpikingModel
from spikedim.models.calibration import (
    batchnorm_of,
    calibrate_batchnorm,
    settle_batchnorm,
)
from spikedim.models.checkpoint import LoadReport, load_checkpoint, load_model, save_checkpoint
from spikedim.models.diagram import Diagram, Stage, diagram
from spikedim.models.features import Axes, LayerShape, layer_shapes, representations, visit
from spikedim.models.qkformer import QKFormer, QKFormerConfig
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
from spikedim.models.spike_driven import SpikeDriven, SpikeDrivenConfig
from spikedim.models.spike_driven_v2 import SpikeDrivenV2, SpikeDrivenV2Config
from spikedim.models.spikedattention import SpikedAttention, SpikedAttentionConfig, convert
from spikedim.models.spikedattention_search import (
    ConversionSearch,
    SpikeCount,
    count_spikes,
    search_timesteps,
)
from spikedim.models.spikegpt import SpikeGPT, SpikeGPTConfig, l2_wrap, language_loss
from spikedim.models.spikformer import Spikformer, SpikformerConfig
from spikedim.models.spikingbert import SpikingBERT, SpikingBERTConfig
from spikedim.models.spikingresformer import SpikingResformer, SpikingResformerConfig
from spikedim.models.vit import VisionTransformer, ViTConfig

__all__ = [
    "Axes",
    "ConversionSearch",
    "Diagram",
    "LayerShape",
    "LoadReport",
    "Macs",
    "ModelEntry",
    "PublishedResult",
    "QKFormer",
    "QKFormerConfig",
    "SpikeCount",
    "SpikeDriven",
    "SpikeDrivenConfig",
    "SpikeDrivenV2",
    "SpikeDrivenV2Config",
    "SpikeGPT",
    "SpikeGPTConfig",
    "SpikedAttention",
    "SpikedAttentionConfig",
    "Spikformer",
    "SpikformerConfig",
    "SpikingBERT",
    "SpikingBERTConfig",
    "SpikingModel",
    "SpikingResformer",
    "SpikingResformerConfig",
    "Stage",
    "ViTConfig",
    "VisionTransformer",
    "attention_maps",
    "batchnorm_of",
    "build_model",
    "calibrate_batchnorm",
    "convert",
    "count_spikes",
    "create_model",
    "diagram",
    "l2_wrap",
    "language_loss",
    "layer_shapes",
    "list_models",
    "load_checkpoint",
    "load_model",
    "model_entry",
    "register_family",
    "register_model",
    "representations",
    "save_checkpoint",
    "search_timesteps",
    "settle_batchnorm",
    "visit",
]
