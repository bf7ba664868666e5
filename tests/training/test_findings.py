"""The numbers in what the monitors say; the words around them are nobody's contract."""

from typing import Any

import pytest
from training.test_class_monitor import snapshot as class_snapshot
from training.test_monitor import SILENT, snapshot

from fastseg_losses.training import class_findings, findings
from fastseg_losses.training.class_monitor import ClassMonitor
from fastseg_losses.training.findings import Cause, Context
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.score_watch import ScoreWatch, Turn
from fastseg_losses.training.tally import Tally


def tally(batch: Any, num_classes: int = 0) -> Tally:
    whole = Tally(num_classes)
    whole.add(batch)
    return whole


def context(**others: Any) -> Context:
    return Context(
        **{"check_every": 50, "patience": 3, "empty_rows": 3, "annotated_rows": 8, **others}
    )


def test_not_predicted_counts_checks_and_batches() -> None:
    text = findings.TEXTS[Cause.NOT_PREDICTED](context(), tally(SILENT))
    assert "for 3 checks (150 batches) nothing is predicted above 0.5" in text
    faint = tally(snapshot(0.004, 0.3, predicted=0.02, found=0.01))
    text = findings.TEXTS[Cause.NOT_PREDICTED](context(), faint)
    assert "the mean probability is under 0.1 of the targets' mean" in text


@pytest.mark.parametrize(("pred", "said"), [(0.05, True), (0.049, False)])
def test_a_healthy_mean_is_pointed_out_from_half_the_targets_on(pred, said) -> None:
    text = findings.TEXTS[Cause.NOT_PREDICTED](context(), tally(snapshot(pred, 0.1, found=0.0)))
    assert ("pred_mean alone looks healthy" in text) is said


def test_the_question_about_empty_masks() -> None:
    assert findings.empty_question(context(empty_rows=1)) == ""
    assert findings.empty_question(context(empty_rows=2)).startswith(
        "2 of 8 annotated training rows (25%) have an empty mask"
    )
    assert "(25%, and 60% of those drawn)" in findings.empty_question(
        context(empty_rows=2, drawn_empty_share=0.6)
    )
    # without rows there is no share, and no division by them
    assert findings.empty_question(context(empty_rows=0, annotated_rows=0)) == ""
    assert context(annotated_rows=0).empty_share == 0.0


def test_missed_undrawn_and_full_say_how_much() -> None:
    text = findings.mostly_missed(context(), tally(SILENT))
    assert "at least 4 of the last 6 checks (50 batches each) the net found less than 10%" in text
    text = findings.mostly_missed(context(empty_rows=0), tally(SILENT))
    assert "does not get better. Likely" in text  # one space where there is no question
    text = findings.undrawn(context(), tally(snapshot(predicted=0.25, found=0.1)))
    assert "predicts 2.5 times the drawn area and only 40% of that is drawn" in text
    text = findings.TEXTS[Cause.ALL_FOREGROUND](context(), tally(snapshot(predicted=0.9994)))
    assert "99.9% of all pixels are predicted" in text


def test_a_fallen_score_is_told_with_its_best_and_its_last_three() -> None:
    scores = ScoreWatch(1)
    for step, score in enumerate((0.2, 0.9, 0.11, 0.12, 0.13, 0.14)):
        scores.add(score, step)
    text = findings.validation_fell("Dice", scores, "Really?")
    assert text.startswith(
        "the validation Dice fell: 4 epochs in a row under half of the best, 0.9000 in epoch 2 "
        "(best.pt keeps it); the last: 0.1200, 0.1300, 0.1400. Really? Usual causes: "
    )
    assert "0.1400. Usual causes: " in findings.validation_fell("Dice", scores, "")


# ---- classes


SHARES = (0.08, 0.02, 0.0, 0.1, 0.8)
SWALLOWED = class_snapshot(SHARES, (0.0, 0.0, 0.0, 0.0, 1.0), pixels=1e5)


def test_a_swallowing_class_names_the_others_by_their_size() -> None:
    text = class_findings.swallowed(tally(SWALLOWED, 5), 4, checks=2, batches=100)
    others = ", ".join(
        f"class {k} at {share}% of the target pixels (predicted 0%)"
        for k, share in ((3, 10), (0, 8), (1, 2))
    )
    assert f"targets show it at 80%, and {others}. Likely" in text
    assert "class 4 swallows the others: for 2 checks (100 batches) it is predicted at 100%" in text


