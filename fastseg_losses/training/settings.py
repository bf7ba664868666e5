"""What the settings of a run may be: names, defaults that depend on others, ranges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastseg_losses.training.labels import MODES

if TYPE_CHECKING:
    from fastseg_losses.training.config import TrainConfig

PRECISIONS = ("auto", "off", "bf16", "fp16")
SCHEDULES = ("constant", "cosine", "poly")
LOSSES = ("combined", "bce", "ce", "dice", "iou", "tversky", "focal")
# The same loss in each mode, under the name that it has there.
OTHER_MODE_LOSS = {"binary": "ce", "multiclass": "bce"}

# The weights of the combined loss where none is given.
COMBINED_WEIGHTS: dict[str, float] = {
    "bce_weight": 0.4,
    "dice_weight": 0.4,
    "focal_weight": 0.2,
    "iou_weight": 0.0,
    "tversky_weight": 0.0,
}

# What happens to training images, and how strongly where nothing is given. Shrinking by more than
# 2 would need antialiasing, so 1 is the most.
AUGMENTATIONS = ("none", "flips", "full")
AUGMENT_STRENGTHS: dict[str, float] = {"rotate": 15.0, "scale": 0.25, "colour": 0.2}
_MOST = {"rotate": 180.0, "scale": 1.0, "colour": 1.0}

# Without --data the run must end in about two minutes on two CPU cores and visibly learn.
SYNTHETIC_DEFAULTS: dict[str, Any] = {
    "epochs": 20,
    "image_size": 96,
    "lr": 2e-3,
    "num_workers": 0,
}
# Pixels of the largest image that is read: 192 MiB as RGB, far above any training image and far
# below what a crafted header of a few bytes (a "decompression bomb") can claim.
MAX_PIXELS = 64 * 2**20

# How much smaller than the image the built-in net's logits may be, and what is taken where nothing
# is given, from which image size on. On the nuclei at 256x256 1, 2 and 4 come out alike (Dice
# 0.9155, 0.9160, 0.9151; three seeds); at 128x128 4 costs 0.026, and at 96x96 (synthetic) 2 costs
# 0.04 of mean IoU: docs/trainer.md.
HEAD_STRIDES = (1, 2, 4, 8)
USUAL_HEAD_STRIDES = ((256, 4), (128, 2))

# What the synthetic set's multiclass variant holds.
SYNTHETIC_CLASSES = 5
SYNTHETIC_IGNORED = 255


def check_settings(config: TrainConfig) -> None:
    """Check every setting's range.

    Raises:
        ValueError: a field is out of range; the message names it, what was expected, what came.
    """
    for name, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("image_size", 8),
        ("num_workers", 0),
        ("max_pixels", 1),
        ("cache_mb", 0),
        ("seed", 0),
        ("check_every", 1),
        ("warmup_steps", 0),
        ("accumulate", 1),
        ("min_epochs", 0),
    ):
        _check(config, name, least <= getattr(config, name), f"a whole number of at least {least}")
    for name in ("max_steps", "patience", "save_every", "overfit_batches"):
        value = getattr(config, name)
        _check(config, name, value is None or value >= 1, "at least 1")
    good = config.patience is not None or config.min_epochs == 0
    _check(config, "min_epochs", good, "--patience beside --min-epochs")
    _check(config, "ema", config.ema is None or 0 < config.ema < 1, "a number above 0 and below 1")
    _check(config, "amp", config.amp in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
    _check(config, "image_size", config.image_size <= 8192, "at most 8192")
    _check(config, "seed", config.seed < 2**32, "less than 2**32")
    _check(config, "lr", math.isfinite(config.lr) and config.lr > 0, "a finite number above 0")
    _check(
        config,
        "weight_decay",
        math.isfinite(config.weight_decay) and config.weight_decay >= 0,
        "a finite number of at least 0",
    )
    _check(config, "schedule", config.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
    clip = config.clip_grad
    good = clip is None or (math.isfinite(clip) and clip > 0)
    _check(config, "clip_grad", good, "a finite number above 0")
    fraction = config.val_fraction
    _check(config, "val_fraction", 0 < fraction < 1, "a number above 0 and below 1")
    share = config.oversample_foreground
    good = share is None or 0 < share < 1
    _check(config, "oversample_foreground", good, "a number above 0 and below 1")
    good = share is None or config.mode == "binary"
    _check(config, "oversample_foreground", good, "mode binary beside it: ids have no background")
    bits = config.image_bits
    _check(config, "image_bits", bits is None or 8 <= bits <= 16, "a whole number from 8 to 16")
    _check(config, "mode", config.mode in MODES, f"one of {', '.join(MODES)}")
    names = [name for name in LOSSES if name != OTHER_MODE_LOSS[config.mode]]
    _check(config, "loss", config.loss in names, f"one of {', '.join(names)} in mode {config.mode}")
    _check(config, "on_collapse", config.on_collapse in ("warn", "stop"), "warn or stop")
    _check(config, "val", config.val is None or config.data is not None, "--data beside --val")
    good = not config.dry_run or config.data is not None
    _check(config, "dry_run", good, "--data beside --dry-run")
    good = config.overfit_batches is None or config.oversample_foreground is None
    _check(config, "overfit_batches", good, "none beside --oversample-foreground")
    if config.batch_dice:
        good = config.loss in ("combined", "dice", "iou", "tversky")
        _check(config, "loss", good, "one with Dice, IoU or Tversky beside --batch-dice")
        good = config.accumulate == 1
        _check(config, "accumulate", good, "1 beside --batch-dice, which is about one batch")
    _check_head(config)
    _check_weights(config)
    _check_augmentation(config)
    _check_pseudo(config)
    if config.labels is not None and config.data is None:
        for name, value in (
            ("num_classes", SYNTHETIC_CLASSES),
            ("ignore_index", SYNTHETIC_IGNORED),
        ):
            good = getattr(config, name) in (value, None)
            _check(config, name, good, f"{value} without --data, as in the synthetic set")


def _check_pseudo(config: TrainConfig) -> None:
    weight, sure = config.pseudo_weight, config.pseudo_confidence
    good = weight is None or (math.isfinite(weight) and weight > 0)
    _check(config, "pseudo_weight", good, "a finite number above 0")
    good = weight is None or config.data is not None
    _check(config, "pseudo_weight", good, "--data beside --pseudo-weight")
    _check(config, "pseudo_confidence", 0 <= sure <= 1, "a number from 0 to 1")
    good = weight is not None or sure == type(config).pseudo_confidence
    _check(config, "pseudo_confidence", good, "--pseudo-weight beside --pseudo-confidence")


def _check_head(config: TrainConfig) -> None:
    stride = config.head_stride
    if stride is None:
        return
    _check(config, "head_stride", config.model is None, "none beside --model, which has its own")
    good = stride in HEAD_STRIDES and config.image_size % stride == 0
    names = ", ".join(map(str, HEAD_STRIDES))
    expected = f"one of {names} that divides image_size {config.image_size}"
    _check(config, "head_stride", good, expected)


def usual_head_stride(image_size: int) -> int:
    """The built-in net's `head_stride` where none is given."""
    fitting = (
        stride
        for from_size, stride in USUAL_HEAD_STRIDES
        if image_size >= from_size and image_size % stride == 0
    )
    return next(fitting, 1)


