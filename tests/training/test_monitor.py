import math
from typing import Any

import pytest

from fastseg_losses.stats import SegmentationSnapshot
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.tally import Tally

PIXELS = 10_000.0


def snapshot(
    pred: float = 0.1,
    target: float = 0.1,
    *,
    predicted: float = 0.1,
    drawn: float | None = None,
    found: float = 0.09,
    **others: Any,
) -> SegmentationSnapshot:
    """One batch; `predicted`, `drawn` and `found` are shares: p > 0.5, t > 0.5 and both."""
    drawn = target if drawn is None else drawn
    values: dict[str, Any] = {
        "loss": 0.3,
        "pred_mean": pred,
        "target_mean": target,
        "pred_max": 0.9,
        "pred_positive": predicted,
        "target_positive": drawn,
        "tp": found * PIXELS,
        "fp": (predicted - found) * PIXELS,
        "fn": (drawn - found) * PIXELS,
        "valid": PIXELS,
        "nonfinite": 0.0,
        "bad_targets": 0.0,
        "terms": {},
    }
    return SegmentationSnapshot(**(values | others))


HEALTHY = snapshot()
SILENT = snapshot(0.03, 0.08, predicted=0.0, found=0.0, pred_max=0.31)
FULL = snapshot(0.98, 0.1, predicted=0.999, found=0.1)
BLANK = snapshot(0.001, 0.0, predicted=0.0, found=0.0)
UNANNOTATED = snapshot(
    0.0, 0.0, predicted=0.0, found=0.0, valid=0.0, tp=0.0, fp=0.0, fn=0.0, pred_max=0.0
)


def feed(monitor: CollapseMonitor, batch: SegmentationSnapshot, count: int) -> list[Finding]:
    return [finding for _ in range(count) for finding in monitor.observe(batch, lr=1e-3)]


def causes(findings: list[Finding]) -> list[Cause]:
    return [finding.cause for finding in findings]


def test_a_net_that_never_predicts_is_reported_after_warm_up_and_patience() -> None:
    monitor = CollapseMonitor()
    assert feed(monitor, SILENT, 249) == []
    (finding,) = feed(monitor, SILENT, 1)
    assert finding.cause is Cause.NOT_PREDICTED
    assert finding.step == 250
    assert finding.is_collapse and not finding.is_fatal


def test_the_message_gives_the_evidence() -> None:
    (finding,) = feed(CollapseMonitor(), SILENT, 250)
    for part in (
        "pred_mean 0.03",
        "target_mean 0.08",
        "pred_positive 0",
        "pred_max 0.31",
        "250 batches",
        "2,500,000 annotated pixels",
        "lr 0.001",
        "overfit",
    ):
        assert part in finding.message
    assert "empty mask" not in finding.message


def test_a_net_that_lost_what_it_had_found_is_reported_without_warm_up() -> None:
    monitor = CollapseMonitor()
    assert feed(monitor, HEALTHY, 50) == []
    assert feed(monitor, SILENT, 99) == []
    assert causes(feed(monitor, SILENT, 1)) == [Cause.NOT_PREDICTED]


def test_a_guess_before_the_collapse_does_not_end_the_warm_up() -> None:
    monitor = CollapseMonitor()
    # A fresh net: half of everything is above 0.5, a precision of exactly the target's share.
    assert feed(monitor, snapshot(0.5, 0.1, predicted=0.5, found=0.05), 50) == []
    assert feed(monitor, SILENT, 199) == []
    assert causes(feed(monitor, SILENT, 1)) == [Cause.NOT_PREDICTED]


def test_one_stray_pixel_does_not_hide_a_collapse() -> None:
    stray = snapshot(0.03, 0.08, predicted=1e-4, found=1e-4)
    assert causes(feed(CollapseMonitor(), stray, 250)) == [Cause.NOT_PREDICTED]