def test_the_class_monitor_counts_checks_and_batches() -> None:
    monitor = ClassMonitor(5, check_every=10, patience=3, warmup=0)
    found = [f for _ in range(30) for f in monitor.observe(SWALLOWED, lr=1e-3)]
    assert [f.step for f in found] == [30]
    assert "for 3 checks (30 batches)" in found[0].message
    # another class takes over: its checks are counted from one
    monitor = ClassMonitor(2, check_every=1, patience=2, warmup=0)
    first = class_snapshot((0.5, 0.5), (1.0, 0.0), pixels=1e5)
    second = class_snapshot((0.4, 0.6), (0.0, 1.0), pixels=1e5)
    assert monitor.observe(first, lr=1e-3) == []
    assert monitor.observe(second, lr=1e-3) == []
    assert [f.cause for f in monitor.observe(second, lr=1e-3)] == [Cause.ONE_CLASS]


def test_long_lists_are_counted_from_the_sixth_on() -> None:
    window = tally(class_snapshot((0.1,) * 10, (0.1,) * 10), 10)
    listed = [f"class {k} at 10% of the target pixels (predicted 10%)" for k in range(5)]
    text = class_findings.not_yet(window, range(7), 4)
    assert f"for 4 checks or more: {', '.join(listed)} and 2 more. " in text
    text = class_findings.not_yet(window, range(5), 4)
    assert f"{', '.join(listed)}. " in text


def test_lists_of_classes_are_separated_by_commas() -> None:
    window = tally(class_snapshot((0.1,) * 10, (0.1,) * 10), 10)
    text = class_findings.unpredicted(window, [1, 2], [1, 2], 4)
    assert "never predicted for 4 checks or more (predicted earlier: 1, 2): " in text
    assert "or more: " in class_findings.unpredicted(window, [1, 2], [], 4)
    assert class_findings.recovered([1, 2]) == (
        "predictions recovered: class 1, 2 is predicted again."
    )


# ---- when they say it


def causes(monitor: CollapseMonitor, batches: list[Any]) -> list[list[Cause]]:
    return [[f.cause for f in monitor.observe(batch, lr=1e-3)] for batch in batches]


def test_one_good_check_between_bad_ones_is_no_recovery() -> None:
    monitor = CollapseMonitor(check_every=1, patience=2, warmup=0)
    told = causes(monitor, [SILENT, SILENT, *[snapshot()] * 3])
    assert told == [[], [Cause.NOT_PREDICTED], [], [], [Cause.RECOVERED]]


def test_a_recovery_says_so() -> None:
    monitor = CollapseMonitor(check_every=1, patience=2, warmup=0)
    said = [f for b in [SILENT] * 2 + [snapshot()] * 3 for f in monitor.observe(b, lr=1e-3)]
    assert said[-1].message.startswith(
        "predictions recovered: the foreground is predicted again. Evidence"
    )


UNDRAWN = snapshot(predicted=0.2, found=0.09)  # twice the area, a precision of 0.45


@pytest.mark.parametrize(("empty_rows", "asked_at"), [(24, None), (25, 4), (60, 4)])
def test_undrawn_masks_are_asked_about_after_twice_the_patience(empty_rows, asked_at) -> None:
    monitor = CollapseMonitor(
        check_every=1, patience=2, warmup=0, empty_rows=empty_rows, annotated_rows=100
    )
    told = causes(monitor, [UNDRAWN] * 6)
    expected = [[Cause.UNDRAWN_MASKS] if i + 1 == asked_at else [] for i in range(6)]
    assert told == expected


@pytest.mark.parametrize(
    ("scores", "at"),
    [
        ([0.8, 0.4, 0.4, 0.4], None),  # exactly half of the best is not low
        ([0.1, 0.04, 0.04, 0.04], 3),  # a best of exactly 0.1 is a score
        ([0.099, 0.04, 0.04, 0.04], None),
    ],
)
def test_scores_at_the_bounds(scores, at) -> None:
    watch = ScoreWatch(150)  # three epochs of 50 span exactly that
    turns = [watch.add(score, 50 * (i + 1)) for i, score in enumerate(scores)]
    assert turns == [Turn.FELL if i == at else None for i in range(4)]


def test_a_score_recovers_at_exactly_its_share_and_the_first_best_stays() -> None:
    watch = ScoreWatch(1)
    turns = [watch.add(score, 50 * i) for i, score in enumerate((0.5, 0.5, 0.1, 0.1, 0.1, 0.4))]
    assert turns[-2:] == [Turn.FELL, Turn.RECOVERED]
    assert watch.best_epoch == 1
