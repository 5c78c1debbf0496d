"""The released Spike-driven Transformers with what was published, and small ones for a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spikedim.models.registry import ModelEntry, PublishedResult, register_model
from spikedim.models.spike_driven import SpikeDrivenConfig

_CODE = "github.com/BICLab/Spike-Driven-Transformer @ 3faa8227"
_README = "Spike-driven Transformer (NeurIPS 2023), github.com/BICLab/Spike-Driven-Transformer"
_QUOTED = "QKFormer (NeurIPS 2024), arXiv 2403.16552"
_MAXFORMER = "Max-Former, arXiv 2505.18608"
_RERUN = "TDFormer, arXiv 2505.15840"
_STEP = "STEP, github.com/Fancyssc/STEP, Results.md"

_CIFAR = SpikeDrivenConfig(pools=(False, False, True, True))
_IMAGENET = SpikeDrivenConfig(
    input_shape=(3, 224, 224),
    num_classes=1000,
    depth=8,
    pools=(True, True, True, True),
)
_CIFAR10DVS = SpikeDrivenConfig(
    input_shape=(2, 64, 64),
    embed_dim=256,
    pools=(False, False, True, True),
    local_pool=True,
)
_GESTURE = SpikeDrivenConfig(
    input_shape=(2, 128, 128),
    num_classes=11,
    embed_dim=256,
    pools=(False, True, True, True),
)


def _rerun(dataset: str, rows: Mapping[int, tuple[float, float]]) -> list[PublishedResult]:
    return [
        PublishedResult(dataset, T, mean, _RERUN, "Table 5 baseline column", std, 5)
        for T, (mean, std) in rows.items()
    ]


def _quoted(
    dataset: str, table: str, T: int, accuracy: float, energy: float | None = None
) -> PublishedResult:
    return PublishedResult(dataset, T, accuracy, _QUOTED, f"{table} (quoted)", energy_mJ=energy)


def _imagenet(accuracy: float, energy: float, size: int = 224) -> PublishedResult:
    table = f"README results table ({size}x{size})"
    return PublishedResult("ImageNet-1K", 4, accuracy, _README, table, energy_mJ=energy)


def _entry(
    name: str,
    what: str,
    config: SpikeDrivenConfig,
    counts: tuple[int, int, float],
    *published: PublishedResult,
) -> ModelEntry:
    text = f"Spike-driven Transformer-{config.depth}-{config.embed_dim} as released for {what}"
    return ModelEntry(name, "spike_driven", text, config, _CODE, *counts, published)


def _on_imagenet(
    name: str,
    depth: int,
    width: int,
    counts: tuple[int, int, float],
    *published: PublishedResult,
) -> ModelEntry:
    return _entry(
        name, "ImageNet-1K", replace(_IMAGENET, depth=depth, embed_dim=width), counts, *published
    )


def _small(name: str, what: str, counts: tuple[int, int, float], **config: Any) -> ModelEntry:
    text = f"{what}; stem pooled to the image"
    return ModelEntry(name, "spike_driven", text, SpikeDrivenConfig(**config), "spikedim", *counts)


@register_model
def spike_driven_2_256() -> ModelEntry:
    """Two narrow blocks."""
    return _entry(
        "spike_driven_2_256",
        "CIFAR",
        replace(_CIFAR, embed_dim=256),
        (2_567_082, 128, 0.309),
        *_rerun("CIFAR-10", {4: (94.47, 0.11)}),
        *_rerun("CIFAR-100", {4: (76.15, 0.13)}),
    )


@register_model
def spike_driven_2_512() -> ModelEntry:
    """The published CIFAR network."""
    return _entry(
        "spike_driven_2_512",
        "CIFAR",
        _CIFAR,
        (10_233_546, 128, 1.235),
        _quoted("CIFAR-10", "Table 2", 4, 95.6),
        *_rerun("CIFAR-10", {4: (95.76, 0.06)}),
        PublishedResult("CIFAR-10", 4, 95.79, _STEP, "400 epochs (width not stated)"),
        _quoted("CIFAR-100", "Table 2", 4, 78.4),
        *_rerun("CIFAR-100", {4: (79.15, 0.14)}),
        PublishedResult("CIFAR-100", 4, 78.29, _STEP, "400 epochs (width not stated)"),
    )


@register_model
def spike_driven_8_384_imagenet() -> ModelEntry:
    """The narrowest."""
    counts = (16_816_536, 512, 4.661)
    return _on_imagenet("spike_driven_8_384_imagenet", 8, 384, counts, _imagenet(72.28, 3.90))


@register_model
def spike_driven_6_512_imagenet() -> ModelEntry:
    """Six blocks."""
    counts = (23_373_736, 384, 7.024)
    return _on_imagenet("spike_driven_6_512_imagenet", 6, 512, counts, _imagenet(74.11, 3.56))


@register_model
def spike_driven_8_512_imagenet() -> ModelEntry:
    """Eight blocks."""
    return _on_imagenet(
        "spike_driven_8_512_imagenet",
        8,
        512,
        (29_689_896, 512, 8.257),
        _quoted("ImageNet-1K", "Table 1", 1, 71.68, 1.13),
        _imagenet(74.57, 4.50),
    )


@register_model
def spike_driven_10_512_imagenet() -> ModelEntry:
    """Ten blocks."""
    counts = (36_006_056, 640, 9.490)
    return _on_imagenet("spike_driven_10_512_imagenet", 10, 512, counts, _imagenet(74.66, 5.53))


@register_model
def spike_driven_8_768_imagenet() -> ModelEntry:
    """The widest."""
    return _on_imagenet(
        "spike_driven_8_768_imagenet",
        8,
        768,
        (66_339_144, 512, 18.512),
        PublishedResult(
            "ImageNet-1K", 4, 76.3, _MAXFORMER, "ImageNet table (quoted, 224x224)", energy_mJ=6.1
        ),
        _imagenet(77.07, 6.09, size=288),
    )


@register_model
def spike_driven_2_256_cifar10dvs() -> ModelEntry:
    """Events of 64 x 64, two polarities; max-pools mix neighbouring tokens."""
    return _entry(
        "spike_driven_2_256_cifar10dvs",
        "CIFAR10-DVS",
        _CIFAR10DVS,
        (2_566_794, 128, 1.235),
        *_rerun("CIFAR10-DVS", {10: (75.03, 0.67), 16: (77.07, 0.19)}),
        _quoted("CIFAR10-DVS", "Table 2", 16, 80.0),
    )


@register_model
def spike_driven_2_256_gesture() -> ModelEntry:
    """Events of 128 x 128, two polarities."""
    return _entry(
        "spike_driven_2_256_gesture",
        "DVS128 Gesture",
        _GESTURE,
        (2_567_051, 128, 1.469),
        *_rerun("DVS128 Gesture", {10: (96.79, 0.67), 16: (97.98, 0.59)}),
        _quoted("DVS128 Gesture", "Table 2", 16, 99.3),
    )


@register_model
def spike_driven_nano() -> ModelEntry:
    """Seconds on one core."""
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 1, "mlp_ratio": 2.0}
    return _small("spike_driven_nano", "D=32, one block", (24_658, 4, 0.0039), **sizes)


@register_model
def spike_driven_tiny() -> ModelEntry:
    """The size of the reference tensors."""
    return _small("spike_driven_tiny", "D=64, two blocks", (163_794, 128, 0.019), embed_dim=64)
