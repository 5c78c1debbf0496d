"""The released SpikingResformers with what was published about them, and small ones for a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from spikedim.models.registry import ModelEntry, PublishedResult, register_model
from spikedim.models.spikingresformer import SpikingResformerConfig

_CODE = "github.com/xyshi2000/SpikingResformer @ 3f751275"
_PAPER = "SpikingResformer (CVPR 2024), arXiv 2403.14302, via a secondary summary"
_LISTING = "wizwand.com/paper/68fa72ac1e209131cea57c65 (secondary)"
_AUDIT = "third-party audit of the released Ti checkpoint"
_STEP = "STEP, github.com/Fancyssc/STEP, Results.md"

_CIFAR = SpikingResformerConfig()
_IMAGENET = replace(
    _CIFAR, input_shape=(3, 224, 224), num_classes=1000, prologue="imagenet"
)  # Ti; the others are wider
_WIDTHS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "Ti": ((64, 192, 384), (1, 3, 6)),
    "S": ((64, 256, 512), (1, 4, 8)),
    "M": ((64, 384, 768), (1, 6, 12)),
    "L": ((128, 512, 1024), (2, 8, 16)),
}


def _entry(
    name: str,
    description: str,
    config: SpikingResformerConfig,
    counts: tuple[int, float],
    *published: PublishedResult,
    source: str = _CODE,
) -> ModelEntry:
    parameters, gmac = counts
    return ModelEntry(
        name, "spikingresformer", description, config, source, parameters, 0, gmac, published
    )


def _wide(size: str, config: SpikingResformerConfig) -> SpikingResformerConfig:
    planes, heads = _WIDTHS[size]
    return replace(config, planes=planes, num_heads=heads)


def _imagenet(size: str, counts: tuple[int, float], *published: PublishedResult) -> ModelEntry:
    name = f"spikingresformer_{size.lower()}_imagenet"
    description = f"SpikingResformer-{size} as released for ImageNet-1K"
    return _entry(name, description, _wide(size, _IMAGENET), counts, *published)


def _paper(accuracy: float, sops: float | None, energy: float | None) -> PublishedResult:
    return PublishedResult(
        "ImageNet-1K", 4, accuracy, _PAPER, "Table 2", sops_G=sops, energy_mJ=energy
    )


def _transfer(dataset: str, T: int, accuracy: float) -> PublishedResult:
    return PublishedResult(dataset, T, accuracy, _PAPER, "Table 4 (transfer from ImageNet)")


@register_model
def spikingresformer_ti_imagenet() -> ModelEntry:
    """The only size whose released checkpoint a third party has measured again."""
    return _imagenet(
        "Ti",
        (11_180_992, 3.742),
        _paper(74.34, 2.73, 2.46),
        PublishedResult(
            "ImageNet-1K", 4, 74.382, _AUDIT, "stem computed once, density 0.18", energy_mJ=2.978
        ),
    )


@register_model
def spikingresformer_s_imagenet() -> ModelEntry:
    """No accuracy of this size is in the literature table."""
    return _imagenet("S", (17_813_824, 5.513))


@register_model
def spikingresformer_m_imagenet() -> ModelEntry:
    """Published as 35.52 M parameters, which leaves out batch norm."""
    return _imagenet("M", (35_601_472, 10.202), _paper(77.24, 6.07, 5.46))


@register_model
def spikingresformer_l_imagenet() -> ModelEntry:
    """The best published accuracy needs input_shape=(3, 288, 288)."""
    return _imagenet(
        "L",
        (60_375_680, 17.655),
        PublishedResult("ImageNet-1K", 4, 78.77, _LISTING, "resolution not stated, 224 assumed"),
        PublishedResult("ImageNet-1K", 4, 79.4, _PAPER, "abstract, Table 2 (288 x 288)"),
    )


@register_model
def spikingresformer_s_transfer() -> ModelEntry:
    """That the published transfer results are of size S is read from the released recipe."""
    config = replace(_wide("S", _IMAGENET), input_shape=(3, 128, 128), num_classes=10)
    return _entry(
        "spikingresformer_s_transfer",
        "SpikingResformer-S as fine-tuned from ImageNet on 128 x 128",
        config,
        (17_306_944, 1.800),
        _transfer("CIFAR-10", 4, 97.4),
        _transfer("CIFAR-100", 4, 85.98),
        _transfer("CIFAR10-DVS", 10, 84.8),
    )


@register_model
def spikingresformer_ti_cifar() -> ModelEntry:
    """Trained on CIFAR directly."""
    return _entry(
        "spikingresformer_ti_cifar",
        "SpikingResformer-Ti with a 3 x 3 prologue as released for CIFAR",
        _CIFAR,
        (10_793_152, 1.185),
        PublishedResult("CIFAR-10", 4, 95.69, _STEP, "400 epochs"),
        PublishedResult("CIFAR-100", 4, 79.45, _STEP, "400 epochs"),
    )


@register_model
def spikingresformer_gesture() -> ModelEntry:
    """Three channels: two polarities and their sum."""
    config = SpikingResformerConfig(
        input_shape=(3, 64, 64),
        num_classes=11,
        planes=(32, 96, 192),
        group_size=32,
        plif=True,
    )
    return _entry(
        "spikingresformer_gesture",
        "half as wide, with learned leaks, as released for DVS128 Gesture",
        config,
        (2_709_830, 1.187),
    )


@register_model
def spikingresformer_nano() -> ModelEntry:
    """Seconds on one core."""
    config = SpikingResformerConfig(
        planes=(16, 32), num_heads=(1, 2), depths=(1, 1), patch_sizes=(2, 1), group_size=16
    )
    text = "two stages of widths 16, 32; image sides divisible by 2"
    return _entry("spikingresformer_nano", text, config, (49_872, 0.022), source="spikedim")


@register_model
def spikingresformer_tiny() -> ModelEntry:
    """The size of the reference tensors."""
    config = SpikingResformerConfig(
        planes=(16, 32, 64), num_heads=(1, 2, 4), depths=(1, 1, 1), group_size=16
    )
    text = "three stages of widths 16, 32, 64; image sides divisible by 4"
    return _entry("spikingresformer_tiny", text, config, (164_496, 0.028), source="spikedim")


@register_model
def spikingresformer_small() -> ModelEntry:
    """The largest that trains on a laptop."""
    config = SpikingResformerConfig(planes=(32, 64, 128), num_heads=(1, 2, 4), group_size=32)
    text = "three stages of widths 32, 64, 128; image sides divisible by 4"
    return _entry("spikingresformer_small", text, config, (1_456_416, 0.183), source="spikedim")
