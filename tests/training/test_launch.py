import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from training.index_files import png, write_index, zeros
from training.runs import (
    ROWS,
    SIZE,
    log,
    metrics,
    run,
    same,
    small_net,
    squares,
    weights,
    write_set,
)

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT, EXIT_OK, EXIT_REFUSED


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny net, and no pictures, which take longer to draw than an epoch to train."""
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


@pytest.mark.parametrize("marked", [False, True], ids=["none annotated", "all empty"])
def test_nothing_to_learn_from_is_refused_before_anything_is_written(
    marked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(ROWS), cell=zeros(SIZE), marked=marked)
    folder = tmp_path / "run"
    assert run(data, folder) == EXIT_REFUSED
    assert not folder.exists()
    shown = capsys.readouterr()
    assert "refusing to train: Nothing to learn from" in shown.err
    assert "Samples with segmentation" in shown.out


def test_a_folder_that_holds_something_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    assert run(write_set(tmp_path / "d.parquet"), tmp_path / "run") == EXIT_BAD_INPUT
    assert "--output-dir: expected a new or empty folder" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("row", "column"), [(4, "mask"), (4, "image")], ids=["broken mask", "broken image"]
)
def test_unreadable_rows_are_named_before_the_first_step(
    row: int, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = squares(8)
    (masks if column == "mask" else images)[row] = b"garbage"
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 8)
    assert run(data, tmp_path / "run") == EXIT_BAD_INPUT
    shown = capsys.readouterr()
    (error,) = shown.err.splitlines()
    assert f"row {row}, column '{column}'" in error and "d.parquet" in error
    assert f"row {row}, column" not in shown.out, "said twice"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_only_decoding_shows_is_one_line(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = squares(8)
    images = [image[: len(image) // 2] for image in images]  # headers intact
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 8)
    assert run(data, tmp_path / "run", num_workers=workers) == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"{data}: row ") and "column 'image'" in error
    # Nothing is left that would refuse the same folder once the data is repaired.
    assert not (tmp_path / "run").exists()


def test_a_set_without_validation_rows_trains_and_reports_no_dice(tmp_path: Path) -> None:
    images, masks = squares(6)
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 6)
    images, masks = squares(2)
    val = write_index(tmp_path / "v.parquet", images, [None, None], [False, False])
    folder = tmp_path / "run"
    assert run(data, folder, val=str(val)) == EXIT_OK
    assert metrics(folder)[0]["val_dice"] == ""
    assert (folder / "best.pt").is_file()
    assert not (folder / "samples.png").exists()


def test_validation_masks_without_foreground_leave_the_loss_to_decide(tmp_path: Path) -> None:
    images, masks = squares(6)
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 6)
    val = write_index(tmp_path / "v.parquet", images[:2], [zeros(SIZE)] * 2, [True] * 2)
    folder = tmp_path / "run"
    assert run(data, folder, val=str(val), epochs=3) == EXIT_OK
    rows = metrics(folder)
    assert [row["val_dice"] for row in rows] == [""] * 3
    losses = [float(row["val_loss"]) for row in rows]
    end = log(folder).splitlines()[-1]
    epoch = 1 + losses.index(min(losses))
    assert f"best validation loss {min(losses):.4f} (epoch {epoch}), last {losses[-1]:.4f}" in end
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] == epoch


def test_pictures_that_would_slow_the_training_down_are_drawn_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []

    def curves(path: Path, rows: list[dict[str, float]], labels: object) -> None:
        drawn.append((path.name, len(rows)))

    def samples(path: Path, *tensors: object, title: str) -> None:
        drawn.append((path.name, int(title.split(",")[0].removeprefix("epoch "))))

    monkeypatch.setattr(outputs.report, "plot_curves", curves)
    monkeypatch.setattr(outputs.report, "plot_samples", samples)
    monkeypatch.setattr(outputs.Sparing, "is_due", property(lambda self: not drawn))
    assert run(write_set(tmp_path / "d.parquet"), tmp_path / "run", epochs=4) == EXIT_OK
    assert drawn == [(name, epoch) for epoch in (1, 4) for name in ("curves.png", "samples.png")]


def deep(images: list[bytes], bits: int) -> list[bytes]:
    """The same pictures as 16-bit PNGs that use so many bits."""
    pictures = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
    return [png((p * ((2**bits - 1) / p.max())).astype(np.uint16)) for p in pictures]


def test_the_bits_of_16_bit_images_are_found_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = squares(8)
    data = write_index(tmp_path / "d.parquet", deep(images, 12), masks, [True] * 8)
    assert run(data, tmp_path / "a") == EXIT_OK
    assert "16-bit images, largest value 4095: read as 12 bits" in caplog.text
    assert TrainConfig.load(tmp_path / "a" / "config.json").image_bits == 12
    caplog.clear()
    assert run(data, tmp_path / "b", image_bits=12) == EXIT_OK
    assert "read as" not in caplog.text
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert run(data, tmp_path / "c", image_bits=16) == EXIT_OK
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))
    capsys.readouterr()
    assert run(data, tmp_path / "d", image_bits=10) == EXIT_BAD_INPUT
    assert "--image-bits: expected at least 12 for 16-bit images" in capsys.readouterr().err


def test_rows_that_a_second_file_leaves_out_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_set(tmp_path / "d.parquet")
    assert run(data, tmp_path / "run", val=str(data)) == EXIT_OK
    assert f"{data}: 4 of 24 rows are left out of training" in caplog.text
    assert f"{data}: 20 of 24 rows are left out of validation" in caplog.text
    caplog.clear()
    assert run(data, tmp_path / "other") == EXIT_OK
    assert "left out" not in caplog.text


def test_augmentation_can_be_chosen(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d.parquet")
    for name in ("none", "flips", "full"):
        assert run(data, tmp_path / name, augment=name) == EXIT_OK
        assert "outside [0, 1]" not in log(tmp_path / name)
    results = [weights(tmp_path / name) for name in ("none", "flips", "full")]
    assert not any(same(a, b) for a, b in itertools.combinations(results, 2))
    run(data, tmp_path / "again", augment="full")
    assert same(weights(tmp_path / "again"), results[-1])


def test_oversampled_foreground_is_counted_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 20 training rows: 4 with foreground, 16 drawn as empty.
    undrawn = [row for row in range(ROWS) if row % 6 != 0]
    data = write_set(tmp_path / "d.parquet", undrawn=undrawn, cell=zeros(SIZE), marked=True)
    contexts = []
    original = launching.CollapseMonitor

    def spy(**options: Any) -> Any:
        contexts.append(original(**options).context)
        return original(**options)

    monkeypatch.setattr(launching, "CollapseMonitor", spy)
    assert run(data, tmp_path / "a", oversample_foreground=0.5) == EXIT_OK
    text = "rows with foreground: 20.0% of the 20 training rows, 50.0% of an epoch's draws"
    assert f"{text}\n" in log(tmp_path / "a")
    assert run(data, tmp_path / "b", oversample_foreground=0.1) == EXIT_OK
    assert "20.0% of an epoch's draws (at least 10.0% without oversampling)" in log(tmp_path / "b")
    assert [context.empty_share for context in contexts] == [0.5, 0.8]
    assert [context.empty_rows for context in contexts] == [16, 16]
    # As many draws as rows, more of them with foreground: the targets' mean rises accordingly.
    a, b = (float(metrics(tmp_path / name)[0]["target_mean"]) for name in ("a", "b"))
    assert a == pytest.approx(2.5 * b, rel=1e-5)


def test_foreground_to_oversample_has_to_be_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(ROWS), cell=zeros(SIZE), marked=True)
    options = {"allow_no_foreground": True, "oversample_foreground": 0.5}
    assert run(data, tmp_path / "run", **options) == EXIT_BAD_INPUT
    assert "--oversample-foreground: expected a training row with foreground" in caplog.text


def test_the_last_line_names_the_last_score_and_the_alarms(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(0, ROWS, 2))
    run(data, tmp_path / "good", epochs=2)
    scores = [float(row["val_dice"]) for row in metrics(tmp_path / "good")]
    end = log(tmp_path / "good").splitlines()[-1]
    epoch = 1 + scores.index(max(scores))
    assert f"best validation Dice {max(scores):.4f} (epoch {epoch}), last {scores[-1]:.4f}" in end
    assert "warning" not in end
    data = write_set(tmp_path / "e.parquet", undrawn=range(ROWS), cell=zeros(SIZE), marked=True)
    run(data, tmp_path / "bad", allow_no_foreground=True, check_every=2, epochs=4)
    end = log(tmp_path / "bad").splitlines()[-1]
    assert "1 warning of the monitor, the last at step 10: no foreground in the targets" in end


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(write_set(tmp_path / "d.parquet"), tmp_path / "run", tensorboard=True, epochs=2)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    written = [scalar.value for scalar in events.Scalars("val_dice")]
    assert written == pytest.approx([float(r["val_dice"]) for r in metrics(tmp_path / "run")], 1e-4)


class NoTensor(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": images[:, :1]}


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("a mistake in the user's net")


def test_a_net_with_the_wrong_output_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "build_model", lambda *_: NoTensor())
    assert run(write_set(tmp_path / "d.parquet"), tmp_path / "run") == EXIT_BAD_INPUT
    assert "--model: expected NoTensor to return a tensor, got dict" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class NothingToTrain(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Fails, "Fails failed on images (1, 3, 32, 32): ValueError: a mistake in the user's net"),
        (NothingToTrain, "expected NothingToTrain to have parameters to train, got none"),
    ],
)
def test_a_net_that_cannot_be_trained_is_one_line(
    net: type[nn.Module],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launching, "build_model", lambda *_: net())
    assert run(write_set(tmp_path / "d.parquet"), tmp_path / "run") == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"--model: {message}")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_checks_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(4))
    before = sorted(tmp_path.rglob("*"))
    assert run(data, tmp_path / "run", dry_run=True) == EXIT_OK
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr()
    assert "Samples with segmentation" in shown.out + shown.err
    assert "dry run: options, data and model are in order" in shown.out + shown.err
    empty = write_set(tmp_path / "e.parquet", undrawn=range(ROWS), cell=zeros(SIZE), marked=True)
    assert run(empty, tmp_path / "run", dry_run=True) == EXIT_REFUSED
    with pytest.raises(ValueError, match="dry_run: expected --data beside --dry-run"):
        TrainConfig(dry_run=True)
