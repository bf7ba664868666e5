"""Progress for people: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

LOGGER = logging.getLogger("fastseg_losses.training")

# Seconds between two plain lines: enough to see that it lives, few enough for a log.
PLAIN_EVERY = 15.0


class Progress:
    """Counts images; shows the newest numbers that it was given.

    Args:
        total: images in this pass.
        label: what the pass is, for instance "epoch 3/50".
    """

    def __init__(self, total: int, label: str) -> None:
        self._total = total
        self._label = label
        self._seen = 0
        self._text = ""
        self._last = self._start = time.monotonic()
        self._bar: tqdm | None = None
        # Of several processes one shows it: the log of the others is quiet.
        self._is_shown = LOGGER.getEffectiveLevel() < logging.ERROR
        if self._is_shown and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                desc=label,
                unit="img",
                leave=False,
                dynamic_ncols=True,
                mininterval=0.2,
            )

    def show(self, **values: float) -> None:
        """Numbers to show from now on, by name."""
        self._text = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._text, refresh=False)

    def update(self, images: int) -> None:
        """So many more images are done (or queued on the device)."""
        self._seen += images
        if self._bar is not None:
            self._bar.update(images)
            return
        now = time.monotonic()
        if self._is_shown and now - self._last >= PLAIN_EVERY:
            self._last = now
            rate = self._seen / (now - self._start)
            line = f"{self._label}: {self._seen}/{self._total} images, {rate:.1f}/s {self._text}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class ConsoleHandler(logging.Handler):
    """Log lines above the bar if there is one; from warnings up on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except Exception:
            self.handleError(record)
