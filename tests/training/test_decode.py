import zlib

import numpy as np
import pytest
from PIL import Image
from training.class_files import packed_png, palette_png
from training.index_files import GARBAGE, encode, image, png

from fastseg_losses.training.decode import (
    DataError,
    binary_mask,
    check_same_size,
    class_mask,
    class_values,
    describe_values,
    image_pixels,
    largest_value,
    mask_values,
    open_picture,
    upright_size,
)
from fastseg_losses.training.labels import Labels

WHERE = "set.parquet: row 7, column 'mask'"
GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.mark.parametrize("encoded", [b"", GARBAGE, b"\x89PNG\r\n\x1a\n", image(0)[:20]])
def test_undecodable_header(encoded: bytes) -> None:
    with pytest.raises(DataError, match=f"^{WHERE}: expected an encoded PNG or JPEG, got"):
        open_picture(encoded, WHERE)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([0, 1, 2, 255], "class ids? --mode multiclass --num-classes N"),
        ([0, 1, 255], "class ids?"),
        ([0, 7], "class ids?"),
        ([0, 128, 255], None),
        ([0, 3, 250], None),
    ],
)
def test_class_ids_in_binary_mode_are_recognised(values: list[int], hint: str | None) -> None:
    mask = np.array([values], np.uint8)
    with pytest.raises(DataError, match="expected the mask values 0 and 1, or 0 and 255") as error:
        binary_mask(mask, WHERE)
    assert ("class ids?" in str(error.value)) == (hint is not None)
    assert hint is None or hint in str(error.value)


