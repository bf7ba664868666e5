"""From the encoded bytes of one cell to pixels, with an error that says which cell it was."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from fastseg_losses.training.labels import Labels
from fastseg_losses.training.settings import MAX_PIXELS

# By the first bytes. Not through Image.open, which warns above 89 megapixels and refuses above 179,
# whatever `max_pixels` says; and which takes a JPEG with a preview for another format.
_READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
)

# How Pillow names a 16-bit grey PNG ("I" in its older versions).
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")

# A binary mask whose values are below this (255 aside) looks like class ids, not like grey edges.
MANY_CLASSES = 64

# Pillow spreads grey PNGs of few bits over 0 to 255; this undoes it.
_GREY_STEP = {"L;2": 85, "L;4": 17}

# EXIF orientations 5 to 8 turn the picture by 90 degrees, so width and height change places.
_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)


class DataError(ValueError):
    """Something is wrong with the user's data; the message names file, row and column."""


def open_picture(
    encoded: bytes, where: str, *, max_pixels: int = MAX_PIXELS
) -> ImageFile.ImageFile:
    """Reads the header of a PNG or JPEG and checks its size; no pixel is decoded yet.

    Args:
        encoded: The file's bytes.
        where: Which cell this is; the start of every error message.
        max_pixels: The largest width times height that is accepted.

    Raises:
        DataError: The bytes are no PNG or JPEG, or the picture is too large.
    """
    if not encoded:
        raise DataError(f"{where}: expected an encoded PNG or JPEG, got 0 bytes")
    try:
        reader = next(kind for start, kind in _READERS if encoded.startswith(start))
        picture = reader(io.BytesIO(encoded))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on broken bytes
        head = encoded[:8].hex(" ")
        raise DataError(
            f"{where}: expected an encoded PNG or JPEG, got {len(encoded)} bytes that start with "
            f"{head} and cannot be decoded"
        ) from error
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(
            f"{where}: {width}x{height} is {width * height} pixels, more than the {max_pixels} "
            "that are accepted (--max-pixels)"
        )
    return picture


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Returns (width, height) after the EXIF orientation of a JPEG, without decoding it."""
    if _orientation(picture) in _TURNED:
        return picture.size[1], picture.size[0]
    return picture.size


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture is a 16-bit grey one."""
    return picture.mode in SIXTEEN_BITS


def largest_value(picture: Image.Image, where: str) -> int:
    """The largest value of a 16-bit grey picture.

    Raises:
        DataError: The pixels cannot be decoded.
    """
    return int(np.asarray(_loaded(picture, where)).max())


def image_pixels(picture: Image.Image, where: str, *, bits: int = 16) -> Image.Image:
    """Decodes an image into mode "L" (grey) or "RGB", upright.

    Grey stays one channel, so that everything after this costs a third; it becomes RGB when the
    sample is made. A 16-bit grey PNG is scaled to 0..255 (Pillow's own conversion would clip it at
    255). Transparency is dropped, a palette is resolved.

    Args:
        picture: What `open_picture` returned.
        where: Which cell this is; the start of every error message.
        bits: How many of its 16 bits a 16-bit grey PNG uses: 12 scale 0..4095.

    Raises:
        DataError: The pixels cannot be decoded, or a 16-bit one holds a value of more bits.
    """
    picture = _loaded(picture, where)
    if is_deep(picture):
        values = np.asarray(picture)
        top = 2**bits - 1
        if values.max() > top:
            raise DataError(
                f"{where}: expected 16-bit values up to {top} ({bits} bits), got {values.max()}; "
                "raise image_bits"
            )
        return Image.fromarray(np.rint(values.astype(np.float32) / (top / 255)).astype(np.uint8))
    if picture.mode in ("1", "L", "LA"):
        return picture.convert("L")
    return picture.convert("RGB")


def mask_values(picture: Image.Image, where: str) -> npt.NDArray[np.uint8 | np.uint16]:
    """Decodes a mask into its values (H, W), not yet mapped to 0 and 1 or checked as class ids.

    A palette PNG gives the palette's indices, not its colours. A grey PNG of 2 or 4 bits gives
    values spread over 0 to 255, as an image would; `class_values` gives them as stored.

    Raises:
        DataError: The pixels cannot be decoded, or have more than one channel.
    """
    picture = _loaded(picture, where)
    if picture.mode in ("1", "L", "P"):
        return np.asarray(picture).astype(np.uint8)
    if is_deep(picture):
        return np.asarray(picture).astype(np.uint16)
    raise DataError(
        f"{where}: expected a mask of one channel (grey, palette or 1 bit), got Pillow mode "
        f"{picture.mode!r}; save it as a grey PNG with the values 0 and 1, or 0 and 255"
    )


