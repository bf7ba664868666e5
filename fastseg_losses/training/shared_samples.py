"""Decoded samples in memory that a loader's workers have in common."""

import ctypes
import shutil
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import numpy as np

from fastseg_losses.training.augment import Mask, Pixels

# Where the memory comes from on Linux; containers often have little of it.
_SHARED_MEMORY = "/dev/shm"


class Decoded(NamedTuple):
    """A row before augmentation."""

    image: Pixels  # grey or RGB, (1 or 3, S, S)
    mask: Mask  # (1, S, S)
    aspect: float  # width by height of the picture that the index holds


def decoded_bytes(rows: int, size: int, mask_bytes: int) -> int:
    """What so many decoded rows take.

    Args:
        rows: Their number.
        size: Height and width.
        mask_bytes: Bytes of a mask's pixel.
    """
    return rows * (3 + mask_bytes) * size**2


def is_room_for(needed: int) -> bool:
    """Whether so many bytes of shared memory are free, and as many again for the batches."""
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free >= 2 * needed
    except OSError:  # not Linux: a file that is mapped into memory instead
        return True


class SharedSamples:
    """Decoded rows by position, for the process that makes this and the workers it starts.

    Each row is decoded once, by whoever needs it first, and is held once. The memory is taken at
    once, so that none can be missing later: a worker would die of that without a message.

    Two processes that decode the same row at the same time write the same bytes. A row can be read
    once its number of channels is set, which happens under a lock: without one, another processor
    might see the number before the pixels.
    """

    def __init__(self, rows: int, size: int, mask_dtype: str, context: BaseContext) -> None:
        """Takes the memory.

        Args:
            rows: Number of rows.
            size: Height and width of the samples.
            mask_dtype: Type of the masks.
            context: How the workers are started.
        """
        self._shape = (rows, size, mask_dtype)
        pixels = rows * size**2
        self._image_memory = context.RawArray(ctypes.c_uint8, 3 * pixels)
        self._mask_memory = context.RawArray(ctypes.c_uint8, pixels * np.dtype(mask_dtype).itemsize)
        self._aspects = context.RawArray(ctypes.c_double, rows)
        self._channels = context.Array(ctypes.c_uint8, rows)  # 0: not decoded yet
        self._map()

    def get(self, position: int) -> Decoded | None:
        """A row, as views of the memory; None if nobody has decoded it yet."""
        channels = self._channels[position]
        if not channels:
            return None
        image = self._images[position, :channels]
        return Decoded(image, self._masks[position], self._aspects[position])

    def __setitem__(self, position: int, sample: Decoded) -> None:
        """Keeps a row."""
        channels = len(sample.image)
        self._images[position, :channels] = sample.image
        self._masks[position] = sample.mask
        self._aspects[position] = sample.aspect
        self._channels[position] = channels

    def __getstate__(self) -> dict[str, Any]:
        """The state for a worker that starts: the memory itself, not its contents."""
        return {name: v for name, v in self.__dict__.items() if name not in ("_images", "_masks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse, in the worker."""
        self.__dict__.update(state)
        self._map()

    def _map(self) -> None:
        rows, size, mask_dtype = self._shape
        images = np.frombuffer(memoryview(self._image_memory), np.uint8)
        masks = np.frombuffer(memoryview(self._mask_memory), mask_dtype)
        self._images = images.reshape(rows, 3, size, size)
        self._masks = masks.reshape(rows, 1, size, size)
