import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training.class_files import write_class_set
from training.clocks import set_clock
from training.index_files import write_index, zeros
from training.pages import Page, census
from training.runs import ROWS, SIZE, make_trainer, run, small_net, squares, write_set

from fastseg_losses.training import clock, html_report, outputs
from fastseg_losses.training import launch as launching
from fastseg_losses.training.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_COLLAPSED,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_OK,
)
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.html_page import State
from fastseg_losses.training.html_report import HtmlReport
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.run_folder import WriteError
from fastseg_losses.training.trainer import Trainer


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny net, and no pictures beside the page."""
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The states of all pages, in the order in which they were written."""
    seen: list[State] = []
    page = html_report.page

    def note(record: html_report.RunRecord) -> str:
        seen.append(record.state)
        return page(record)

    monkeypatch.setattr(html_report, "page", note)
    return seen


def read(folder: Path) -> Page:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.mistakes == [] and page.requests() == []
    return page


def test_a_run_leaves_a_page_that_says_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[State]
) -> None:
    monkeypatch.setattr(clock.Sparing, "MAX_SHARE", 1e9)
    monkeypatch.setattr(
        outputs.report,
        "plot_samples",
        lambda path, *args, **options: Image.new("RGB", (9, 9)).save(path),
    )
    folder = tmp_path / "run"
    data = write_set(tmp_path / "d.parquet", undrawn=range(0, ROWS, 6))
    assert run(data, folder, epochs=3, lr=0.0042) == EXIT_OK
    assert [(state.kind, state.detail) for state in states] == [
        ("running", "epoch 1 is complete"),
        ("running", "epoch 2 is complete"),
        ("running", "epoch 3 is complete"),
        ("finished", ""),
    ]
    page = read(folder)
    assert page.tags.count("img") == 1
    for part in (
        "Finished",
        "Epochs 3 of 3 12 steps",
        "training 20 rows",
        "validation 4 rows",
        "not annotated 4",
        "Samples with segmentation 16 / 20",
        "--lr 0.0042",
        f"torch {torch.__version__}",
        "Device cpu",
        "LightweightUNet",
        "has not judged anything yet",
    ):
        assert part in page.text


def test_multiclass_runs_have_a_page_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    data = write_class_set(tmp_path / "d.parquet")
    settings: dict[str, Any] = {"mode": "multiclass", "num_classes": 3, "max_steps": 2}
    assert run(data, folder, epochs=2, **settings) == EXIT_OK
    page = read(folder)
    assert "--max-steps 2 is reached" in page.text
    assert "IoU, best epoch (1) pixels, training pixels, validation" in page.text


def test_what_the_monitor_finds_is_at_the_top(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(ROWS), cell=zeros(SIZE), marked=True)
    images, masks = squares(4)
    val = write_index(tmp_path / "v.parquet", images, masks, [True] * 4)
    settings: dict[str, Any] = {"val": str(val), "check_every": 1, "allow_no_foreground": True}
    assert run(data, tmp_path / "run", **settings) == EXIT_OK
    text = read(tmp_path / "run").text
    assert text.index("What the monitor found") < text.index(Cause.NO_FOREGROUND.value)
    assert text.index(Cause.NO_FOREGROUND.value) < text.index("In numbers")


def test_a_collapse_that_stops_the_run_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(monitor: CollapseMonitor, *args: Any, **options: Any) -> list[Finding]:
        return [Finding(Cause.NOT_PREDICTED, 4, "nothing is predicted. Evidence: loss 0.1.")]

    monkeypatch.setattr(CollapseMonitor, "observe", find)
    data = write_set(tmp_path / "d.parquet")
    assert run(data, tmp_path / "run", on_collapse="stop", epochs=3) == EXIT_COLLAPSED
    text = read(tmp_path / "run").text
    assert "Stopped by a collapse stopped: foreground is there but not predicted" in text
    assert "no epoch is complete" in text
    assert text.index("nothing is predicted.") < text.index("Open ten images")


