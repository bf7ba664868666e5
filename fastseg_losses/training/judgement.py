"""Which predictions count as collapsed: ratios of prediction to target over a window of batches."""

from __future__ import annotations

import math
from collections.abc import Collection
from statistics import fmean

from fastseg_losses.training.tally import Tally

# Nothing predicted: under 1 % of the foreground is found, and the predicted area is under 1 % of
# the true one. Zero exactly would let a single stray pixel in 50 batches hide a collapse.
SILENT_RATIO = 0.01
# Or the mean probability is small in itself and a tenth of what it should be. Both: either alone
# is met by healthy nets (sparse targets; a net that is not confident yet).
FAINT_MEAN = 0.01
FAINT_RATIO = 0.1
# Most of the foreground missed, in most checks and without getting better: what a net does that is
# drawn towards all-zero and now and then jumps back. Half of the checks would be met by one that
# has good and bad stretches.
MISSED_RECALL = 0.1
MISSED_AREA = 0.25
MISSED_CHECKS = 4
MISSED_WITHIN = 6
# Everything predicted, although less than half of it is foreground.
FULL_SHARE = 0.99
FULL_TARGET = 0.5
# The net has found the foreground once it predicts 5 % of it, this far above chance: a precision
# a tenth of the way from the target's share (a random guess) to 1.
FOUND_RECALL = 0.05
FOUND_LIFT = 0.1
# From a quarter of empty masks on, focal loss with alpha 0.25 turns to all-zero if they are only
# undrawn; from a half on, BCE does.
EMPTY_SHARE = 0.25

# Fewer target pixels of a class say nothing about its prediction.
ENOUGH_PIXELS = 1000

# A class below this share of the targets that never came is worth a word, but no collapse: 0.6 % of
# the synthetic set came after 150 batches with the combined loss and after 370 with cross-entropy,
# at a tenth of the learning rate not within 720.
RARE_SHARE = 0.01

# While the precision still rises by this factor within one streak, a net is learning what is empty.
LEARNING_FACTOR = 1.15


def has_found(window: Tally) -> bool:
    """Whether the prediction is related to the target at all, and not a guess."""
    if not window.tp or not window.target_positive:
        return False
    chance = window.target_positive
    return window.recall >= FOUND_RECALL and window.precision >= chance + FOUND_LIFT * (1 - chance)


def is_silent(window: Tally) -> bool:
    """Nothing (or next to nothing) above 0.5 although the targets have foreground."""
    return (
        window.target_positive > 0
        and window.recall < SILENT_RATIO
        and window.pred_positive < SILENT_RATIO * window.target_positive
    )


def is_faint(window: Tally) -> bool:
    """The mean probability is small, and far under the targets' mean."""
    return window.pred_mean < FAINT_MEAN and window.pred_mean < FAINT_RATIO * window.target_mean


def is_missed(window: Tally) -> bool:
    """Little of the foreground is found, and little is predicted at all."""
    area = window.pred_positive / window.target_positive
    return window.recall < MISSED_RECALL and area < MISSED_AREA


def keeps_missing(windows: Collection[Tally]) -> bool:
    """Whether most of the last checks miss most of the foreground, and it does not get better.

    Args:
        windows: the last `MISSED_WITHIN` checks, oldest first.
    """
    if len(windows) < MISSED_WITHIN or sum(map(is_missed, windows)) < MISSED_CHECKS:
        return False
    half = MISSED_WITHIN // 2
    recalls = [window.recall for window in windows]
    before, after = fmean(recalls[:half]), fmean(recalls[half:])
    return after <= LEARNING_FACTOR * before


def is_full(window: Tally) -> bool:
    """Everything above 0.5 although the targets are mostly background."""
    return window.pred_positive > FULL_SHARE and window.target_positive < FULL_TARGET


def swallowing_class(window: Tally) -> int | None:
    """The class that is predicted (almost) everywhere although the targets show others; or None."""
    predicted, actual = window.class_pred, window.class_target
    largest = max(range(window.num_classes), key=predicted.__getitem__)
    others = 1 - actual[largest]
    if not others * window.valid >= ENOUGH_PIXELS:
        return None
    if predicted[largest] > FULL_SHARE and actual[largest] < FULL_TARGET:
        return largest
    found = (sum(window.class_tp) - window.class_tp[largest]) / window.valid
    gone = found < SILENT_RATIO * others and 1 - predicted[largest] < SILENT_RATIO * others
    return largest if gone else None


def is_class_silent(window: Tally, k: int) -> bool:
    """Nothing (or next to nothing) of a class is predicted although the targets show it."""
    actual = window.class_tp[k] + window.class_fn[k]
    predicted = window.class_tp[k] + window.class_fp[k]
    return actual > 0 and predicted < SILENT_RATIO * actual


def is_class_found(window: Tally, k: int) -> bool:
    """Whether the prediction of a class is related to its target, and not a guess."""
    tp, predicted = window.class_tp[k], window.class_tp[k] + window.class_fp[k]
    actual = window.class_tp[k] + window.class_fn[k]
    if not tp:
        return False
    chance = actual / window.valid
    return tp >= FOUND_RECALL * actual and tp / predicted >= chance + FOUND_LIFT * (1 - chance)


def checks_until_alarm(patience: int, share: float, *, was_found: bool) -> int:
    """How many checks in a row a class of this share of the targets may go unpredicted."""
    if was_found:
        return 2 * patience
    return math.ceil(patience / math.sqrt(share))


def looks_undrawn(window: Tally, empty_share: float) -> bool:
    """The net predicts more than is drawn, and little of that is right, as if objects went undrawn.

    If a share u of the rows is undrawn, a net that sees the objects has a precision near 1 - u
    (0.33 to 0.40 measured at u = 0.6) and predicts up to 1 / (1 - u) times the drawn area. Where
    the empty rows are truly empty, a net that has learned is near 1 in both.
    """
    if not window.target_positive > 0 or not window.recall >= 0.25:
        return False
    area = window.pred_positive / window.target_positive
    return area >= 1.25 and window.precision <= 1 - 0.75 * empty_share
