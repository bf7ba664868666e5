"""From a configuration to a finished run: data, census, refusal, folder, log, exit code."""

from __future__ import annotations

import dataclasses
import platform
import random
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import fastseg_losses
from fastseg_losses.base import SegmentationLoss
from fastseg_losses.losses import get_loss_function
from fastseg_losses.training.audit import take_census
from fastseg_losses.training.census import Census, ClassCensus, RowCensus
from fastseg_losses.training.class_monitor import ClassMonitor
from fastseg_losses.training.command_line import as_typed
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.data import (
    DataError,
    ParquetSegmentation,
    Sample,
    Split,
    Splits,
    make_loader,
    open_index,
)
from fastseg_losses.training.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_REFUSED,
)
from fastseg_losses.training.model import build_model, describe, try_out
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.run_folder import check_free, make_run_folder
from fastseg_losses.training.run_log import RunLog, log_census, log_end, run_log
from fastseg_losses.training.synthetic import write_synthetic_set
from fastseg_losses.training.trainer import LOGGER, RunEnded, Trainer
from fastseg_losses.training.watch import Monitor


class Refused(Exception):  # noqa: N818 - a decision, not a defect
    """There is nothing to learn from."""


class DryRun(Exception):  # noqa: N818 - what was asked for
    """All that comes before the first step is in order."""


def launch(config: TrainConfig) -> int:
    """Run a training and return the process's exit code; see the codes in `config`.

    Mistakes in options, data and the user's net are one line on standard error; anything else is a
    defect of this package, and keeps its traceback.
    """
    with run_log() as log:
        try:
            trainer = _prepare(config, log)
        except DryRun:
            LOGGER.info("dry run: options, data and model are in order; nothing is written")
            return EXIT_OK
        except Refused as refusal:
            return _fail(EXIT_REFUSED, str(refusal))
        except (ValueError, TypeError, OSError) as error:
            return _fail(EXIT_BAD_INPUT, as_typed(str(error)))
        except KeyboardInterrupt:
            return _fail(EXIT_INTERRUPTED, "interrupted before the first step")
        start = time.monotonic()
        try:
            trainer.fit()
        except RunEnded as end:
            return _fail(end.code, str(end))
        except DataError as error:
            # From a worker it comes as a traceback; what its last exception said is the message.
            name = f"{DataError.__module__}.{DataError.__qualname__}: "
            return _fail(EXIT_BAD_INPUT, str(error).rpartition(name)[2].strip())
        except KeyboardInterrupt:
            return _fail(EXIT_INTERRUPTED, "interrupted at once; last.pt is that of the last epoch")
        except Exception:
            LOGGER.exception("the run failed at step %d", trainer.step)
            raise
        log_end(trainer, time.monotonic() - start)
        return EXIT_OK


def seed_everything(seed: int) -> None:
    """Seed every generator in use; convolutions are told to choose repeatable algorithms."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` names, with its index.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or (device.index or 0) >= count:
        raise ValueError(f"device: {name!r} asked for, but torch sees {count} CUDA devices")
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _prepare(config: TrainConfig, log: RunLog) -> Trainer:
    """Everything before the first step. Nothing is left behind if the data is refused."""
    LOGGER.info("command: %s", shlex.join([Path(sys.executable).name, *sys.argv]))
    device = pick_device(config.device)
    LOGGER.info(
        "fastseg-losses %s, torch %s, Python %s, device %s, %d threads",
        fastseg_losses.__version__,
        torch.__version__,
        platform.python_version(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else device,
        torch.get_num_threads(),
    )
    if config.output_dir is not None:
        check_free(config.output_dir)
    seed_everything(config.seed)
    model = build_model(config.model, config.channels)
    try_out(model, config.image_size, config.channels)
    criterion = get_loss_function(config.loss, **config.loss_arguments())
    if config.data is None:
        folder = _open_folder(config, log)
        size = max(32, config.image_size)
        index = write_synthetic_set(folder / "synthetic", image_size=size, mode=config.mode)
        LOGGER.info("no --data given: generated the synthetic set %s", index)
        splits, census, _ = _open_data(config, index)
    else:
        splits, census, bits = _open_data(config, Path(config.data))
        if config.dry_run:
            raise DryRun
        config = dataclasses.replace(config, image_bits=bits)
        folder = _open_folder(config, log)
    # Again: how many random numbers the census or the set took must not reach the training.
    seed_everything(config.seed)
    trainer = _assemble(config, model, criterion, splits, census, folder, device)
    LOGGER.info("model: %s", describe(model))
    weights = ", ".join(f"{name}={value}" for name, value in config.loss_arguments().items())
    LOGGER.info("loss: %s%s", config.loss, f" ({weights})" if weights else "")
    if config.labels is not None:
        LOGGER.info("classes: %d, ignored value %d", config.channels, config.labels.ignore_index)
    LOGGER.info("run folder: %s", folder)
    return trainer


def _open_data(config: TrainConfig, path: Path) -> tuple[Splits, Census | ClassCensus, int | None]:
    """The two sides, the census of the training side, and the bits of 16-bit images."""
    splits = open_index(
        path,
        val_path=config.val,
        val_fraction=config.val_fraction,
        seed=config.seed,
        keep_unannotated=config.keep_unannotated,
        use_pseudo=config.pseudo_weight is not None,
        allow_outside=config.allow_outside,
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
    return splits, census, _image_bits(config, census, val_census)


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


def _assemble(
    config: TrainConfig,
    model: nn.Module,
    criterion: SegmentationLoss,
    splits: Splits,
    census: Census | ClassCensus,
    folder: Path,
    device: torch.device,
) -> Trainer:
    def loader(split: Split, *, train: bool) -> DataLoader[Sample]:
        use_pseudo = train and config.pseudo_weight is not None
        data = ParquetSegmentation(
            split.index,
            split.rows,
            config.image_size,
            augment=train and not config.no_flips,
            seed=config.seed,
            labels=config.labels,
            image_bits=config.image_bits or 16,
            pseudo_confidence=config.pseudo_confidence if use_pseudo else None,
        )
        return make_loader(
            data,
            batch_size=config.batch_size,
            shuffle=train,
            num_workers=config.num_workers,
            seed=config.seed,
            drop_last=False,
        )

    return Trainer(
        config,
        model,
        criterion,
        loader(splits.train, train=True),
        loader(splits.val, train=False) if splits.val.rows else None,
        monitor=_make_monitor(config, census),
        folder=folder,
        device=device,
    )


def _make_monitor(config: TrainConfig, census: Census | ClassCensus) -> Monitor:
    if isinstance(census, ClassCensus):
        return ClassMonitor(config.channels, check_every=config.check_every)
    return CollapseMonitor(
        check_every=config.check_every,
        empty_rows=census.empty,
        annotated_rows=census.empty + census.foreground,
    )


def _open_folder(config: TrainConfig, log: RunLog) -> Path:
    folder = make_run_folder(config.output_dir)
    log.write_to(folder)
    config.save(folder / "config.json")
    return folder


def _fail(code: int, message: str) -> int:
    LOGGER.error("%s", message)
    return code
