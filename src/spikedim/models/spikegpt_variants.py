"""The published SpikeGPTs with what was published about them, and small ones for a CPU."""

from __future__ import annotations

from collections.abc import Mapping

from spikedim.models.registry import ModelEntry, PublishedResult, register_model
from spikedim.models.spikegpt import SpikeGPTConfig

_CODE = "github.com/ridgerchu/SpikeGPT @ 029f86f0"
_PAPER = "SpikeGPT, arXiv 2302.13939"


def _understanding(
    table: str, accuracy: Mapping[str, float], energy: Mapping[str, float] | None = None
) -> list[PublishedResult]:
    """Classification after fine-tuning; T = 1 as published, the sequence takes its place."""
    energies = energy or {}
    return [
        PublishedResult(dataset, 1, a, _PAPER, table, energy_mJ=energies.get(dataset))
        for dataset, a in accuracy.items()
    ]


def _small(
    name: str, description: str, config: SpikeGPTConfig, counts: tuple[int, float]
) -> ModelEntry:
    parameters, gmac = counts
    return ModelEntry(name, "spikegpt", description, config, "spikedim", parameters, 0, gmac)


@register_model
def spikegpt_46m() -> ModelEntry:
    """Trained on enwik8: 1.283 bits per character on its test part (paper, Table 1)."""
    return ModelEntry(
        "spikegpt_46m",
        "spikegpt",
        "12 blocks of 512 channels; GMAC per token",
        SpikeGPTConfig(num_classes=5_458, embed_dim=512, depth=12),
        _CODE,
        46_553_088,
        0,
        0.0437,
        tuple(
            _understanding(
                "NLU table, trained from scratch",
                {"SST-2": 80.39, "SST-5": 37.69, "MR": 69.23, "Subj": 88.45},
            )
        ),
    )


@register_model
def spikegpt_216m() -> ModelEntry:
    """Test perplexity 18.01 on WikiText-2 and 39.75 on WikiText-103 (paper, Table 3)."""
    return ModelEntry(
        "spikegpt_216m",
        "spikegpt",
        "18 blocks of 768 channels; GMAC per token",
        SpikeGPTConfig(),
        _CODE,
        215_399_424,
        0,
        0.1766,
        tuple(
            _understanding(
                "NLU table, pre-trained",
                {"SST-2": 88.76, "SST-5": 51.27, "MR": 85.63, "Subj": 95.3},
                {"SST-2": 1.02},
            )
        ),
    )


@register_model
def spikegpt_260m() -> ModelEntry:
    """No result of this size is in the literature table."""
    return ModelEntry(
        "spikegpt_260m",
        "spikegpt",
        "24 blocks of 768 channels; GMAC per token",
        SpikeGPTConfig(depth=24),
        _CODE,
        261_456_384,
        0,
        0.2226,
    )


@register_model
def spikegpt_nano() -> ModelEntry:
    """Seconds on one core; bytes as tokens."""
    config = SpikeGPTConfig(num_classes=256, embed_dim=32, depth=1, context=16)
    return _small("spikegpt_nano", "one block of 32 channels", config, (30_176, 2.15e-5))


@register_model
def spikegpt_tiny() -> ModelEntry:
    """The size of the reference tensors."""
    config = SpikeGPTConfig(num_classes=50, embed_dim=32, depth=2, context=16)
    return _small("spikegpt_tiny", "two blocks of 32 channels", config, (30_656, 2.82e-5))


@register_model
def spikegpt_small() -> ModelEntry:
    """Minutes on one core; bytes as tokens."""
    config = SpikeGPTConfig(num_classes=256, embed_dim=128, depth=3, context=64)
    return _small("spikegpt_small", "three blocks of 128 channels", config, (709_248, 6.72e-4))
