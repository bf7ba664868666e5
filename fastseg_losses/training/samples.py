"""Rows of an index as tensors: decoded, resized and augmented.

A row is in one of three states, and `has_segmentation` alone decides: annotated with foreground,
annotated and empty, not annotated. The mask cell of a row that is not annotated is never read, so
null, zeros and garbage give the same sample, bit for bit. The one exception is asked for: with
`pseudo_confidence`, rows that are not annotated and whose `mask_source` names a pseudo-mask.
"""

import functools
import multiprocessing
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from fastseg_losses.training.augment import (
    Augmentation,
    Mask,
    Pixels,
    augmented,
    planes,
    random_words,
)
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
from fastseg_losses.training.shared_samples import (
    Decoded,
    SharedSamples,
    decoded_bytes,
    is_room_for,
)

# ImageNet's mean and standard deviation of RGB in [0, 1], which published encoders expect:
# image = (rgb / 255 - MEAN) / STD.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Decoded samples kept in memory by one data set. A set that does not fit is decoded anew each time.
SAMPLE_CACHE_BYTES = 512 * 2**20


class Draw(NamedTuple):
    """What a loader asks a data set for.

    Attributes:
        epoch: From 0; only matters with augmentation.
        position: Position in the data set's rows.
        repeat: How often the epoch drew the same row before; augmentation differs each time.
        counts: Whether the sample counts; if not, it comes with `valid` false.
    """

    epoch: int
    position: int
    repeat: int = 0
    counts: bool = True


class Sample(TypedDict):
    """One row as the loader collates it; a batch has the same keys with a leading dimension."""

    image: Tensor  # uint8 (3, S, S), RGB; `normalised` makes of it what a net takes
    # (1, S, S): uint8 0 or 1, or class ids of `Labels.dtype`; what a rotation left uncovered, or a
    # pseudo-mask is unsure of, is 255 or `Labels.ignore_index`; zero if there is no mask
    mask: Tensor
    valid: Tensor  # bool (), whether the row is annotated, and counts
    pseudo: Tensor  # bool (), whether the mask is a pseudo-mask, and counts; not where `valid` is
    row: int  # row in the index, from 0


