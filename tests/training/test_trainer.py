import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from training.index_files import zeros
from training.runs import (
    ROWS,
    SIZE,
    log,
    make_trainer,
    metrics,
    run,
    same,
    small_net,
    weights,
    write_set,
)

from fastseg_losses.stats import decode
from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.batches import to_device
from fastseg_losses.training.exit_codes import (
    EXIT_COLLAPSED,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_OK,
)
from fastseg_losses.training.trainer import Trainer

PICTURES = (outputs.report.plot_curves, outputs.report.plot_samples)


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny net, and no pictures, which take longer to draw than an epoch to train."""
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def test_a_run_learns_and_leaves_everything_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs.report, "plot_curves", PICTURES[0])
    monkeypatch.setattr(outputs.report, "plot_samples", PICTURES[1])
    folder = tmp_path / "run"
    assert run(write_set(tmp_path / "d.parquet"), folder, epochs=12) == EXIT_OK
    rows = metrics(folder)
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 13)]
    assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
    assert max(float(row["val_dice"]) for row in rows) > 0.9
    assert float(rows[0]["target_mean"]) == pytest.approx(100 / SIZE**2, rel=1e-3)
    for name in ("curves.png", "samples.png"):
        Image.open(folder / name).verify()
    assert json.loads((folder / "config.json").read_text())["epochs"] == 12
    text = log(folder)
    for part in ("Lightweight segmentation head", "Samples with segmentation: 20 / 20", "torch "):
        assert part in text
    assert not list(folder.glob("**/*.tmp"))


def test_best_is_the_epoch_with_the_highest_dice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(write_set(tmp_path / "d.parquet"), folder, epochs=4)
    scores = [float(row["val_dice"]) for row in metrics(folder)]
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["epoch"] == 1 + scores.index(max(scores))
    assert torch.load(folder / "last.pt", weights_only=True)["epoch"] == 4


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d.parquet")
    for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0)):
        run(data, tmp_path / name, seed=seed, epochs=2, num_workers=workers)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert same(a, b)
    assert not same(a, c)


@pytest.mark.parametrize("keep", [False, True], ids=["not drawn", "drawn and masked"])
def test_what_an_unannotated_mask_holds_does_not_matter(keep: bool, tmp_path: Path) -> None:
    undrawn = range(0, ROWS, 2)
    results = {}
    for name, cell, marked in (
        ("null", None, False),
        ("zero", zeros(SIZE), False),
        ("marked", zeros(SIZE), True),
    ):
        data = write_set(tmp_path / f"{name}.parquet", undrawn=undrawn, cell=cell, marked=marked)
        folder = tmp_path / name
        settings = {"keep_unannotated": keep, "epochs": 20, "max_steps": 20}
        assert run(data, folder, **settings) == EXIT_OK
        results[name] = weights(folder)
    assert same(results["null"], results["zero"])
    assert not same(results["null"], results["marked"])


def test_kept_unannotated_rows_are_drawn_but_not_counted(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(0, ROWS, 2))
    steps = []
    for keep in (False, True):
        folder = tmp_path / str(keep)
        run(data, folder, keep_unannotated=keep)
        steps.append(torch.load(folder / "last.pt", weights_only=True)["step"])
        # Half of the rows have no mask; the mean over the others is unchanged.
        assert float(metrics(folder)[0]["target_mean"]) == pytest.approx(100 / SIZE**2, rel=1e-3)
    assert steps == [2, 5]


def test_empty_masks_that_nobody_drew_raise_the_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undrawn = [row for row in range(ROWS) if row % 6 in (0, 2, 3, 4)]
    data = write_set(tmp_path / "d.parquet", undrawn=undrawn, cell=zeros(SIZE), marked=True)
    settings = {"loss": "bce", "epochs": 30, "check_every": 5}
    assert run(data, tmp_path / "run", on_collapse="stop", **settings) == EXIT_COLLAPSED
    (alarm,) = [r.message for r in caplog.records if "collapse, cause (b)" in r.message]
    assert "16 of 20 annotated training rows (80%) have an empty mask" in alarm
    assert "has_segmentation" in alarm
    assert weights(tmp_path / "run")
    caplog.clear()
    # The same rows as not annotated: nothing to report, and the net learns.
    data = write_set(tmp_path / "e.parquet", undrawn=undrawn, cell=zeros(SIZE))
    assert run(data, tmp_path / "other", **(settings | {"epochs": 60})) == EXIT_OK
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert max(float(row["val_dice"]) for row in metrics(tmp_path / "other")) > 0.8


def test_on_collapse_warn_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(ROWS), cell=zeros(SIZE), marked=True)
    settings = {"allow_no_foreground": True, "check_every": 2, "epochs": 4}
    # --allow-no-foreground has accepted this one cause, so that it does not stop the run either.
    for on_collapse in ("warn", "stop"):
        caplog.clear()
        code = run(data, tmp_path / on_collapse, on_collapse=on_collapse, **settings)
        assert code == EXIT_OK
        alarms = [r.message for r in caplog.records if "cause (a), the data" in r.message]
        assert len(alarms) == 1
    assert metrics(tmp_path / "warn")[0]["val_dice"] in ("", "0")


def test_nan_ends_the_run_with_its_own_code_and_keeps_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer.train_step

    def poisoned(self: Trainer, *batch: dict[str, Any]) -> None:
        if self.step == 7:  # 5 steps an epoch: in the second
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        step(self, *batch)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    folder = tmp_path / "run"
    assert run(write_set(tmp_path / "d.parquet"), folder, epochs=3) == EXIT_NON_FINITE
    error = capsys.readouterr().err
    assert "first in batch 8" in error and "stem.0.weight" in error
    assert len(metrics(folder)) == 1
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


def test_ctrl_c_saves_after_the_step_and_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer.train_step

    def interrupted(self: Trainer, *batch: dict[str, Any]) -> None:
        if self.step == 6:
            signal.raise_signal(signal.SIGINT)
        step(self, *batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    folder = tmp_path / "run"
    assert run(write_set(tmp_path / "d.parquet"), folder, epochs=3) == EXIT_INTERRUPTED
    state = torch.load(folder / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 7)
    assert "interrupted at step 7" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_max_steps_ends_in_the_middle_of_an_epoch_and_still_validates(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(write_set(tmp_path / "d.parquet"), folder, epochs=9, max_steps=7) == EXIT_OK
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 7
    assert len(metrics(folder)) == 2
    assert metrics(folder)[1]["val_dice"]


def batch_of(valid: list[bool], *, classes: int = 0, pinned: bool = False) -> dict[str, Tensor]:
    count = len(valid)
    mask = (
        torch.randint(classes, (count, 1, SIZE, SIZE), dtype=torch.uint8)
        if classes
        else (torch.rand(count, 1, SIZE, SIZE) > 0.9).to(torch.uint8)
    )
    batch = {
        "image": torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8),
        "mask": mask,
        "valid": torch.tensor(valid),
    }
    return {name: value.pin_memory() if pinned else value for name, value in batch.items()}


# Settings of the two modes, and the number of classes that have statistics of their own.
MODES = [
    pytest.param({}, 0, id="binary"),
    pytest.param({"data": "d", "mode": "multiclass", "num_classes": 5}, 5, id="multiclass"),
]


def test_a_batch_without_annotation_is_harmless(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, torch.device("cpu"))
    gradients: list[float] = []
    trainer.updates.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: gradients.append(
            sum(p.grad.abs().sum().item() for p in trainer.model.parameters())
        )
    )
    trainer.train_step(batch_of([False, False]))
    trainer.train_step(batch_of([True, False]))
    assert gradients[0] == 0.0 and gradients[1] > 0.0
    rows = [decode(row, trainer.criterion.term_names) for row in trainer.ring.flush()]
    assert (rows[0].loss, rows[0].valid) == (0.0, 0.0)
    assert rows[1].loss > 0.0 and rows[1].valid == SIZE**2


@pytest.mark.gpu
@pytest.mark.parametrize(("settings", "classes"), MODES)
def test_on_cuda_the_loop_does_not_sync_between_two_checks(
    settings: dict[str, Any], classes: int, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, torch.device("cuda", 0), check_every=5, **settings)
    valid = [True, False, True, True]
    batches = [batch_of(valid, classes=classes, pinned=True) for _ in range(4)]
    for batch in batches:  # compiles kernels, allocates
        trainer.train_step(batch)
    trainer.ring.flush()
    torch.cuda.synchronize()
    seen = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(23):
            trainer.train_step(batches[step % 4])
            seen += trainer.ring.ready()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seen += trainer.ring.flush()
    assert len(seen) == 23
    names = trainer.criterion.term_names
    assert all(decode(row, names, classes).valid == 3 * SIZE**2 for row in seen)


@pytest.mark.gpu
@pytest.mark.parametrize(("settings", "classes"), MODES)
def test_on_cuda_statistics_and_monitor_launch_no_kernel_of_their_own(
    settings: dict[str, Any], classes: int, tmp_path: Path
) -> None:
    from torch.profiler import ProfilerActivity, profile

    trainer = make_trainer(tmp_path, torch.device("cuda", 0), check_every=5, **settings)
    batch = batch_of([True, False, True, True], classes=classes, pinned=True)

    def plain_step() -> None:
        moved = to_device(batch, trainer.device)
        logits = trainer.net(moved["image"])
        trainer.criterion(logits, moved["mask"], moved["valid"]).backward()
        trainer.updates.optimizer.step()
        trainer.updates.optimizer.zero_grad(set_to_none=True)

    def watched_step() -> None:
        trainer.train_step(batch)
        for row in trainer.ring.ready():
            trainer.monitor.observe(decode(row, trainer.criterion.term_names, classes), lr=1e-3)

    counts = {}
    for step in (plain_step, watched_step):
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
            for _ in range(10):
                step()
            torch.cuda.synchronize()
        events = [e for e in recorded.events() if e.device_type.name == "CUDA"]
        counts[step] = sum("Mem" not in e.name for e in events)
    # Fewer are fine: without a row to write to, the loss has to make one.
    assert 0 < counts[watched_step] <= counts[plain_step]


def test_patience_ends_a_run_that_gets_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 3.0, 2.0, 3.0, 2.5, 9.0])
    monkeypatch.setattr(outputs, "rank", lambda row, column: (next(scores), 0.0))
    folder = tmp_path / "run"
    data = write_set(tmp_path / "d.parquet")
    assert run(data, folder, epochs=6, patience=3) == EXIT_OK
    assert len(metrics(folder)) == 5  # the third after the best, which is the second
    assert "early stop: no better score for 3 epochs" in log(folder)
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] == 2
