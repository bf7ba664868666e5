"""Random changes to a training sample: flips, rotation, scale with crop, colour.

With Pillow, which reads the images anyway: torchvision's wheel on PyPI cannot be imported beside a
CPU build of torch, and albumentations is no longer developed.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fastseg_losses.training.settings import check_strength

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8 | np.int32]
_Array = TypeVar("_Array", Pixels, Mask)

# Grey from red, green, blue, as Pillow weighs them.
_LUMA = (0.299, 0.587, 0.114)
_WORDS = 8  # random numbers that a sample takes, whatever is switched on


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training sample besides flips, which always may.

    Attributes:
        rotate: Largest angle in degrees, either way.
        scale: Magnified or shrunk by up to 1 + scale, at a random place: what is magnified is
            cropped.
        colour: Brightness, contrast and saturation are each multiplied by 1 - colour to 1 + colour.

    Raises:
        ValueError: One of them is out of range.
    """

    rotate: float = 0.0
    scale: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("rotate", "scale", "colour"):
            check_strength(name, getattr(self, name))


def random_words(seed: int, epoch: int, row: int, repeat: int = 0) -> npt.NDArray[np.uint32]:
    """The random numbers of one sample; `repeat` counts how often the epoch had the row before."""
    entropy = (seed, epoch, row, repeat) if repeat else (seed, epoch, row)
    return np.random.SeedSequence(entropy).generate_state(_WORDS).astype(np.uint32, copy=False)


def augmented(
    image: Pixels,
    mask: Mask | None,
    how: Augmentation,
    words: npt.NDArray[np.uint32],
    *,
    aspect: float,
    ignored: int,
) -> tuple[Pixels, Mask | None]:
    """Changes an image, and its mask alike.

    The geometry is one affine resampling: bilinear for the image, nearest for the mask. It does
    without antialiasing because it shrinks by no more than 2. What it leaves uncovered takes the
    image's mean colour, and in the mask the ignored value: as background it would be a false
    target.

    Args:
        image: Grey or RGB (1 or 3, S, S).
        mask: (1, S, S); None: there is none to be changed.
        how: What may happen.
        words: From `random_words`.
        aspect: Width by height of the picture before it was resized to a square. Rotation is that
            of the original picture; in the square it would distort the objects.
        ignored: The mask's value for pixels that count for nothing.

    Returns:
        Image and mask in the same form, as arrays of their own.
    """
    resamples = bool(how.rotate or how.scale)
    if not resamples:
        image, mask = _flipped(image, words), None if mask is None else _flipped(mask, words)
        if not how.colour:
            return image, mask
    picture, mean = _picture(image), image.mean((1, 2))
    if resamples:
        matrix = _affine(how, words, image.shape[-1], aspect)
        fill = [round(value) for value in mean.tolist()]
        bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
        picture = _resampled(picture, matrix, bilinear, fill[0] if len(fill) == 1 else tuple(fill))
        if mask is not None:
            drawn = _resampled(Image.fromarray(mask[0]), matrix, nearest, ignored)
            mask = np.asarray(drawn)[None]
    if how.colour:
        picture = _recoloured(picture, mean, how.colour, words)
    return planes(picture), mask


def planes(picture: Image.Image) -> Pixels:
    """The pixels of a grey or RGB picture as (1 or 3, H, W)."""
    return np.stack([np.asarray(band) for band in picture.split()])


def _picture(image: Pixels) -> Image.Image:
    # Several times as fast as to transpose the array first.
    bands = [Image.fromarray(plane) for plane in image]
    return bands[0] if len(bands) == 1 else Image.merge("RGB", bands)


def _flips(words: npt.NDArray[np.uint32]) -> tuple[bool, bool]:
    """Whether top and bottom change places, and left and right."""
    return bool(words[0] & 1), bool(words[0] & 2)


def _flipped(pixels: _Array, words: npt.NDArray[np.uint32]) -> _Array:
    dims = [dim for dim, flip in zip((1, 2), _flips(words), strict=True) if flip]
    # A copy of numpy's view with negative steps takes six times as long.
    flipped: _Array = torch.from_numpy(pixels).flip(dims).numpy()
    return flipped


def _resampled(
    picture: Image.Image,
    matrix: tuple[float, ...],
    how: Image.Resampling,
    fill: int | tuple[int, ...],
) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, how, fillcolor=fill)


def _affine(
    how: Augmentation, words: npt.NDArray[np.uint32], size: int, aspect: float
) -> tuple[float, ...]:
    """Where in the source each output pixel lies: (a, b, c, d, e, f) of Pillow's AFFINE."""
    angle = math.radians(how.rotate) * _uniform(words[1])
    zoom = (1 + how.scale) ** _uniform(words[2])
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    sign_y, sign_x = (-1 if flip else 1 for flip in _flips(words))
    # Rotated where the picture has its own aspect ratio: x is stretched before and back after.
    a, b = sign_x * cosine, -sign_y * sine / aspect
    d, e = sign_x * sine * aspect, sign_y * cosine
    # Magnified, a window of 1 / zoom lies anywhere in the picture; shrunk, the picture anywhere in
    # the window.
    room = abs(1 - 1 / zoom) / 2
    x, y = (size * (0.5 + room * _uniform(word)) for word in words[3:5])
    middle = size / 2
    return (a, b, x - (a + b) * middle, d, e, y - (d + e) * middle)


def _recoloured(
    picture: Image.Image,
    mean: npt.NDArray[np.float64],
    strength: float,
    words: npt.NDArray[np.uint32],
) -> Image.Image:
    """Brightness, then saturation, then contrast around the mean grey: together one matrix."""
    brightness, contrast, saturation = (1 + strength * _uniform(word) for word in words[5:8])
    gain = brightness * contrast
    grey = mean[0] if len(mean) == 1 else np.dot(mean, _LUMA)
    offset = (1 - contrast) * brightness * float(grey)
    if len(mean) == 1:
        table = np.clip(np.floor(np.arange(256) * gain + offset + 0.5), 0, 255)
        return picture.point(table.astype(int).tolist())
    matrix: list[float] = []
    for channel in range(3):
        row = [gain * (1 - saturation) * weight for weight in _LUMA]
        row[channel] += gain * saturation
        matrix += [*row, offset]
    return picture.convert("RGB", tuple(matrix))


def _uniform(word: np.uint32) -> float:
    """From -1 to 1."""
    return float(word) / 2**31 - 1.0
