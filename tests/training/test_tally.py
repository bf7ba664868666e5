import math
from dataclasses import replace

import pytest

from fastseg_losses.stats import FIELDS, SegmentationSnapshot
from fastseg_losses.training.tally import Tally


def snapshot(valid: float, **values: float) -> SegmentationSnapshot:
    zeros = dict.fromkeys(FIELDS, 0.0)
    return SegmentationSnapshot(**(zeros | {"valid": valid} | values), terms={})


def test_means_are_weighted_by_valid_pixels() -> None:
    tally = Tally()
    tally.add(snapshot(100, loss=1.0, pred_mean=0.2, target_mean=0.1, pred_positive=0.3))
    tally.add(snapshot(300, loss=2.0, pred_mean=0.6, target_mean=0.3, target_positive=0.4))
    assert tally.loss == pytest.approx(1.75)
    assert tally.pred_mean == pytest.approx(0.5)
    assert tally.target_mean == pytest.approx(0.25)
    assert tally.pred_positive == pytest.approx(0.075)
    assert tally.target_positive == pytest.approx(0.3)


def test_scores_come_from_summed_counts() -> None:
    tally = Tally()
    tally.add(snapshot(100, tp=8, fp=2, fn=0))
    tally.add(snapshot(100, tp=0, fp=0, fn=10))
    assert tally.dice == pytest.approx(16 / 28)
    assert tally.iou == pytest.approx(8 / 20)
    assert tally.precision == pytest.approx(0.8)
    assert tally.recall == pytest.approx(8 / 18)


def test_a_batch_without_valid_pixels_counts_as_a_batch_and_changes_no_mean() -> None:
    tally = Tally()
    tally.add(snapshot(100, loss=1.0, pred_max=0.7))
    tally.add(snapshot(0, loss=0.0, pred_max=5.0))
    assert (tally.batches, tally.valid) == (2, 100)
    assert (tally.loss, tally.pred_max) == (1.0, 0.7)


def test_what_was_not_seen_has_no_number() -> None:
    tally = Tally()
    tally.add(snapshot(0))
    for name in ("loss", "pred_mean", "pred_max", "dice", "iou", "precision", "recall"):
        assert math.isnan(getattr(tally, name)), name


def test_dice_of_empty_targets_and_empty_predictions_is_no_number_rather_than_one() -> None:
    tally = Tally()
    tally.add(snapshot(100))
    assert math.isnan(tally.dice)


def classes(tp: list[float], fp: list[float], fn: list[float]) -> SegmentationSnapshot:
    each = {"class_tp": tuple(tp), "class_fp": tuple(fp), "class_fn": tuple(fn)}
    return snapshot(sum(tp) + sum(fn), **each)  # type: ignore[arg-type]


def test_class_scores_come_from_summed_counts_and_means_from_classes_that_occur() -> None:
    tally = Tally(num_classes=4)
    tally.add(classes([40, 0, 0, 0], [10, 0, 0, 0], [0, 10, 0, 0]))
    tally.add(snapshot(0, class_tp=(0.0,) * 4, class_fp=(0.0,) * 4, class_fn=(0.0,) * 4))  # type: ignore[arg-type]
    tally.add(classes([30, 10, 0, 0], [0, 5, 5, 0], [10, 0, 0, 0]))
    assert tally.valid == 100
    assert tally.class_iou[:3] == pytest.approx([70 / 90, 10 / 25, 0.0])
    assert math.isnan(tally.class_iou[3])  # neither predicted nor there
    # Class 2 is predicted and never there: what it took already counts at class 0.
    assert tally.mean_iou == pytest.approx((70 / 90 + 10 / 25) / 2)
    assert tally.mean_dice == pytest.approx((140 / 160 + 20 / 35) / 2)
    assert tally.class_pred == pytest.approx([0.8, 0.15, 0.05, 0.0])
    assert tally.class_target == pytest.approx([0.8, 0.2, 0.0, 0.0])


def test_classes_that_were_not_seen_have_no_number() -> None:
    tally = Tally(num_classes=2)
    assert all(math.isnan(score) for score in (*tally.class_iou, tally.mean_iou, tally.mean_dice))


def test_what_is_odd_adds_up_also_where_nothing_is_valid() -> None:
    tally = Tally()
    for valid in (100, 0, 50):
        tally.add(snapshot(valid, nonfinite=2.0, bad_targets=3.0))
    assert (tally.nonfinite, tally.bad_targets) == (6.0, 9.0)


def test_joined_tallies_are_one_that_has_seen_all_batches() -> None:
    batches = [
        classes([40, 1, 0], [10, 0, 2], [0, 10, 1]),
        classes([30, 10, 0], [0, 5, 5], [10, 0, 3]),
        snapshot(0, nonfinite=4.0, class_tp=(0.0,) * 3, class_fp=(0.0,) * 3, class_fn=(0.0,) * 3),  # type: ignore[arg-type]
    ]
    for number, batch in enumerate(batches):
        shares = {name: 0.25 * number + 0.125 for name in ("pred_mean", "pred_positive", "loss")}
        others = {"pred_max": 0.5 - 0.25 * number, "target_mean": 0.5, "target_positive": 0.25}
        counts = {"tp": 3.0, "fp": 5.0, "fn": 7.0, "bad_targets": 1.0}
        batches[number] = replace(batch, **shares, **others, **counts)
    whole, parts = Tally(3), [Tally(3), Tally(3)]
    for number, batch in enumerate(batches):
        whole.add(batch)
        parts[number % 2].add(batch)
    assert Tally.joined(parts) == whole
    assert Tally.joined(parts[::-1]) == whole
    assert whole.pred_max == 0.5 and whole.batches == 3 and whole.valid == 105