class ParquetSegmentation(Dataset[Sample]):
    """Rows of an index as samples of one size.

    The image is resized with bilinear (anti-aliased) interpolation, the mask with nearest, both
    to a square: the aspect ratio is not kept. An index into the data set is a position in `rows`,
    or a `Draw` as `EpochSampler` yields it; a shorter tuple (epoch, position) will do.

    Attributes:
        decoded_bytes: What all samples take, decoded.
    """

    def __init__(
        self,
        index: IndexTable,
        rows: Sequence[int],
        image_size: int,
        *,
        augment: Augmentation | None = None,
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
            augment: Random flips and what else may happen, drawn from (seed, epoch, row) alone: the
                same for any number of workers, and whatever an unannotated row's mask cell holds.
                None: nothing happens.
            seed: Seed of the augmentation.
            cache_bytes: Decoded samples are kept if all of them fit into this (without
                `share_decoded`, divided by the number of workers); 0 turns it off.
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
        self._ignored = BINARY_IGNORED if labels is None else labels.ignore_index
        self._mask_dtype = np.dtype("uint8" if labels is None else labels.dtype)
        self.decoded_bytes = decoded_bytes(len(self.rows), image_size, self._mask_dtype.itemsize)
        self._decoded: dict[int, Decoded] | SharedSamples = {}

    def __len__(self) -> int:
        """The number of rows selected."""
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """The state without decoded samples of this process alone: each makes its own."""
        return {**self.__dict__, "_decoded": self._decoded if self.shares_decoded else {}}

    @property
    def shares_decoded(self) -> bool:
        """Whether workers keep decoded samples in common."""
        return isinstance(self._decoded, SharedSamples)

    def share_decoded(self, start_method: str | None) -> bool:
        """Makes workers that start from now on keep decoded samples in common.

        Args:
            start_method: How the workers start; None: Python's default.

        Returns:
            Whether they will: not if the samples do not fit into `cache_bytes` or into half of the
            free shared memory.
        """
        needed = self.decoded_bytes
        if not needed or needed > self.cache_bytes or not is_room_for(needed):
            return False
        context = multiprocessing.get_context(start_method)
        self._decoded = SharedSamples(
            len(self.rows), self.image_size, self._mask_dtype.name, context
        )
        return True

    def __getitem__(self, key: int | tuple[int, int] | Draw) -> Sample:
        """Returns a sample.

        Raises:
            DataError: A ValueError; the row cannot be read. The message names file, row, column.
        """
        draw = Draw(*(key if isinstance(key, tuple) else (0, key)))
        row = int(self.rows[draw.position])
        image, mask, aspect = self._decoded.get(draw.position) or self._decode(draw.position)
        annotated, pseudo = bool(self.index.has_segmentation[row]), self._reads_pseudo(row)
        if self.augment is not None:
            words = random_words(self.seed, draw.epoch, row, draw.repeat)
            image, changed = augmented(
                image,
                mask if annotated or pseudo else None,
                self.augment,
                words,
                aspect=aspect,
                ignored=self._ignored,
            )
            mask = mask if changed is None else changed
        return Sample(
            image=as_rgb(image),
            mask=torch.from_numpy(mask.copy()),
            valid=torch.tensor(annotated and draw.counts),
            pseudo=torch.tensor(pseudo and draw.counts),
            row=row,
        )

    def _decode(self, position: int) -> Decoded:
        row = int(self.rows[position])
        index, size = self.index, (self.image_size, self.image_size)
        where = index.where(row, "image")
        encoded = index.encoded(index.image_cell(row), row, "image")
        picture = open_picture(encoded, where, max_pixels=index.max_pixels)
        full_size = upright_size(picture)
        image = resized(image_pixels(picture, where, bits=self.image_bits), self.image_size)
        mask: Mask | None = None
        if index.has_segmentation[row]:
            mask = _read_mask(index, row, index.mask_cell(row), full_size, self.labels)
        elif self._reads_pseudo(row):
            mask = self._read_pseudo(row, full_size)
        if mask is None:
            drawn = np.zeros((1, *size), self._mask_dtype)
        else:
            nearest = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
            drawn = np.array(nearest)[None]
        sample = Decoded(image, drawn, full_size[0] / full_size[1])
        if self._keeps_decoded():
            self._decoded[position] = sample
        return sample

    def _reads_pseudo(self, row: int) -> bool:
        return self.pseudo_confidence is not None and bool(self.index.pseudo.rows[row])

    def _read_pseudo(self, row: int, image_size: tuple[int, int]) -> Mask:
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
        return np.where(unsure, mask.dtype.type(self._ignored), mask)

    def _keeps_decoded(self) -> bool:
        if self.shares_decoded:
            return True
        worker = get_worker_info()
        share = self.cache_bytes // (worker.num_workers if worker else 1)
        return self.decoded_bytes <= share


def _read_mask(
    index: IndexTable,
    row: int,
    cell: bytes | str,
    image_size: tuple[int, int],
    labels: Labels | None,
) -> Mask:
    """Reads a row's mask cell as 0 and 1, or as class ids, in its own size (H, W)."""
    where = index.where(row, "mask")
    encoded = index.encoded(cell, row, "mask")
    picture = open_picture(encoded, where, max_pixels=index.max_pixels)
    check_same_size(upright_size(picture), image_size, where)
    if labels is not None:
        return class_mask(class_values(picture, where), where, labels)
    return binary_mask(mask_values(picture, where), where, lossy=picture.format == "JPEG")


def resized(picture: Image.Image, size: int) -> Pixels:
    """A grey or RGB picture as pixels (1 or 3, size, size); the aspect ratio is not kept."""
    return planes(picture.resize((size, size), Image.Resampling.BILINEAR))


def as_rgb(image: Pixels) -> Tensor:
    """Grey or RGB pixels (1 or 3, S, S) as a uint8 tensor (3, S, S) of its own."""
    return torch.from_numpy(np.broadcast_to(image, (3, *image.shape[1:])).copy())


def normalised(images: Tensor) -> Tensor:
    """What a net takes: (rgb / 255 - MEAN) / STD.

    A loader leaves it to the device: as bytes, images are a quarter of the size on their way there.

    Args:
        images: A sample's image or a batch's, (3, S, S) or (N, 3, S, S), uint8, on any device.

    Returns:
        The same shape, float32, on the same device.
    """
    scale, shift = _scale_and_shift(images.device)
    return torch.addcmul(shift, images.float(), scale)


@functools.cache  # on CUDA, a new tensor for each batch would wait for the device
def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1.0 / (255.0 * s) for s in STD], device=device)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=device)
    return scale.view(3, 1, 1), shift.view(3, 1, 1)