def test_nan_is_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def poison(trainer: Trainer, batch: dict[str, Any]) -> None:
        if trainer.epoch == 1:
            next(trainer.model.parameters()).data.fill_(torch.nan)
        step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", poison)
    folder = tmp_path / "run"
    assert run(write_set(tmp_path / "d.parquet"), folder, epochs=3) == EXIT_NON_FINITE
    page = read(folder)
    assert "Stopped by NaN or Inf" in page.text
    assert "the net put out NaN or Inf" in page.text and "first parameter that is" in page.text
    assert "Limit the gradients with --clip-grad 1." in page.text


def test_ctrl_c_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def interrupt(trainer: Trainer, batch: dict[str, Any]) -> None:
        step(trainer, batch)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupt)
    folder = tmp_path / "run"
    assert run(write_set(tmp_path / "d.parquet"), folder, epochs=3) == EXIT_INTERRUPTED
    page = read(folder)
    assert "Interrupted" in page.text and "interrupted at step 3" in page.text
    assert "no epoch is complete" in page.text


def test_a_run_that_leaves_nothing_leaves_no_page_either(
    tmp_path: Path, states: list[State]
) -> None:
    images, masks = squares(8)
    images = [image[: len(image) // 2] for image in images]  # headers intact
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 8)
    for workers in (0, 1):
        assert run(data, tmp_path / "run", num_workers=workers) == EXIT_BAD_INPUT
        assert not (tmp_path / "run").exists()
    for state in states:
        assert state.title == "Failed"
        assert state.detail.startswith(f"{data}: row ")


def test_a_defect_is_said_and_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: Trainer, batch: dict[str, Any]) -> None:
        if trainer.epoch == 1:
            raise ZeroDivisionError("a <b>mistake</b>")
        step(trainer, batch)

    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(ZeroDivisionError):
        run(write_set(tmp_path / "d.parquet"), tmp_path / "run", epochs=3)
    assert "Failed ZeroDivisionError: a <b>mistake</b>" in read(tmp_path / "run").text


def make_report(folder: Path) -> HtmlReport:
    folder.mkdir()
    trainer = make_trainer(folder, torch.device("cpu"), data="d.parquet")
    return HtmlReport(trainer, {"training": census()}, "32x32 for images of 32x32")


def test_a_page_that_would_slow_the_training_down_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[State]
) -> None:
    now = 100.0
    set_clock(monkeypatch, lambda: now, html_report, clock)
    report = make_report(tmp_path / "run")
    page = html_report.page

    def slow(record: html_report.RunRecord) -> str:
        nonlocal now
        now += 0.5
        return page(record)

    monkeypatch.setattr(html_report, "page", slow)
    written = []
    for wait in (0.0, 4.0, 5.9, 1.0, 10.0):
        now += wait
        report.after_epoch()
        written.append(len(states))
    # 0.5 s is 5 % of 10 s.
    assert written == [1, 1, 1, 2, 3]


def test_a_full_disk_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, write: Any) -> None:
        raise WriteError(path, OSError(28, "No space left on device"))

    monkeypatch.setattr(html_report, "write_atomically", full)
    report = make_report(tmp_path / "run")
    with caplog.at_level(logging.WARNING), report.until_the_end():
        report.after_epoch()
    assert caplog.text.count("report.html: cannot be written (No space left on device)") == 2


def test_an_early_stop_is_no_failure(tmp_path: Path, states: list[State]) -> None:
    report = make_report(tmp_path / "run")
    with report.until_the_end():
        pass
    assert states == [State("finished", "Finished", "early stop: no better score for 0 epochs")]


def test_an_end_at_once_is_said(tmp_path: Path, states: list[State]) -> None:
    report = make_report(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), report.until_the_end():
        raise KeyboardInterrupt
    assert states[-1].title == "Interrupted"


def test_a_set_of_one_image_has_a_page(tmp_path: Path) -> None:
    images, masks = squares(1)
    data = write_index(tmp_path / "d.parquet", images, masks, [True])
    val = write_index(tmp_path / "v.parquet", images, [zeros(SIZE)], [True])
    assert run(data, tmp_path / "run", val=str(val)) == EXIT_OK
    assert read(tmp_path / "run").tags
