"""From a configuration to a finished run: data, census, refusal, folder, log, exit code."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from torch import nn

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.losses import get_loss_function
from fastseg_losses.training.census import Census, ClassCensus
from fastseg_losses.training.class_monitor import ClassMonitor
from fastseg_losses.training.command_line import as_typed
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.data import (
    DataError,
    Splits,
)
from fastseg_losses.training.device import describe_machine, pick_device
from fastseg_losses.training.distributed import World, find_world
from fastseg_losses.training.endings import RunEnded
from fastseg_losses.training.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_CANNOT_WRITE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_REFUSED,
)
from fastseg_losses.training.html_report import HtmlReport
from fastseg_losses.training.loaders import drawn_empty_share, make_loaders
from fastseg_losses.training.model import build_model, describe, try_out
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.open_data import Refused, open_data
from fastseg_losses.training.random_state import seed_everything
from fastseg_losses.training.resolution import describe_logits
from fastseg_losses.training.resume import restore
from fastseg_losses.training.run_folder import (
    WriteError,
    check_free,
    make_run_folder,
    remove_leftovers,
)
from fastseg_losses.training.run_log import RunLog, log_end, run_log
from fastseg_losses.training.surroundings import command
from fastseg_losses.training.synthetic import FILE_NAME, write_synthetic_set
from fastseg_losses.training.trainer import LOGGER, Trainer
from fastseg_losses.training.watch import Monitor


class DryRun(Exception):  # noqa: N818 - what was asked for
    """All that comes before the first step is in order."""


class NothingLeft(Exception):  # noqa: N818 - the run is complete
    """The resumed run is complete, and other settings cannot be applied to it any more."""


def launch(config: TrainConfig) -> int:
    """Run a training and return the process's exit code; see the codes in `config`.

    Mistakes in options, data and the user's net are one line on standard error; anything else is a
    defect of this package, and keeps its traceback.
    """
    try:
        world = find_world()
    except ValueError as error:
        return _fail(EXIT_BAD_INPUT, str(error))
    with run_log(quiet=not world.is_main) as log:
        try:
            return _run(config, log, world)
        finally:
            world.leave()


def _run(config: TrainConfig, log: RunLog, world: World) -> int:
    try:
        trainer, report = _prepare(config, log, world)
    except DryRun:
        LOGGER.info("dry run: options, data and model are in order; nothing is written")
        return EXIT_OK
    except NothingLeft as nothing:
        LOGGER.info("%s", nothing)
        return EXIT_OK
    except Refused as refusal:
        return _fail(EXIT_REFUSED, str(refusal))
    except WriteError as error:
        return _fail(EXIT_CANNOT_WRITE, str(error))
    except (ValueError, TypeError, OSError) as error:
        return _fail(EXIT_BAD_INPUT, as_typed(str(error)))
    except KeyboardInterrupt:
        return _fail(EXIT_INTERRUPTED, "interrupted before the first step")
    start = time.monotonic()
    try:
        with report.until_the_end():
            trainer.fit(report.after_epoch)
    except RunEnded as end:
        # torchrun ends the others when the first one goes: not before all is written.
        world.gather(None)
        return _fail(end.code, str(end))
    except WriteError as error:
        return _fail(EXIT_CANNOT_WRITE, f"{error}; {trainer.outputs.what_is_saved()}")
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


def _prepare(config: TrainConfig, log: RunLog, world: World) -> tuple[Trainer, HtmlReport]:
    """Everything before the first step. Nothing is left behind if the data is refused."""
    LOGGER.info("command: %s", command())
    device = pick_device(config.device, world)
    world.connect(device)
    LOGGER.info("%s", describe_machine(device, world))
    if config.output_dir is not None and config.resume is None and world.is_main:
        check_free(config.output_dir)
    seed_everything(config.seed)
    model = build_model(config.model, config.channels, config.head_stride or 1)
    logits_size = try_out(model, config.image_size, config.channels)
    criterion = get_loss_function(config.loss, **config.loss_arguments())
    if config.data is None:
        folder = _open_folder(config, log, world)
        index = _synthetic_set(config, folder, world)
        splits, censuses, _ = open_data(config, index)
    else:
        splits, censuses, bits = open_data(config, Path(config.data))
        if config.dry_run:
            raise DryRun
        config = dataclasses.replace(config, image_bits=bits)
        folder = _open_folder(config, log, world)
    # Again: how many random numbers the census or the set took must not reach the training.
    seed_everything(config.seed)
    trainer = _assemble(config, model, criterion, splits, censuses[0], folder, device, world)
    if world.size > 1:  # the nets are equal, dropout need not be
        torch.manual_seed(config.seed + world.rank)
    if config.resume is not None:
        changed = restore(trainer, folder / "last.pt")
        if not trainer.goes_on:
            LOGGER.info("nothing left to train: %s", _what_is_done(trainer))
            if changed:  # files that name settings with which nothing was trained would lie
                raise NothingLeft(f"the folder stays as it is, without {', '.join(changed)}")
        if world.is_main:
            config.save(folder / "config.json")
    LOGGER.info("model: %s", describe(model))
    resolution = describe_logits(logits_size, config, device, trainer.net.precision)
    LOGGER.info("logits: %s", resolution)
    weights = ", ".join(f"{name}={value}" for name, value in config.loss_arguments().items())
    LOGGER.info("loss: %s%s", config.loss, f" ({weights})" if weights else "")
    if trainer.net.precision is not None:
        LOGGER.info("precision of the net: %s", str(trainer.net.precision).removeprefix("torch."))
    if config.labels is not None:
        LOGGER.info("classes: %d, ignored value %d", config.channels, config.labels.ignore_index)
    LOGGER.info("run folder: %s", folder)
    named = dict(zip(("training", "validation"), censuses, strict=True))
    return trainer, HtmlReport(trainer, named, resolution)


def _synthetic_set(config: TrainConfig, folder: Path, world: World) -> Path:
    """The index of the synthetic set in the run's folder; a resumed run has it already."""
    path = folder / "synthetic"
    if world.is_main and not path.exists():
        index = write_synthetic_set(path, image_size=max(32, config.image_size), mode=config.mode)
        LOGGER.info("no --data given: generated the synthetic set %s", index)
    world.from_main(None)  # the others wait until it is there
    return path / FILE_NAME