def check_strength(name: str, value: float) -> None:
    """Check how strong an augmentation is.

    Raises:
        ValueError: it is out of range.
    """
    if not 0 <= value <= _MOST[name]:
        raise ValueError(f"{name}: expected a number from 0 to {_MOST[name]:g}, got {value!r}")


def _check_augmentation(config: TrainConfig) -> None:
    names = ", ".join(AUGMENTATIONS)
    _check(config, "augment", config.augment in AUGMENTATIONS, f"one of {names}")
    for name in AUGMENT_STRENGTHS:
        value = getattr(config, name)
        good = value is None or config.augment == "full"
        _check(config, name, good, f"no strength beside augment {config.augment!r}")
        if value is not None:
            check_strength(name, value)


def _check_weights(config: TrainConfig) -> None:
    weights = {name: getattr(config, name) for name in COMBINED_WEIGHTS}
    if config.loss != "combined":
        for name, value in weights.items():
            _check(config, name, value is None, f"no weight beside loss {config.loss!r}")
        return
    for name, value in weights.items():
        good = value is None or (math.isfinite(value) and value >= 0)
        _check(config, name, good, "a finite number of at least 0")
    if not any(config.weights().values()):
        raise ValueError("bce_weight and the other weights: expected one above 0, got all 0")


def _check(config: TrainConfig, name: str, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}: expected {expected}, got {getattr(config, name)!r}")
