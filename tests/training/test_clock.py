import math
import time

import pytest
from training.clocks import set_clock

from fastseg_losses.training import clock as clocks
from fastseg_losses.training.clock import Clock, Sparing, duration, seconds_left
from fastseg_losses.training.config import resolve


def test_only_waiting_is_counted() -> None:
    def slow():
        for value in range(3):
            time.sleep(0.03)
            yield value

    clock = Clock()
    for _ in clock.timed(slow()):
        time.sleep(0.02)
    assert 0.09 <= clock.waited <= clock.seconds - 0.06


def test_a_chore_takes_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 3.0
    set_clock(monkeypatch, lambda: now, clocks)
    sparing = Sparing()
    assert sparing.is_due  # the first time always
    with sparing.timed():
        now += 0.5
    due = []
    for wait in (0.0, 9.9, 0.2):  # 0.5 s is 5 % of 10 s
        now += wait
        due.append(sparing.is_due)
    assert due == [False, False, True]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3661, "1 h 1 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_end_comes_at_the_pace_so_far() -> None:
    config = resolve({"data": "d", "epochs": 10})
    assert math.isnan(seconds_left(config, 1, 5, 5, []))
    assert seconds_left(config, 4, 20, 5, [2.0, 4.0]) == 18.0
    few = resolve({"data": "d", "epochs": 10, "max_steps": 30})
    assert seconds_left(few, 4, 20, 5, [3.0]) == 6.0
    assert seconds_left(few, 6, 30, 5, [3.0]) == 0.0
