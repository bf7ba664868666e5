"""Settings of the data side of a run."""

from __future__ import annotations

import dataclasses

from fastseg_losses.training.labels import MODES
from fastseg_losses.training.options import option
from fastseg_losses.training.settings import (
    AUGMENT_STRENGTHS,
    AUGMENTATIONS,
    MAX_PIXELS,
    SYNTHETIC_CLASSES,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is trained on, and how it is read."""

    data: str | None = option(
        "data",
        None,
        "parquet index with the columns image, mask, has_segmentation and optionally image_id, "
        "split; without it a synthetic set is generated",
        metavar="FILE",
    )
    val: str | None = option(
        "data", None, "second parquet index, used for validation", metavar="FILE"
    )
    val_fraction: float = option(
        "data",
        0.2,
        "share of the annotated rows drawn for validation where the index has no split column, "
        "above 0 and below 1",
        parse=float,
    )
    keep_unannotated: bool = option(
        "data",
        False,
        "draw rows without annotation too; they stay masked out of loss and statistics",
        parse=bool,
    )
    allow_no_foreground: bool = option(
        "data",
        False,
        "train even if there is nothing to learn from: no annotated training row has foreground, "
        "or all show one class (refused by default)",
        parse=bool,
    )
    allow_outside: bool = option(
        "data",
        False,
        "let paths in the index point outside the index's own folder",
        parse=bool,
    )
    max_pixels: int = option(
        "data",
        MAX_PIXELS,
        "refuse images of more pixels (width times height), which the file's header says before "
        "anything is decoded",
        parse=int,
    )
    mode: str = option(
        "data",
        "binary",
        "binary: foreground or not; multiclass: masks hold class ids",
        choices=MODES,
    )
    num_classes: int | None = option(
        "data",
        None,
        "number of classes, with --mode multiclass: masks hold the ids 0 to N - 1, and class 0 "
        f"need not be a background; the synthetic set has {SYNTHETIC_CLASSES}",
        parse=int,
    )
    ignore_index: int | None = option(
        "data",
        None,
        "mask value whose pixels count for nothing, with --mode multiclass (default: 255, or 65535 "
        "with more than 255 classes)",
        parse=int,
    )
    image_size: int = option(
        "data", 256, "images are resized to SIZE x SIZE", parse=int, metavar="SIZE"
    )
    image_bits: int | None = option(
        "data",
        None,
        "bits that 16-bit grey images use, 8 to 16 (default: the fewest of 8, 10, 12, 14, 16 that "
        "hold the set's largest value)",
        parse=int,
    )
    augment: str = option(
        "data",
        "flips",
        "what happens to training images at random; full: flips, rotation, scale, colour",
        choices=AUGMENTATIONS,
    )
    rotate: float | None = option(
        "data",
        None,
        f"largest angle with --augment full ({AUGMENT_STRENGTHS['rotate']:g})",
        parse=float,
        metavar="DEGREES",
    )
    scale: float | None = option(
        "data",
        None,
        "with --augment full, magnified (and cropped) or shrunk by up to 1 + SCALE "
        f"({AUGMENT_STRENGTHS['scale']:g})",
        parse=float,
    )
    colour: float | None = option(
        "data",
        None,
        "with --augment full, brightness, contrast and saturation times 1 - COLOUR to 1 + COLOUR "
        f"({AUGMENT_STRENGTHS['colour']:g})",
        parse=float,
    )
    oversample_foreground: float | None = option(
        "data",
        None,
        "at least this share of an epoch's draws are rows with foreground, above 0 and below 1; "
        "nnU-Net takes 0.33",
        parse=float,
        metavar="SHARE",
    )
    cache_mb: int = option(
        "data",
        512,
        "MiB of decoded images that stay in memory, of training and of validation each, if all of "
        "them fit",
        parse=int,
        metavar="MIB",
    )
    num_workers: int = option("data", 2, "loader processes; 0 loads in the main one", parse=int)
