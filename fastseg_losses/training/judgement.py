"""Which predictions count as collapsed: ratios of prediction to target over a window of batches."""

from __future__ import annotations

from fastseg_losses.training.tally import Tally

# Nothing predicted: under 1 % of the foreground is found, and the predicted area is under 1 % of
# the true one. Zero exactly would let a single stray pixel in 50 batches hide a collapse.
SILENT_RATIO = 0.01
# Or the mean probability is small in itself and a tenth of what it should be. Both: either alone
# is met by healthy nets (sparse targets; a net that is not confident yet).
FAINT_MEAN = 0.01
FAINT_RATIO = 0.1
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


def is_full(window: Tally) -> bool:
    """Everything above 0.5 although the targets are mostly background."""
    return window.pred_positive > FULL_SHARE and window.target_positive < FULL_TARGET


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
