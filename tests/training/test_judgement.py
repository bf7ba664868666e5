"""Each judgement at its bounds: on one side, on the other, and exactly there."""

from types import SimpleNamespace
from typing import Any

import pytest

from fastseg_losses.training import judgement
from fastseg_losses.training.judgement import (
    FAINT_RATIO,
    FOUND_LIFT,
    FOUND_RECALL,
    SILENT_RATIO,
    checks_until_alarm,
    has_found,
    is_class_found,
    is_class_silent,
    is_faint,
    is_full,
    is_missed,
    is_silent,
    keeps_missing,
    looks_undrawn,
    swallowing_class,
)


def window(**values: Any) -> Any:
    """What a judgement reads of a `Tally`, set to the digit."""
    return SimpleNamespace(**values)


def classes(target: list[float], predicted: list[float], right: list[float], pixels: float) -> Any:
    """A window of classes, from shares of the pixels."""
    return window(
        num_classes=len(target),
        valid=pixels,
        class_target=target,
        class_pred=predicted,
        class_tp=[r * pixels for r in right],
        class_fp=[(p - r) * pixels for p, r in zip(predicted, right, strict=True)],
        class_fn=[(t - r) * pixels for t, r in zip(target, right, strict=True)],
    )


HALF = 0.5 + FOUND_LIFT * 0.5  # the precision that is far enough above a chance of one half


@pytest.mark.parametrize(
    ("tp", "target", "recall", "precision", "expected"),
    [
        (1, 0.5, FOUND_RECALL, HALF, True),
        (1, 0.5, FOUND_RECALL - 1e-9, HALF, False),
        (1, 0.5, FOUND_RECALL, HALF - 1e-9, False),
        (0, 0.5, 1.0, 1.0, False),
        (1, 0.0, 1.0, 1.0, False),
    ],
)
def test_found_is_above_chance(tp, target, recall, precision, expected) -> None:
    seen = window(tp=tp, target_positive=target, recall=recall, precision=precision)
    assert has_found(seen) is expected


@pytest.mark.parametrize(
    ("recall", "predicted", "expected"),
    [
        (0.0, 0.0, True),
        (SILENT_RATIO - 1e-9, SILENT_RATIO * 0.5 - 1e-9, True),
        (SILENT_RATIO, 0.0, False),
        (0.0, SILENT_RATIO * 0.5, False),
        (0.5, 0.0, False),
        (0.0, 0.015, False),  # three times the bound, and under SILENT_RATIO / 0.5
    ],
)
def test_silent_is_little_found_and_little_predicted(recall, predicted, expected) -> None:
    seen = window(target_positive=0.5, recall=recall, pred_positive=predicted)
    assert is_silent(seen) is expected
    assert not is_silent(window(target_positive=0.0, recall=0.0, pred_positive=0.0))


def test_faint_is_small_in_itself_and_beside_the_targets() -> None:
    assert is_faint(window(pred_mean=0.009, target_mean=0.5))
    assert not is_faint(window(pred_mean=0.01, target_mean=0.5))
    assert not is_faint(window(pred_mean=FAINT_RATIO * 0.05, target_mean=0.05))
    assert not is_faint(window(pred_mean=0.009, target_mean=0.05))


def test_full_is_almost_all_of_what_is_mostly_background() -> None:
    assert is_full(window(pred_positive=0.991, target_positive=0.499))
    assert not is_full(window(pred_positive=0.99, target_positive=0.1))
    assert not is_full(window(pred_positive=1.0, target_positive=0.5))


def missed(recall: float, area: float = 0.1) -> Any:
    return window(recall=recall, pred_positive=0.25 * area, target_positive=0.25)


def test_missed_is_little_recall_and_little_area() -> None:
    assert is_missed(missed(0.099, 0.249))
    assert not is_missed(missed(0.1))
    assert not is_missed(missed(0.0, 0.25))
    assert not is_missed(missed(0.5, 0.1))
    # half the area is no small area, however small the product of both shares
    assert not is_missed(window(recall=0.0, pred_positive=0.05, target_positive=0.1))


@pytest.mark.parametrize(
    ("recalls", "expected"),
    [
        ([0.0] * 6, True),
        ([0.0] * 5, False),  # too few to tell
        ([0.5, 0.5, 0.0, 0.0, 0.0, 0.0], True),
        ([0.5, 0.5, 0.5, 0.0, 0.0, 0.0], False),  # three of six are a bad stretch
        ([0.04, 0.04, 0.01, 0.05, 0.05, 0.05], False),  # 0.03 became 0.05: it learns
        ([0.04, 0.04, 0.04, 0.045, 0.045, 0.045], True),  # a rise of 12 % is none
    ],
)
def test_missing_goes_on_in_most_checks_and_without_getting_better(recalls, expected) -> None:
    assert keeps_missing([missed(recall) for recall in recalls]) is expected


