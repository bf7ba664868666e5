import signal
from typing import Any

import pytest

from fastseg_losses.training.distributed import AGREE_EVERY, World
from fastseg_losses.training.endings import _BY_WEIGHT, Endings, RunEnded
from fastseg_losses.training.exit_codes import (
    EXIT_COLLAPSED,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_OK,
)


class Pair(World):
    """A world of two, the other of which says what it is told to."""

    def __init__(self, other: int) -> None:
        super().__init__(rank=0, size=2)
        self.other = other
        self.asked = 0

    def largest(self, number: int) -> int:
        self.asked += 1
        return max(number, _BY_WEIGHT.index(self.other))

    def gather(self, value: Any) -> list[Any]:
        return [value, "theirs" if isinstance(value, str) else self.other]


def test_without_a_reason_nothing_ends() -> None:
    endings = Endings(World())
    assert not endings.agreed() and not endings.agreed_at(1)


def test_the_first_reason_counts() -> None:
    endings = Endings(World())
    endings.note(EXIT_COLLAPSED, "first")
    endings.note(EXIT_NON_FINITE, "second")
    assert endings.agreed() and endings.keeps_weights
    with pytest.raises(RunEnded, match="first") as ended:
        endings.end("interrupted")
    assert ended.value.code == EXIT_COLLAPSED


def test_nan_keeps_no_weights() -> None:
    endings = Endings(World())
    endings.note(EXIT_NON_FINITE, "NaN")
    assert endings.agreed() and not endings.keeps_weights


def test_ctrl_c() -> None:
    endings = Endings(World())
    before = signal.getsignal(signal.SIGINT)
    with endings.catching_interrupts():
        signal.raise_signal(signal.SIGINT)
        assert endings.interrupted and endings.agreed_at(3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(RunEnded, match="interrupted at step 3") as ended:
        endings.end("interrupted at step 3")
    assert ended.value.code == EXIT_INTERRUPTED


def test_processes_end_together_and_ask_now_and_then() -> None:
    world = Pair(EXIT_OK)
    endings = Endings(world)
    endings.note(EXIT_COLLAPSED, "mine")
    assert not endings.agreed_at(1) and world.asked == 0
    assert endings.agreed_at(AGREE_EVERY) and world.asked == 1
    endings = Endings(Pair(EXIT_NON_FINITE))
    assert endings.agreed() and not endings.keeps_weights
    with pytest.raises(RunEnded, match="theirs") as ended:
        endings.end("")
    assert ended.value.code == EXIT_NON_FINITE


def test_of_several_reasons_the_heaviest_counts_in_all_processes() -> None:
    for mine, other in (
        (EXIT_COLLAPSED, EXIT_NON_FINITE),
        (EXIT_NON_FINITE, EXIT_INTERRUPTED),
        (EXIT_COLLAPSED, EXIT_INTERRUPTED),
    ):
        endings = Endings(Pair(other))
        endings.note(mine, "mine")
        assert endings.agreed()
        heavier = max(mine, other, key=_BY_WEIGHT.index)
        assert endings.keeps_weights == (heavier != EXIT_NON_FINITE)
        with pytest.raises(RunEnded, match="mine" if heavier == mine else "theirs") as ended:
            endings.end("")
        assert ended.value.code == heavier
