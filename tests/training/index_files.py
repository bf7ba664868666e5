"""Writes small parquet indices for the tests."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

GARBAGE = b"not a picture at all"
SIZE = 12


def png(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    return encode(Image.fromarray(pixels), "PNG", **options)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def image(seed: int = 0, size: int = SIZE) -> bytes:
    rng = np.random.default_rng(seed)
    return png(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def mask(seed: int = 0, size: int = SIZE, high: int = 1) -> bytes:
    """A mask in which about a third of the pixels, but not all and not none, are foreground."""
    rng = np.random.default_rng(seed + 1000)
    drawn = rng.random((size, size)) < 0.3
    drawn[0, 0], drawn[0, 1] = True, False
    return png((drawn * high).astype(np.uint8))


def zeros(size: int = SIZE) -> bytes:
    return png(np.zeros((size, size), np.uint8))


def write_index(
    path: Path,
    images: Sequence[Any],
    masks: Sequence[Any],
    annotated: Sequence[Any],
    *,
    row_group_size: int = 3,
    **columns: Any,
) -> Path:
    """Writes an index; a keyword adds or replaces a column, and None as its value leaves it out."""
    values: dict[str, Any] = {"image": images, "mask": masks, "has_segmentation": annotated}
    values |= columns
    table = pa.table({name: v for name, v in values.items() if v is not None})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_simple(path: Path, rows: int = 8, **columns: Any) -> Path:
    """Writes an index of annotated rows, each with foreground."""
    images, masks = [image(i) for i in range(rows)], [mask(i) for i in range(rows)]
    return write_index(path, images, masks, [True] * rows, **columns)
