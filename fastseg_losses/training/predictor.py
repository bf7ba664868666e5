"""What fills rows that nobody annotated: whatever turns an image into a mask and a confidence."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastseg_losses.training.labels import Labels

# Hexadecimal digits of a file's SHA-256 that a source shows: 48 bits tell any two files apart.
DIGEST_DIGITS = 12


class Prediction(NamedTuple):
    """A mask as large as its image, and how sure the predictor is of each pixel.

    Attributes:
        mask: (H, W), uint8 0 or 1, or class ids of `Labels.dtype`.
        confidence: float32 (H, W), from 0 to 1: of the value that stands in the mask.
    """

    mask: npt.NDArray[Any]
    confidence: npt.NDArray[np.float32]


class Predictor(Protocol):
    """A source of pseudo-masks.

    Attributes:
        source: What `mask_source` holds: kind, name, and the start of the weights' SHA-256.
        labels: What the masks' values mean; None: foreground or not.
        image_bits: How many of their 16 bits 16-bit grey images use.
        takes_boxes: Whether the boxes of an index's column `box` are prompts.
    """

    source: str
    labels: Labels | None
    image_bits: int
    takes_boxes: bool

    def predict(self, image: Image.Image, boxes: npt.NDArray[np.float32] | None) -> Prediction:
        """The mask of one image.

        Args:
            image: Upright, mode "L" or "RGB".
            boxes: float32 (K, 4), left, top, right, bottom in pixels of the image: all of its
                objects. None: unknown.
        """


def digest(*paths: Path) -> str:
    """The start of the SHA-256 of files, one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                total.update(block)
    return total.hexdigest()[:DIGEST_DIGITS]
