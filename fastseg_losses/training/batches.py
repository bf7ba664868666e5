"""Batches on their way through a step: in windows, to the device, back as statistics."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.stats import SegmentationSnapshot, decode
from fastseg_losses.training.data import EpochSampler, Sample, normalised


def start_epoch(loader: DataLoader[Sample], epoch: int, skip: int) -> None:
    """Make the next pass of a loader that of an epoch, without its first batches.

    Args:
        loader: made by `make_loader`.
        epoch: from 0.
        skip: batches that are done already.
    """
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    sampler.start(epoch, skip)


def windows(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The batches of each optimizer step; the last step may have fewer."""
    source = iter(batches)
    while window := list(itertools.islice(source, size)):
        yield window


def to_device(
    batch: dict[str, Any], device: torch.device, names: Iterable[str] = ("image", "mask", "valid")
) -> dict[str, Tensor]:
    """What a step needs of a batch, its images normalised."""
    moved: dict[str, Tensor] = {name: batch[name].to(device, non_blocking=True) for name in names}
    return moved | {"image": normalised(moved["image"])}


def decoded(
    rows: list[list[float]], criterion: SegmentationLoss, classes: int
) -> Iterator[SegmentationSnapshot]:
    """Statistics rows that have arrived on the host, with names."""
    return (decode(row, criterion.term_names, classes) for row in rows)


def number_of_samples(loader: DataLoader[Sample]) -> int:
    """Samples that this process has in one pass of a loader."""
    return len(loader.sampler)  # type: ignore[arg-type]
