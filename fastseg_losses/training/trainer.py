"""The training loop: nothing in it but the net, the loss and the optimizer touches the device.

Every number that is shown, judged or saved comes from the statistics rows that the loss kernel
writes into a `StatsRing`; there is no ``.item()`` and no arithmetic on them on the device.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.stats import SegmentationSnapshot, decode
from fastseg_losses.training import report
from fastseg_losses.training.checkpoint import first_nonfinite
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.data import Sample
from fastseg_losses.training.exit_codes import (
    EXIT_COLLAPSED,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
)
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.objective import Objective
from fastseg_losses.training.outputs import Outputs
from fastseg_losses.training.progress import Progress
from fastseg_losses.training.ring import StatsRing
from fastseg_losses.training.tally import Tally
from fastseg_losses.training.updates import Updates
from fastseg_losses.training.watch import Monitor

LOGGER = logging.getLogger("fastseg_losses.training")


class RunEnded(Exception):  # noqa: N818 - an early end, not always an error
    """The run ends before its last epoch.

    Attributes:
        code: the process's exit code.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Trainer:
    """Trains a net and writes what the run leaves into its folder.

    Args:
        config: the resolved settings.
        model: maps images (N, 3, H, W) to logits (N, 1, H, W) or (N, C, H, W); moved to the device.
        criterion: a loss of this package.
        train_loader: batches of `Sample`.
        val_loader: the same for validation; None if there is nothing to validate on.
        monitor: judges the training statistics.
        folder: the run's folder.
        device: where to train.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        criterion: SegmentationLoss,
        train_loader: DataLoader[Sample],
        val_loader: DataLoader[Sample] | None,
        *,
        monitor: Monitor,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.config = config
        self.model = model.to(device)
        self.criterion = criterion.to(device)
        self.objective = Objective(self.criterion, config.pseudo_weight)
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.monitor = monitor
        self.outputs = Outputs(folder, config)
        self.device = device
        self.updates = Updates(config, self.model, len(train_loader))
        width = criterion.stats_size(config.channels)
        self.ring = StatsRing(config.check_every, width, device)
        self.val_ring = StatsRing(config.check_every, width, device)
        self._classes = 0 if config.labels is None else config.labels.num_classes
        self.epoch = 0
        self.step = 0
        self.alarms: list[Finding] = []
        self._interrupted = False
        self._shown: dict[str, float] = {}

    def fit(self) -> None:
        """Train to the end.

        Raises:
            RunEnded: the run ended early: NaN or Inf, a collapse under ``--on-collapse stop``,
                or Ctrl-C. What was worth saving is saved.
        """
        with self._catch_interrupt():
            while self.epoch < self.config.epochs and not self._steps_are_up():
                try:
                    self._run_epoch()
                except RuntimeError:
                    # On Ctrl-C the loader's workers end too; that they are gone is no news then.
                    if not self._interrupted:
                        raise
                self._end_if_interrupted()
                if self.config.patience is not None and self.outputs.stale >= self.config.patience:
                    LOGGER.info("early stop: no better score for %d epochs", self.outputs.stale)
                    return

    def train_step(self, batch: dict[str, Any]) -> None:
        """One optimizer step. On CUDA it neither waits for the device nor reads from it."""
        moved = self._to_device(batch)
        loss = self.objective(self.model(moved["image"]), moved, self.ring.next_row())
        loss.backward()
        self.updates.step()
        self.ring.commit()
        self.step += 1

    def _run_epoch(self) -> None:
        train, rate = self._train_epoch()
        if self._interrupted:
            return
        val = self._validate()
        if self._interrupted:
            return
        bad = first_nonfinite(self.model)
        if bad is not None or not (val.batches == 0 or math.isfinite(val.loss)):
            self._end_non_finite(f"after epoch {self.epoch + 1}, validation loss {val.loss:.4g}")
        self.epoch += 1
        row = {"epoch": self.epoch} | report.metrics(train, val)
        row |= {"lr": self.updates.lr, "images_per_s": rate}
        if self.config.clip_grad is not None:
            row["grad_norm"] = self.updates.take_grad_norm()
        self.outputs.save_epoch(row, self.model, self.updates.optimizer, step=self.step)
        if self.val_loader is not None:
            self.outputs.save_samples(row, self.model, self.val_loader.dataset, self.device)
        LOGGER.info(
            "epoch %d/%d, step %d: train_loss %.4f, val_loss %.4f, val_dice %.4f, val_iou %.4f, "
            "pred_mean %.4f, target_mean %.4f, pred_positive %.4f, pred_max %.3f, %.1f images/s",
            self.epoch,
            self.config.epochs,
            self.step,
            *(row[n] for n in ("train_loss", "val_loss", "val_dice", "val_iou", "pred_mean")),
            *(row[n] for n in ("target_mean", "pred_positive", "pred_max", "images_per_s")),
        )
        if self._classes:
            LOGGER.info("  val_iou of %s", report.class_scores(val.class_iou))
        for finding in self.monitor.observe_validation(val, lr=self.updates.lr):
            self._act_on(finding)

    def _train_epoch(self) -> tuple[Tally, float]:
        self.model.train()
        tally = Tally(self._classes)
        images = 0
        start = time.perf_counter()
        label = f"epoch {self.epoch + 1}/{self.config.epochs}"
        with Progress(_count(self.train_loader), label) as progress:
            progress.show(**self._shown)
            for batch in self.train_loader:
                self.train_step(batch)
                images += len(batch["image"])
                for snapshot in self._decoded(self.ring.ready()):
                    self._take(snapshot, tally)
                    progress.show(**self._shown)
                progress.update(len(batch["image"]))
                if self._interrupted or self._steps_are_up():
                    break
            for snapshot in self._decoded(self.ring.flush()):
                self._take(snapshot, tally)
        return tally, images / (time.perf_counter() - start)

    def _take(self, snapshot: SegmentationSnapshot, tally: Tally) -> None:
        """A training step's statistics have arrived on the host."""
        tally.add(snapshot)
        if snapshot.valid:
            self._shown = {
                "loss": snapshot.loss,
                "pred_mean": snapshot.pred_mean,
                "target_mean": snapshot.target_mean,
            }
        for finding in self.monitor.observe(snapshot, lr=self.updates.lr):
            self._act_on(finding)

    def _act_on(self, finding: Finding) -> None:
        if finding.cause is Cause.RECOVERED:
            LOGGER.info("%s", finding)
            return
        if finding.is_fatal:
            self._end_non_finite(finding.message)
        self.alarms.append(finding)
        LOGGER.warning("%s", finding)
        accepted = finding.cause is Cause.NO_FOREGROUND and self.config.allow_no_foreground
        if self.config.on_collapse == "stop" and finding.is_collapse and not accepted:
            self._save_last()
            raise RunEnded(EXIT_COLLAPSED, f"stopped: {finding.cause.value}")

    def _end_non_finite(self, message: str) -> None:
        """The weights are lost (or about to be): keep what the last good epoch saved."""
        name = first_nonfinite(self.model)
        where = f"first parameter that is not finite: {name}" if name else "parameters still finite"
        LOGGER.error("NaN or Inf: %s (%s, step %d)", message, where, self.step)
        kept = (
            "last.pt is that of the last good epoch"
            if self.outputs.rows
            else "no checkpoint is written"
        )
        raise RunEnded(EXIT_NON_FINITE, f"stopped by NaN or Inf; {kept}")

    @torch.no_grad()
    def _validate(self) -> Tally:
        """Loss and counts over the validation rows, which are all annotated."""
        tally = Tally(self._classes)
        if self.val_loader is None:
            return tally
        self.model.eval()
        with Progress(_count(self.val_loader), "validation") as progress:
            for batch in self.val_loader:
                moved = self._to_device(batch)
                out = self.val_ring.next_row()
                logits = self.model(moved["image"])
                self.criterion(
                    logits, moved["mask"], moved["valid"], return_stats=True, stats_out=out
                )
                self.val_ring.commit()
                for snapshot in self._decoded(self.val_ring.ready()):
                    tally.add(snapshot)
                    progress.show(val_loss=tally.loss, pred_mean=tally.pred_mean)
                progress.update(len(batch["image"]))
                if self._interrupted:
                    break
            for snapshot in self._decoded(self.val_ring.flush()):
                tally.add(snapshot)
        return tally

    def _save_last(self) -> None:
        self.outputs.save_last(self.model, self.updates.optimizer, epoch=self.epoch, step=self.step)

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        names = ["image", "mask", "valid"]
        if self.config.pseudo_weight is not None:
            names.append("pseudo")
        return {name: batch[name].to(self.device, non_blocking=True) for name in names}

    def _decoded(self, rows: list[list[float]]) -> Iterator[SegmentationSnapshot]:
        return (decode(row, self.criterion.term_names, self._classes) for row in rows)

    def _steps_are_up(self) -> bool:
        return self.config.max_steps is not None and self.step >= self.config.max_steps

    def _end_if_interrupted(self) -> None:
        if not self._interrupted:
            return
        self._save_last()
        message = f"interrupted at step {self.step}; {self.outputs.folder / 'last.pt'} is saved"
        raise RunEnded(EXIT_INTERRUPTED, message)

    @contextlib.contextmanager
    def _catch_interrupt(self) -> Iterator[None]:
        """Ctrl-C ends the run after the current step, so that no update is saved half-done."""
        owner = os.getpid()

        def note(number: int, frame: object) -> None:
            if os.getpid() != owner:  # a forked loader worker inherits the handler; not its matter
                return
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            LOGGER.warning("Ctrl-C: ending after this step (once more to end at once)")

        try:
            before = signal.signal(signal.SIGINT, note)
        except ValueError:  # not in the main thread, where Python delivers no signal anyway
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _count(loader: DataLoader[Sample]) -> int:
    return len(loader.dataset)  # type: ignore[arg-type]
