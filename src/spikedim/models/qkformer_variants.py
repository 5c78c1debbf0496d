"""The released QKFormers with what was published about them, and small ones for a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spikedim.models.qkformer import QKFormerConfig
from spikedim.models.registry import ModelEntry, PublishedResult, register_model

_CODE = "github.com/zhouchenlin2096/QKFormer @ c2a00e8e"
_PAPER = "QKFormer (NeurIPS 2024), arXiv 2403.16552"
_LOGS = "github.com/zhouchenlin2096/QKFormer"
_ISSUE = "github.com/zhouchenlin2096/QKFormer/issues/14"
_STEP = "STEP, github.com/Fancyssc/STEP, Results.md"

_IMAGENET = QKFormerConfig(
    input_shape=(3, 224, 224),
    num_classes=1000,
    num_heads=6,
    depth=10,
    layout="imagenet",
)
_DVS = QKFormerConfig(
    input_shape=(2, 128, 128),
    embed_dim=256,
    num_heads=16,
    depth=2,
    mlp_ratio=1.0,
    layout="dvs",
)


def _paper(dataset: str, table: str, accuracy: Mapping[int, float]) -> list[PublishedResult]:
    return [PublishedResult(dataset, T, a, _PAPER, table) for T, a in accuracy.items()]


def _imagenet(accuracy: float, energy: float, T: int = 4, size: int = 224) -> PublishedResult:
    table = f"Table 1 ({size}x{size})"
    return PublishedResult("ImageNet-1K", T, accuracy, _PAPER, table, energy_mJ=energy)


def _log(dataset: str, T: int, accuracy: float) -> PublishedResult:
    return PublishedResult(dataset, T, accuracy, _LOGS, "training log, best epoch")


def _reevaluated(batched: float, alone: float) -> list[PublishedResult]:
    """The released checkpoint as measured by a user, with and without the leak over the batch."""
    tables = {"released, batched": batched, "released, batch 1 or corrected": alone}
    return [PublishedResult("ImageNet-1K", 4, a, _ISSUE, table) for table, a in tables.items()]


def _entry(
    name: str,
    what: str,
    config: QKFormerConfig,
    counts: tuple[int, float],
    *published: PublishedResult,
) -> ModelEntry:
    parameters, gmac = counts
    text = f"QKFormer HST-{config.depth}-{config.embed_dim} as released for {what}"
    return ModelEntry(
        name, "qkformer", text, config, _CODE, parameters, gmac_per_step=gmac, published=published
    )


def _small(name: str, what: str, counts: tuple[int, float], **config: Any) -> ModelEntry:
    parameters, gmac = counts
    built = QKFormerConfig(**config)
    return ModelEntry(name, "qkformer", what, built, "spikedim", parameters, gmac_per_step=gmac)


@register_model
def qkformer_4_384() -> ModelEntry:
    """The network of the published timestep ablation."""
    return _entry(
        "qkformer_4_384",
        "CIFAR",
        QKFormerConfig(),
        (6_706_234, 1.511),
        *_paper("CIFAR-10", "Table 2", {4: 96.18}),
        _log("CIFAR-10", 4, 96.21),
        PublishedResult("CIFAR-10", 4, 96.24, _STEP, "400 epochs"),
        *_paper("CIFAR-100", "Table 7", {1: 78.51, 2: 80.08, 4: 81.15, 6: 81.30}),
        _log("CIFAR-100", 4, 81.22),
        PublishedResult("CIFAR-100", 4, 79.72, _STEP, "400 epochs"),
    )


@register_model
def qkformer_10_384_imagenet() -> ModelEntry:
    """Released checkpoints lose accuracy without the leak over the batch: see ``published``."""
    return _entry(
        "qkformer_10_384_imagenet",
        "ImageNet-1K",
        _IMAGENET,
        (16_473_688, 5.831),
        _imagenet(78.80, 15.13),
        _log("ImageNet-1K", 4, 78.85),
        *_reevaluated(78.732, 74.202),
    )


@register_model
def qkformer_10_512_imagenet() -> ModelEntry:
    """Eight heads."""
    return _entry(
        "qkformer_10_512_imagenet",
        "ImageNet-1K",
        replace(_IMAGENET, embed_dim=512, num_heads=8),
        (29_079_336, 10.338),
        _imagenet(82.04, 21.99),
        _log("ImageNet-1K", 4, 82.08),
    )


@register_model
def qkformer_10_768_imagenet() -> ModelEntry:
    """Twelve heads; the best published spiking result at 384 x 384."""
    return _entry(
        "qkformer_10_768_imagenet",
        "ImageNet-1K",
        replace(_IMAGENET, embed_dim=768, num_heads=12),
        (64_962_760, 23.194),
        _imagenet(81.69, 8.52, T=1),
        _imagenet(84.22, 38.91),
        _imagenet(85.25, 64.27, size=288),
        _imagenet(85.65, 113.64, size=384),
        _log("ImageNet-1K", 4, 84.29),
        *_reevaluated(84.248, 78.698),
    )


@register_model
def qkformer_2_256_cifar10dvs() -> ModelEntry:
    """Events of 128 x 128, two polarities; MLPs do not widen."""
    return _entry(
        "qkformer_2_256_cifar10dvs",
        "CIFAR10-DVS",
        _DVS,
        (1_504_138, 0.507),
        *_paper("CIFAR10-DVS", "Table 2/3", {10: 83.8, 16: 84.0}),
        _log("CIFAR10-DVS", 16, 84.1),
    )


@register_model
def qkformer_2_256_gesture() -> ModelEntry:
    """The released code widens the MLPs four times: 2.00 M parameters, the paper counts 1.50 M."""
    return _entry(
        "qkformer_2_256_gesture",
        "DVS128 Gesture",
        replace(_DVS, num_classes=11, mlp_ratio=4.0),
        (1_999_371, 0.557),
        *_paper("DVS128 Gesture", "Table 2/3", {10: 98.3, 16: 98.6}),
    )


@register_model
def qkformer_nano() -> ModelEntry:
    """Seconds on one core."""
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 3, "mlp_ratio": 2.0}
    return _small(
        "qkformer_nano", "D=32, one block in each of three stages", (30_398, 0.0090), **sizes
    )


@register_model
def qkformer_tiny() -> ModelEntry:
    """The size of the reference tensors."""
    sizes = {"embed_dim": 64, "num_heads": 8, "depth": 4}
    return _small("qkformer_tiny", "D=64, four blocks in three stages", (190_994, 0.042), **sizes)
