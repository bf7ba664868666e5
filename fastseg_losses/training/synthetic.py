"""A small synthetic data set, so that the trainer runs on any machine without a download."""

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fastseg_losses.training.checks import check_int
from fastseg_losses.training.run_folder import write_atomically, writing
from fastseg_losses.training.settings import SYNTHETIC_CLASSES, SYNTHETIC_IGNORED
from fastseg_losses.training.shapes import Bools, bar, blob, curve, picture, ring

FILE_NAME = "synthetic.parquet"

# One row in 5 validates, one in 4 of the others (a fifth of all) is not annotated, and one in 24
# shows no object: few enough to keep, enough that "empty" and "not annotated" both occur.
VAL_EVERY = 5
UNANNOTATED_EVERY = 4
EMPTY_EVERY = 24

# The multiclass variant: (shape, least and most in an image); the class is the place in this list,
# and the background comes last. Small ones are drawn last, over the others.
KINDS = ((blob, 1, 3), (bar, 1, 3), (curve, 1, 1), (ring, 1, 2))
BACKGROUND = len(KINDS)
assert SYNTHETIC_CLASSES == BACKGROUND + 1
# An ignored frame, a 32nd of the image wide.
FRAME = 32

# Any colours do, if all 256 are there: with fewer, Pillow saves fewer bits and cuts 255 off.
_PALETTE = (230, 159, 0, 86, 180, 233, 0, 158, 115, 213, 94, 0, 40, 40, 40) + (128,) * (3 * 251)

_Bytes = npt.NDArray[np.uint8]


def write_synthetic_set(
    folder: str | os.PathLike[str],
    *,
    rows: int = 240,
    image_size: int = 96,
    seed: int = 0,
    mode: str = "binary",
) -> Path:
    """Writes a synthetic set as one parquet index with embedded PNGs.

    Grey images of bright blobs and thin curves on an uneven background; 3 to 8 % of an image is
    foreground. Smooth bright patches are not foreground, so that one threshold does not solve it.
    Masks hold 0 and 255. A fifth of the rows, all of them training rows, is not annotated: their
    images do show objects, and their masks are null and all zero in turn, which must not matter.

    With mode "multiclass", masks are palette PNGs of class ids: 0 blobs, 1 bars, 2 curves, 3 small
    rings, 4 background, and an ignored frame of 255.

    The same arguments give the same pixels. An existing file is replaced, in one step.

    Args:
        folder: Where the file goes; made if missing.
        rows: Number of images, at least 10.
        image_size: Height and width in pixels, at least 32.
        seed: Seed of everything drawn.
        mode: "binary" or "multiclass".

    Returns:
        The path of the parquet file.

    Raises:
        TypeError: An argument is no integer.
        ValueError: An argument is too small.
    """
    check_int("rows", rows, minimum=10)
    check_int("image_size", image_size, minimum=32)
    check_int("seed", seed, minimum=0)
    columns: dict[str, list[object]] = {
        name: [] for name in ("image_id", "image", "mask", "has_segmentation", "split")
    }
    draw, palette = (_draw_classes, _PALETTE) if mode == "multiclass" else (_draw, None)
    unannotated = 0
    for row in range(rows):
        is_val = row % VAL_EVERY == VAL_EVERY - 1
        train_number = row - row // VAL_EVERY
        annotated = is_val or train_number % UNANNOTATED_EVERY != UNANNOTATED_EVERY - 1
        empty = annotated and row % EMPTY_EVERY == 9  # the first one validates
        # A generator for each row: a row's picture does not depend on how many there are.
        rng = np.random.default_rng((seed, row))
        image, mask = draw(rng, image_size, empty=empty)
        stored: bytes | None = _png(mask, palette)
        if not annotated:
            stored = None if unannotated % 2 == 0 else _png(np.zeros_like(mask), palette)
            unannotated += 1
        columns["image_id"].append(f"synthetic-{row:05d}")
        columns["image"].append(_png(image))
        columns["mask"].append(stored)
        columns["has_segmentation"].append(annotated)
        columns["split"].append("val" if is_val else "train")
    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("image", pa.binary()),
            ("mask", pa.binary()),
            ("has_segmentation", pa.bool_()),
            ("split", pa.string()),
        ]
    )
    target = Path(folder) / FILE_NAME
    table = pa.table(columns, schema=schema)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        target,
        # Uncompressed: PNGs do not get smaller.
        lambda file: pq.write_table(table, file, row_group_size=32, compression="none"),
    )
    return target


def _draw(rng: np.random.Generator, size: int, *, empty: bool) -> tuple[_Bytes, _Bytes]:
    """Draws one image (H, W) and its mask of 0 and 255 (H, W)."""
    mask: Bools = np.zeros((size, size), dtype=bool)
    level = np.zeros((size, size))
    if not empty:
        wanted = rng.uniform(0.03, 0.07)
        while mask.mean() < wanted:
            shape = blob(rng, size) if rng.random() < 0.7 else curve(rng, size)
            # An object that would cover more than 8 % in all is drawn anew.
            if (mask | shape).mean() <= 0.08:
                level = np.where(shape, rng.uniform(0.22, 0.45), level)
                mask |= shape
    return picture(rng, level), np.where(mask, 255, 0).astype(np.uint8)


def _draw_classes(rng: np.random.Generator, size: int, *, empty: bool) -> tuple[_Bytes, _Bytes]:
    """Draws one image (H, W) and its class ids (H, W)."""
    mask = np.full((size, size), BACKGROUND, np.uint8)
    level = np.zeros((size, size))
    for kind, (shape, least, most) in enumerate(KINDS):
        for _ in range(0 if empty else int(rng.integers(least, most + 1))):
            inside = shape(rng, size)
            level = np.where(inside, rng.uniform(0.22, 0.45), level)
            mask[inside] = kind
    frame = max(1, size // FRAME)
    inner = mask[frame:-frame, frame:-frame].copy()
    mask[:] = SYNTHETIC_IGNORED
    mask[frame:-frame, frame:-frame] = inner
    return picture(rng, level), mask


def _png(pixels: _Bytes, palette: tuple[int, ...] | None = None) -> bytes:
    buffer = io.BytesIO()
    drawn = Image.fromarray(pixels)
    if palette is not None:
        drawn.putpalette(palette)
    drawn.save(buffer, format="PNG")
    return buffer.getvalue()