def _assemble(
    config: TrainConfig,
    model: nn.Module,
    criterion: SegmentationLoss,
    splits: Splits,
    census: Census | ClassCensus,
    folder: Path,
    device: torch.device,
    world: World,
) -> Trainer:
    train_loader, val_loader = make_loaders(
        config, splits, census, rank=world.rank, world_size=world.size
    )
    return Trainer(
        config,
        model,
        criterion,
        train_loader,
        val_loader,
        monitor=_make_monitor(config, splits, census),
        folder=folder,
        device=device,
        world=world,
    )


def _make_monitor(config: TrainConfig, splits: Splits, census: Census | ClassCensus) -> Monitor:
    if isinstance(census, ClassCensus):
        return ClassMonitor(config.channels, check_every=config.check_every)
    return CollapseMonitor(
        check_every=config.check_every,
        empty_rows=census.empty,
        annotated_rows=census.empty + census.foreground,
        drawn_empty_share=drawn_empty_share(config, splits, census),
    )


def _open_folder(config: TrainConfig, log: RunLog, world: World) -> Path:
    """The run's folder, made by the main process; what that raises, all raise."""
    folder: Path | ValueError | WriteError | None = None
    if world.is_main:
        try:
            folder = Path(config.resume or make_run_folder(config.output_dir))
            log.write_to(folder, resumed=config.resume is not None)
            if config.resume is None:
                config.save(folder / "config.json")
            else:
                remove_leftovers(folder)
        except (ValueError, WriteError) as error:
            folder = error
    folder = world.from_main(folder)
    if isinstance(folder, (ValueError, WriteError)):
        raise folder
    assert folder is not None
    return folder


def _what_is_done(trainer: Trainer) -> str:
    """Why a resumed run has no epoch left, and which option gives it more."""
    config = trainer.config
    if trainer.epoch >= config.epochs:
        return f"{trainer.epoch} of {config.epochs} epochs are done; --epochs takes more"
    if config.max_steps is not None and trainer.step >= config.max_steps:
        return f"{trainer.step} of {config.max_steps} steps are done; --max-steps takes more"
    return f"no better score for {trainer.outputs.stale} epochs; --patience takes more"


def _fail(code: int, message: str) -> int:
    LOGGER.error("%s", message)
    return code
