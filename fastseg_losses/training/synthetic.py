"""A small synthetic data set, so that the trainer runs on any machine without a download."""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from fastseg_losses.training.checks import check_int

FILE_NAME = "synthetic.parquet"

# One row in 5 validates, one in 4 of the others (a fifth of all) is not annotated, and one in 24
# shows no object: few enough to keep, enough that "empty" and "not annotated" both occur.
VAL_EVERY = 5
UNANNOTATED_EVERY = 4
EMPTY_EVERY = 24

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


def write_synthetic_set(
    folder: str | os.PathLike[str], *, rows: int = 240, image_size: int = 96, seed: int = 0
) -> Path:
    """Writes a synthetic set as one parquet index with embedded PNGs.

    Grey images of bright blobs and thin curves on an uneven background; 3 to 8 % of an image is
    foreground. Smooth bright patches are not foreground, so that one threshold does not solve it.
    Masks hold 0 and 255. A fifth of the rows, all of them training rows, is not annotated: their
    images do show objects, and their masks are null and all zero in turn, which must not matter.

    The same arguments give the same pixels. An existing file is replaced, in one step.

    Args:
        folder: Where the file goes; made if missing.
        rows: Number of images, at least 10.
        image_size: Height and width in pixels, at least 32.
        seed: Seed of everything drawn.

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
    unannotated = 0
    for row in range(rows):
        is_val = row % VAL_EVERY == VAL_EVERY - 1
        train_number = row - row // VAL_EVERY
        annotated = is_val or train_number % UNANNOTATED_EVERY != UNANNOTATED_EVERY - 1
        empty = annotated and row % EMPTY_EVERY == 9  # the first one validates
        # A generator for each row: a row's picture does not depend on how many there are.
        image, mask = _draw(np.random.default_rng((seed, row)), image_size, empty=empty)
        stored: bytes | None = _png(np.where(mask, 255, 0).astype(np.uint8))
        if not annotated:
            stored = None if unannotated % 2 == 0 else _png(np.zeros_like(mask, dtype=np.uint8))
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
    Path(folder).mkdir(parents=True, exist_ok=True)
    target = Path(folder) / FILE_NAME
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=FILE_NAME, suffix=".part")
    os.close(handle)
    try:
        # Uncompressed: PNGs do not get smaller.
        table = pa.table(columns, schema=schema)
        pq.write_table(table, unfinished, row_group_size=32, compression="none")
        Path(unfinished).replace(target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return target


def _draw(
    rng: np.random.Generator, size: int, *, empty: bool
) -> tuple[npt.NDArray[np.uint8], _Bools]:
    """Draws one image (H, W) uint8 and its mask (H, W) bool."""
    mask = np.zeros((size, size), dtype=bool)
    level = np.zeros((size, size))
    if not empty:
        wanted = rng.uniform(0.03, 0.07)
        while mask.mean() < wanted:
            shape = _blob(rng, size) if rng.random() < 0.7 else _curve(rng, size)
            # An object that would cover more than 8 % in all is drawn anew.
            if (mask | shape).mean() <= 0.08:
                level = np.where(shape, rng.uniform(0.22, 0.45), level)
                mask |= shape
    background = _background(rng, size)
    soft = np.asarray(
        Image.fromarray((level * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    )
    noise = rng.normal(0.0, 0.035, (size, size))
    image = np.clip(background + soft / 255.0 + noise, 0.0, 1.0)
    return np.rint(image * 255).astype(np.uint8), mask


def _background(rng: np.random.Generator, size: int) -> _Floats:
    """A tilted plane with a few wide bright patches, as bright as the objects but without edges."""
    y, x = np.mgrid[0:size, 0:size] / size
    tilt = rng.uniform(-0.15, 0.15, 2)
    background: _Floats = rng.uniform(0.2, 0.35) + tilt[0] * y + tilt[1] * x
    for _ in range(int(rng.integers(1, 4))):
        centre, width = rng.uniform(0, 1, 2), rng.uniform(0.15, 0.3)
        distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        background += rng.uniform(0.15, 0.3) * np.exp(-distance / (2 * width**2))
    return background


def _blob(rng: np.random.Generator, size: int) -> _Bools:
    """An ellipse."""
    y, x = np.mgrid[0:size, 0:size]
    centre, turn = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
    radii = rng.uniform(0.03, 0.08, 2) * size
    u = (x - centre[1]) * np.cos(turn) + (y - centre[0]) * np.sin(turn)
    v = (y - centre[0]) * np.cos(turn) - (x - centre[1]) * np.sin(turn)
    inside: _Bools = (u / radii[0]) ** 2 + (v / radii[1]) ** 2 <= 1.0
    return inside


def _curve(rng: np.random.Generator, size: int) -> _Bools:
    """A bent line, about 1/40 of the image wide: 2 to 3 pixels at the default size."""
    start, end = rng.uniform(0, size, (2, 2))
    bend = (start + end) / 2 + rng.normal(0.0, 0.15 * size, 2)
    t = np.linspace(0.0, 1.0, 2 * size)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    # Squared distance to the nearest of the points, one point at a time to bound the memory.
    y, x = np.mgrid[0:size, 0:size]
    nearest = np.full((size, size), np.inf)
    for point in points[:: max(1, size // 64)]:
        np.minimum(nearest, (y - point[0]) ** 2 + (x - point[1]) ** 2, out=nearest)
    inside: _Bools = nearest <= max(1.0, size / 80) ** 2
    return inside


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
