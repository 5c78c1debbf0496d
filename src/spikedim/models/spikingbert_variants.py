"""The released SpikingBERTs with what was published about them, and small ones for a CPU."""

from __future__ import annotations

from dataclasses import replace

from spikedim.models.registry import ModelEntry, PublishedResult, register_model
from spikedim.models.spikingbert import SpikingBERTConfig

_CODE = "github.com/NeuroCompLab-psu/SpikingBERT @ 765e39b9"
_PAPER = "SpikingBERT (AAAI 2024), arXiv 2308.10873"
_LOG = "github.com/NeuroCompLab-psu/SpikingBERT"
_GENERAL = SpikingBERTConfig(num_classes=None)


def _paper(task: str, accuracy: float) -> PublishedResult:
    return PublishedResult(f"{task} (GLUE)", 125, accuracy, _PAPER, "GLUE table")


@register_model
def spikingbert_4() -> ModelEntry:
    """Three classes (``num_classes=3``) for MNLI."""
    return ModelEntry(
        "spikingbert_4",
        "spikingbert",
        "SpikingBERT, 4 encoders of BERT-base width, classifier as released for GLUE",
        SpikingBERTConfig(),
        _CODE,
        53_961_218,
        1_771_008,
        14.496,
        (
            _paper("QQP", 86.82),
            _paper("MNLI-m", 78.1),
            _paper("SST-2", 88.19),
            _paper("QNLI", 85.2),
            _paper("RTE", 66.06),
            PublishedResult("SST-2 (GLUE)", 125, 88.19, _LOG, "log"),
        ),
    )


@register_model
def spikingbert_4_general() -> ModelEntry:
    """Before the tasks: no classifier."""
    return ModelEntry(
        "spikingbert_4_general",
        "spikingbert",
        "SpikingBERT, 4 encoders, as released after general distillation (no classifier)",
        _GENERAL,
        _CODE,
        53_369_088,
        589_824,
        14.496,
    )


@register_model
def spikingbert_2_general() -> ModelEntry:
    """The released file whose neurons leak."""
    return ModelEntry(
        "spikingbert_2_general",
        "spikingbert",
        "SpikingBERT, 2 encoders, leak 0.99, as released after general distillation",
        replace(_GENERAL, depth=2, neuron=replace(_GENERAL.neuron, beta=0.99)),
        _CODE,
        39_193_344,
        589_824,
        7.248,
    )


@register_model
def spikingbert_nano() -> ModelEntry:
    """Seconds on one core."""
    config = SpikingBERTConfig(
        vocabulary=100,
        positions=32,
        hidden=32,
        num_heads=4,
        depth=1,
        intermediate=64,
        init_std=0.2,
    )
    return ModelEntry(
        "spikingbert_nano", "spikingbert", "D=32, one encoder, 100 words", config, "spikedim"
    )


@register_model
def spikingbert_small() -> ModelEntry:
    """Trains from scratch on ten thousand phrases in minutes on one core."""
    config = SpikingBERTConfig(
        vocabulary=8192,
        positions=64,
        hidden=32,
        num_heads=4,
        depth=1,
        intermediate=64,
        dropout=0.3,
        init_std=0.15,
    )
    return ModelEntry(
        "spikingbert_small", "spikingbert", "D=32, one encoder, 8192 words", config, "spikedim"
    )
