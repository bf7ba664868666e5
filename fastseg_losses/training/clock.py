"""Where a run's time goes: waiting for data, and everything else; and when it will end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


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


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
