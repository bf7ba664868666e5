import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg_losses.training import report
from fastseg_losses.training.labels import Labels
from fastseg_losses.training.outputs import rank
from fastseg_losses.training.tally import Tally


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
        "lr,images_per_s,data_share,peak_gb"
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
    assert rank(row(1, **better), "val_dice") > rank(row(1, **worse), "val_dice")


def test_multiclass_metrics_add_columns_behind_the_existing_ones(tmp_path: Path) -> None:
    names = report.columns(Labels(2, 255))
    assert names[: len(report.COLUMNS)] == report.COLUMNS == report.columns(None)
    assert ",".join(names[len(report.COLUMNS) :]) == (
        "val_miou,val_mdice,val_iou_0,val_iou_1,val_dice_0,val_dice_1"
    )
    values = report.metrics(Tally(2), Tally(2)) | {"epoch": 1, "lr": 0.1, "images_per_s": 3.0}
    values |= {"data_share": 0.25, "peak_gb": math.nan}
    assert set(values) == set(names)
    report.write_metrics(tmp_path / "metrics.csv", [values], names)
    header, line = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == ",".join(names)
    assert line == "1" + "," * 9 + "0.1,3,0.25" + "," * 7  # what was not seen has no number


def test_multiclass_scores_are_those_of_the_validation_rows() -> None:
    train, val = Tally(2), Tally(2)
    val.class_tp, val.class_fp, val.class_fn = [6.0, 2.0], [2.0, 0.0], [0.0, 2.0]
    values = report.metrics(train, val)
    assert values["val_iou"] == values["val_miou"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert values["val_dice"] == values["val_mdice"] == pytest.approx((12 / 14 + 4 / 6) / 2)
    assert (values["val_iou_0"], values["val_iou_1"]) == (6 / 8, 2 / 4)


def test_masks_without_foreground_have_no_score() -> None:
    val = Tally()
    val.valid, val.fp = 100.0, 3.0  # a Dice of 0 would put this epoch above one with fp = 0
    assert math.isnan(report.metrics(Tally(), val)["val_dice"])
    assert math.isnan(report.metrics(Tally(), val)["val_iou"])
    val.fn = 1.0
    assert report.metrics(Tally(), val)["val_dice"] == 0
    assert report.metrics(Tally(), val)["val_iou"] == 0


def test_a_log_shows_the_scores_of_all_classes_or_of_the_lowest() -> None:
    assert report.class_scores([0.5, math.nan, 0.25]) == "each class: 0: 0.500, 2: 0.250"
    many = report.class_scores([1 - k / 100 for k in range(100)])
    assert many.startswith("the 20 lowest classes: 99: 0.010, 98: 0.020")
    assert many.count(",") == 19


@pytest.mark.parametrize("count", [3, 40])
def test_multiclass_pictures(count: int, tmp_path: Path) -> None:
    labels = Labels(count, 255)
    values = dict.fromkeys(report.columns(labels), 0.5)
    report.plot_curves(tmp_path / "curves.png", [values | {"epoch": 1}], labels)
    ids = torch.randint(count, (2, 1, 16, 16), dtype=torch.uint8)
    ids[:, :, :4] = 255
    predicted = torch.randint(count, (2, 1, 16, 16))
    path = tmp_path / "samples.png"
    report.plot_class_samples(path, torch.randn(2, 3, 16, 16), ids, predicted, labels, title="t")
    for name in ("curves.png", "samples.png"):
        Image.open(tmp_path / name).verify()


def test_pictures_of_class_ids_colour_classes_and_grey_out_what_is_ignored() -> None:
    labels = Labels(3, 255)
    colours = report.class_colours(3)
    target, prediction = np.array([[0, 2, 255]]), np.array([[0, 1, 1]])
    pictures = report.class_pictures(target, prediction, labels)
    grey = report.IGNORED
    np.testing.assert_allclose(pictures["target"][0], [colours[0], colours[2], grey])
    np.testing.assert_allclose(pictures["prediction"][0], [colours[0], colours[1], grey])
    error = [report.TRUE_POSITIVE, report.FALSE_POSITIVE, grey]
    np.testing.assert_allclose(pictures["error"][0], error)


def test_colours_of_classes_differ_from_each_other_and_from_grey() -> None:
    colours = report.class_colours(20)
    assert len({tuple(colour) for colour in colours.round(2).tolist()}) == 20
    assert (colours.max(1) - colours.min(1)).min() > 0.3


def test_a_line_of_the_log_says_what_is_known() -> None:
    values = row(2) | {"data_share": 0.25, "peak_gb": math.nan}
    line = report.epoch_line(values, 5, 40, math.nan)
    assert line.startswith("epoch 2/5, step 40: train_loss ")
    assert line.endswith("images/s, waited for data 25% of the time")
    line = report.epoch_line(values | {"peak_gb": 1.5}, 5, 40, 90.0)
    assert line.endswith(", peak memory 1.50 GiB, 1 min 30 s left")
