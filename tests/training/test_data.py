import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from training.index_files import GARBAGE, SIZE, image, mask, write_index, write_simple

from fastseg_losses.training.augment import Augmentation
from fastseg_losses.training.data import (
    DataError,
    EpochSampler,
    IndexTable,
    ParquetSegmentation,
    Sample,
    make_loader,
    open_index,
)


def mixed(path: Path, flags: list[bool], **columns: object) -> Path:
    return write_simple(path, len(flags), has_segmentation=flags, **columns)


def test_split_column_decides(tmp_path: Path) -> None:
    path = mixed(
        tmp_path / "s.parquet",
        [True, False, True, True, False],
        split=["train", "train", "val", "train", "val"],
    )
    splits = open_index(path)
    assert splits.train.rows == (0, 3)
    assert splits.val.rows == (2,)
    assert splits.train_all.rows == (0, 1, 3)
    assert splits.val_all.rows == (2, 4)
    index, rows = splits.train
    assert isinstance(index, IndexTable)
    assert rows == (0, 3)


def test_keep_unannotated_concerns_training_only(tmp_path: Path) -> None:
    path = mixed(
        tmp_path / "s.parquet", [True, False, True, False], split=["train", "train", "val", "val"]
    )
    splits = open_index(path, keep_unannotated=True)
    assert splits.train.rows == (0, 1)
    assert splits.val.rows == (2,)


