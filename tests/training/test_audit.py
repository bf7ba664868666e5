from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.class_files import palette_png
from training.index_files import GARBAGE, SIZE, image, mask, png, write_index, write_simple, zeros

from fastseg_losses.training.audit import take_census
from fastseg_losses.training.census import Census, ClassCensus
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import Labels


def share(part: float) -> bytes:
    """A mask of 10x10 pixels with this share of foreground."""
    flat = np.zeros(100, np.uint8)
    flat[: round(100 * part)] = 255
    return png(flat.reshape(10, 10))


def census(path: Path, *arguments: object, **options: object) -> Any:
    return take_census(IndexTable(path), *arguments, **options)  # type: ignore[arg-type]


def test_counts_of_a_mixed_set(tmp_path: Path) -> None:
    masks = [share(0.1), share(0.0), None, share(0.2), share(0.6), GARBAGE, share(0.9)]
    flags = [True, True, False, True, True, False, False]
    images = [image(i, 10) for i in range(7)]
    found = census(write_index(tmp_path / "s.parquet", images, masks, flags))
    assert isinstance(found, Census)
    assert found.rows == 7
    assert found.annotated == 4
    assert found.foreground_rows == (0, 3, 4)
    assert found.foreground == 3
    assert found.empty == 1
    assert found.unannotated == 3
    assert found.unreadable == 0
    assert found.nonzero_share == 0.75
    assert found.foreground_mean == pytest.approx(0.225)
    assert found.foreground_median == pytest.approx(0.15)
    assert found.mask_values == (0, 255)
    assert found.learnable
    lines = found.lines()
    assert "Samples with segmentation: 4 / 7" in lines
    assert "Masks with non-zero values: 75.0%" in lines
    assert "Mask values found: 0, 255" in lines
    assert lines[-1] == "Verdict: Something to learn from: 3 annotated rows with foreground."


@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (4095, 12), (4096, 14), (65535, 16)])
def test_sixteen_bit_images_are_looked_at(largest: int, bits: int, tmp_path: Path) -> None:
    deep = [png(np.full((SIZE, SIZE), value, np.uint16)) for value in (largest, 7)]
    path = write_simple(tmp_path / "s.parquet", 3, image=[image(0), *deep])
    found = census(path)
    assert (found.deep_images, found.deep_largest, found.image_bits) == (2, largest, bits)
    line = f"16-bit images: 2, largest value {largest}, which takes {bits} bits"
    assert line in found.lines()
    plain = census(path, [0])
    assert plain.image_bits is None and "16-bit" not in "".join(plain.lines())


def test_only_the_rows_asked_for_are_counted(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "s.parquet", 6, mask=[mask(0), zeros()] * 3)
    found = census(path, [5, 4, 3])
    assert (found.rows, found.foreground_rows, found.empty) == (3, (4,), 2)
    assert census(path, []).rows == 0


def test_unannotated_masks_change_nothing(tmp_path: Path) -> None:
    flags, images = [True, False, False], [image(i) for i in range(3)]
    counted = [
        census(write_index(tmp_path / f"{i}.parquet", images, [mask(0), *others], flags))
        for i, others in enumerate([[None, None], [zeros(), mask(7, high=255)], [GARBAGE, b""]])
    ]
    assert counted[0] == counted[1] == counted[2]
    assert counted[0].unannotated == 2
    assert counted[0].mask_values == (0, 1)


