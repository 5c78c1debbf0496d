"""How the registered networks were trained where their results were published.

Facts of the released code and papers, in the order optimiser, schedule, regularisation. Batch
sizes are per device; "x 8" counts devices. Learning rates are those of the whole batch.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

_CIFAR = (
    "RandAugment rand-m9-n1-mstd0.4-inc1, mixup 0.5 (off at 200), random erasing 0.25, label "
    "smoothing 0.1, horizontal flip 0.5, no random crop, mixed precision, T=4"
)
_DVS = "mixup 0.5, SNN augment-wide, first 90 % of each class for training"

# The first pattern that fits; the more special ones come first.
_RECIPES: tuple[tuple[str, str], ...] = (
    (
        "spikformer_*_imagenet",
        "AdamW 5e-4, weight decay 0.05, batch 24 x 8, 300 epochs, cosine; rand-m9-mstd0.5-inc1, "
        "mixup 0.8, cutmix 1, T=4",
    ),
    (
        "spikformer_2_256_*",
        f"AdamW 1e-3, weight decay 0.06, batch 16, 96 (+10) epochs, warm-up 10; {_DVS}, T=10/16",
    ),
    (
        "spikformer_[24]_*",
        "AdamW 5e-4, weight decay 0.06, batch 128, 300 (+10) epochs, cosine to 1e-5, warm-up 20 "
        f"from 1e-5; {_CIFAR}",
    ),
    (
        "qkformer_*_imagenet",
        "AdamW 6e-4 per 256 images, effective batch 512 (32 x 8 x 2 accumulated), 200 epochs, "
        "warm-up 5, cosine to 1e-6, weight decay 0.05; rand-m9-mstd0.5-inc1, erasing 0.25, label "
        "smoothing 0.1, no mixup, T=4",
    ),
    ("qkformer_2_256_cifar10dvs", f"AdamW 5e-3, 96 epochs; {_DVS}, T=16"),
    ("qkformer_2_256_gesture", f"AdamW 1e-3, 192 epochs; {_DVS}, T=16"),
    ("qkformer_4_*", f"AdamW 1e-3, weight decay 0.06, batch 64, 400 epochs; {_CIFAR}"),
    (
        "spikingresformer_*_imagenet",
        "AdamW 1e-3 (M 8e-4, L 5e-4), weight decay 0.01, batch 32 x 8, 320 epochs, warm-up 3, "
        "cosine to 1e-5; rand-m7-mstd0.5-inc1, mixup 0.2, cutmix 1, label smoothing 0.1, mixed "
        "precision, T=4",
    ),
    (
        "spikingresformer_s_transfer",
        "from ImageNet weights: 100 epochs, 1e-4, batch 128, images of 128 pixels (event data: "
        "4e-5 to 1e-4, T=10, batch 48)",
    ),
    (
        "spikingresformer_ti_cifar",
        "AdamW 5e-4, batch 128, 600 epochs; rand-m7-n1-mstd0.5-inc1, T=4",
    ),
    (
        "spikingresformer_gesture",
        "AdamW, weight decay 0.05, batch 8, 300 epochs, 64 pixels, 3 channels (two polarities and "
        "their sum), T=16; learned leaks without weight decay",
    ),
    (
        "spike_driven_v2_*",
        "200 epochs at T=1, 6e-4, batch 128 x 8; then 50 epochs at T=4, 2e-5, "
        "with hard distillation from caformer_b36_in21ft1k",
    ),
    (
        "spike_driven_*_imagenet",
        "LAMB 1.5e-3 (768: 1e-3), weight decay 0.01, 300 epochs, T=4",
    ),
    (
        "spike_driven_2_256_cifar10dvs",
        "AdamW 7.5e-3 to 3e-4, weight decay 1e-4, batch 32, 200 (+10) epochs, warm-up 10 from "
        "1e-3, TET loss (lambda 0.001), 64 pixels, T=10",
    ),
    ("spike_driven_2_256_gesture", "LAMB 3e-4, T=10/16"),
    ("spike_driven_2_*", "AdamW 3e-4, weight decay 0.06, batch 64, 300 epochs, T=4"),
    (
        "spikingbert_*",
        "distillation from BERT through the clamped equilibrium; fine-tuning 5e-5, weight decay "
        "1e-4, 100 to 125 steps to the equilibrium",
    ),
    (
        "spikegpt_*",
        "Adam (0.9, 0.99) 6e-4 to 1e-5, context 1024; understanding tasks AdamW 1e-4, 20 epochs",
    ),
)
_OURS = ("*_nano", "*_micro", "*_tiny", "*_small")


def recipe(name: str) -> str | None:
    """Published training recipe of a registered network; ``None`` for those sized by spikedim."""
    if any(fnmatchcase(name, pattern) for pattern in _OURS):
        return None
    return next((text for pattern, text in _RECIPES if fnmatchcase(name, pattern)), None)