def test_pseudo_masks_train_and_never_validate(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    sources = ["net", None, "net", "net", "net", None]
    flags = [False, False, True, False, True, True]
    marked = ["train", "train", "train", "val", "val", "val"]
    write_simple(path, 6, has_segmentation=flags, mask_source=sources, split=marked)
    assert open_index(path).train.rows == (2,)
    splits = open_index(path, use_pseudo=True)
    assert splits.train.rows == (0, 2)
    assert splits.val.rows == (4, 5)
    assert open_index(path, use_pseudo=True, keep_unannotated=True).train.rows == (0, 1, 2)
    drawn = write_simple(tmp_path / "d.parquet", 6, has_segmentation=flags, mask_source=["net"] * 6)
    assert not set(open_index(drawn, use_pseudo=True).val.rows) & {0, 1, 3}


def test_random_split_is_seeded_and_takes_annotated_rows(tmp_path: Path) -> None:
    flags = [i % 3 != 0 for i in range(30)]
    path = mixed(tmp_path / "s.parquet", flags)
    splits = open_index(path, val_fraction=0.25, seed=1)
    assert len(splits.val.rows) == 5
    assert all(flags[row] for row in splits.val.rows)
    assert sorted(splits.train_all.rows + splits.val.rows) == list(range(30))
    assert splits.train.rows == tuple(r for r in splits.train_all.rows if flags[r])
    assert open_index(path, val_fraction=0.25, seed=1).val.rows == splits.val.rows
    assert open_index(path, val_fraction=0.25, seed=2).val.rows != splits.val.rows


@pytest.mark.parametrize(("annotated", "val"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_random_split_of_a_few_rows(tmp_path: Path, annotated: int, val: int) -> None:
    path = mixed(tmp_path / "s.parquet", [i < annotated for i in range(4)])
    splits = open_index(path, val_fraction=0.05)
    assert len(splits.val.rows) == val
    assert len(splits.train.rows) == annotated - val
    splits = open_index(path, val_fraction=0.95)
    assert len(splits.train.rows) == min(annotated, 1)


def test_second_index_for_validation(tmp_path: Path) -> None:
    a = mixed(tmp_path / "a.parquet", [True] * 3, split=["train", "val", "train"])
    b = mixed(tmp_path / "b.parquet", [True, False, True])
    splits = open_index(a, val_path=b)
    assert splits.train.rows == (0, 2)
    assert splits.val.rows == (0, 2)
    assert splits.val.index.path == b
    (text,) = splits.left_out
    assert f"{a}: 1 of 3 rows are left out of training" in text
    assert open_index(a).left_out == ()
    assert open_index(b, val_path=a).train.rows == (0, 2)
    assert open_index(b, val_path=a).val.rows == (1,)


def test_split_that_leaves_a_side_empty(tmp_path: Path) -> None:
    path = mixed(tmp_path / "s.parquet", [True] * 2, split=["train"] * 2)
    with pytest.raises(DataError, match="column 'split': all 2 rows are 'train'"):
        open_index(path)


def test_arguments_out_of_range(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "s.parquet")
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="val_fraction"):
            open_index(path, val_fraction=fraction)
    with pytest.raises(ValueError, match="seed"):
        open_index(path, seed=-1)
    splits = open_index(path)
    good = {"batch_size": 2, "shuffle": True, "num_workers": 0, "seed": 0, "drop_last": False}
    dataset = ParquetSegmentation(*splits.train, SIZE)
    for name, value in (("batch_size", 0), ("num_workers", -1), ("seed", -1)):
        with pytest.raises(ValueError, match=name):
            make_loader(dataset, **(good | {name: value}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size: expected at most the 6 rows"):
        make_loader(dataset, **(good | {"batch_size": 7, "drop_last": True}))  # type: ignore[arg-type]
    two = good | {"batch_size": 4, "drop_last": True, "world_size": 2}
    with pytest.raises(ValueError, match="got 4 for each of 2 processes"):
        make_loader(dataset, **two)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one row"):
        make_loader(ParquetSegmentation(splits.train.index, [], SIZE), **good)  # type: ignore[arg-type]


def test_loader_of_an_empty_validation_side_is_empty(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet"))
    loader = make_loader(
        ParquetSegmentation(index, [], SIZE),
        batch_size=2,
        shuffle=False,
        num_workers=0,
        seed=0,
        drop_last=False,
    )
    assert list(loader) == []


def loader_of(path: Path, workers: int, start_method: str | None = None) -> "DataLoader[Sample]":
    index = IndexTable(path)
    return make_loader(
        ParquetSegmentation(index, range(len(index)), SIZE, augment=Augmentation(), seed=5),
        batch_size=3,
        shuffle=True,
        num_workers=workers,
        seed=5,
        drop_last=False,
        start_method=start_method,
    )


def epochs(path: Path, workers: int, start_method: str | None = None) -> list[list[Sample]]:
    loader = loader_of(path, workers, start_method)
    return [list(loader) for _ in range(2)]


def assert_same(a: list[list[Sample]], b: list[list[Sample]]) -> None:
    for batches_a, batches_b in zip(a, b, strict=True):
        for batch_a, batch_b in zip(batches_a, batches_b, strict=True):
            for key in ("image", "mask", "valid", "row"):
                assert torch.equal(batch_a[key], batch_b[key])  # type: ignore[literal-required]


def test_batches_have_the_documented_form(tmp_path: Path) -> None:
    (first, *rest), again = epochs(mixed(tmp_path / "s.parquet", [True, False] * 4), 0)
    assert first["image"].shape == (3, 3, SIZE, SIZE)
    assert first["mask"].shape == (3, 1, SIZE, SIZE)
    assert first["valid"].dtype == torch.bool
    assert first["valid"].shape == (3,)
    rows = torch.cat([torch.as_tensor(b["row"]) for b in (first, *rest)]).tolist()
    assert sorted(rows) == list(range(8))
    rows_again = torch.cat([torch.as_tensor(b["row"]) for b in again]).tolist()
    assert sorted(rows_again) == list(range(8))
    assert rows_again != rows  # shuffled anew


def test_null_and_zero_masks_give_the_same_batches(tmp_path: Path) -> None:
    flags = [True, False, False, True, False, True]
    images = [image(i) for i in range(6)]
    null = [mask(i) if flags[i] else None for i in range(6)]
    junk = [mask(i) if flags[i] else GARBAGE for i in range(6)]
    a = epochs(write_index(tmp_path / "a.parquet", images, null, flags), 0)
    b = epochs(write_index(tmp_path / "b.parquet", images, junk, flags), 0)
    assert_same(a, b)


@pytest.mark.parametrize(("start_method", "workers"), [("fork", 2), ("spawn", 1)])
def test_batches_do_not_depend_on_workers(tmp_path: Path, start_method: str, workers: int) -> None:
    path = mixed(tmp_path / "s.parquet", [True, False] * 4)
    assert_same(epochs(path, 0), epochs(path, workers, start_method))


def test_forked_process_opens_the_file_for_itself(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet"))
    handle = index._file
    index.image_cell(0)
    assert index._file is handle
    index._pid = os.getpid() + 1  # what a forked worker inherits: another process's handle
    assert index.image_cell(7) == image(7)
    assert index._file is not handle


def test_worker_error_still_names_the_cell(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "s.parquet", 4, mask=[GARBAGE] * 4)
    batches = iter(loader_of(path, 1))
    with pytest.raises(DataError, match="row [0-3], column 'mask'"):
        next(batches)
    # The error's traceback keeps the iterator alive; left to the garbage collector, torch waits 5 s
    # for each worker in the middle of some later test.
    batches._shutdown_workers()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_divide_each_batch_and_can_begin_within_an_epoch(
    tmp_path: Path, workers: int
) -> None:
    index = IndexTable(mixed(tmp_path / "s.parquet", [True, False, True] * 3))
    data = ParquetSegmentation(index, range(9), SIZE, augment=Augmentation(), seed=5)

    def loader(batch_size: int, **options: int) -> "DataLoader[Sample]":
        return make_loader(
            data,
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            seed=5,
            drop_last=False,
            **options,  # type: ignore[arg-type]
        )

    whole = loader(4)
    parts = [loader(2, rank=rank, world_size=2) for rank in range(2)]
    for each in (whole, *parts):
        assert len(each) == 3
        assert isinstance(each.sampler, EpochSampler)
        each.sampler.start(1, skip=1)
    last = None
    for batch, a, b in zip(whole, *parts, strict=True):
        count = len(batch["row"])
        last = (a["valid"], b["valid"], count)
        for key in ("image", "mask", "valid", "row"):
            assert torch.equal(torch.cat([a[key], b[key]])[:count], batch[key])
    # The last batch has a single row, which the first process has; the second fills up with it.
    assert last is not None
    assert not last[1].any()
    assert last[2] == 1
