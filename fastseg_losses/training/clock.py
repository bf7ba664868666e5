"""Where a run's time goes: waiting for data, and everything else; and when it will end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from fastseg_losses.training.config import TrainConfig

T = TypeVar("T")


class Sparing:
    """Says when a chore is due that must not slow the training down.

    It may take `MAX_SHARE` of the time since it was last done. Pictures and charts take tenths of a
    second, which is nothing to an epoch of minutes and several times an epoch of a few images.
    """

    MAX_SHARE = 0.05

    def __init__(self) -> None:
        self._last_end = -math.inf
        self._last_cost = 0.0

    @property
    def is_due(self) -> bool:
        """Whether doing it now would cost no more than its share; the first time always."""
        return self._last_cost <= self.MAX_SHARE * (time.monotonic() - self._last_end)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """The chore is done in the block."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._last_end = time.monotonic()
            self._last_cost = self._last_end - start


class Clock:
    """Times one epoch's training.

    Attributes:
        waited: seconds in which the loop had no batch to work on. On CUDA the device may have been
            busy with earlier steps meanwhile.
    """

    def __init__(self) -> None:
        self.waited = 0.0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, the waits for them added up."""
        source = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch


def seconds_left(
    config: TrainConfig, epoch: int, step: int, epoch_steps: int, epochs_took: Sequence[float]
) -> float:
    """Seconds until a run's end at its pace so far; NaN while there is none to go by.

    Args:
        config: the resolved settings.
        epoch: epochs completed.
        step: optimizer steps done.
        epoch_steps: optimizer steps of an epoch.
        epochs_took: seconds of each epoch so far.
    """
    if not epochs_took:
        return math.nan
    epochs = float(config.epochs - epoch)
    if config.max_steps is not None and epoch_steps:
        epochs = min(epochs, (config.max_steps - step) / epoch_steps)
    return max(0.0, epochs) * sum(epochs_took) / len(epochs_took)


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
