"""The training loop: nothing in it but the net, the loss and the optimizer touches the device.

Every number that is shown, judged or saved comes from the statistics rows that the loss kernel
writes into a `StatsRing`; there is no ``.item()`` and no arithmetic on them on the device.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.training import report
from fastseg_losses.training.batches import (
    decoded,
    number_of_samples,
    start_epoch,
    to_device,
    windows,
)
from fastseg_losses.training.checkpoint import first_nonfinite
from fastseg_losses.training.clock import Clock, seconds_left
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.data import Sample
from fastseg_losses.training.distributed import World
from fastseg_losses.training.endings import Endings
from fastseg_losses.training.exit_codes import EXIT_COLLAPSED, EXIT_NON_FINITE
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.net import Net
from fastseg_losses.training.objective import Objective
from fastseg_losses.training.outputs import Outputs
from fastseg_losses.training.profile import StepProfiler
from fastseg_losses.training.progress import Progress
from fastseg_losses.training.resume import state_of
from fastseg_losses.training.ring import StatsRing
from fastseg_losses.training.surroundings import peak_memory
from fastseg_losses.training.tally import Tally
from fastseg_losses.training.updates import Updates
from fastseg_losses.training.valid_shares import ValidShares
from fastseg_losses.training.validation import validate
from fastseg_losses.training.watch import Monitor

LOGGER = logging.getLogger("fastseg_losses.training")


class Trainer:
    """Trains a net and writes what the run leaves into its folder.

    Args:
        config: the resolved settings.
        model: maps images (N, 3, H, W) to logits (N, 1, h, w) or (N, C, h, w), of the images' size
            or smaller; moved to the device.
        criterion: a loss of this package, which upsamples smaller logits.
        train_loader: batches of `Sample`, this process's part of them.
        val_loader: the same for validation; None if there is nothing to validate on.
        monitor: judges the training statistics.
        folder: the run's folder.
        device: where to train.
        world: the processes that train together.

    Attributes:
        epoch: epochs completed.
        step: optimizer steps done.
        batches: batches of the epoch that has begun, done.
        tally: what this process's batches of that epoch showed.
        findings: what the monitor found so far.
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
        world: World | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.world = World() if world is None else world
        self.net = Net(config, model, device, self.world)
        self.criterion = criterion.to(device)
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.monitor = monitor
        self.outputs = Outputs(folder, config, writes=self.world.is_main)
        self._epoch_steps = math.ceil(len(train_loader) / config.accumulate)
        scaled = self.net.precision is torch.float16
        self.updates = Updates(config, self.net.model, self._epoch_steps, scaled=scaled)
        shares = ValidShares(config.ignored_value, self.world, device)
        self.objective = Objective(self.criterion, shares, config.pseudo_weight)
        width = criterion.stats_size(config.channels)
        self.ring = StatsRing(config.check_every, width, device)
        self.val_ring = StatsRing(config.check_every, width, device)
        self._classes = 0 if config.labels is None else config.labels.num_classes
        self.epoch = 0
        self.step = 0
        self.batches = 0
        self.tally = Tally(self._classes)
        self.findings: list[Finding] = []
        self.endings = Endings(self.world)
        profiled = config.profile and self.world.is_main
        self._profiler = StepProfiler(folder, device) if profiled else None
        self._shown: dict[str, float] = {}
        self._seconds: list[float] = []

    @property
    def model(self) -> nn.Module:
        """The net, without what surrounds it in training."""
        return self.net.model

    @property
    def alarms(self) -> list[Finding]:
        """What the monitor warned of; its findings without the recoveries."""
        return [finding for finding in self.findings if finding.cause is not Cause.RECOVERED]

    def fit(self, after_epoch: Callable[[], object] = lambda: None) -> None:
        """Train to the end.

        Args:
            after_epoch: called when an epoch is complete and its files are written.

        Raises:
            RunEnded: the run ended early: NaN or Inf, a collapse under ``--on-collapse stop``,
                or Ctrl-C. What was worth saving is saved.
        """
        with self.endings.catching_interrupts(), contextlib.ExitStack() as at_the_end:
            if self._profiler is not None:
                at_the_end.callback(self._profiler.close)
            while self.goes_on:
                start = time.monotonic()
                try:
                    self._run_epoch()
                except RuntimeError:
                    # On Ctrl-C the loader's workers end too; that they are gone is no news then.
                    if not self.endings.interrupted:
                        raise
                self._end_if_agreed()
                after_epoch()
                self._seconds.append(time.monotonic() - start)
            if self._is_stale():
                LOGGER.info("early stop: no better score for %d epochs", self.outputs.stale)

    def train_step(self, *batches: dict[str, Any]) -> None:
        """One optimizer step on the batches joined. On CUDA the host does not wait for it."""
        last = len(batches) - 1
        factors = self.objective.factors(batches)
        for k, (batch, factor) in enumerate(zip(batches, factors, strict=True)):
            moved = to_device(batch, self.device, self.objective.needs)
            with self.net.without_exchange(k < last):
                logits = self.net(moved["image"])
                self.updates.backward(self.objective(logits, moved, self.ring.next_row(), factor))
            self.ring.commit()
        self.updates.step()
        if self.net.average is not None:
            self.net.average.update(self.net.model)
        self.step += 1
        if self._profiler is not None:
            self._profiler.step()

    def save_last(self) -> None:
        """Write last.pt; every process has to call it."""
        self.outputs.save_last(state_of(self))

    def _run_epoch(self) -> None:
        row = self._train_epoch()
        if self.endings.agreed():
            return
        train = Tally.joined(self.world.gather(self.tally))
        val = self._validated()
        if self.endings.agreed():
            return
        if not self._is_finite() or not (val.valid == 0 or math.isfinite(val.loss)):
            self._note_non_finite(f"after epoch {self.epoch + 1}, validation loss {val.loss:.4g}")
            return
        row = {"epoch": self.epoch + 1} | report.metrics(train, val) | row
        if self.batches >= len(self.train_loader):  # --max-steps may end in the middle of one
            self.epoch += 1
            self.batches = 0
            self.tally = Tally(self._classes)
        if self.config.clip_grad is not None:
            row["grad_norm"] = self.updates.take_grad_norm()
        best = self.outputs.add_epoch(row)
        findings = self.monitor.observe_validation(val, lr=self.updates.lr)
        self.outputs.save_epoch(state_of(self), best=best)
        pictured = None if self.val_loader is None else self.val_loader.dataset
        self.outputs.draw(self.net, pictured, self.device, last=not self.goes_on)
        self._log_epoch(row, val)
        for finding in findings:
            self._act_on(finding)

    def _train_epoch(self) -> dict[str, float]:
        """The steps of an epoch, or what is left of it; the figures that need a clock."""
        self.net.train()
        images = 0
        start_epoch(self.train_loader, self.epoch, self.batches)
        clock = Clock()
        label = f"epoch {self.epoch + 1}/{self.config.epochs}"
        with Progress(number_of_samples(self.train_loader), label) as progress:
            progress.show(**self._shown)
            for window in windows(clock.timed(self.train_loader), self.config.accumulate):
                self.train_step(*window)
                self.batches += len(window)
                count = sum(len(batch["image"]) for batch in window)
                images += count
                self._take(self.ring.ready())
                progress.show(**self._shown)
                progress.update(count)
                if self._is_time_to_save():
                    self._take(self.ring.flush())
                    if not self.endings.agreed() and self._is_finite():
                        self.save_last()
                if self.endings.agreed_at(self.step) or self._steps_are_up():
                    break
            self._take(self.ring.flush())
        images = sum(self.world.gather(images))
        row = {"lr": self.updates.lr, "images_per_s": images / clock.seconds}
        row["data_share"] = clock.waited / clock.seconds
        memory = peak_memory(self.device)
        row["peak_gb"] = math.nan if memory is None else memory[0] / 2**30
        return row

    def _take(self, rows: list[list[float]]) -> None:
        """Training steps' statistics have arrived on the host."""
        for snapshot in decoded(rows, self.criterion, self._classes):
            self.tally.add(snapshot)
            if snapshot.valid:
                self._shown = {
                    "loss": snapshot.loss,
                    "pred_mean": snapshot.pred_mean,
                    "target_mean": snapshot.target_mean,
                }
            for finding in self.monitor.observe(snapshot, lr=self.updates.lr):
                self._act_on(finding)

    def _act_on(self, finding: Finding) -> None:
        if finding.is_fatal:
            self._note_non_finite(finding.message)
            return
        if not self.world.is_main:  # its log is not seen, and one judge is enough
            return
        self.findings.append(finding)
        if finding.cause is Cause.RECOVERED:
            LOGGER.info("%s", finding)
            return
        LOGGER.warning("%s", finding)
        accepted = finding.cause is Cause.NO_FOREGROUND and self.config.allow_no_foreground
        if self.config.on_collapse == "stop" and finding.is_collapse and not accepted:
            self.endings.note(EXIT_COLLAPSED, f"stopped: {finding.cause.value}")

    def _note_non_finite(self, message: str) -> None:
        """The weights are lost (or about to be): keep what the last good epoch saved."""
        name = first_nonfinite(self.model)
        where = f"first parameter that is not finite: {name}" if name else "parameters still finite"
        self.findings.append(Finding(Cause.NON_FINITE, self.step, f"{message} ({where})"))
        LOGGER.error("NaN or Inf: %s (%s, step %d)", message, where, self.step)
        saved = self.outputs.what_is_saved()
        self.endings.note(EXIT_NON_FINITE, f"stopped by NaN or Inf; {saved}")

    def _validated(self) -> Tally:
        tally = Tally(self._classes)
        self.net.share_buffers(self.world)
        if self.val_loader is not None:
            tally = validate(
                self.net, self.criterion, self.val_loader, self.val_ring, tally, self.endings
            )
        return Tally.joined(self.world.gather(tally))

    def _log_epoch(self, row: dict[str, float], val: Tally) -> None:
        left = seconds_left(self.config, self.epoch, self.step, self._epoch_steps, self._seconds)
        LOGGER.info("%s", report.epoch_line(row, self.config.epochs, self.step, left))
        if self._classes:
            LOGGER.info("  val_iou of %s", report.class_scores(val.class_iou))

    def _steps_are_up(self) -> bool:
        return self.config.max_steps is not None and self.step >= self.config.max_steps

    def _is_time_to_save(self) -> bool:
        every = self.config.save_every
        return every is not None and self.step % every == 0

    @property
    def goes_on(self) -> bool:
        """Whether there is another epoch to train."""
        if self._is_stale():
            return False
        return self.epoch < self.config.epochs and not self._steps_are_up()

    def _is_finite(self) -> bool:
        """Whether the weights are finite in every process; buffers need not be equal."""
        bad = first_nonfinite(self.model) is not None
        return self.world.largest(int(bad)) == 0

    def _is_stale(self) -> bool:
        patience = self.config.patience
        if patience is None or self.epoch < self.config.min_epochs:
            return False
        return self.outputs.stale >= patience

    def _end_if_agreed(self) -> None:
        if not self.endings.agreed():
            return
        self.outputs.draw_curves()
        if self.endings.keeps_weights and self._is_finite():
            self.save_last()
        self.endings.end(f"interrupted at step {self.step}; {self.outputs.what_is_saved()}")
