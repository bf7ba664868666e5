"""The columns in which an index keeps pseudo-masks, beside `mask`.

A pseudo-mask is what a net, not a person, said about a row: `has_segmentation` stays false, and
`mask_source` names the origin. A row that is not annotated and has no source has no mask at all,
whatever its mask cell holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastseg_losses.training.decode import (
    DataError,
    check_same_size,
    mask_values,
    open_picture,
    upright_size,
)

SOURCE = "mask_source"
ROW_CONFIDENCE = "mask_confidence"
CONFIDENCE = "confidence"

# A stored byte of 255 is a confidence of 1.
FULL = 255

# What a stored byte may lack of 255: fine where a net is sure, and such that the usual thresholds
# (0.99, 0.98, 0.95, 0.9, 0.85, 0.8, ...) lie on a level. With all 256 values the confidence of a
# 256x256 microscopy image takes 25 kB, as much as the image; with these, 10 kB.
LACKING = (0, 2, 5, 12, 25, 38, 51, 63, 76, 102, 127, 178, 255)


@dataclass(frozen=True)
class PseudoMasks:
    """Which rows of an index hold a pseudo-mask.

    Attributes:
        rows: Bool, one for each row of the index; false where the row is annotated.
        sources: Where each row's mask comes from; None: nowhere.
        confidences: Each row's mean confidence, 0 to 1; None where nobody noted it.
    """

    rows: npt.NDArray[np.bool_]
    sources: Sequence[str | None]
    confidences: Sequence[float | None]


def small_columns(schema: pa.Schema) -> list[str]:
    """The columns of a schema that `pseudo_masks` needs.

    Columns of these names but of another type are somebody else's, and left alone.
    """
    names = [SOURCE] if _has(schema, SOURCE, pa.types.is_string, pa.types.is_large_string) else []
    if names and _has(schema, ROW_CONFIDENCE, pa.types.is_floating):
        names.append(ROW_CONFIDENCE)
    return names


def pseudo_masks(table: pa.Table, annotated: npt.NDArray[np.bool_]) -> PseudoMasks:
    """Reads the small columns.

    Args:
        table: A table with what `small_columns` named.
        annotated: Bool, `has_segmentation` of each row.
    """
    nothing: list[Any] = [None] * len(annotated)
    sources = table[SOURCE].to_pylist() if SOURCE in table.column_names else nothing
    means = table[ROW_CONFIDENCE].to_pylist() if ROW_CONFIDENCE in table.column_names else nothing
    given = np.array([source is not None for source in sources], dtype=bool)
    return PseudoMasks(given & ~annotated, sources, means)


def confidence_bytes(confidence: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Confidence from 0 to 1 as it is stored; rounded down, so that no pixel gains by it.

    Args:
        confidence: (H, W); NaN counts as 0.

    Returns:
        uint8 (H, W), each 255 less one of `LACKING`.
    """
    # 1e-3 of a step: 0.99999994, what interpolation between ones may give, is 1.
    stored = np.floor(np.clip(np.nan_to_num(confidence, nan=0.0), 0.0, 1.0) * FULL + 1e-3)
    levels = np.array(LACKING)
    return (FULL - levels[np.searchsorted(levels, FULL - stored)]).astype(np.uint8)


def unsure_pixels(
    encoded: bytes, where: str, *, threshold: float, size: tuple[int, int], max_pixels: int
) -> npt.NDArray[np.bool_]:
    """Where a stored confidence is below a threshold.

    Args:
        encoded: The cell, an 8-bit grey PNG.
        where: Which cell this is; the start of every error message.
        threshold: Confidence from 0 to 1.
        size: Width and height of the image, in pixels.
        max_pixels: The largest width times height that is accepted.

    Returns:
        Bool (H, W).

    Raises:
        DataError: No grey PNG of 8 bits, or not as large as the image.
    """
    picture = open_picture(encoded, where, max_pixels=max_pixels)
    if picture.format != "PNG" or picture.mode != "L":
        raise DataError(
            f"{where}: expected an 8-bit grey PNG, got {picture.format} of Pillow mode "
            f"{picture.mode!r}"
        )
    check_same_size(upright_size(picture), size, where)
    # 1e-9: 0.6 x 255 must be 153, not the 154 above 153.00000000000003.
    least = math.ceil(threshold * FULL - 1e-9)
    unsure: npt.NDArray[np.bool_] = mask_values(picture, where) < least
    return unsure


def _has(schema: pa.Schema, name: str, *kinds: Any) -> bool:
    return name in schema.names and any(kind(schema.field(name).type) for kind in kinds)
