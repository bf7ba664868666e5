"""Why a run ends before its last epoch, and that all its processes end at the same step."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator

from fastseg_losses.training.distributed import AGREE_EVERY, World
from fastseg_losses.training.exit_codes import (
    EXIT_COLLAPSED,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_OK,
)

LOGGER = logging.getLogger("fastseg_losses.training")


# Of several reasons the one that says most, last.
_BY_WEIGHT = (EXIT_OK, EXIT_INTERRUPTED, EXIT_COLLAPSED, EXIT_NON_FINITE)


class RunEnded(Exception):  # noqa: N818 - an early end, not always an error
    """The run ends before its last epoch.

    Attributes:
        code: the process's exit code.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Endings:
    """Gathers reasons to end, until the processes agree.

    Args:
        world: the processes; `agreed` and `agreed_at` are called by all of them at the same step.

    Attributes:
        interrupted: whether Ctrl-C came to this process.
    """

    def __init__(self, world: World) -> None:
        self.interrupted = False
        self._world = world
        self._code = EXIT_OK
        self._message = ""
        self._is_agreed = False

    def note(self, code: int, message: str) -> None:
        """A reason to end after this step; the first one counts."""
        if self._code == EXIT_OK:
            self._code, self._message = code, message

    def agreed(self) -> bool:
        """Whether some process has a reason to end; each waits for the others."""
        mine = EXIT_INTERRUPTED if self.interrupted and self._code == EXIT_OK else self._code
        code = _BY_WEIGHT[self._world.largest(_BY_WEIGHT.index(mine))]
        if code == EXIT_OK:
            return False
        if not self._is_agreed:  # all have the same code and message from here on
            said = zip(self._world.gather(mine), self._world.gather(self._message), strict=True)
            self._code, self._message = next(pair for pair in said if pair[0] == code)
            self._is_agreed = True
        return True

    def agreed_at(self, step: int) -> bool:
        """The same in the middle of an epoch: several processes only ask now and then."""
        if self._world.size > 1 and step % AGREE_EVERY:
            return False
        return self.agreed()

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights at the end are worth saving."""
        return self._code in (EXIT_OK, EXIT_COLLAPSED, EXIT_INTERRUPTED)

    def end(self, interrupted: str) -> None:
        """Raise `RunEnded`.

        Args:
            interrupted: the message after Ctrl-C.
        """
        if self._code in (EXIT_OK, EXIT_INTERRUPTED):
            raise RunEnded(EXIT_INTERRUPTED, interrupted)
        raise RunEnded(self._code, self._message)

    @contextlib.contextmanager
    def catching_interrupts(self) -> Iterator[None]:
        """Ctrl-C ends the run after the current step, so that no update is saved half-done."""
        owner = os.getpid()

        def note(number: int, frame: object) -> None:
            if os.getpid() != owner:  # a forked loader worker inherits the handler; not its matter
                return
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
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
