"""Writes small multiclass sets for the tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from training.index_files import encode, png, write_index

SIZE = 32
ROWS = 24
IGNORED = 255
# Class 0 is a bright square, class 1 a dark one, class 2 everything else.
CLASSES = 3


def palette_png(ids: npt.NDArray[np.uint8]) -> bytes:
    """A palette PNG whose colours say nothing about the ids."""
    picture = Image.fromarray(ids)
    picture.putpalette([value for k in range(256) for value in (255 - k, 7, (3 * k) % 256)])
    assert picture.mode == "P"
    return encode(picture, "PNG")


def packed_png(row: bytes, *, bits: int, width: int) -> bytes:
    """A grey PNG of one line with several pixels in a byte, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def class_squares(rows: int = ROWS) -> tuple[list[bytes], list[npt.NDArray[np.uint8]]]:
    """Grey images with a bright and a dark square, and their ids with an ignored frame."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for _ in range(rows):
        ids = np.full((SIZE, SIZE), 2, np.uint8)
        level = rng.integers(90, 150, (SIZE, SIZE))
        for k, shift in ((0, 90), (1, -80)):
            y, x = rng.integers(2, SIZE - 12), rng.integers(2, 6) + 14 * k
            ids[y : y + 10, x : x + 10] = k
            level[y : y + 10, x : x + 10] += shift
        ids[0], ids[-1] = IGNORED, IGNORED
        images.append(png(level.clip(0, 255).astype(np.uint8)))
        masks.append(ids)
    return images, masks


def write_class_set(
    path: Path, *, undrawn: Sequence[int] = (), cell: bytes | None = None, **columns: Any
) -> Path:
    """A set whose `undrawn` rows are not annotated and hold `cell` as mask."""
    images, masks = class_squares()
    cells = [cell if row in undrawn else palette_png(ids) for row, ids in enumerate(masks)]
    annotated = [row not in undrawn for row in range(ROWS)]
    split = ["val" if row % 6 == 5 else "train" for row in range(ROWS)]
    values = {"images": images, "masks": cells, "annotated": annotated, "split": split}
    return write_index(path, **(values | columns))
