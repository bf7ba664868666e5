"""From a configuration to a finished run: data, census, refusal, folder, log, exit code."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import platform
import random
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import fastseg_losses
from fastseg_losses.base import SegmentationLoss
from fastseg_losses.losses import get_loss_function
from fastseg_losses.training.audit import Census, take_census
from fastseg_losses.training.config import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_REFUSED,
    TrainConfig,
)
from fastseg_losses.training.data import (
    DataError,
    ParquetSegmentation,
    Sample,
    Split,
    Splits,
    make_loader,
    open_index,
)
from fastseg_losses.training.model import build_model, check_logits, describe
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.progress import ConsoleHandler
from fastseg_losses.training.run_folder import check_free, make_run_folder
from fastseg_losses.training.synthetic import write_synthetic_set
from fastseg_losses.training.trainer import LOGGER, RunEnded, Trainer


class Refused(Exception):  # noqa: N818 - a decision, not a defect
    """There is nothing to learn from."""


def launch(config: TrainConfig) -> int:
    """Run a training and return the process's exit code; see the codes in `config`.

    Mistakes in options and data are one line on standard error; anything else is a defect of this
    package or of the user's net, and keeps its traceback.
    """
    with _log() as log_buffer:
        try:
            trainer = _prepare(config, log_buffer)
        except Refused as refusal:
            return _fail(EXIT_REFUSED, str(refusal))
        except (ValueError, TypeError, OSError) as error:
            return _fail(EXIT_BAD_INPUT, str(error))
        except KeyboardInterrupt:
            return _fail(EXIT_INTERRUPTED, "interrupted before the first step")
        start = time.monotonic()
        try:
            trainer.fit()
        except RunEnded as end:
            return _fail(end.code, str(end))
        except DataError as error:
            # From a worker it comes wrapped in a traceback, whose last line says it.
            return _fail(EXIT_BAD_INPUT, str(error).strip().splitlines()[-1])
        except KeyboardInterrupt:
            return _fail(EXIT_INTERRUPTED, "interrupted at once; last.pt is that of the last epoch")
        except Exception:
            LOGGER.exception("the run failed at step %d", trainer.step)
            raise
        _log_end(trainer, time.monotonic() - start)
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


def _prepare(config: TrainConfig, log_buffer: logging.handlers.MemoryHandler) -> Trainer:
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
    model = build_model(config.model)
    _dry_run(model, config.image_size)
    criterion = get_loss_function(config.loss, **config.loss_arguments())
    if config.data is None:
        folder = _open_folder(config, log_buffer)
        size = max(32, config.image_size)
        index = write_synthetic_set(folder / "synthetic", image_size=size)
        LOGGER.info("no --data given: generated the synthetic set %s", index)
        splits, census = _open_data(config, index)
    else:
        splits, census = _open_data(config, Path(config.data))
        folder = _open_folder(config, log_buffer)
    # Again: how many random numbers the census or the set took must not reach the training.
    seed_everything(config.seed)
    trainer = _assemble(config, model, criterion, splits, census, folder, device)
    LOGGER.info("model: %s", describe(model))
    LOGGER.info("loss: %s %s", config.loss, config.loss_arguments() or "")
    LOGGER.info("run folder: %s", folder)
    return trainer


def _open_data(config: TrainConfig, path: Path) -> tuple[Splits, Census]:
    splits = open_index(
        path,
        val_path=config.val,
        val_fraction=config.val_fraction,
        seed=config.seed,
        keep_unannotated=config.keep_unannotated,
        allow_outside=config.allow_outside,
    )
    census = take_census(splits.train_all.index, splits.train_all.rows)
    _log_census("training rows", census)
    val_census = take_census(splits.val_all.index, splits.val_all.rows)
    _log_census("validation rows", val_census)
    for problem in (*census.problems, *val_census.problems):
        raise ValueError(f"{problem} (unreadable: {census.unreadable + val_census.unreadable})")
    if not census.learnable and not config.allow_no_foreground:
        raise Refused(
            f"refusing to train: {census.verdict} (--allow-no-foreground trains all the same)"
        )
    if not val_census.learnable:
        LOGGER.warning("no annotated validation row has foreground: no Dice can be reported")
    return splits, census


def _assemble(
    config: TrainConfig,
    model: nn.Module,
    criterion: SegmentationLoss,
    splits: Splits,
    census: Census,
    folder: Path,
    device: torch.device,
) -> Trainer:
    def loader(split: Split, *, train: bool) -> DataLoader[Sample]:
        data = ParquetSegmentation(
            split.index, split.rows, config.image_size, augment=train, seed=config.seed
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
        monitor=CollapseMonitor(
            check_every=config.check_every,
            empty_rows=census.empty,
            annotated_rows=census.empty + census.foreground,
        ),
        folder=folder,
        device=device,
    )


@torch.no_grad()
def _dry_run(model: nn.Module, image_size: int) -> None:
    """One black image through the net, so that a wrong net is reported before the data is read."""
    images = torch.zeros(1, 3, image_size, image_size)
    was_training = model.training
    try:
        logits = model.eval()(images)
    except Exception as error:
        raise RuntimeError(f"the net failed on images {tuple(images.shape)}") from error
    model.train(was_training)
    check_logits(logits, images, model)


def _open_folder(config: TrainConfig, log_buffer: logging.handlers.MemoryHandler) -> Path:
    folder = make_run_folder(config.output_dir)
    config.save(folder / "config.json")
    (folder / "logs").mkdir()
    file = logging.FileHandler(folder / "logs" / "training.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log_buffer.setTarget(file)
    log_buffer.flush()
    log_buffer.flushLevel = logging.DEBUG  # from here on, each line at once
    return folder


def _log_census(what: str, census: Census) -> None:
    LOGGER.info("census of the %s:", what)
    for line in census.lines():
        LOGGER.info("  %s", line)


def _log_end(trainer: Trainer, seconds: float) -> None:
    dice = [row["val_dice"] for row in trainer.outputs.rows if row["val_dice"] == row["val_dice"]]
    best = f", best validation Dice {max(dice):.4f}" if dice else ""
    LOGGER.info(
        "finished: %d steps in %.0f s%s; results in %s",
        trainer.step,
        seconds,
        best,
        trainer.outputs.folder,
    )


def _fail(code: int, message: str) -> int:
    LOGGER.error("%s", message)
    return code


@contextlib.contextmanager
def _log() -> Iterator[logging.handlers.MemoryHandler]:
    """Log to the console, and hold everything back for the run's log file until there is one."""
    console = ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    buffer = logging.handlers.MemoryHandler(100_000, flushLevel=logging.CRITICAL + 1)
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    for handler in (console, buffer):
        LOGGER.addHandler(handler)
    try:
        yield buffer
    finally:
        for handler in (console, buffer):
            LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        target = buffer.target
        buffer.close()
        if target is not None:
            target.close()