def test_pseudo_masks_have_a_line_and_count_as_nothing_else(tmp_path: Path) -> None:
    images, masks = [image(i, 10) for i in range(4)], [share(0.1), GARBAGE, share(0.5), GARBAGE]
    flags = [True, False, False, False]
    path = tmp_path / "s.parquet"
    means = [0.1, None, 0.8, 0.9]
    write_index(
        path, images, masks, flags, mask_source=["d", None, "a", "b"], mask_confidence=means
    )
    found = census(path)
    assert (found.pseudo, found.pseudo_sources) == (2, ("a", "b"))
    assert (found.annotated, found.unannotated, found.unreadable) == (1, 3, 0)
    assert found.mask_values == (0, 255)
    (line,) = [line for line in found.lines() if "pseudo" in line]
    assert line.endswith("2 (50.0% of all rows), from a, b, mean confidence 0.850")
    assert "pseudo" not in "".join(census(path, [0, 1]).lines())
    many = [f"net {i}" for i in range(4)]
    write_index(path, images, [None] * 4, [False] * 4, mask_source=many)
    line = next(line for line in census(path).lines() if "pseudo" in line)
    assert line.endswith("net 0, net 1, net 2, ... (4 sources), mean confidence unknown")


def test_nothing_annotated(tmp_path: Path) -> None:
    found = census(write_simple(tmp_path / "s.parquet", 2, has_segmentation=[False, False]))
    assert not found.learnable
    assert found.verdict.startswith("Nothing to learn from: none of the 2 rows is annotated")
    assert found.nonzero_share == 0.0
    assert "Mask values found: none" in found.lines()


def test_all_masks_empty(tmp_path: Path) -> None:
    found = census(write_simple(tmp_path / "s.parquet", 2, mask=[zeros()] * 2))
    assert not found.learnable
    assert found.verdict.startswith("Nothing to learn from: all 2 readable annotated masks are")


@pytest.mark.parametrize(("empty", "asked"), [(2, False), (3, True)])
def test_many_empty_masks_are_asked_about(tmp_path: Path, empty: int, asked: bool) -> None:
    masks = [zeros()] * empty + [mask(0)] * (4 - empty)
    found = census(write_simple(tmp_path / "s.parquet", 4, mask=masks))
    assert found.learnable
    assert ("Looks like missing annotation: check" in found.verdict) == asked
    assert ("?" in found.verdict) == asked


def test_unreadable_rows_are_counted_and_named(tmp_path: Path) -> None:
    masks = [mask(0), GARBAGE, None, mask(3, size=SIZE + 1), mask(4, high=7), mask(5), mask(6)]
    images = [image(i) for i in range(7)]
    images[5] = GARBAGE
    images[6] = None  # type: ignore[call-overload]
    path = write_index(tmp_path / "s.parquet", images, masks, [True] * 7)
    found = census(path)
    assert found.annotated == 7
    assert found.foreground == 1
    assert found.unreadable == 6
    assert found.learnable
    assert found.mask_values == (0, 1, 7)  # of refused masks too: that is what has to be repaired
    for row, column, problem in zip(
        (1, 2, 3, 4, 5, 6), ("mask",) * 4 + ("image",) * 2, found.problems, strict=True
    ):
        assert problem.startswith(f"{path}: row {row}, column {column!r}: ")
    assert found.verdict.startswith("6 of 7 rows cannot be read")
    assert [line for line in found.lines() if line.startswith("  ")] == [
        f"  {problem}" for problem in found.problems
    ]


