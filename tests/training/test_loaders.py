import logging
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from training.index_files import zeros
from training.runs import SIZE, write_set

from fastseg_losses.training import shared_samples
from fastseg_losses.training.audit import take_census
from fastseg_losses.training.augment import Augmentation
from fastseg_losses.training.config import resolve
from fastseg_losses.training.data import ParquetSegmentation, open_index
from fastseg_losses.training.loaders import make_loaders


def loaders(path: Path, *, rank: int = 0, world_size: int = 1, **settings: Any) -> Any:
    splits = open_index(path)
    census = take_census(splits.train_all.index, splits.train_all.rows)
    defaults = {"data": str(path), "image_size": SIZE, "batch_size": 3, "num_workers": 0}
    config = resolve(defaults | settings)
    return make_loaders(config, splits, census, rank=rank, world_size=world_size)


def rows_of(loader: Any) -> list[int]:
    return [
        int(row)
        for batch in loader
        for row, valid in zip(batch["row"], batch["valid"], strict=True)
        if valid
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Augmentation()),
        ({"augment": "none"}, None),
        ({"augment": "full", "rotate": 90.0}, Augmentation(90.0, 0.25, 0.2)),
    ],
)
def test_only_training_images_are_augmented(
    tmp_path: Path, settings: dict[str, Any], expected: Augmentation | None
) -> None:
    train, val = loaders(write_set(tmp_path / "d.parquet"), **settings)
    data = train.dataset
    assert isinstance(data, ParquetSegmentation)
    assert data.augment == expected
    assert val.dataset.augment is None


def test_processes_divide_both_sides(tmp_path: Path) -> None:
    # 10 of the 20 training rows have foreground.
    undrawn = range(0, 24, 2)
    path = write_set(tmp_path / "d.parquet", undrawn=undrawn, cell=zeros(SIZE), marked=True)
    settings = {"oversample_foreground": 0.75}
    train, val = loaders(path, **settings)
    parts = [loaders(path, rank=rank, world_size=3, **settings) for rank in range(3)]
    assert sorted(rows_of(train)) == sorted(sum((rows_of(part[0]) for part in parts), []))
    assert sum(row not in undrawn for row in rows_of(train)) == 15
    assert rows_of(val) == sorted(sum((rows_of(part[1]) for part in parts), [])) == [5, 11, 17, 23]
    assert len({len(part[1]) for part in parts}) == 1


@pytest.mark.parametrize(
    ("settings", "free", "text"),
    [
        ({"num_workers": 1}, 10**9, "training images: decoded once, 0 MiB in memory"),
        ({"num_workers": 0}, 0, "training images: decoded once, 0 MiB in memory"),
        ({"num_workers": 1}, 1000, "training images: decoded by each worker"),
        ({"cache_mb": 0}, 10**9, "training images: decoded anew in each epoch: 0 MiB are more"),
    ],
)
def test_the_log_says_what_stays_in_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, int],
    free: int,
    text: str,
) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, free)
    monkeypatch.setattr(shared_samples.shutil, "disk_usage", lambda path: usage)
    with caplog.at_level(logging.INFO, "fastseg_losses.training"):
        loaders(write_set(tmp_path / "d.parquet"), **settings)
    assert text in caplog.text
    assert text.replace("training", "validation") in caplog.text


def test_overfitting_draws_the_same_rows_with_foreground(tmp_path: Path) -> None:
    undrawn = range(0, 24, 2)
    path = write_set(tmp_path / "d.parquet", undrawn=undrawn, cell=zeros(SIZE), marked=True)
    train, val = loaders(path, overfit_batches=2, augment="full")
    rows = [rows_of(train) for _ in range(3)]
    assert rows[0] == rows[1] == rows[2] == rows_of(val) == [1, 3, 7, 9, 13, 15]
    assert train.dataset.augment is None