def test_other_formats_are_not_opened() -> None:
    with pytest.raises(DataError, match="expected an encoded PNG or JPEG"):
        open_picture(encode(Image.fromarray(GREY), "BMP"), WHERE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_pixels(kind: str) -> None:
    rng = np.random.default_rng(0)
    encoded = encode(Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)), kind)
    picture = open_picture(encoded[: len(encoded) // 2], WHERE)
    with pytest.raises(DataError, match=f"^{WHERE}: cannot decode the picture"):
        image_pixels(picture, WHERE)


def test_too_many_pixels() -> None:
    with pytest.raises(DataError, match="8x6 is 48 pixels, more than the 47"):
        open_picture(png(GREY), WHERE, max_pixels=47)
    assert open_picture(png(GREY), WHERE, max_pixels=48).size == (8, 6)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_header_that_claims_a_huge_picture(side: int) -> None:
    honest = png(np.zeros((1, 1), np.uint8))
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + honest[24:29]
    bomb = honest[:12] + header + zlib.crc32(header).to_bytes(4, "big") + honest[33:]
    with pytest.raises(DataError, match=f"{WHERE}.* pixels"):
        open_picture(bomb, WHERE)


def decoded(picture: Image.Image, kind: str = "PNG") -> Image.Image:
    return image_pixels(open_picture(encode(picture, kind), WHERE), WHERE)


def test_grey_stays_one_channel_and_the_rest_becomes_rgb() -> None:
    grey = Image.fromarray(GREY)
    assert decoded(grey).mode == "L"
    assert np.array_equal(np.asarray(decoded(grey)), GREY)
    assert decoded(grey.convert("LA")).mode == "L"
    for mode in ("RGB", "RGBA", "P"):
        assert decoded(grey.convert(mode)).mode == "RGB"
    assert decoded(grey.convert("CMYK"), "JPEG").mode == "RGB"


def test_one_bit_image_is_black_and_white() -> None:
    picture = decoded(Image.fromarray(GREY > 20))
    assert np.array_equal(np.asarray(picture), np.where(GREY > 20, 255, 0))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    deep = np.array([[0, 257, 256 * 100, 65535]], np.uint16)
    assert np.asarray(decoded(Image.fromarray(deep))).tolist() == [[0, 1, 100, 255]]


def test_sixteen_bits_of_which_twelve_are_used() -> None:
    picture = open_picture(png(np.array([[0, 4095, 2048]], np.uint16)), WHERE)
    assert np.asarray(image_pixels(picture, WHERE, bits=12)).tolist() == [[0, 255, 128]]
    assert largest_value(picture, WHERE) == 4095
    picture = open_picture(png(np.array([[0, 4096]], np.uint16)), WHERE)
    message = f"^{WHERE}: expected 16-bit values up to 4095 \\(12 bits\\), got 4096"
    with pytest.raises(DataError, match=message):
        image_pixels(picture, WHERE, bits=12)


def test_orientation_of_a_jpeg_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    encoded = encode(Image.fromarray(GREY), "JPEG", exif=exif, quality=95)
    picture = open_picture(encoded, WHERE)
    assert picture.size == (8, 6)
    assert upright_size(picture) == (6, 8)
    upright = image_pixels(picture, WHERE)
    assert upright.size == (6, 8)
    np.testing.assert_allclose(np.asarray(upright), np.rot90(GREY, -1), atol=6)


def stored(picture: Image.Image) -> list[list[int]]:
    return mask_values(open_picture(encode(picture, "PNG"), WHERE), WHERE).tolist()


def test_mask_values_are_those_stored() -> None:
    grey = np.array([[0, 1, 255]], np.uint8)
    assert stored(Image.fromarray(grey)) == [[0, 1, 255]]
    assert stored(Image.fromarray(grey > 0)) == [[0, 1, 1]]
    assert stored(Image.fromarray(grey.astype(np.uint16) * 257)) == [[0, 257, 65535]]
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    assert stored(palette) == [[0, 1, 2]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_mask_of_several_channels(mode: str) -> None:
    picture = open_picture(encode(Image.fromarray(GREY).convert(mode), "PNG"), WHERE)
    with pytest.raises(DataError, match=f"^{WHERE}: expected a mask of one channel.*'{mode}'"):
        mask_values(picture, WHERE)


@pytest.mark.parametrize(
    ("values", "mapped"),
    [
        ([0, 0], [0, 0]),
        ([0, 1], [0, 1]),
        ([1, 1], [1, 1]),
        ([0, 255], [0, 1]),
        ([255, 255], [1, 1]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_accepted_mask_values(values: list[int], mapped: list[int], dtype: type) -> None:
    binary = binary_mask(np.array([values], dtype), WHERE)
    assert binary.dtype == np.uint8
    assert binary.tolist() == [mapped]


@pytest.mark.parametrize("values", [[0, 2], [0, 1, 255], [0, 128, 255], [254], [0, 65535]])
def test_refused_mask_values(values: list[int]) -> None:
    listed = ", ".join(map(str, values))
    hint = r"( \(class ids\?.*\))?"
    pattern = f"^{WHERE}: expected the mask values .* got {listed}{hint}$"
    with pytest.raises(DataError, match=pattern):
        binary_mask(np.array([values], np.uint16), WHERE)


def test_lossy_mask_is_told_its_cause() -> None:
    with pytest.raises(DataError, match="save masks as PNG"):
        binary_mask(np.array([[0, 3, 252]], np.uint8), WHERE, lossy=True)


def test_sizes_must_agree() -> None:
    check_same_size((8, 6), (8, 6), WHERE)
    with pytest.raises(DataError, match=f"^{WHERE}: .* 6x8 .*got 8x6"):
        check_same_size((8, 6), (6, 8), WHERE)


def test_many_values_are_shortened() -> None:
    assert describe_values([0, 255]) == "0, 255"
    assert describe_values(list(range(37)), limit=4) == "0, 1, 2, ..., 36 (37 values)"


@pytest.mark.parametrize(
    ("encoded", "ids"),
    [
        (png(np.array([[0, 3, 255]], np.uint8)), [0, 3, 255]),
        (palette_png(np.array([[0, 3, 255]], np.uint8)), [0, 3, 255]),
        (png(np.array([[0, 3, 300]], np.uint16)), [0, 3, 300]),
        (encode(Image.fromarray(np.array([[False, True]])), "PNG"), [0, 1]),
        (packed_png(b"\x01\x2f", bits=4, width=4), [0, 1, 2, 15]),
        (packed_png(b"\x1b", bits=2, width=4), [0, 1, 2, 3]),
    ],
    ids=["grey", "palette", "16 bits", "1 bit", "4 bits", "2 bits"],
)
def test_class_ids_are_read_as_they_are_stored(encoded: bytes, ids: list[int]) -> None:
    assert class_values(open_picture(encoded, WHERE), WHERE).tolist() == [ids]


def test_class_ids_in_a_jpeg_are_refused_even_where_they_look_right() -> None:
    zeros = open_picture(encode(Image.fromarray(np.zeros((8, 8), np.uint8)), "JPEG"), WHERE)
    with pytest.raises(DataError, match=f"^{WHERE}: expected class ids in a PNG, got a JPEG"):
        class_values(zeros, WHERE)


@pytest.mark.parametrize(
    ("labels", "values", "dtype"),
    [
        (Labels(3, 255), [0, 1, 2, 255], np.uint8),
        (Labels(3, 1), [0, 1, 2], np.uint8),
        (Labels(300, 65535), [0, 299, 65535], np.int32),
    ],
)
def test_accepted_class_ids_keep_their_value(
    labels: Labels, values: list[int], dtype: type
) -> None:
    found = class_mask(np.array([values], np.uint16), WHERE, labels)
    assert found.dtype == dtype
    assert found.tolist() == [values]


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        (Labels(3, 255), [0, 3], "expected class ids from 0 to 2, or 255, got 0, 3"),
        (Labels(3, 1), [0, 255], "expected class ids from 0 to 2, got 0, 255"),
        (Labels(3, 255), [0, 254], "or 255, got 0, 254"),
    ],
)
def test_refused_class_ids(labels: Labels, values: list[int], message: str) -> None:
    with pytest.raises(DataError, match=f"^{WHERE}: .*{message}$"):
        class_mask(np.array([values], np.uint8), WHERE, labels)
