"""What a run says: on the console at once, and in its folder's ``logs/training.log``."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from fastseg_losses.training.census import RowCensus
from fastseg_losses.training.outputs import rank
from fastseg_losses.training.progress import ConsoleHandler
from fastseg_losses.training.run_folder import CLAIM, discard, is_unfinished, writing
from fastseg_losses.training.trainer import LOGGER, Trainer


class LogFile(logging.FileHandler):
    """A log file, locked by this process; a full disk costs lines of it, and no training.

    Args:
        path: the file; what it holds stays.
    """

    def __init__(self, path: Path) -> None:
        # A path on the command line need not be UTF-8.
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._is_said = False

    def lock_file(self) -> bool:
        """Keep other processes from getting the lock; whether none of them has it.

        It ends with the process, however that ends. A record lock, which unlike `flock` is not
        inherited by the loader's workers: those outlive a killed trainer by seconds.
        """
        try:
            import fcntl
        except ImportError:  # Windows has none
            return True
        assert self.stream is not None
        try:
            fcntl.lockf(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            return True
        return True

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say once that lines are missing."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_said:
            self._is_said = True
            tqdm.write(f"{self.baseFilename} cannot be written ({error.strerror})", file=sys.stderr)

    def close(self) -> None:
        """Close the file, even where its last lines cannot be written."""
        with contextlib.suppress(OSError):  # said when the line came
            super().close()


class RunLog:
    """Holds lines back until there is a folder to write them to.

    Attributes:
        folder: the run's folder, once there is one.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.buffer = logging.handlers.MemoryHandler(100_000, flushLevel=logging.CRITICAL + 1)

    def write_to(self, folder: Path, *, resumed: bool = False) -> None:
        """Write everything so far, and each line from here on, into the run's folder.

        Args:
            folder: the run's folder.
            resumed: whether it was there before; if not, it is this run's, and may be removed.

        Raises:
            ValueError: another process trains in this folder.
            WriteError: the file cannot be written.
        """
        if not resumed:
            self.folder = folder
        path = folder / CLAIM / "training.log"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            file = LogFile(path)
        if not file.lock_file():
            file.close()
            raise ValueError(
                f"resume: expected a run that has ended, got {str(folder)!r}, in which another "
                "process is training"
            )
        self.folder = folder
        self.buffer.setTarget(file)
        self.buffer.flush()
        self.buffer.flushLevel = logging.DEBUG


@contextlib.contextmanager
def run_log(*, quiet: bool = False) -> Iterator[RunLog]:
    """Log to the console and, as soon as there is one, into the run's folder.

    A folder in which no epoch was finished and no weights were saved is removed at the end, so that
    the same ``--output-dir`` can be used again.

    Args:
        quiet: only errors, on the console: of processes that train together one writes.

    Yields:
        The log.
    """
    console = ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    log = RunLog()
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR if quiet else logging.INFO)
    for handler in (console, log.buffer):
        LOGGER.addHandler(handler)
    try:
        yield log
    finally:
        unfinished = log.folder is not None and is_unfinished(log.folder)
        if unfinished:
            LOGGER.info("no epoch was finished: %s is removed", log.folder)
        for handler in (console, log.buffer):
            LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        target = log.buffer.target
        log.buffer.close()
        if target is not None:
            target.close()
        if log.folder is not None and unfinished:
            discard(log.folder)


def log_census(what: str, census: RowCensus) -> None:
    """A census, without its list of unreadable rows: the error message that follows names them."""
    LOGGER.info("census of the %s:", what)
    for line in census.lines(problems=False):
        LOGGER.info("  %s", line)


def log_end(trainer: Trainer, seconds: float) -> None:
    """The last line of a run that reached its end."""
    parts = [f"finished: {trainer.step} steps in {seconds:.0f} s"]
    column, name = trainer.outputs.score
    rows = trainer.outputs.rows
    if rows:
        best = max(rows, key=lambda row: rank(row, column))  # the epoch of best.pt
        loss = "train_loss" if math.isnan(best["val_loss"]) else "val_loss"
        if math.isnan(best[column]):
            what = "training" if loss == "train_loss" else "validation"
            column, name = loss, f"{what} loss"
        else:
            name = f"validation {name}"
        parts.append(
            f"best {name} {best[column]:.4f} (epoch {best['epoch']:.0f}), "
            f"last {rows[-1][column]:.4f}"
        )
    if trainer.alarms:
        last = trainer.alarms[-1]
        count = len(trainer.alarms)
        parts.append(
            f"{count} warning{'s' if count > 1 else ''} of the monitor, the last at step "
            f"{last.step}: {last.cause.value}"
        )
    LOGGER.info("%s; results in %s", ", ".join(parts), trainer.outputs.folder)