def binary_mask(
    values: npt.NDArray[np.uint8 | np.uint16], where: str, *, lossy: bool = False
) -> npt.NDArray[np.uint8]:
    """Maps a mask's values to 0 and 1: {0, 1} stays, {0, 255} becomes {0, 1}, all else is an error.

    Args:
        values: What `mask_values` returned.
        where: Which cell this is; the start of the error message.
        lossy: Whether the mask came from a JPEG; adds the likely cause to the message.

    Raises:
        DataError: Any other value, 1 and 255 in the same mask included.
    """
    if values.max(initial=0) <= 1:
        return values.astype(np.uint8, copy=False)
    full = values == 255
    if bool(np.all(full | (values == 0))):
        return full.astype(np.uint8)
    found = np.unique(values).tolist()
    hint = ""
    if lossy:
        hint = " (JPEG is lossy and blurs a mask's values: save masks as PNG)"
    elif max(value for value in found if value != 255) in range(1, MANY_CLASSES):
        hint = " (class ids? --mode multiclass --num-classes N reads those)"
    raise DataError(
        f"{where}: expected the mask values 0 and 1, or 0 and 255, got "
        f"{describe_values(found)}{hint}"
    )


def class_values(picture: ImageFile.ImageFile, where: str) -> npt.NDArray[np.uint8 | np.uint16]:
    """Decodes a mask into the class ids that are stored in it (H, W), not yet checked.

    Args:
        picture: What `open_picture` returned, its pixels not decoded yet.
        where: Which cell this is; the start of the error message.

    Raises:
        DataError: As `mask_values`; or the mask is a JPEG, whose compression turns ids into others.
    """
    if picture.format == "JPEG":
        raise DataError(f"{where}: expected class ids in a PNG, got a JPEG, which changes the ids")
    tiles = picture.tile
    step = _GREY_STEP.get(str(tiles[0].args), 1) if tiles else 1
    return mask_values(picture, where) // step


def class_mask(
    values: npt.NDArray[np.uint8 | np.uint16], where: str, labels: Labels
) -> npt.NDArray[np.uint8 | np.int32]:
    """Checks that a mask holds nothing but class ids and the ignored value.

    Args:
        values: What `class_values` returned.
        where: Which cell this is; the start of the error message.
        labels: What the values mean.

    Raises:
        DataError: Any other value.
    """
    if bool(np.any((values >= labels.num_classes) & (values != labels.ignore_index))):
        found = describe_values(np.unique(values).tolist())
        raise DataError(f"{where}: expected {labels.accepted}, got {found}")
    mask: npt.NDArray[np.uint8 | np.int32] = values.astype(labels.dtype, copy=False)
    return mask


def check_same_size(mask: tuple[int, int], image: tuple[int, int], where: str) -> None:
    """Raises a DataError unless a mask is as large as its image; sizes are (width, height)."""
    if mask != image:
        raise DataError(
            f"{where}: expected a mask as large as its image, {image[0]}x{image[1]} (width x "
            f"height), got {mask[0]}x{mask[1]}"
        )


def describe_values(values: list[int], limit: int = 12) -> str:
    """Lists sorted values for a message: all of them, or the first few and how many there are."""
    if len(values) <= limit:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[: limit - 1]))}, ..., {values[-1]} ({len(values)} values)"


def _orientation(picture: Image.Image) -> int:
    # JPEG only: asking a PNG for its EXIF makes Pillow decode the whole picture.
    if picture.format == "PNG":
        return 1
    return int(picture.getexif().get(_ORIENTATION_TAG, 1))


def _loaded(picture: Image.Image, where: str) -> Image.Image:
    try:
        picture.load()
        return ImageOps.exif_transpose(picture) if _orientation(picture) != 1 else picture
    except MemoryError:
        raise
    except Exception as error:  # as in open_picture: truncated data, bad checksums, broken chunks
        raise DataError(f"{where}: cannot decode the picture ({error})") from error
