"""The two sides of a data set with their census, or the reason why nothing can be learned."""

from __future__ import annotations

import logging
from pathlib import Path

from fastseg_losses.training.audit import take_census
from fastseg_losses.training.census import Census, ClassCensus, RowCensus
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.data import Splits, open_index
from fastseg_losses.training.run_log import log_census

LOGGER = logging.getLogger("fastseg_losses.training")


class Refused(Exception):  # noqa: N818 - a decision, not a defect
    """There is nothing to learn from."""


def open_data(
    config: TrainConfig, path: Path
) -> tuple[Splits, tuple[Census | ClassCensus, Census | ClassCensus], int | None]:
    """The two sides, the census of each, and the bits of 16-bit images."""
    splits = open_index(
        path,
        val_path=config.val,
        val_fraction=config.val_fraction,
        seed=config.seed,
        keep_unannotated=config.keep_unannotated,
        use_pseudo=config.pseudo_weight is not None,
        allow_outside=config.allow_outside,
        max_pixels=config.max_pixels,
    )
    for text in splits.left_out:
        LOGGER.warning("%s", text)
    labels = config.labels
    census = take_census(splits.train_all.index, splits.train_all.rows, labels=labels)
    log_census("training rows", census)
    val_census = take_census(splits.val_all.index, splits.val_all.rows, labels=labels)
    log_census("validation rows", val_census)
    _say_about_pseudo(config, path, census)
    for problem in (*census.problems, *val_census.problems):
        count = census.unreadable + val_census.unreadable
        raise ValueError(f"{problem} (unreadable: {count}; debug_masks.py lists them)")
    if not census.learnable and not config.allow_no_foreground:
        raise Refused(
            f"refusing to train: {census.verdict} (--allow-no-foreground trains all the same)"
        )
    if not val_census.learnable:
        LOGGER.warning(
            "no annotated validation row has foreground: no Dice can be reported"
            if labels is None
            else "the validation rows do not show two classes: their scores mean nothing"
        )
    return splits, (census, val_census), _image_bits(config, census, val_census)


def _say_about_pseudo(config: TrainConfig, path: Path, census: RowCensus) -> None:
    """Whether pseudo-masks take part.

    Raises:
        ValueError: they should, and there are none.
    """
    if config.pseudo_weight is None:
        if census.pseudo:
            LOGGER.warning(
                "%d training rows hold a pseudo-mask, which is not used: --pseudo-weight uses them",
                census.pseudo,
            )
        return
    if not census.pseudo:
        raise ValueError(
            f"pseudo_weight: expected training rows with a pseudo-mask, got none in {path}; "
            "`train.py pseudo-label` makes them"
        )
    LOGGER.info(
        "pseudo-masks: %d training rows, weight %g, pixels below a confidence of %g are ignored",
        census.pseudo,
        config.pseudo_weight,
        config.pseudo_confidence,
    )


def _image_bits(config: TrainConfig, *censuses: RowCensus) -> int | None:
    """The bits that 16-bit images use: the user's choice, or what the largest value takes."""
    found = max(census.image_bits or 0 for census in censuses)
    largest = max(census.deep_largest for census in censuses)
    if config.image_bits is not None and largest >= 2**config.image_bits:
        raise ValueError(
            f"image_bits: expected at least {found} for 16-bit images whose largest value is "
            f"{largest}, got {config.image_bits}"
        )
    if config.image_bits is not None or not found:
        return config.image_bits
    if found < 16:
        LOGGER.warning(
            "16-bit images, largest value %d: read as %d bits, or they would come out dark; "
            "--image-bits says what they really use",
            largest,
            found,
        )
    return found