def test_no_row_at_all(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet", 1))
    found = take_census(index, [])
    assert found.verdict == "Nothing to learn from: there are no rows."


def test_no_readable_row(tmp_path: Path) -> None:
    found = census(write_simple(tmp_path / "s.parquet", 1, mask=[GARBAGE]))
    assert not found.learnable
    assert found.verdict.endswith("Nothing to learn from: no annotated row can be read.")


def test_damaged_image_data_is_found_on_demand(tmp_path: Path) -> None:
    images = [image(0), image(1)[:200], image(2)[:200]]
    path = write_simple(
        tmp_path / "s.parquet", 3, image=images, has_segmentation=[True, True, False]
    )
    assert census(path).unreadable == 0
    assert census(path, decode_images=True).unreadable == 2


def test_unannotated_image_is_not_looked_at_by_default(tmp_path: Path) -> None:
    path = write_simple(
        tmp_path / "s.parquet", 2, image=[image(0), GARBAGE], has_segmentation=[True, False]
    )
    assert census(path).unreadable == 0
    assert census(path, decode_images=True).unreadable == 1


def rows_of_ids(path: Path, *masks: list[int], flags: list[bool] | None = None) -> Path:
    """An index with masks of 2x2 pixels."""
    cells = [palette_png(np.array(ids, np.uint8).reshape(2, 2)) for ids in masks]
    images = [image(i, 2) for i in range(len(cells))]
    return write_index(path, images, cells, flags or [True] * len(cells))


def test_class_census_counts_pixels_and_rows_of_each_class(tmp_path: Path) -> None:
    path = rows_of_ids(
        tmp_path / "s.parquet",
        [0, 0, 1, 255],
        [1, 1, 1, 1],
        [255, 255, 255, 255],
        [0, 3, 3, 1],
        [2, 2, 2, 2],
        flags=[True, True, True, True, False],
    )
    found = census(path, labels=Labels(5, 255))
    assert isinstance(found, ClassCensus)
    assert (found.rows, found.annotated, found.unannotated, found.unreadable) == (5, 4, 1, 0)
    assert found.pixels == (3, 6, 0, 2, 0)
    assert found.class_rows == (2, 3, 0, 1, 0)
    assert found.alone_rows == (0, 1, 0, 0, 0)
    assert (found.several_rows, found.ignored, found.ignored_rows) == (2, 5, 1)
    assert found.missing == (2, 4)  # 2 is only in a mask that nobody drew
    assert found.mask_values == (0, 1, 3, 255)
    assert found.learnable
    lines = found.lines()
    for line in (
        "Annotated with several classes: 2",
        "Annotated with a single class: 1",
        "Annotated and all ignored: 1",
        "Ignored pixels (value 255): 31.2%",
        "Class 1: 6 pixels (54.55%), in 3 of 4 rows",
        "Classes that never occur: 2, 4",
    ):
        assert line in lines
    assert "3 of 5 classes in 3 annotated rows" in found.verdict
    assert "No pixel shows classes 2, 4" in found.verdict


def test_an_ignored_class_is_not_counted_and_not_missed(tmp_path: Path) -> None:
    found = census(rows_of_ids(tmp_path / "s.parquet", [0, 0, 1, 2]), labels=Labels(3, 0))
    assert found.pixels == (0, 1, 1)
    assert found.missing == ()
    assert found.ignored == 2


@pytest.mark.parametrize(
    ("masks", "verdict"),
    [
        ([[1, 1, 255, 1], [1, 1, 1, 1]], "all 2 readable annotated masks show class 1 only"),
        ([[255] * 4], "every pixel of the 1 readable annotated masks is ignored"),
        ([[9, 0, 0, 0]], "no annotated row can be read"),
    ],
    ids=["one class", "all ignored", "unreadable"],
)
def test_fewer_than_two_classes_are_nothing_to_learn_from(
    tmp_path: Path, masks: list[list[int]], verdict: str
) -> None:
    found = census(rows_of_ids(tmp_path / "s.parquet", *masks), labels=Labels(3, 255))
    assert not found.learnable
    assert verdict in found.verdict and "Nothing to learn from" in found.verdict


def test_many_masks_of_one_and_the_same_class_are_asked_about(tmp_path: Path) -> None:
    path = rows_of_ids(tmp_path / "s.parquet", [0] * 4, [0] * 4, [0, 1, 1, 1])
    verdict = census(path, labels=Labels(2, 255)).verdict
    assert "2 of 3 annotated masks show class 0 alone. Looks like missing annotation" in verdict


def test_masks_with_other_values_are_named_with_what_they_hold(tmp_path: Path) -> None:
    path = rows_of_ids(tmp_path / "s.parquet", [0, 1, 0, 1], [0, 7, 0, 255])
    found = census(path, labels=Labels(2, 255))
    assert found.unreadable == 1
    (problem,) = found.problems
    assert "row 1, column 'mask': expected class ids from 0 to 1, or 255, got 0, 7, 255" in problem
    assert found.mask_values == (0, 1, 7, 255)
    assert found.pixels == (2, 2)