def test_a_healthy_pred_mean_with_nothing_above_one_half_is_a_collapse() -> None:
    focal = snapshot(0.15, 0.08, predicted=0.0, found=0.0, pred_max=0.44)
    (finding,) = feed(CollapseMonitor(), focal, 250)
    assert finding.cause is Cause.NOT_PREDICTED
    assert "pred_mean alone looks healthy" in finding.message


def test_a_small_pred_mean_is_right_where_the_targets_are_as_small() -> None:
    sparse = snapshot(0.002, 0.002, predicted=0.0018, found=0.0016)
    assert feed(CollapseMonitor(), sparse, 2000) == []


def test_sparse_foreground_in_some_windows_only_is_no_alarm() -> None:
    monitor = CollapseMonitor()
    sparse = snapshot(0.002, 0.002, predicted=0.0018, found=0.0016)
    assert feed(monitor, sparse, 100) == []
    for _ in range(5):
        assert feed(monitor, BLANK, 150) + feed(monitor, sparse, 50) == []


def test_windows_without_foreground_neither_forgive_nor_accuse() -> None:
    monitor = CollapseMonitor(check_every=1, warmup=0, patience=2)
    assert feed(monitor, SILENT, 1) == []
    assert feed(monitor, BLANK, 5) == []
    assert causes(feed(monitor, SILENT, 1)) == [Cause.NOT_PREDICTED]


def test_a_faint_prediction_is_a_collapse_even_with_some_pixels_above_one_half() -> None:
    faint = snapshot(0.008, 0.2, predicted=0.006, found=0.006)
    (finding,) = feed(CollapseMonitor(), faint, 250)
    assert finding.cause is Cause.NOT_PREDICTED
    assert "under 0.1 of the targets' mean" in finding.message


@pytest.mark.parametrize(
    ("pred", "target"),
    [(0.009, 0.05), (0.02, 0.5)],
    ids=["small but a fifth of the target", "a twentieth of the target but not small"],
)
def test_faint_takes_both_a_small_mean_and_a_small_ratio(pred: float, target: float) -> None:
    batch = snapshot(pred, target, predicted=pred, found=0.9 * pred)
    assert Cause.NOT_PREDICTED not in causes(feed(CollapseMonitor(), batch, 1000))


def test_everything_predicted_is_reported() -> None:
    (finding,) = feed(CollapseMonitor(), FULL, 250)
    assert finding.cause is Cause.ALL_FOREGROUND
    assert "99.9%" in finding.message


def test_everything_predicted_is_right_where_almost_everything_is_foreground() -> None:
    full = snapshot(0.97, 0.95, predicted=0.995, found=0.95)
    assert feed(CollapseMonitor(), full, 1000) == []


@pytest.mark.parametrize("batch", [BLANK, UNANNOTATED], ids=["all empty", "none annotated"])
def test_no_annotated_foreground_at_all_is_a_matter_of_the_data(
    batch: SegmentationSnapshot,
) -> None:
    (finding,) = feed(CollapseMonitor(), batch, 1000)
    assert finding.cause is Cause.NO_FOREGROUND
    assert "Fix the data" in finding.message
    assert finding.step == 250


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"nonfinite": 7.0, "loss": math.nan, "pred_mean": math.nan}, "7 logits"),
        ({"loss": math.inf}, "every logit is finite"),
    ],
    ids=["logits", "loss only"],
)
def test_nan_is_reported_at_once_and_ends_the_run(values: dict[str, float], part: str) -> None:
    monitor = CollapseMonitor()
    feed(monitor, HEALTHY, 12)
    (finding,) = feed(monitor, snapshot(**values), 1)
    assert finding.cause is Cause.NON_FINITE
    assert finding.is_fatal
    assert part in finding.message and "first in batch 13" in finding.message


def test_bad_targets_are_reported_at_once_and_once() -> None:
    (finding,) = feed(CollapseMonitor(), snapshot(bad_targets=3.0), 10)
    assert finding.cause is Cause.BAD_TARGETS
    assert finding.step == 1
    assert "3 target pixels" in finding.message


