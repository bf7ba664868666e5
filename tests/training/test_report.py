import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg_losses.training import report
from fastseg_losses.training.outputs import rank


def row(epoch: int, **values: float) -> dict[str, float]:
    return {name: 0.5 for name in report.COLUMNS} | {"epoch": epoch} | values


def test_metrics_hold_the_columns_in_order_and_leave_missing_numbers_empty(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.csv"
    report.write_metrics(path, [row(1, val_dice=math.nan, lr=1e-4), row(2, val_dice=0.75)])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == (
        "epoch,train_loss,val_loss,pred_mean,target_mean,pred_positive,pred_max,val_dice,val_iou,"
        "lr,images_per_s"
    )
    assert [(r["epoch"], r["val_dice"]) for r in rows] == [("1", ""), ("2", "0.75")]
    assert float(rows[0]["lr"]) == 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("val", [0.5, math.nan], ids=["validated", "no validation"])
def test_curves_are_a_picture_that_grows_with_the_epochs(val: float, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    values = {name: val for name in ("val_loss", "val_dice", "val_iou")}
    report.plot_curves(path, [row(1, **values)])
    first = np.asarray(Image.open(path).convert("L"))
    report.plot_curves(path, [row(1, **values), row(2, **(values | {"train_loss": 0.1}))])
    second = np.asarray(Image.open(path).convert("L"))
    assert first.shape == second.shape
    assert (first != second).any()
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_samples_are_a_picture_with_a_row_for_each(tmp_path: Path) -> None:
    heights = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        images = torch.randn(count, 3, 16, 16)
        masks = torch.zeros(count, 1, 16, 16, dtype=torch.uint8)
        report.plot_samples(path, images, masks, torch.rand(count, 1, 16, 16), title="epoch 1")
        heights.append(Image.open(path).size[1])
    assert heights[1] > 2 * heights[0]


def test_the_error_picture_tells_the_three_kinds_apart() -> None:
    target = np.array([[True, True, False, False]])
    predicted = np.array([[True, False, True, False]])
    picture = report._error_picture(target, predicted)
    expected = [report.TRUE_POSITIVE, report.FALSE_NEGATIVE, report.FALSE_POSITIVE, (0, 0, 0)]
    np.testing.assert_allclose(picture[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"val_dice": 0.6, "val_loss": 0.9}, {"val_dice": 0.5, "val_loss": 0.1}),
        ({"val_dice": 0.6, "val_loss": 0.1}, {"val_dice": 0.6, "val_loss": 0.9}),
        ({"val_dice": math.nan, "val_loss": 0.1}, {"val_dice": math.nan, "val_loss": 0.9}),
        (
            {"val_dice": math.nan, "val_loss": math.nan, "train_loss": 0.1},
            {"val_dice": math.nan, "val_loss": math.nan, "train_loss": 0.9},
        ),
    ],
    ids=["dice", "equal dice", "no dice", "no validation"],
)
def test_best_means_dice_then_loss(better: dict[str, float], worse: dict[str, float]) -> None:
    assert rank(row(1, **better)) > rank(row(1, **worse))
