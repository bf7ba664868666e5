import math
from collections.abc import Sequence
from typing import Any

import pytest

from fastseg_losses.stats import FIELDS, SegmentationSnapshot
from fastseg_losses.training.class_monitor import ClassMonitor
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.judgement import ENOUGH_PIXELS
from fastseg_losses.training.tally import Tally

PIXELS = 10_000.0


def snapshot(
    target: Sequence[float],
    predicted: Sequence[float],
    right: Sequence[float] | None = None,
    *,
    pixels: float = PIXELS,
    **others: Any,
) -> SegmentationSnapshot:
    """One batch; shares of the pixels by class: in the target, in the prediction and in both.

    Without `right`, the prediction covers its target as far as it can.
    """
    hits = list(map(min, target, predicted) if right is None else right)
    values: dict[str, Any] = dict.fromkeys(FIELDS, 0.0) | {
        "loss": 0.3,
        "pred_mean": 0.9,
        "target_mean": 1.0,
        "tp": sum(hits) * pixels,
        "valid": pixels,
        "terms": {},
        "class_pred": tuple(predicted),
        "class_target": tuple(target),
        "class_tp": tuple(h * pixels for h in hits),
        "class_fp": tuple((p - h) * pixels for p, h in zip(predicted, hits, strict=True)),
        "class_fn": tuple((t - h) * pixels for t, h in zip(target, hits, strict=True)),
    }
    return SegmentationSnapshot(**(values | others))


# Class 3 is the frequent one: nothing may depend on class 0 being a background.
TARGET = (0.04, 0.05, 0.01, 0.9)
HEALTHY = snapshot(TARGET, (0.05, 0.04, 0.012, 0.898))
SWALLOWED = snapshot(TARGET, (0.0, 0.0, 0.0, 1.0))
WITHOUT_0 = snapshot(TARGET, (0.0, 0.05, 0.01, 0.94))
WITHOUT_2 = snapshot(TARGET, (0.04, 0.05, 0.0, 0.91))
UNANNOTATED = snapshot((0.0,) * 4, (0.0,) * 4, pixels=0.0, loss=0.0, pred_mean=0.0)


def make(**options: int) -> ClassMonitor:
    return ClassMonitor(4, **options)


def feed(monitor: ClassMonitor, batch: SegmentationSnapshot, count: int) -> list[Finding]:
    return [finding for _ in range(count) for finding in monitor.observe(batch, lr=1e-3)]


def causes(findings: list[Finding]) -> list[Cause]:
    return [finding.cause for finding in findings]


def test_a_healthy_run_is_silent() -> None:
    assert feed(make(), HEALTHY, 3000) == []


def test_a_class_that_swallows_the_others_is_reported_after_warm_up_and_patience() -> None:
    monitor = make()
    assert feed(monitor, SWALLOWED, 249) == []
    (finding,) = feed(monitor, SWALLOWED, 1)
    assert finding.cause is Cause.ONE_CLASS
    assert finding.is_collapse and not finding.is_fatal
    for part in (
        "class 3 swallows the others",
        "predicted at 100% of the pixels although the targets show it at 90%",
        "class 1 at 5%",
        "overfit",
        "class 3 1/0.9",
        "90.0% of the pixels right",
        "250 batches",
        "lr 0.001",
    ):
        assert part in finding.message
    # The others are not reported one by one: the same fact explains them, for as long as it holds.
    assert feed(monitor, SWALLOWED, 5000) == []


@pytest.mark.parametrize("winner", [0, 2])
def test_any_class_can_swallow_the_others(winner: int) -> None:
    predicted = [float(k == winner) for k in range(4)]
    (finding,) = feed(make(), snapshot(TARGET, predicted), 250)
    assert finding.cause is Cause.ONE_CLASS
    assert f"class {winner} swallows" in finding.message


def test_almost_everything_is_enough_where_the_class_is_no_majority() -> None:
    batch = snapshot((0.3, 0.3, 0.2, 0.2), (0.992, 0.004, 0.002, 0.002))
    assert causes(feed(make(), batch, 250)) == [Cause.ONE_CLASS]


def test_a_net_that_lost_what_it_had_found_is_reported_without_warm_up() -> None:
    monitor = make()
    assert feed(monitor, HEALTHY, 50) == []
    assert feed(monitor, SWALLOWED, 99) == []
    assert causes(feed(monitor, SWALLOWED, 1)) == [Cause.ONE_CLASS]


def test_a_guess_that_is_right_about_the_frequent_class_does_not_end_the_warm_up() -> None:
    monitor = make()
    guess = snapshot(TARGET, (0.25, 0.25, 0.25, 0.25), (0.01, 0.0125, 0.0025, 0.245))
    assert feed(monitor, guess, 50) == []
    assert feed(monitor, SWALLOWED, 199) == []
    assert causes(feed(monitor, SWALLOWED, 1)) == [Cause.ONE_CLASS]