def test_many_empty_masks_make_a_collapse_a_question_about_the_masks() -> None:
    monitor = CollapseMonitor(empty_rows=60, annotated_rows=100)
    (finding,) = feed(monitor, SILENT, 250)
    assert finding.cause is Cause.NOT_PREDICTED
    assert "60 of 100 annotated training rows (60%) have an empty mask" in finding.message
    assert "has_segmentation" in finding.message


def test_where_foreground_is_oversampled_what_is_drawn_counts() -> None:
    monitor = CollapseMonitor(empty_rows=60, annotated_rows=100, drawn_empty_share=0.3)
    (finding,) = feed(monitor, SILENT, 250)
    share = "60 of 100 annotated training rows (60%, and 30% of those drawn) have an empty mask"
    assert share in finding.message
    survives = snapshot(0.1, 0.048, predicted=0.077, found=0.028)
    few = CollapseMonitor(empty_rows=60, annotated_rows=100, drawn_empty_share=0.2)
    assert feed(few, survives, 1000) == []


def test_a_run_that_survives_undrawn_masks_is_asked_about_and_never_stopped() -> None:
    # The default loss at 60 % undrawn rows: measured precision 0.37, 1.6 times the drawn area.
    survives = snapshot(0.1, 0.048, predicted=0.077, found=0.028)
    monitor = CollapseMonitor(empty_rows=262, annotated_rows=438)
    (finding,) = feed(monitor, survives, 1000)
    assert finding.cause is Cause.UNDRAWN_MASKS
    assert "262 of 438" in finding.message and "1.6 times" in finding.message
    assert not finding.is_collapse


def test_the_same_predictions_are_no_question_where_no_mask_is_empty() -> None:
    survives = snapshot(0.1, 0.048, predicted=0.077, found=0.028)
    assert feed(CollapseMonitor(annotated_rows=438), survives, 1000) == []


def test_a_net_that_is_still_learning_which_rows_are_empty_is_not_asked_about() -> None:
    monitor = CollapseMonitor(empty_rows=45, annotated_rows=128)
    # Measured with truly empty rows and a small learning rate: everything found, ever fewer wrong.
    findings = []
    for precision in (0.42, 0.46, 0.48, 0.52, 0.55, 0.59, 0.63, 0.69, 0.76, 0.8):
        batch = snapshot(0.3, 0.0017, predicted=0.0017 / precision, found=0.0017)
        findings += feed(monitor, batch, 50)
    assert findings == []


def test_truly_empty_rows_are_no_question_once_learned() -> None:
    monitor = CollapseMonitor(empty_rows=950, annotated_rows=1344)
    good = snapshot(0.011, 0.01, predicted=0.011, found=0.008)
    assert feed(monitor, good, 1000) == []


def test_alternating_checks_are_no_alarm() -> None:
    monitor = CollapseMonitor(check_every=5)
    for _ in range(20):
        assert feed(monitor, SILENT, 5) + feed(monitor, HEALTHY, 5) == []


def test_a_collapse_is_reported_once_then_its_recovery_then_the_next_one() -> None:
    monitor = CollapseMonitor(check_every=10)
    assert causes(feed(monitor, SILENT, 500)) == [Cause.NOT_PREDICTED]
    (recovery,) = feed(monitor, HEALTHY, 100)
    assert recovery.cause is Cause.RECOVERED
    assert not recovery.is_collapse
    assert causes(feed(monitor, SILENT, 100)) == [Cause.NOT_PREDICTED]


def test_hovering_around_one_half_is_not_a_recovery() -> None:
    # BCE on partly undrawn masks: 2 % of the foreground is above 0.5 in one window, none in others.
    hovering = snapshot(0.07, 0.046, predicted=0.0012, found=0.001)
    monitor = CollapseMonitor(check_every=10)
    assert causes(feed(monitor, SILENT, 100)) == [Cause.NOT_PREDICTED]
    assert feed(monitor, hovering, 100) + feed(monitor, SILENT, 100) == []


def test_unannotated_batches_do_not_dilute_the_judgement() -> None:
    monitor = CollapseMonitor(check_every=2)
    findings = []
    for _ in range(5):
        findings += feed(monitor, UNANNOTATED, 1) + feed(monitor, SILENT, 1)
    assert causes(findings) == [Cause.NOT_PREDICTED]
    assert "target_mean 0.08," in findings[0].message


