from pathlib import Path

import numpy as np
import pytest
from training.index_files import GARBAGE, SIZE, image, mask, png, write_index, write_simple, zeros

from fastseg_losses.training.audit import MAX_PROBLEMS, Census, take_census
from fastseg_losses.training.index import IndexTable


def share(part: float) -> bytes:
    """A mask of 10x10 pixels with this share of foreground."""
    flat = np.zeros(100, np.uint8)
    flat[: round(100 * part)] = 255
    return png(flat.reshape(10, 10))


def census(path: Path, *arguments: object, **options: bool) -> Census:
    return take_census(IndexTable(path), *arguments, **options)  # type: ignore[arg-type]


def test_counts_of_a_mixed_set(tmp_path: Path) -> None:
    masks = [share(0.1), share(0.0), None, share(0.2), share(0.6), GARBAGE, share(0.9)]
    flags = [True, True, False, True, True, False, False]
    images = [image(i, 10) for i in range(7)]
    found = census(write_index(tmp_path / "s.parquet", images, masks, flags))
    assert found.rows == 7
    assert found.annotated == 4
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


def test_only_the_rows_asked_for_are_counted(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "s.parquet", 6, mask=[mask(0), zeros()] * 3)
    found = census(path, [5, 0, 3])
    assert (found.rows, found.foreground, found.empty) == (3, 1, 2)
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
    assert len(found.problems) == MAX_PROBLEMS
    for row, column, problem in zip(
        (1, 2, 3, 4, 5), ("mask", "mask", "mask", "mask", "image"), found.problems, strict=True
    ):
        assert problem.startswith(f"{path}: row {row}, column {column!r}: ")
    assert found.verdict.startswith("6 of 7 rows cannot be read")
    assert "  ..." in found.lines()


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
