import io
import logging
import sys

import pytest
from training.clocks import set_clock

from fastseg_losses.training import progress
from fastseg_losses.training.progress import ConsoleHandler, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(4, "epoch 1/2") as bar:
        for _ in range(4):
            bar.show(loss=0.25, pred_mean=0.125, target_mean=0.0625)
            bar.update(1)
        assert bar._bar is not None
        bar._bar.refresh()
    for part in ("epoch 1/2", "4/4", "loss=0.25", "pred_mean=0.125", "target_mean=0.0625"):
        assert part in screen.getvalue()


def test_elsewhere_plain_lines_appear_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 10))
    set_clock(monkeypatch, lambda: float(next(clock)), progress)
    with Progress(80, "epoch 1/2") as lines:
        lines.show(val_loss=0.5)
        for _ in range(10):
            lines.update(8)
    shown = capsys.readouterr().err.splitlines()
    # Ten updates, ten seconds apart, a line after each fifteen: every second update.
    assert len(shown) == 5
    assert shown[0] == "epoch 1/2: 16/80 images, 0.8/s val_loss=0.5"
    assert not any("\r" in line or "\x1b" in line for line in shown)


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_warnings_go_to_standard_error(level: int, capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("x", level, "", 0, "a message", None, None)
    ConsoleHandler().handle(record)
    out, err = capsys.readouterr()
    assert (err if level == logging.WARNING else out) == "a message\n"
    assert (out if level == logging.WARNING else err) == ""
