"""Rows of an index as tensors: decoded, resized, flipped and normalised.

A row is in one of three states, and `has_segmentation` alone decides: annotated with foreground,
annotated and empty, not annotated. The mask cell of a row that is not annotated is never read, so
null, zeros and garbage give the same sample, bit for bit. The one exception is asked for: with
`pseudo_confidence`, rows that are not annotated and whose `mask_source` names a pseudo-mask.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from fastseg_losses.training.checks import check_int
from fastseg_losses.training.decode import (
    binary_mask,
    check_same_size,
    class_mask,
    class_values,
    image_pixels,
    mask_values,
    open_picture,
    upright_size,
)
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import BINARY_IGNORED, Labels
from fastseg_losses.training.pseudo_columns import CONFIDENCE, unsure_pixels

# ImageNet's mean and standard deviation of RGB in [0, 1], which published encoders expect:
# image = (rgb / 255 - MEAN) / STD.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Decoded samples kept in memory by one data set, its loader's workers together. A set that does
# not fit is decoded anew each time.
SAMPLE_CACHE_BYTES = 512 * 2**20

_Pixels = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.uint8 | np.int32]


class Sample(TypedDict):
    """One row as the loader collates it; a batch has the same keys with a leading dimension."""

    image: Tensor  # float32 (3, S, S), normalised
    mask: Tensor  # (1, S, S), uint8 0 or 1, or class ids of `Labels.dtype`; zero if there is none
    valid: Tensor  # bool (), whether the row is annotated
    pseudo: Tensor  # bool (), whether the mask is a pseudo-mask; never where `valid` is true
    row: int  # row in the index, from 0


class ParquetSegmentation(Dataset[Sample]):
    """Rows of an index as samples of one size.

    The image is resized with bilinear (anti-aliased) interpolation, the mask with nearest, both
    to a square: the aspect ratio is not kept. An index into the data set is a position in `rows`,
    or a pair (epoch, position) as `EpochSampler` yields it; the epoch only matters with `augment`.
    """

    def __init__(
        self,
        index: IndexTable,
        rows: Sequence[int],
        image_size: int,
        *,
        augment: bool = False,
        seed: int = 0,
        cache_bytes: int = SAMPLE_CACHE_BYTES,
        labels: Labels | None = None,
        image_bits: int = 16,
        pseudo_confidence: float | None = None,
    ) -> None:
        """Selects rows of an index.

        Args:
            index: The opened index.
            rows: Rows of it, from 0.
            image_size: Height and width of the samples in pixels.
            augment: Random horizontal and vertical flips, drawn from (seed, epoch, row) alone: the
                same for any number of workers, and whatever an unannotated row's mask cell holds.
            seed: Seed of the flips.
            cache_bytes: Decoded samples are kept if all of them fit into this (divided by the
                number of workers); 0 turns it off.
            labels: What the values of the masks mean, for class ids; None: foreground or not.
            image_bits: How many of their 16 bits 16-bit grey images use.
            pseudo_confidence: Pseudo-masks are read, and their pixels of a lower confidence are
                ignored (255, or `Labels.ignore_index`); None: pseudo-masks are never read.

        Raises:
            ValueError: `image_size`, `seed` or a row is out of range.
        """
        check_int("image_size", image_size, minimum=1)
        check_int("seed", seed, minimum=0)
        self.index = index
        self.rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        outside = self.rows[(self.rows < 0) | (self.rows >= len(index))]
        if outside.size:
            raise ValueError(
                f"rows: expected numbers from 0 to {len(index) - 1}, got {int(outside[0])}"
            )
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.cache_bytes = cache_bytes
        self.labels = labels
        self.image_bits = image_bits
        self.pseudo_confidence = pseudo_confidence
        self._mask_dtype = np.dtype("uint8" if labels is None else labels.dtype)
        self._decoded: dict[int, tuple[_Pixels, _Mask]] = {}

    def __len__(self) -> int:
        """The number of rows selected."""
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the decoded samples, which each process makes for itself."""
        return {**self.__dict__, "_decoded": {}}

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Returns a sample.

        Raises:
            DataError: A ValueError; the row cannot be read. The message names file, row, column.
        """
        epoch, position = key if isinstance(key, tuple) else (0, key)
        row = int(self.rows[position])
        image, mask = self._decoded.get(row) or self._decode(row)
        if self.augment:
            flips = int(np.random.SeedSequence((self.seed, epoch, row)).generate_state(1)[0])
            step_y, step_x = (-1 if flips & 1 else 1), (-1 if flips & 2 else 1)
            image, mask = image[:, ::step_y, ::step_x], mask[:, ::step_y, ::step_x]
        return Sample(
            image=normalised(image),
            mask=torch.from_numpy(mask.copy()),
            valid=torch.tensor(bool(self.index.has_segmentation[row])),
            pseudo=torch.tensor(self._reads_pseudo(row)),
            row=row,
        )

    def _decode(self, row: int) -> tuple[_Pixels, _Mask]:
        """Reads a row: image (1 or 3, S, S) and mask (1, S, S)."""
        index, size = self.index, (self.image_size, self.image_size)
        where = index.where(row, "image")
        encoded = index.encoded(index.image_cell(row), row, "image")
        picture = open_picture(encoded, where, max_pixels=index.max_pixels)
        full_size = upright_size(picture)
        image = resized(image_pixels(picture, where, bits=self.image_bits), self.image_size)
        mask: _Mask | None = None
        if index.has_segmentation[row]:
            mask = _read_mask(index, row, index.mask_cell(row), full_size, self.labels)
        elif self._reads_pseudo(row):
            mask = self._read_pseudo(row, full_size)
        if mask is None:
            sample = (image, np.zeros((1, *size), self._mask_dtype))
        else:
            nearest = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
            sample = (image, np.asarray(nearest)[None])
        if self._keeps_decoded():
            self._decoded[row] = sample
        return sample

    def _reads_pseudo(self, row: int) -> bool:
        return self.pseudo_confidence is not None and bool(self.index.pseudo.rows[row])

    def _read_pseudo(self, row: int, image_size: tuple[int, int]) -> _Mask:
        """Reads a pseudo-mask (H, W); what it is not sure of holds the ignored value."""
        assert self.pseudo_confidence is not None
        index = self.index
        mask = _read_mask(index, row, index.pseudo_cell(row, "mask"), image_size, self.labels)
        unsure = unsure_pixels(
            index.encoded(index.pseudo_cell(row, CONFIDENCE), row, CONFIDENCE),
            index.where(row, CONFIDENCE),
            threshold=self.pseudo_confidence,
            size=image_size,
            max_pixels=index.max_pixels,
        )
        ignored = BINARY_IGNORED if self.labels is None else self.labels.ignore_index
        return np.where(unsure, mask.dtype.type(ignored), mask)

    def _keeps_decoded(self) -> bool:
        worker = get_worker_info()
        share = self.cache_bytes // (worker.num_workers if worker else 1)
        pixel_bytes = 3 + self._mask_dtype.itemsize
        return len(self.rows) * pixel_bytes * self.image_size**2 <= share


def _read_mask(
    index: IndexTable,
    row: int,
    cell: bytes | str,
    image_size: tuple[int, int],
    labels: Labels | None,
) -> _Mask:
    """Reads a row's mask cell as 0 and 1, or as class ids, in its own size (H, W)."""
    where = index.where(row, "mask")
    encoded = index.encoded(cell, row, "mask")
    picture = open_picture(encoded, where, max_pixels=index.max_pixels)
    check_same_size(upright_size(picture), image_size, where)
    if labels is not None:
        return class_mask(class_values(picture, where), where, labels)
    return binary_mask(mask_values(picture, where), where, lossy=picture.format == "JPEG")


def resized(picture: Image.Image, size: int) -> _Pixels:
    """A grey or RGB picture as pixels (1 or 3, size, size); the aspect ratio is not kept."""
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def normalised(image: _Pixels) -> Tensor:
    """Turns grey or RGB pixels (1 or 3, S, S) into the normalised float32 image (3, S, S)."""
    pixels = torch.from_numpy(image.astype(np.float32, order="C")).expand(3, -1, -1)
    scale = torch.tensor([1.0 / (255.0 * s) for s in STD]).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
    return torch.addcmul(shift, pixels, scale)
