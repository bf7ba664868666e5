"""``report.html``: the page of a run, rewritten while it trains and at whatever end it comes to."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fastseg_losses.training.census import RowCensus
from fastseg_losses.training.clock import Sparing
from fastseg_losses.training.data import DataError
from fastseg_losses.training.endings import RunEnded
from fastseg_losses.training.exit_codes import EXIT_COLLAPSED, EXIT_INTERRUPTED
from fastseg_losses.training.html_page import RunRecord, State, page
from fastseg_losses.training.model import describe
from fastseg_losses.training.run_folder import WriteError, write_atomically
from fastseg_losses.training.surroundings import command, device_name, peak_memory, versions
from fastseg_losses.training.trainer import LOGGER, Trainer

NAME = "report.html"


class HtmlReport:
    """Writes the page of a run.

    Args:
        trainer: what is reported on; nothing in it is changed.
        censuses: of the rows, by what was counted.
        logits: their size, in words.
    """

    def __init__(self, trainer: Trainer, censuses: Mapping[str, RowCensus], logits: str) -> None:
        self._trainer = trainer
        self._censuses = censuses
        self._start = time.monotonic()
        self._epochs_before = trainer.epoch  # of the run that was resumed
        self._facts = _facts(trainer) | {"Logits": logits}
        self._sparing = Sparing()

    def after_epoch(self) -> None:
        """Write the page, unless that would slow the training down; the next epoch may."""
        if self._sparing.is_due:
            trainer = self._trainer
            self.write(State("running", "Running", f"epoch {trainer.epoch} is complete"))

    @contextlib.contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Write the page when the block ends, whatever ends it."""
        try:
            yield
        except BaseException as error:
            self.write(_ended_by(error))
            raise
        self.write(self._finished())

    def write(self, state: State) -> None:
        """Write the page. A disk that is full is no reason to lose the training: it is a warning.

        Args:
            state: how the run stands.
        """
        if not self._trainer.world.is_main:
            return
        with self._sparing.timed():
            self._write(state)

    def _write(self, state: State) -> None:
        trainer = self._trainer
        folder = trainer.outputs.folder
        record = RunRecord(
            config=trainer.config,
            folder=folder,
            state=state,
            rows=trainer.outputs.rows,
            findings=trainer.findings,
            step=trainer.step,
            epoch_batches=len(trainer.train_loader),
            seconds=time.monotonic() - self._start,
            timed=trainer.epoch - self._epochs_before,
            written=datetime.datetime.now(),
            censuses=self._censuses,
            memory=peak_memory(trainer.device),
            score=trainer.outputs.score,
            facts=self._facts,
        )
        # A path on the command line need not be UTF-8.
        content = page(record).encode("utf-8", errors="backslashreplace")
        try:
            write_atomically(folder / NAME, lambda file: file.write(content))
        except OSError as error:
            LOGGER.warning("the page of the run is not up to date: %s", error)

    def _finished(self) -> State:
        trainer = self._trainer
        config = trainer.config
        if trainer.epoch >= config.epochs:
            detail = ""
        elif config.max_steps is not None and trainer.step >= config.max_steps:
            detail = f"--max-steps {config.max_steps} is reached"
        else:
            detail = f"early stop: no better score for {trainer.outputs.stale} epochs"
        return State("finished", "Finished", detail)


def _facts(trainer: Trainer) -> dict[str, str]:
    import torch

    weights: dict[str, Any] = trainer.config.loss_arguments()
    named = ", ".join(f"{name}={value}" for name, value in weights.items())
    return {
        "Command": command(),
        "Folder": str(trainer.outputs.folder.resolve()),
        "Started": datetime.datetime.now().isoformat(sep=" ", timespec="seconds"),
        "Device": device_name(trainer.device),
        "CPU threads": str(torch.get_num_threads()),
        **versions(),
        "Net": describe(trainer.model),
        "Loss": f"{trainer.config.loss} ({named})" if named else trainer.config.loss,
    }


def _ended_by(error: BaseException) -> State:
    """How the run stands after an exception."""
    if isinstance(error, RunEnded):
        if error.code == EXIT_INTERRUPTED:
            return State("stopped", "Interrupted", str(error))
        title = "Stopped by a collapse" if error.code == EXIT_COLLAPSED else "Stopped by NaN or Inf"
        return State("failed", title, str(error))
    if isinstance(error, KeyboardInterrupt):
        return State("stopped", "Interrupted", "at once; last.pt is that of the last epoch")
    # From a loader's worker it comes as a traceback, whose last line is the message.
    lines = str(error).strip().splitlines() or [""]
    message = re.sub(r"^[\w.]+: ", "", lines[-1]) if len(lines) > 1 else lines[-1]
    kind = "" if isinstance(error, (DataError, WriteError)) else f"{type(error).__name__}: "
    return State("failed", "Failed", f"{kind}{message}")