@pytest.mark.parametrize(
    ("target", "recall", "area", "precision", "expected"),
    [
        (0.1, 0.25, 1.25, 0.625, True),
        (0.1, 0.25, 1.25, 0.626, False),
        (0.1, 0.25, 1.24, 0.4, False),
        (0.1, 0.249, 1.5, 0.4, False),
        (0.1, 0.5, 1.5, 0.9, False),
        (0.0, 0.5, 1.5, 0.4, False),
    ],
)
def test_undrawn_is_more_area_than_drawn_and_little_of_it_right(
    target, recall, area, precision, expected
) -> None:
    predicted = 0.125 if area == 1.25 else area * target
    seen = window(
        target_positive=target, recall=recall, pred_positive=predicted, precision=precision
    )
    assert looks_undrawn(seen, 0.5) is expected


def test_a_class_swallows_what_the_targets_show_of_others() -> None:
    everywhere = classes([0.25, 0.75], [0.996, 0.004], [0.25, 0.004], 1e5)
    assert swallowing_class(everywhere) == 0  # it is predicted at over 99 %, and drawn at 25 %
    at_the_bound = classes([0.25, 0.75], [0.99, 0.01], [0.25, 0.01], 1e5)
    assert swallowing_class(at_the_bound) is None
    half = classes([0.5, 0.5], [0.994, 0.006], [0.5, 0.006], 1e5)
    assert swallowing_class(half) is None
    # class 0 is most of the target: judged by what is found and predicted of the others
    frequent = classes([0.75, 0.25], [0.998, 0.002], [0.75, 0.002], 1e5)
    assert swallowing_class(frequent) == 0
    assert swallowing_class(classes([0.75, 0.25], [0.99, 0.01], [0.75, 0.001], 1e5)) is None
    assert swallowing_class(classes([0.75, 0.25], [0.995, 0.005], [0.75, 0.005], 1e5)) is None
    # of 1000 pixels of other classes something can be said, of 999 not
    assert swallowing_class(classes([0.75, 0.25], [1.0, 0.0], [0.75, 0.0], 4000.0)) == 0
    assert swallowing_class(classes([0.75, 0.25], [1.0, 0.0], [0.75, 0.0], 3996.0)) is None


def test_a_class_is_silent_under_one_percent_of_itself() -> None:
    def seen(tp: float, fp: float, fn: float) -> Any:
        return window(class_tp=[tp], class_fp=[fp], class_fn=[fn])

    assert is_class_silent(seen(0.0, 9.0, 1000.0), 0)
    assert is_class_silent(seen(5.0, 4.0, 995.0), 0)
    assert not is_class_silent(seen(5.0, 5.0, 995.0), 0)
    assert is_class_silent(
        seen(0.0, 0.0, 1.0), 0
    )  # one pixel; how many are enough, the monitor says
    assert not is_class_silent(seen(0.0, 0.0, 0.0), 0)
    assert not is_class_silent(seen(0.0, 10.0, 1000.0), 0)


def test_a_class_is_found_above_its_own_chance() -> None:
    def seen(tp: float, fp: float, fn: float) -> Any:
        return window(class_tp=[tp], class_fp=[fp], class_fn=[fn], valid=2000.0)

    assert is_class_found(seen(55.0, 45.0, 945.0), 0)  # precision 0.55 at a chance of 0.5
    assert not is_class_found(seen(54.0, 46.0, 946.0), 0)
    assert is_class_found(seen(50.0, 0.0, 950.0), 0)  # recall 0.05
    assert not is_class_found(seen(49.0, 0.0, 951.0), 0)
    assert not is_class_found(seen(0.0, 0.0, 0.0), 0)


def test_patience_with_rare_classes() -> None:
    assert checks_until_alarm(2, 0.25, was_found=False) == 4
    assert checks_until_alarm(2, 0.05, was_found=False) == 9  # 8.94 checks
    assert checks_until_alarm(3, 0.05, was_found=True) == 6


def test_the_bounds_are_those_that_the_documents_name() -> None:
    names = ("SILENT_RATIO", "FAINT_MEAN", "FAINT_RATIO", "MISSED_RECALL", "MISSED_AREA")
    assert [getattr(judgement, n) for n in names] == [0.01, 0.01, 0.1, 0.1, 0.25]
    assert (judgement.MISSED_CHECKS, judgement.MISSED_WITHIN) == (4, 6)
    assert (judgement.FULL_SHARE, judgement.FULL_TARGET, judgement.EMPTY_SHARE) == (0.99, 0.5, 0.25)
