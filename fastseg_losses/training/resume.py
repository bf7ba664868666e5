"""A run's whole state in a checkpoint, and a trainer set to where another was."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastseg_losses.training.checkpoint import load_checkpoint
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.plain_state import from_plain, to_plain
from fastseg_losses.training.random_state import (
    random_state,
    restore_random_state,
    seed_everything,
)
from fastseg_losses.training.tally import Tally

if TYPE_CHECKING:
    from fastseg_losses.training.trainer import Trainer

# What decides which rows an epoch draws, and in which order.
ORDER_DEPENDS_ON = (
    *("data", "val", "seed", "val_fraction", "keep_unannotated", "pseudo_weight"),
    *("overfit_batches", "oversample_foreground"),
)

# What is not a setting of the training: where it is, and what this call was asked to do.
_NO_SETTINGS = ("output_dir", "resume", "dry_run")

# What a trainer goes on from.
NEEDED = (
    *("config", "model", "average", "epoch", "step", "draws", "epoch_is_drawn"),
    *("updates", "outputs", "findings", "ranks"),
)

LOGGER = logging.getLogger("fastseg_losses.training")


def state_of(trainer: Trainer) -> dict[str, Any]:
    """What `restore` needs, and `prediction.load_model`; every process has to call it."""
    average = trainer.net.average
    of_this_rank = {
        "random": random_state(trainer.device),
        "tally": to_plain(trainer.tally),
        "monitor": trainer.monitor.state_dict(),
    }
    return {
        "config": trainer.config.to_dict(),
        "model": trainer.model.state_dict(),
        "average": None if average is None else average.state_dict(),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "metrics": dict(trainer.outputs.rows[-1]) if trainer.outputs.rows else {},
        "draws": trainer.batches * trainer.config.batch_size * trainer.world.size,
        "epoch_is_drawn": trainer.batches >= len(trainer.train_loader),
        "updates": trainer.updates.state_dict(),
        "outputs": trainer.outputs.state_dict(),
        "findings": to_plain(trainer.findings),
        "ranks": trainer.world.gather(of_this_rank),
    }


def restore(trainer: Trainer, path: Path) -> list[str]:
    """Set a trainer to where the run was that wrote a checkpoint.

    Args:
        trainer: made from the run's settings, not started.
        path: its last.pt.

    Returns:
        The settings that are other than before, in words.

    Raises:
        ValueError: the file is no checkpoint of the trainer, or of another net.
    """
    state = load_checkpoint(path, NEEDED)
    average = trainer.net.average
    try:
        trainer.model.load_state_dict(state["model"])
        if average is not None:
            # Switched on in the middle of a run, the average starts with the weights so far.
            average.load_state_dict(state["average"] or {"model": state["model"], "updates": 0})
        trainer.updates.load_state_dict(state["updates"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: does not fit the net: {error}") from error
    trainer.epoch, trainer.step = state["epoch"], state["step"]
    trainer.batches = _batches_done(trainer, state)
    trainer.outputs.load_state_dict(state["outputs"])
    trainer.outputs.saved_step = trainer.step
    trainer.findings = from_plain(state["findings"])
    _restore_rank(trainer, state["ranks"])
    if not trainer.batches:  # what an epoch that begins anew has shown does not count twice
        trainer.tally = Tally(trainer.tally.num_classes)
    changed = changes(TrainConfig.from_dict(state["config"]), trainer.config)
    if trainer.goes_on:
        LOGGER.info(
            "resumed %s: epoch %d, batch %d, step %d",
            path,
            trainer.epoch + 1,
            trainer.batches + 1,
            trainer.step + 1,
        )
        if changed:
            LOGGER.info("other settings than before: %s", ", ".join(changed))
    return changed


def changes(before: TrainConfig, now: TrainConfig) -> list[str]:
    """The settings in which two configurations differ, each as ``name old -> new``."""
    old, new = before.to_dict(), now.to_dict()
    return [
        f"{name} {old.get(name)!r} -> {value!r}"
        for name, value in new.items()
        if name not in _NO_SETTINGS and old.get(name) != value
    ]


def _batches_done(trainer: Trainer, state: dict[str, Any]) -> int:
    """Batches of the epoch that need not be drawn again, at this run's batch size."""
    here, before = trainer.config, TrainConfig.from_dict(state["config"])
    changed = [name for name in ORDER_DEPENDS_ON if getattr(here, name) != getattr(before, name)]
    if changed and state["draws"]:
        LOGGER.warning("another %s: epoch %d begins anew", changed[0], trainer.epoch + 1)
        return 0
    in_epoch = len(trainer.train_loader)
    if state["epoch_is_drawn"]:
        return in_epoch
    done: int = state["draws"] // (here.batch_size * trainer.world.size)
    return min(done, in_epoch)


def _restore_rank(trainer: Trainer, ranks: list[dict[str, Any]]) -> None:
    """This process's share of the state; with another number of processes, as near as can be."""
    world = trainer.world
    if len(ranks) == world.size:
        mine = ranks[world.rank]
        trainer.monitor.load_state_dict(mine["monitor"])
        trainer.tally = from_plain(mine["tally"])
        restore_random_state(mine["random"], trainer.device)
        return
    LOGGER.warning(
        "the run had %d processes, now %d: the draws of this epoch's rest and of dropout differ",
        len(ranks),
        world.size,
    )
    trainer.monitor.load_state_dict(ranks[0]["monitor"])
    if world.is_main:
        trainer.tally = Tally.joined([from_plain(rank["tally"]) for rank in ranks])
    seed_everything(trainer.config.seed + trainer.step + world.rank)
