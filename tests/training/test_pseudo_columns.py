import numpy as np
import pyarrow as pa
import pytest
from training.index_files import encode, png

from fastseg_losses.training.decode import DataError
from fastseg_losses.training.pseudo_columns import (
    confidence_bytes,
    pseudo_masks,
    small_columns,
    unsure_pixels,
)


def stored(*confidence: float) -> list[int]:
    return confidence_bytes(np.array([confidence], np.float32))[0].tolist()


def unsure(confidence: list[float], threshold: float) -> list[bool]:
    pixels = confidence_bytes(np.array([confidence], np.float32))
    found = unsure_pixels(
        png(pixels), "here", threshold=threshold, size=(len(confidence), 1), max_pixels=100
    )
    return [bool(value) for value in found[0]]


def test_confidence_is_rounded_down_and_never_up() -> None:
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    bytes_ = confidence_bytes(values[None])[0]
    assert (bytes_ / 255 <= values + 1e-4).all()
    assert (np.diff(bytes_.astype(int)) >= 0).all()
    assert stored(0.0, 1.0, 0.99999994) == [0, 255, 255]
    assert stored(float("nan"), -1.0, 2.0) == [0, 0, 255]


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99])
def test_the_usual_thresholds_cut_where_they_say(threshold: float) -> None:
    # A byte is 0.004; nearer than that no 8-bit number can cut.
    assert unsure([threshold + 0.005, threshold - 0.001], threshold) == [False, True]


def test_the_ends_of_the_threshold() -> None:
    assert unsure([0.0, 1.0], 0.0) == [False, False]
    assert unsure([0.99, 1.0], 1.0) == [True, False]


@pytest.mark.parametrize(
    ("cell", "part"),
    [
        (b"nothing", "cannot be decoded"),
        (png(np.zeros((1, 2), np.uint16)), "expected an 8-bit grey PNG, got PNG of Pillow mode"),
        (png(np.zeros((1, 3), np.uint8)), "as large as its image"),
    ],
)
def test_another_cell_is_an_error(cell: bytes, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        unsure_pixels(cell, "here", threshold=0.9, size=(2, 1), max_pixels=100)
    assert str(caught.value).startswith("here")


def test_a_jpeg_is_no_confidence() -> None:
    from PIL import Image

    cell = encode(Image.new("L", (2, 1)), "JPEG")
    with pytest.raises(DataError, match="got JPEG"):
        unsure_pixels(cell, "here", threshold=0.9, size=(2, 1), max_pixels=100)


def test_annotation_outranks_a_source() -> None:
    table = pa.table({"mask_source": ["a", "a", None], "mask_confidence": [0.5, 0.5, None]})
    found = pseudo_masks(table, np.array([True, False, False]))
    assert found.rows.tolist() == [False, True, False]
    assert (found.sources[1], found.confidences[1]) == ("a", 0.5)


def test_columns_of_the_same_name_and_another_type_are_left_alone() -> None:
    mine = pa.schema([("mask_source", pa.int64()), ("mask_confidence", pa.float32())])
    assert small_columns(mine) == []
    assert small_columns(pa.schema([("mask_source", pa.string())])) == ["mask_source"]
    assert not pseudo_masks(pa.table({"x": [1]}), np.array([False])).rows.any()