def test_predicting_one_class_is_right_where_the_targets_show_no_other() -> None:
    monitor = make()
    assert feed(monitor, HEALTHY, 100) == []
    alone = snapshot((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))
    assert feed(monitor, alone, 1000) == []
    # A handful of pixels of other classes proves nothing either.
    few = snapshot((1e-3, 0.0, 0.0, 0.999), (0.0, 0.0, 0.0, 1.0), pixels=1000.0)
    assert feed(monitor, few, 500) == []


def test_a_class_that_is_never_predicted_takes_longer_the_rarer_it_is() -> None:
    # Class 0 with 4 % of the targets: 2 / sqrt(0.04) = 10 checks; class 2 with 1 %: 20.
    for batch, k, checks in ((WITHOUT_0, 0, 10), (WITHOUT_2, 2, 20)):
        monitor = make(check_every=5)
        assert feed(monitor, batch, 5 * checks - 1) == []
        (finding,) = feed(monitor, batch, 1)
        assert finding.cause is Cause.CLASS_MISSING
        assert finding.is_collapse
        assert f"never predicted for {checks} checks or more: class {k} at" in finding.message
        assert "predicted earlier" not in finding.message
        assert feed(monitor, batch, 1000) == []  # once


def test_a_stray_pixel_of_a_class_does_not_hide_that_it_is_missing() -> None:
    stray = snapshot(TARGET, (1e-4, 0.05, 0.01, 0.9399))
    assert causes(feed(make(check_every=5), stray, 50)) == [Cause.CLASS_MISSING]


def test_a_class_that_had_been_found_is_missed_sooner() -> None:
    monitor = make(check_every=5)
    assert feed(monitor, HEALTHY, 5) + feed(monitor, WITHOUT_2, 19) == []
    (finding,) = feed(monitor, WITHOUT_2, 1)
    assert "(predicted earlier: 2)" in finding.message


def test_classes_that_are_late_together_share_one_message() -> None:
    both = snapshot((0.04, 0.04, 0.02, 0.9), (0.0, 0.0, 0.02, 0.98))
    (finding,) = feed(make(check_every=5), both, 200)
    assert "class 0 at 4%" in finding.message and "class 1 at 4%" in finding.message


def test_too_few_pixels_of_a_class_prove_nothing() -> None:
    rare = snapshot((0.5, 0.4, 1e-4, 0.0999), (0.5, 0.4, 0.0, 0.1), pixels=1000.0)
    monitor = make(check_every=5)
    # 200 checks for a share of 1e-4; by then 100 pixels of the class have been seen.
    assert feed(monitor, rare, 1500) == []
    # With 10,000 pixels a batch it is 1000 pixels, and the class counts.
    many = snapshot((0.5, 0.4, 1e-4, 0.0999), (0.5, 0.4, 0.0, 0.1))
    assert causes(feed(make(check_every=5), many, 1010)) == [Cause.RARE_CLASS_MISSING]


def test_a_rare_class_that_never_came_does_not_stop_a_run_but_one_that_was_lost_does() -> None:
    target = (0.04, 0.05, 0.006, 0.904)
    without = snapshot(target, (0.04, 0.05, 0.0, 0.91))
    (finding,) = feed(make(check_every=5), without, 1000)
    assert finding.step == 130  # 2 / sqrt(0.006) = 26 checks
    assert finding.cause is Cause.RARE_CLASS_MISSING and not finding.is_collapse
    assert "no collapse, but not predicted for 26 checks or more: class 2" in finding.message
    monitor = make(check_every=5)
    assert feed(monitor, snapshot(target, target), 5) == []
    assert causes(feed(monitor, without, 100)) == [Cause.CLASS_MISSING]


def test_windows_without_a_class_neither_forgive_nor_accuse() -> None:
    monitor = make(check_every=1, warmup=0)
    without = snapshot((0.0, 0.05, 0.01, 0.94), (0.0, 0.05, 0.01, 0.94))
    seen = []
    for _ in range(40):
        seen += feed(monitor, WITHOUT_0, 1) + feed(monitor, without, 1)
    assert causes(seen) == [Cause.CLASS_MISSING]


def test_a_class_that_is_not_there_does_not_hide_the_ones_behind_it() -> None:
    target = (0.0, 0.06, 0.04, 0.9)
    (finding,) = feed(make(check_every=5), snapshot(target, (0.0, 0.06, 0.0, 0.94)), 200)
    assert finding.cause is Cause.CLASS_MISSING and "class 2 at" in finding.message


