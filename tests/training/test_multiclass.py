"""Whole trainings in multiclass mode."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training.class_files import CLASSES, ROWS, class_squares, write_class_set
from training.index_files import GARBAGE, png, write_index, zeros
from training.runs import SIZE, log, make_trainer, metrics, run, same, small_net, weights

from fastseg_losses.stats import decode
from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT, EXIT_COLLAPSED, EXIT_OK, EXIT_REFUSED

MULTICLASS = {"mode": "multiclass", "num_classes": CLASSES}
PICTURES = (outputs.report.plot_curves, outputs.report.plot_class_samples)


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny net, and no pictures, which take longer to draw than an epoch to train."""
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_class_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def train(data: Path, folder: Path, **settings: Any) -> int:
    return run(data, folder, **(MULTICLASS | settings))


def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs.report, "plot_curves", PICTURES[0])
    monkeypatch.setattr(outputs.report, "plot_class_samples", PICTURES[1])
    assert train(write_class_set(tmp_path / "d.parquet"), tmp_path / "run") == EXIT_OK
    for name in ("curves.png", "samples.png"):
        Image.open(tmp_path / "run" / name).verify()


def test_a_run_learns_and_says_how_well_each_class_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    data = write_class_set(tmp_path / "d.parquet", undrawn=[0, 8])
    assert train(data, folder, epochs=10, check_every=5) == EXIT_OK
    rows = metrics(folder)
    assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
    scores = [float(row["val_miou"]) for row in rows]
    assert max(scores) > 0.8
    for row in rows:
        each = [float(row[f"val_iou_{k}"]) for k in range(CLASSES)]
        assert row["val_iou"] == row["val_miou"] and row["val_dice"] == row["val_mdice"]
        assert float(row["val_miou"]) == pytest.approx(sum(each) / CLASSES, abs=1e-4)
        assert float(row["target_mean"]) == 1.0
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["epoch"] == 1 + scores.index(max(scores))
    assert (best["config"]["mode"], best["config"]["num_classes"]) == ("multiclass", CLASSES)
    assert best["config"]["ignore_index"] == 255
    assert best["metrics"]["val_miou"] == pytest.approx(max(scores), abs=1e-5)
    assert best["model"]["head.project.weight"].shape[0] == CLASSES
    text = log(folder)
    for part in ("Class 2: ", "val_iou of each class", "best validation mean IoU", "ignored value"):
        assert part in text
    assert "collapse, cause" not in text
    assert not caplog.records or all(r.levelname == "INFO" for r in caplog.records)


@pytest.mark.parametrize("loss", ["ce", "dice", "focal", "tversky", "iou"])
def test_every_loss_trains(loss: str, tmp_path: Path) -> None:
    data = write_class_set(tmp_path / "d.parquet")
    assert train(data, tmp_path / "run", loss=loss) == EXIT_OK
    assert math.isfinite(float(metrics(tmp_path / "run")[0]["train_loss"]))


@pytest.mark.parametrize("keep", [False, True], ids=["not drawn", "drawn and masked"])
def test_what_an_unannotated_mask_holds_does_not_matter(keep: bool, tmp_path: Path) -> None:
    results = []
    for name, cell in (("null", None), ("zero", zeros(SIZE)), ("garbage", GARBAGE)):
        path = tmp_path / f"{name}.parquet"
        data = write_class_set(path, undrawn=range(0, ROWS, 2), cell=cell)
        assert train(data, tmp_path / name, keep_unannotated=keep) == EXIT_OK
        results.append(weights(tmp_path / name))
    assert same(results[0], results[1]) and same(results[0], results[2])


def test_what_stands_below_ignored_pixels_does_not_matter(tmp_path: Path) -> None:
    """An ignored class and the same pixels as 255 are the same training, bit for bit."""
    images, masks = class_squares()
    shared = [True] * ROWS, ["val" if row % 6 == 5 else "train" for row in range(ROWS)]
    results = []
    for name, ignore in (("class", 1), ("border", 255)):
        cells = [png(np.where((ids == 1) | (ids == 255), ignore, ids)) for ids in masks]
        data = write_index(tmp_path / f"{name}.parquet", images, cells, shared[0], split=shared[1])
        assert train(data, tmp_path / name, ignore_index=ignore) == EXIT_OK
        results.append(weights(tmp_path / name))
        assert metrics(tmp_path / name)[0]["val_iou_1"] in ("", "0")
    assert same(*results)


