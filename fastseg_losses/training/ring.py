"""Statistics on their way from the device to the host, without a kernel and without a sync.

The loss kernel writes each step's statistics straight into a row of this ring. When an interval
is full, its rows start for the host in one asynchronous copy; they are handed out once the copy's
event has fired, usually a few steps later, and at the latest when the next interval is full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Copy:
    """Rows of one half on their way to the host."""

    host: Tensor
    count: int
    done: torch.cuda.Event


class StatsRing:
    """Two intervals of statistics rows on the device: one is written while the other is copied.

    Per step: ``criterion(..., stats_out=ring.next_row())``, then ``ring.commit()``, then
    ``ring.ready()`` for whatever rows have arrived, oldest first. ``ring.flush()`` waits for all.

    On the CPU there is nothing to wait for, and every row is ready as soon as it is committed.

    Args:
        interval: rows per copy.
        width: elements of a row, ``criterion.stats_size()``.
        device: where the loss runs.

    Example:
        >>> ring = StatsRing(interval=50, width=3, device=torch.device("cpu"))
        >>> _ = ring.next_row().copy_(torch.tensor([1.0, 2.0, 3.0]))
        >>> ring.commit()
        >>> ring.ready()
        [[1.0, 2.0, 3.0]]
    """

    def __init__(self, interval: int, width: int, device: torch.device) -> None:
        if interval < 1 or width < 1:
            raise ValueError(
                f"interval and width: expected at least 1, got {interval!r} and {width!r}"
            )
        self.interval = interval
        self.device = device
        self._asynchronous = device.type == "cuda"
        self._halves = torch.zeros(2, interval, width, device=device).unbind(0)
        # Made once: slicing per step would cost some microseconds of host time each.
        self._rows = [half.unbind(0) for half in self._halves]
        self._half = 0
        self._used = 0
        self._arrived: list[list[float]] = []
        self._copies: list[_Copy] = []
        if self._asynchronous:
            self._host = [torch.zeros(interval, width).pin_memory() for _ in range(2)]
            self._events = [torch.cuda.Event() for _ in range(2)]

    def next_row(self) -> Tensor:
        """The row for the coming step; the same one until :meth:`commit`."""
        return self._rows[self._half][self._used]

    def commit(self) -> None:
        """The current row is written (or queued to be); start the copy if the interval is full."""
        row = self._rows[self._half][self._used]
        self._used += 1
        if not self._asynchronous:
            self._arrived.append(row.tolist())
        if self._used == self.interval:
            self._start_copy()

    def ready(self) -> list[list[float]]:
        """Rows that have arrived since the last call, in order; never waits."""
        while self._copies and self._copies[0].done.query():
            self._take_first()
        rows, self._arrived = self._arrived, []
        return rows

    def flush(self) -> list[list[float]]:
        """All rows not handed out yet, in order; waits for the device. For an epoch's end."""
        if self._used:
            self._start_copy()
        while self._copies:
            self._take_first()
        return self.ready()

    def _start_copy(self) -> None:
        count, half = self._used, self._half
        self._half, self._used = 1 - half, 0
        if not self._asynchronous:
            return
        # The half about to be written next may still be on its way if the host is more than an
        # interval ahead. Waiting then costs the device nothing: it has an interval queued.
        while self._copies:
            self._take_first()
        with torch.cuda.device(self.device):
            self._host[half][:count].copy_(self._halves[half][:count], non_blocking=True)
            self._events[half].record()
        self._copies.append(_Copy(self._host[half], count, self._events[half]))

    def _take_first(self) -> None:
        copy = self._copies.pop(0)
        copy.done.synchronize()
        self._arrived.extend(copy.host[: copy.count].tolist())