def test_as_many_pixels_as_are_enough() -> None:
    rare = snapshot((0.5, 0.4, 1e-3, 0.099), (0.5, 0.4, 0.0, 0.1), pixels=1000.0)
    monitor = make(check_every=1, warmup=0)  # a pixel a check
    assert feed(monitor, rare, ENOUGH_PIXELS - 1) == []
    assert causes(feed(monitor, rare, 1)) == [Cause.RARE_CLASS_MISSING]


def test_after_a_collapse_a_class_has_its_whole_patience() -> None:
    monitor = make(check_every=5)
    assert feed(monitor, HEALTHY, 5) == []
    assert causes(feed(monitor, SWALLOWED, 50)) == [Cause.ONE_CLASS]
    found = feed(monitor, WITHOUT_2, 19)
    assert causes(found) == [Cause.RECOVERED]
    assert causes(feed(monitor, WITHOUT_2, 1)) == [Cause.CLASS_MISSING]  # as without a collapse


def test_to_be_right_about_the_frequent_class_alone_is_no_recovery() -> None:
    monitor = make(check_every=5)
    assert feed(monitor, HEALTHY, 5) == []
    assert causes(feed(monitor, SWALLOWED, 50)) == [Cause.ONE_CLASS]
    wrong = snapshot(TARGET, (0.05, 0.05, 0.05, 0.85), (0.0, 0.0, 0.0, 0.8))
    assert Cause.RECOVERED not in causes(feed(monitor, wrong, 100))


def test_a_class_that_comes_and_goes_is_no_alarm() -> None:
    monitor = make(check_every=5)
    for _ in range(50):
        assert feed(monitor, WITHOUT_0, 5) + feed(monitor, HEALTHY, 5) == []


def test_a_recovery_is_reported_and_then_the_next_collapse() -> None:
    monitor = make(check_every=5)
    assert causes(feed(monitor, WITHOUT_0, 60)) == [Cause.CLASS_MISSING]
    (recovery,) = feed(monitor, HEALTHY, 50)
    assert recovery.cause is Cause.RECOVERED
    assert "class 0 is predicted again" in recovery.message
    assert causes(feed(monitor, SWALLOWED, 50)) == [Cause.ONE_CLASS]
    assert causes(feed(monitor, HEALTHY, 50)) == [Cause.RECOVERED]
    assert causes(feed(monitor, WITHOUT_0, 60)) == [Cause.CLASS_MISSING]


@pytest.mark.parametrize(
    ("batch", "part"),
    [
        (UNANNOTATED, "not one annotated pixel"),
        (snapshot((0, 0, 1, 0), (0, 0, 1, 0)), "show class 2 only"),
    ],
    ids=["none annotated", "one class"],
)
def test_nothing_to_tell_apart_is_a_matter_of_the_data(
    batch: SegmentationSnapshot, part: str
) -> None:
    (finding,) = feed(make(), batch, 1000)
    assert finding.cause is Cause.NO_FOREGROUND
    assert finding.step == 250
    assert part in finding.message and "Fix the data" in finding.message
    assert ("; 0.0% of the pixels right" in finding.message) == (batch is UNANNOTATED)


def test_unannotated_batches_do_not_dilute_the_judgement() -> None:
    monitor = make(check_every=4)
    findings = []
    for _ in range(10):
        findings += feed(monitor, UNANNOTATED, 1) + feed(monitor, SWALLOWED, 1)
    assert causes(findings) == [Cause.ONE_CLASS]


def test_nan_and_bad_targets_are_reported_at_once() -> None:
    (finding,) = feed(make(), snapshot(TARGET, TARGET, nonfinite=7.0, loss=math.nan), 1)
    assert finding.cause is Cause.NON_FINITE and finding.is_fatal
    (finding,) = feed(make(), snapshot(TARGET, TARGET, bad_targets=3.0, loss=math.nan), 1)
    assert finding.cause is Cause.BAD_TARGETS
    assert "3 target pixels are no class id from 0 to 3" in finding.message


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes: expected at least 2, got 1"):
        ClassMonitor(1)
    with pytest.raises(ValueError, match="check_every, patience, warmup"):
        make(patience=0)


def test_a_mean_iou_far_below_its_best_is_a_warning() -> None:
    monitor = make()
    findings = []
    for batch in (HEALTHY, *[SWALLOWED] * 3):
        tally = Tally(4)
        tally.add(batch)
        assert feed(monitor, HEALTHY, 50) == []
        findings += monitor.observe_validation(tally, lr=1e-3)
    (finding,) = findings
    assert finding.cause is Cause.VALIDATION_FELL
    assert "validation mean IoU fell: 3 epochs in a row" in finding.message
    assert "the last: 0.2250, 0.2250, 0.2250" in finding.message