def test_counts_are_those_of_the_whole_validation_set(tmp_path: Path) -> None:
    rows = []
    for batch_size in (1, 4):
        folder = tmp_path / str(batch_size)
        data = write_class_set(tmp_path / "d.parquet")
        # No step changes the weights, so that the epochs differ in nothing but the batches.
        assert train(data, folder, batch_size=batch_size, lr=1e-30, weight_decay=0.0) == EXIT_OK
        rows.append(metrics(folder)[0])
    for k in range(CLASSES):
        assert rows[0][f"val_iou_{k}"] == rows[1][f"val_iou_{k}"]


def test_a_single_class_is_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_class_set(
        tmp_path / "d.parquet", masks=[png(np.ones((SIZE, SIZE), np.uint8))] * 24
    )
    assert train(data, tmp_path / "a") == EXIT_REFUSED
    error = capsys.readouterr().err
    assert "refusing to train" in error and "show class 1 only" in error
    assert not (tmp_path / "a").exists()
    settings = {"allow_no_foreground": True, "check_every": 2, "epochs": 3, "on_collapse": "stop"}
    assert train(data, tmp_path / "b", **settings) == EXIT_OK
    assert "the targets of all batches so far show class 1 only" in log(tmp_path / "b")


def test_ids_out_of_range_are_named_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_class_set(tmp_path / "d.parquet")
    assert train(data, tmp_path / "run", num_classes=2) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "row 0, column 'mask': expected class ids from 0 to 1, or 255, got 0, 1, 2, 255" in error
    assert not (tmp_path / "run").exists()


def test_a_net_with_another_number_of_classes_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "build_model", lambda *_: small_net(None, 7))
    assert train(write_class_set(tmp_path / "d.parquet"), tmp_path / "run") == EXIT_BAD_INPUT
    assert "to return logits (1, 3, 32, 32)" in capsys.readouterr().err


def test_a_net_that_predicts_one_class_everywhere_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(spec: str | None, classes: int, head_stride: int) -> torch.nn.Module:
        net = small_net(spec, classes, head_stride)
        with torch.no_grad():
            assert net.head.project.bias is not None
            net.head.project.bias[1] = 50.0
        return net

    monkeypatch.setattr(launching, "build_model", stuck)
    settings = {"epochs": 30, "check_every": 3, "lr": 1e-6, "on_collapse": "stop"}
    data = write_class_set(tmp_path / "d.parquet")
    assert train(data, tmp_path / "run", **settings) == EXIT_COLLAPSED
    (alarm,) = [r.message for r in caplog.records if "collapse, cause (b)" in r.message]
    assert "class 1 swallows the others" in alarm
    assert weights(tmp_path / "run")


def test_statistics_of_a_step_reach_the_ring_with_those_of_the_classes(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, torch.device("cpu"), data="d", **MULTICLASS)
    mask = torch.randint(CLASSES, (2, 1, SIZE, SIZE), dtype=torch.uint8)
    mask[:, :, 0] = 255
    batch = {
        "image": torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8),
        "mask": mask,
        "valid": torch.tensor([True, False]),
    }
    trainer.train_step(batch)
    trainer.train_step(batch | {"valid": torch.tensor([False, False])})
    first, second = (decode(r, trainer.criterion.term_names, CLASSES) for r in trainer.ring.flush())
    assert first.valid == SIZE * (SIZE - 1)
    counts = [(mask[0] == k).sum().item() for k in range(CLASSES)]
    assert [tp + fn for tp, fn in zip(first.class_tp, first.class_fn, strict=True)] == counts
    assert (second.valid, second.loss) == (0.0, 0.0)
