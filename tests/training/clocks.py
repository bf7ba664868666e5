"""A clock that a test sets, for one module."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest


def set_clock(patch: pytest.MonkeyPatch, now: Callable[[], float], *modules: ModuleType) -> None:
    """Have these modules, and nobody else, read `now` for `time.monotonic`.

    Everybody else needs a clock that moves: a loader that is collected meanwhile waits for its
    workers by it, for ever if it stands still.
    """
    for module in modules:
        patch.setattr(module, "time", SimpleNamespace(monotonic=now))