@pytest.mark.parametrize("values", [{"check_every": 0}, {"patience": 0}, {"warmup": -1}])
def test_settings_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="check_every, patience, warmup"):
        CollapseMonitor(**values)


def windows(recalls: list[float], *, precision: float = 0.5) -> list[Finding]:
    """The findings of a run whose checks find these shares of the foreground."""
    monitor = CollapseMonitor(check_every=10, empty_rows=55, annotated_rows=96)
    findings = []
    for recall in recalls:
        found = 0.08 * recall
        batch = snapshot(0.05, 0.08, predicted=found / precision, found=found)
        findings += feed(monitor, batch, 10)
    return findings


def test_a_net_that_misses_most_without_two_silent_checks_in_a_row_is_reported() -> None:
    # BCE with 55 of 96 training masks emptied, as measured; each blank check is followed by one
    # with a little more than nothing.
    (finding,) = windows([0.66, 0.12, 0.0, 0.02, 0.0, 0.012, 0.0, 0.013, 0.0, 0.032, 0.0, 0.02])
    assert finding.cause is Cause.MOSTLY_MISSED
    assert finding.is_collapse
    assert finding.step == 60
    for part in ("4 of the last 6 checks", "less than 10%", "55 of 96", "learning rate"):
        assert part in finding.message


def test_missing_in_half_of_the_checks_is_no_alarm() -> None:
    assert windows([0.6, 0.02, 0.5, 0.03, 0.55, 0.02, 0.6, 0.01, 0.6, 0.02], precision=0.9) == []


@pytest.mark.parametrize(
    "recalls",
    [
        [0.0, 0.0, 0.0, 0.02, 0.0, 0.03, 0.05, 0.08, 0.15, 0.3, 0.5, 0.6],
        [0.012 * 1.2**k for k in range(20)],
    ],
    ids=["slow start", "hard but learning"],
)
def test_a_net_that_gets_better_is_not_reported(recalls: list[float]) -> None:
    assert windows(recalls, precision=0.9) == []


def test_the_end_of_missing_is_reported_once_it_lasts() -> None:
    swings = [0.66, 0.12, 0.0, 0.02, 0.0, 0.012, 0.0]
    findings = windows([*swings, 0.6, 0.0, 0.6, 0.6, 0.02, 0.6, 0.6, 0.7, 0.7], precision=0.9)
    assert causes(findings) == [Cause.MOSTLY_MISSED, Cause.RECOVERED]
    assert findings[-1].step == 150


def validation(dice: float) -> Tally:
    tally = Tally()
    found = 0.1 * dice
    tally.add(snapshot(predicted=0.1, found=found))
    return tally


def test_a_validation_score_far_below_its_best_is_a_warning_of_its_own() -> None:
    monitor = CollapseMonitor(empty_rows=55, annotated_rows=96)
    findings = []
    for dice in (0.86, 0.0, 0.2, 0.05, 0.0):
        assert feed(monitor, HEALTHY, 50) == []
        findings += monitor.observe_validation(validation(dice), lr=3e-3)
    (finding,) = findings
    assert finding.cause is Cause.VALIDATION_FELL
    assert finding.step == 200
    assert not finding.is_collapse
    for part in (
        "validation Dice fell: 3 epochs in a row",
        "0.8600 in epoch 1",
        "the last: 0.0000, 0.2000, 0.0500",
        "55 of 96",
        "learning rate",
        "lr 0.003",
    ):
        assert part in finding.message
    (recovery,) = monitor.observe_validation(validation(0.9), lr=3e-3)
    assert recovery.cause is Cause.RECOVERED
    assert "validation Dice recovered: 0.9000" in recovery.message


def test_a_finding_reads_as_text() -> None:
    (finding,) = feed(CollapseMonitor(), SILENT, 250)
    assert str(finding) == f"step 250: {finding.message}"
