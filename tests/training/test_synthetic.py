import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fastseg_losses.training.audit import take_census
from fastseg_losses.training.census import ClassCensus
from fastseg_losses.training.data import ParquetSegmentation, normalised, open_index
from fastseg_losses.training.decode import DataError
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import Labels
from fastseg_losses.training.synthetic import BACKGROUND, FILE_NAME, write_synthetic_set


@pytest.fixture(scope="module")
def default_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_set(tmp_path_factory.mktemp("synthetic") / "new" / "folder")


def test_default_set_has_every_state(default_set: Path) -> None:
    splits = open_index(default_set)
    train = take_census(*splits.train_all)
    val = take_census(*splits.val_all)
    assert train.rows + val.rows == 240
    assert val.rows == 48
    assert val.unannotated == 0
    assert train.unannotated == 48  # 20 % of all rows
    assert train.empty >= 3
    assert val.empty >= 1
    assert train.learnable
    assert val.learnable
    assert train.unreadable + val.unreadable == 0
    assert train.mask_values == (0, 255)


def test_foreground_is_sparse(default_set: Path) -> None:
    index = IndexTable(default_set)
    for row in np.flatnonzero(index.has_segmentation).tolist():
        cell = index.mask_cell(row)
        assert isinstance(cell, bytes)
        share = float(np.mean(np.asarray(Image.open(io.BytesIO(cell))) > 0))
        assert share == 0 or 0.03 <= share <= 0.08


def test_unannotated_masks_are_null_and_zero_in_turn(default_set: Path) -> None:
    table = pq.read_table(default_set).to_pylist()
    cells = [row["mask"] for row in table if not row["has_segmentation"]]
    assert sum(cell is None for cell in cells) == len(cells) // 2
    drawn = [np.asarray(Image.open(io.BytesIO(cell))) for cell in cells if cell is not None]
    assert not any(pixels.any() for pixels in drawn)


def test_objects_are_brighter_than_their_surroundings(default_set: Path) -> None:
    index = IndexTable(default_set)
    sample = ParquetSegmentation(index, [0], 96)[0]
    inside = sample["mask"][0].bool()
    image = normalised(sample["image"])[0]
    assert image[inside].mean() > image[~inside].mean() + 0.5


def test_same_arguments_give_the_same_set(tmp_path: Path) -> None:
    def cells(folder: str, **options: int) -> list[object]:
        path = write_synthetic_set(tmp_path / folder, image_size=32, **options)
        return pq.read_table(path).to_pylist()

    first = cells("a", rows=12)
    assert cells("b", rows=12) == first
    assert cells("b", rows=12) == first  # an existing file is replaced
    assert cells("b", rows=15)[:12] == first  # a row does not depend on how many there are
    assert cells("b", rows=12, seed=1) != first
    assert [p.name for p in (tmp_path / "b").iterdir()] == [FILE_NAME]


def test_multiclass_set_has_every_state_and_sparse_classes(tmp_path: Path) -> None:
    path = write_synthetic_set(tmp_path, rows=100, mode="multiclass")
    splits, labels = open_index(path), Labels(5, 255)
    for split in (splits.train_all, splits.val_all):
        census = take_census(*split, labels=labels)
        assert isinstance(census, ClassCensus)
        assert census.learnable and census.unreadable == 0
        assert census.mask_values == (0, 1, 2, 3, 4, 255)
        assert census.missing == ()
        total = sum(census.pixels)
        assert census.ignored / (total + census.ignored) == pytest.approx(1 - (90 / 96) ** 2)
        shares = [count / total for count in census.pixels]
        assert shares[BACKGROUND] > 0.9
        assert all(0.003 < share < 0.05 for share in shares[:BACKGROUND])
        assert census.alone_rows[BACKGROUND] >= 1  # annotated, and nothing to see
    assert take_census(*splits.train_all, labels=labels).unannotated == 20


def test_multiclass_set_is_the_same_for_the_same_arguments(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rows": 12, "image_size": 32, "mode": "multiclass"}
    first = pq.read_table(write_synthetic_set(tmp_path / "a", **options)).to_pylist()
    assert pq.read_table(write_synthetic_set(tmp_path / "b", **options)).to_pylist() == first
    masks = [row["mask"] for row in first if row["has_segmentation"]]
    assert {Image.open(io.BytesIO(mask)).mode for mask in masks} == {"P"}


@pytest.mark.parametrize("size", [32, 128])
def test_image_size(tmp_path: Path, size: int) -> None:
    index = IndexTable(write_synthetic_set(tmp_path, rows=10, image_size=size))
    cell = index.image_cell(0)
    assert isinstance(cell, bytes)
    assert Image.open(io.BytesIO(cell)).size == (size, size)


@pytest.mark.parametrize(("name", "value"), [("rows", 9), ("image_size", 31), ("seed", -1)])
def test_arguments_out_of_range(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least") as caught:
        write_synthetic_set(tmp_path, **{name: value})
    assert not isinstance(caught.value, DataError)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_synthetic_set(tmp_path, rows=10, image_size=32)
    assert not list(tmp_path.iterdir())
