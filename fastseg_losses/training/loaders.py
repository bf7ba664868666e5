"""The loaders of a run: what they draw, what happens to it, what stays in memory."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torch.utils.data import DataLoader

from fastseg_losses.training.augment import Augmentation
from fastseg_losses.training.census import Census, ClassCensus
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.data import ParquetSegmentation, Sample, Split, Splits, make_loader
from fastseg_losses.training.sampler import foreground_draws

LOGGER = logging.getLogger("fastseg_losses.training")


def make_loaders(
    config: TrainConfig,
    splits: Splits,
    census: Census | ClassCensus,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[DataLoader[Sample], DataLoader[Sample] | None]:
    """Make the loaders for training and for validation; None if there is nothing to validate on.

    Args:
        config: the resolved settings.
        splits: the two sides.
        census: that of the training side.
        rank: number of this process among those that train together.
        world_size: number of those processes.

    Raises:
        ValueError: foreground is to be oversampled, and there is none.
    """
    few = config.overfit_batches
    if few is not None:
        splits = _first_rows(splits, census, few * config.batch_size * world_size)
    augment = None
    if config.augment != "none" and few is None:
        augment = Augmentation(**config.augment_strengths())
    more: dict[str, Any] = {}
    if config.oversample_foreground is not None and isinstance(census, Census):
        if not census.foreground:
            raise ValueError(
                "oversample_foreground: expected a training row with foreground, got none"
            )
        more["foreground_rows"] = census.foreground_rows
        more["foreground_share"] = config.oversample_foreground

    def loader(split: Split, *, train: bool) -> DataLoader[Sample]:
        use_pseudo = train and config.pseudo_weight is not None
        data = ParquetSegmentation(
            split.index,
            split.rows,
            config.image_size,
            augment=augment if train else None,
            seed=config.seed,
            cache_bytes=config.cache_mb * 2**20,
            labels=config.labels,
            image_bits=config.image_bits or 16,
            pseudo_confidence=config.pseudo_confidence if use_pseudo else None,
        )
        made = make_loader(
            data,
            batch_size=config.batch_size,
            shuffle=train and few is None,
            num_workers=config.num_workers,
            seed=config.seed,
            drop_last=False,
            rank=rank,
            world_size=world_size,
            **(more if train else {}),
        )
        _log_memory("training" if train else "validation", data, config.num_workers)
        return made

    return (
        loader(splits.train, train=True),
        loader(splits.val, train=False) if splits.val.rows else None,
    )


def _first_rows(splits: Splits, census: Census | ClassCensus, count: int) -> Splits:
    """Both sides are the first annotated training rows; in binary mode, those with foreground."""
    rows = splits.train.rows
    has_any = splits.train.index.has_segmentation
    if isinstance(census, Census):
        foreground = set(census.foreground_rows)
        rows = tuple(row for row in rows if row in foreground)
    else:
        rows = tuple(row for row in rows if has_any[row])
    if not rows:
        raise ValueError("overfit_batches: expected annotated rows with foreground, got none")
    chosen = Split(splits.train.index, rows[:count])
    LOGGER.info("--overfit-batches: training and validating on %d rows", len(chosen.rows))
    return dataclasses.replace(splits, train=chosen, val=chosen)


def drawn_empty_share(config: TrainConfig, splits: Splits, census: Census) -> float | None:
    """The share of empty masks among the annotated ones that an epoch draws.

    The log says what oversampling changes.

    Returns:
        None where foreground is not oversampled: the share is that of the rows.
    """
    share, rows = config.oversample_foreground, len(splits.train.rows)
    if share is None:
        return None
    drawn = foreground_draws(rows, census.foreground, share)
    LOGGER.info(
        "rows with foreground: %.1f%% of the %d training rows, %.1f%% of an epoch's draws%s",
        100 * census.foreground / rows,
        rows,
        100 * drawn / rows,
        "" if drawn > census.foreground else f" (at least {share:.1%} without oversampling)",
    )
    if drawn == census.foreground:
        return None
    empty = census.empty * (rows - drawn) / (rows - census.foreground)
    return empty / (empty + drawn)


def _log_memory(side: str, data: ParquetSegmentation, workers: int) -> None:
    mib = data.decoded_bytes / 2**20
    if data.decoded_bytes > data.cache_bytes:
        how = f"decoded anew in each epoch: {mib:.0f} MiB are more than --cache-mb allows"
    elif data.shares_decoded or not workers:
        how = f"decoded once, {mib:.0f} MiB in memory"
    else:
        how = (
            f"decoded by each worker: for {mib:.0f} MiB in common, /dev/shm would need twice that "
            "free (docker: --shm-size)"
        )
    LOGGER.info("%s images: %s", side, how)
