"""The released Spikformers with what was published about them, and small ones for a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spikedim.models.registry import ModelEntry, PublishedResult, register_model
from spikedim.models.spikformer import SpikformerConfig

_CODE = "github.com/ZK-Zhou/spikformer @ 62126898"
_PAPER = "Spikformer (ICLR 2023), arXiv 2209.15425"
_RERUN = "TDFormer, arXiv 2505.15840"
_STEP = "STEP, github.com/Fancyssc/STEP, Results.md"
_RECOUNT = "Spikingformer, github.com/zhouchenlin2096/Spikingformer"

_CIFAR = SpikformerConfig(pools=(False, False, True, True))
_IMAGENET = SpikformerConfig(
    input_shape=(3, 224, 224),
    num_classes=1000,
    embed_dim=512,
    num_heads=8,
    depth=8,
    layout="imagenet",
    pools=(True, True, True, True),
)
_DVS = SpikformerConfig(
    input_shape=(2, 128, 128),
    embed_dim=256,
    num_heads=16,
    depth=2,
    layout="dvs",
    pools=(True, True, True, True),
)


def _paper(dataset: str, table: str, accuracy: Mapping[int, float]) -> list[PublishedResult]:
    return [PublishedResult(dataset, T, a, _PAPER, table) for T, a in accuracy.items()]


def _rerun(dataset: str, rows: Mapping[int, tuple[float, float]]) -> list[PublishedResult]:
    return [
        PublishedResult(dataset, T, mean, _RERUN, "Table 5 baseline column", std, 5)
        for T, (mean, std) in rows.items()
    ]


def _imagenet(accuracy: float, sops: float, energy: float) -> PublishedResult:
    table = "Table 2 (224x224)"
    return PublishedResult("ImageNet-1K", 4, accuracy, _PAPER, table, sops_G=sops, energy_mJ=energy)


def _recount(energy: float) -> PublishedResult:
    table = "integer residual inputs charged as MAC"
    return PublishedResult("ImageNet-1K", 4, None, _RECOUNT, table, energy_mJ=energy)


def _entry(
    name: str,
    dataset: str,
    config: SpikformerConfig,
    counts: tuple[int, int, float],
    *published: PublishedResult,
) -> ModelEntry:
    parameters, unused, gmac = counts
    return ModelEntry(
        name,
        "spikformer",
        f"Spikformer-{config.depth}-{config.embed_dim} as released for {dataset}",
        config,
        _CODE,
        parameters,
        unused,
        gmac,
        published,
    )


def _small(
    name: str, description: str, counts: tuple[int, int, float], **config: Any
) -> ModelEntry:
    text = f"{description}; stem pooled to the image"
    return ModelEntry(name, "spikformer", text, SpikformerConfig(**config), "spikedim", *counts)


@register_model
def spikformer_4_256() -> ModelEntry:
    """Heads of the D=256 networks are not in the release; 8 keep the head width 32 of D=384."""
    return _entry(
        "spikformer_4_256",
        "CIFAR",
        replace(_CIFAR, embed_dim=256, num_heads=8),
        (4_159_274, 4_096, 0.410),
        *_paper("CIFAR-10", "Table 3", {4: 93.94}),
        *_paper("CIFAR-100", "Table 3", {4: 75.96}),
    )


@register_model
def spikformer_2_384() -> ModelEntry:
    """Two blocks."""
    return _entry(
        "spikformer_2_384",
        "CIFAR",
        replace(_CIFAR, depth=2),
        (5_768_122, 3_072, 0.695),
        *_paper("CIFAR-10", "Table 3", {4: 94.80}),
        *_rerun("CIFAR-10", {2: (94.18, 0.06), 4: (94.84, 0.14)}),
        *_paper("CIFAR-100", "Table 3", {4: 76.95}),
    )


@register_model
def spikformer_4_384() -> ModelEntry:
    """The network of the published timestep ablation."""
    return _entry(
        "spikformer_4_384",
        "CIFAR",
        _CIFAR,
        (9_330_874, 6_144, 0.921),
        *_paper("CIFAR-10", "Table 5", {1: 93.51, 2: 93.59, 4: 95.19, 6: 95.34}),
        *_paper("CIFAR-10", "Table 3 (400 epochs)", {4: 95.51}),
        *_rerun("CIFAR-10", {2: (93.65, 0.23), 4: (94.73, 0.06), 6: (95.09, 0.08)}),
        PublishedResult("CIFAR-10", 4, 95.12, _STEP, "400 epochs"),
        *_paper("CIFAR-100", "Table 5", {1: 74.36, 2: 76.28, 4: 77.86, 6: 78.61}),
        *_paper("CIFAR-100", "Table 3 (400 epochs)", {4: 78.21}),
        *_rerun("CIFAR-100", {2: (75.25, 0.19), 4: (77.56, 0.22), 6: (78.21, 0.22)}),
        PublishedResult("CIFAR-100", 4, 77.37, _STEP, "400 epochs"),
    )


@register_model
def spikformer_8_384_imagenet() -> ModelEntry:
    """No checkpoint of an ImageNet network was ever released."""
    return _entry(
        "spikformer_8_384_imagenet",
        "ImageNet-1K",
        replace(_IMAGENET, embed_dim=384),
        (16_828_312, 12_288, 4.660),
        _imagenet(70.24, 6.82, 7.734),
        _recount(12.43),
    )


@register_model
def spikformer_6_512_imagenet() -> ModelEntry:
    """Six blocks."""
    return _entry(
        "spikformer_6_512_imagenet",
        "ImageNet-1K",
        replace(_IMAGENET, depth=6),
        (23_385_640, 12_288, 7.023),
        _imagenet(72.46, 8.69, 9.417),
    )


@register_model
def spikformer_8_512_imagenet() -> ModelEntry:
    """The network of the published ImageNet timestep ablation."""
    return _entry(
        "spikformer_8_512_imagenet",
        "ImageNet-1K",
        _IMAGENET,
        (29_705_768, 16_384, 8.256),
        _imagenet(73.38, 11.09, 11.577),
        *_paper("ImageNet-1K", "Table 5", {1: 70.14, 2: 71.09, 6: 73.70}),
        _recount(18.82),
    )


@register_model
def spikformer_10_512_imagenet() -> ModelEntry:
    """Ten blocks."""
    return _entry(
        "spikformer_10_512_imagenet",
        "ImageNet-1K",
        replace(_IMAGENET, depth=10),
        (36_025_896, 20_480, 9.489),
        _imagenet(73.68, 13.67, 13.899),
    )


@register_model
def spikformer_8_768_imagenet() -> ModelEntry:
    """The widest."""
    return _entry(
        "spikformer_8_768_imagenet",
        "ImageNet-1K",
        replace(_IMAGENET, embed_dim=768),
        (66_363_208, 24_576, 18.512),
        _imagenet(74.81, 22.09, 21.477),
        _recount(32.07),
    )


@register_model
def spikformer_2_256_cifar10dvs() -> ModelEntry:
    """Events of 128 x 128, two polarities."""
    return _entry(
        "spikformer_2_256_cifar10dvs",
        "CIFAR10-DVS",
        _DVS,
        (2_585_610, 18_944, 0.374),
        *_paper("CIFAR10-DVS", "Table 4", {10: 78.9, 16: 80.9}),
        *_rerun("CIFAR10-DVS", {10: (78.08, 0.70), 16: (79.40, 0.36)}),
    )


@register_model
def spikformer_2_256_gesture() -> ModelEntry:
    """The paper adds a 1-D max-pool after q and k for gestures; this is the released base."""
    return _entry(
        "spikformer_2_256_gesture",
        "DVS128 Gesture",
        replace(_DVS, num_classes=11),
        (2_585_867, 18_944, 0.374),
        *_paper("DVS128 Gesture", "Table 4", {10: 96.9, 16: 98.3}),
    )


@register_model
def spikformer_nano() -> ModelEntry:
    """Seconds on one core."""
    counts = (24_878, 128, 0.0039)
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 1, "mlp_ratio": 2.0}
    return _small("spikformer_nano", "D=32, one block", counts, **sizes)


@register_model
def spikformer_micro() -> ModelEntry:
    """Minutes on one core."""
    counts = (113_426, 256, 0.016)
    sizes = {"embed_dim": 64, "num_heads": 4, "depth": 1}
    return _small("spikformer_micro", "D=64, one block", counts, **sizes)


@register_model
def spikformer_tiny() -> ModelEntry:
    """The size of the reference tensors."""
    counts = (164_562, 512, 0.019)
    sizes = {"embed_dim": 64, "num_heads": 4, "depth": 2}
    return _small("spikformer_tiny", "D=64, two blocks", counts, **sizes)


@register_model
def spikformer_small() -> ModelEntry:
    """The largest that trains on a laptop."""
    counts = (647_834, 1_024, 0.078)
    sizes = {"embed_dim": 128, "num_heads": 4, "depth": 2}
    return _small("spikformer_small", "D=128, two blocks", counts, **sizes)
