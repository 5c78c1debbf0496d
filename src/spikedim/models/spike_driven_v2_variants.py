"""The released Meta-SpikeFormers with what was published about them, and small ones for a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spikedim.models.registry import ModelEntry, PublishedResult, register_model
from spikedim.models.spike_driven_v2 import SpikeDrivenV2Config
from spikedim.neurons import LIFParams

_CODE = "github.com/BICLab/Spike-Driven-Transformer-V2 @ 35f245f4"
_MAXFORMER = "Max-Former, arXiv 2505.18608"
_TDFORMER = "TDFormer, arXiv 2505.15840"

_IMAGENET = SpikeDrivenV2Config(strides=(2, 2, 2, 2, 1))
_WIDTHS = {
    256: (64, 128, 256, 360),
    384: (96, 192, 384, 480),
    512: (128, 256, 512, 640),
    768: (192, 384, 768, 960),
}


def _result(
    T: int, accuracy: float, energy: float, source: str, table: str = "ImageNet table (quoted)"
) -> PublishedResult:
    return PublishedResult("ImageNet-1K", T, accuracy, source, table, energy_mJ=energy)


def _entry(
    name: str, width: int, counts: tuple[int, float], *published: PublishedResult
) -> ModelEntry:
    parameters, gmac = counts
    config = replace(_IMAGENET, embed_dims=_WIDTHS[width])
    text = f"Meta-SpikeFormer-8-{width} for ImageNet-1K"
    return ModelEntry(
        name,
        "spike_driven_v2",
        text,
        config,
        _CODE,
        parameters,
        gmac_per_step=gmac,
        published=published,
    )


def _distilled(name: str, width: int, counts: tuple[int, float]) -> ModelEntry:
    entry = _entry(name, width, counts)
    return replace(
        entry,
        config=replace(entry.config, distilled=True),
        description=f"{entry.description}, with a distillation head",
    )


def _small(name: str, what: str, counts: tuple[int, float], **config: Any) -> ModelEntry:
    parameters, gmac = counts
    built = SpikeDrivenV2Config(input_shape=(3, 32, 32), num_classes=10, **config)
    text = f"{what}; strides follow the image"
    return ModelEntry(
        name, "spike_driven_v2", text, built, "spikedim", parameters, gmac_per_step=gmac
    )


@register_model
def spike_driven_v2_8_256_imagenet() -> ModelEntry:
    """The 15.1 M network of the paper, without a factory in the released code."""
    return _entry("spike_driven_v2_8_256_imagenet", 256, (15_112_208, 6.441))


@register_model
def spike_driven_v2_8_384_imagenet() -> ModelEntry:
    """31.3 M."""
    return _entry(
        "spike_driven_v2_8_384_imagenet",
        384,
        (31_333_864, 13.951),
        _result(1, 75.4, 7.8, _MAXFORMER),
        _result(4, 77.2, 32.8, _MAXFORMER),
    )


@register_model
def spike_driven_v2_8_512_imagenet() -> ModelEntry:
    """55.4 M."""
    return _entry(
        "spike_driven_v2_8_512_imagenet",
        512,
        (55_350_248, 24.699),
        _result(4, 80.0, 52.4, _TDFORMER, "Table 1 (quoted)"),
    )


@register_model
def spike_driven_v2_8_768_imagenet() -> ModelEntry:
    """The widest."""
    return _entry("spike_driven_v2_8_768_imagenet", 768, (123_741_160, 55.344))


@register_model
def spike_driven_v2_8_384_distilled_imagenet() -> ModelEntry:
    """31.3 M with a distillation head."""
    return _distilled("spike_driven_v2_8_384_distilled_imagenet", 384, (31_814_864, 13.951))


@register_model
def spike_driven_v2_8_512_distilled_imagenet() -> ModelEntry:
    """55.4 M with a distillation head."""
    return _distilled("spike_driven_v2_8_512_distilled_imagenet", 512, (55_991_248, 24.700))


@register_model
def spike_driven_v2_8_768_distilled_imagenet() -> ModelEntry:
    """The widest with a distillation head."""
    return _distilled("spike_driven_v2_8_768_distilled_imagenet", 768, (124_702_160, 55.345))


@register_model
def spike_driven_v2_nano() -> ModelEntry:
    """A minute on one core; at the released threshold a narrow fresh network hardly fires."""
    return _small(
        "spike_driven_v2_nano",
        "widths 32 to 64, one block each, threshold 0.5",
        (325_322, 0.011),
        embed_dims=(32, 32, 64, 64),
        num_heads=2,
        depths=(1, 1),
        mlp_ratio=2.0,
        neuron=LIFParams(threshold=0.5),
    )


@register_model
def spike_driven_v2_tiny() -> ModelEntry:
    """The widths of the reference tensors."""
    return _small(
        "spike_driven_v2_tiny",
        "widths 16 to 64, all blocks",
        (623_018, 0.012),
        embed_dims=(16, 32, 48, 64),
        num_heads=2,
    )
