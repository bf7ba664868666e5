"""A data set for training: opened, divided into training and validation, and loaded.

The public entrance to the data side; an index's format is described at `IndexTable`, a sample at
`Sample`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from fastseg_losses.training.checks import check_int
from fastseg_losses.training.decode import DataError
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.orphans import end_if_orphaned
from fastseg_losses.training.sampler import EpochSampler
from fastseg_losses.training.samples import Draw, ParquetSegmentation, Sample, normalised
from fastseg_losses.training.settings import MAX_PIXELS

__all__ = [
    "DataError",
    "Draw",
    "EpochSampler",
    "IndexTable",
    "ParquetSegmentation",
    "Sample",
    "Split",
    "Splits",
    "make_loader",
    "normalised",
    "open_index",
]


class Split(NamedTuple):
    """Some rows of an index."""

    # The name hides tuple.index, which nobody asks of a pair.
    index: IndexTable  # type: ignore[assignment]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Splits:
    """The two sides of a data set.

    Attributes:
        train: The rows to train on: annotated ones; with `use_pseudo` those with a pseudo-mask too,
            with `keep_unannotated` all.
        val: The rows to validate on: annotated ones, always. May be empty.
        train_all: Every row of the training side, for the census.
        val_all: Every row of the validation side, for the census.
        left_out: Which rows belong to neither side, and why, in words.
    """

    train: Split
    val: Split
    train_all: Split
    val_all: Split
    left_out: tuple[str, ...] = ()


def open_index(
    path: str | os.PathLike[str],
    *,
    val_path: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    keep_unannotated: bool = False,
    use_pseudo: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Splits:
    """Opens a data set and divides its rows into training and validation.

    With `val_path`, every row of `path` that is not marked 'val' trains and every row of
    `val_path` that is not marked 'train' validates. Without it the `split` column decides; without
    that column a seeded random share of the annotated rows validates, at least one if there are
    two, and all other rows belong to the training side.

    Args:
        path: The parquet index.
        val_path: A second index, for validation.
        val_fraction: Share of the annotated rows drawn for validation where nothing else decides.
        seed: Seed of that draw.
        keep_unannotated: Whether unannotated rows are drawn in training, with `valid` false.
        use_pseudo: Whether those of them that have a pseudo-mask are. They never validate.
        allow_outside: Accept path cells that lead out of their index's folder.
        max_pixels: The largest width times height of an image that is accepted.

    Raises:
        DataError: A ValueError; see `IndexTable`. Also: one side has no row at all.
        ValueError: `val_fraction` or `seed` is out of range.
    """
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(
            f"val_fraction: expected a number above 0 and below 1, got {val_fraction!r}"
        )
    check_int("seed", seed, minimum=0)
    index = IndexTable(path, allow_outside=allow_outside, max_pixels=max_pixels)
    val_index = index
    if val_path is not None:
        val_index = IndexTable(val_path, allow_outside=allow_outside, max_pixels=max_pixels)
    left_out: tuple[str, ...] = ()
    if val_path is not None:
        left_out = (
            *_left_out(index, "val", "training"),
            *_left_out(val_index, "train", "validation"),
        )
    if val_path is not None or index.split is not None:
        train = _rows_not_marked(index, "val")
        val = _rows_not_marked(val_index, "train")
    else:
        annotated = np.flatnonzero(index.has_segmentation)
        count = min(max(1, round(val_fraction * len(annotated))), max(len(annotated) - 1, 0))
        drawn = np.random.default_rng(seed).permutation(annotated)[:count]
        val = tuple(sorted(drawn.tolist()))
        train = tuple(np.setdiff1d(np.arange(len(index)), drawn).tolist())
    drawn_too = np.full(len(index), keep_unannotated) | (index.pseudo.rows & use_pseudo)
    kept = tuple(row for row in train if index.has_segmentation[row] or drawn_too[row])
    return Splits(
        train=Split(index, kept),
        val=Split(val_index, _annotated(val_index, val)),
        train_all=Split(index, train),
        val_all=Split(val_index, val),
        left_out=left_out,
    )


def make_loader(
    dataset: ParquetSegmentation,
    *,
    batch_size: int,
    shuffle: bool,
    num_workers: int,
    seed: int,
    drop_last: bool,
    rank: int = 0,
    world_size: int = 1,
    foreground_rows: Sequence[int] = (),
    foreground_share: float = 0.0,
    start_method: str | None = None,
) -> "DataLoader[Sample]":
    """Makes a loader whose batches depend on the seed and not on the number of workers.

    Workers persist between epochs, and share decoded samples if all of them fit into the data set's
    `cache_bytes`; memory is pinned where CUDA is available. The loader's sampler
    is an `EpochSampler`: it says how several processes divide the rows, and `start` of it begins
    with another epoch or in the middle of one.

    Args:
        dataset: The data set.
        batch_size: Samples in a batch of one process.
        shuffle: Whether the order is random, anew in each epoch.
        num_workers: Worker processes; 0 loads in the calling one.
        seed: Seed of the order and of the workers' own random numbers.
        drop_last: Whether an incomplete last batch is left out.
        rank: Number of this process among those that divide the rows, from 0.
        world_size: Number of those processes.
        foreground_rows: Rows of the index that have foreground.
        foreground_share: The least share of an epoch's draws that they make up; see
            `EpochSampler`.
        start_method: How workers start ("fork", "spawn", "forkserver"); None: Python's default.

    Raises:
        ValueError: An argument is out of range, or no batch would come out.
    """
    check_int("batch_size", batch_size, minimum=1)
    check_int("num_workers", num_workers, minimum=0)
    check_int("seed", seed, minimum=0)
    if shuffle and len(dataset) == 0:
        raise ValueError("dataset: expected at least one row to draw, got none")
    sampler = EpochSampler(
        dataset,
        shuffle=shuffle,
        seed=seed,
        batch_size=batch_size,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
        foreground_rows=foreground_rows,
        foreground_share=foreground_share,
    )
    if drop_last and not len(sampler):
        processes = f" for each of {world_size} processes" if world_size > 1 else ""
        raise ValueError(
            f"batch_size: expected at most the {len(dataset)} rows of the data set with drop_last, "
            f"got {batch_size}{processes}: no batch would be left"
        )
    if num_workers > 0:
        dataset.share_decoded(start_method)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        multiprocessing_context=start_method if num_workers > 0 else None,
        worker_init_fn=None if start_method == "forkserver" else end_if_orphaned,
    )


def _rows_not_marked(index: IndexTable, other: str) -> tuple[int, ...]:
    """The rows of an index that its split column does not give to the other side."""
    if index.split is None:
        return tuple(range(len(index)))
    rows = tuple(row for row, name in enumerate(index.split) if name != other)
    if not rows:
        raise DataError(
            f"{index.path}: column 'split': all {len(index)} rows are {other!r}, so the other side "
            "would be empty"
        )
    return rows


def _left_out(index: IndexTable, other: str, side: str) -> tuple[str, ...]:
    """What the split column of an index keeps out of a side that has a file of its own."""
    count = 0 if index.split is None else index.split.count(other)
    if not count:
        return ()
    return (
        f"{index.path}: {count} of {len(index)} rows are left out of {side}, because its column "
        f"'split' marks them {other!r}; with two files, each is for one side only",
    )


def _annotated(index: IndexTable, rows: Sequence[int]) -> tuple[int, ...]:
    return tuple(row for row in rows if index.has_segmentation[row])
