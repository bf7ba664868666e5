import time

import pytest

from fastseg_losses.training.clock import Clock, duration


def test_only_waiting_is_counted() -> None:
    def slow():
        for value in range(3):
            time.sleep(0.03)
            yield value

    clock = Clock()
    for _ in clock.timed(slow()):
        time.sleep(0.02)
    assert 0.09 <= clock.waited <= clock.seconds - 0.06


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3661, "1 h 1 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
