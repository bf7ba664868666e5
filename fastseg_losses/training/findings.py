"""What the collapse monitor says: causes, and in binary mode the advice, in words."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from fastseg_losses.training.judgement import (
    EMPTY_SHARE,
    FAINT_RATIO,
    MISSED_CHECKS,
    MISSED_RECALL,
    MISSED_WITHIN,
    is_silent,
)
from fastseg_losses.training.score_watch import ScoreWatch
from fastseg_losses.training.tally import Tally


class Cause(enum.Enum):
    """What a finding is about."""

    NO_FOREGROUND = "no foreground in the targets"
    NOT_PREDICTED = "foreground is there but not predicted"
    MOSTLY_MISSED = "most of the foreground is missed"
    UNDRAWN_MASKS = "empty masks look undrawn"
    ALL_FOREGROUND = "everything is predicted as foreground"
    ONE_CLASS = "one class swallows the others"
    CLASS_MISSING = "a class is never predicted"
    RARE_CLASS_MISSING = "a rare class is not predicted yet"
    NON_FINITE = "NaN or Inf"
    BAD_TARGETS = "targets outside [0, 1]"
    VALIDATION_FELL = "the validation score fell far below its best"
    RECOVERED = "recovered"


@dataclass(frozen=True)
class Finding:
    """One message of the monitor.

    Attributes:
        cause: what it is about.
        step: optimizer steps done when it was noticed.
        message: the evidence and the advice, ready for a log.
    """

    cause: Cause
    step: int
    message: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.message}"

    @property
    def is_collapse(self) -> bool:
        """Whether ``--on-collapse stop`` applies.

        A question and a recovery never stop a run, nor does a validation score alone, which falls
        by overfitting too.
        """
        return self.cause not in (
            Cause.RECOVERED,
            Cause.UNDRAWN_MASKS,
            Cause.RARE_CLASS_MISSING,
            Cause.VALIDATION_FELL,
        )

    @property
    def is_fatal(self) -> bool:
        """Whether going on is pointless whatever the user chose: the weights are lost."""
        return self.cause is Cause.NON_FINITE


@dataclass(frozen=True)
class Context:
    """What the texts need beyond a window: the monitor's settings and the census.

    Attributes:
        check_every: batches between two checks.
        patience: bad checks in a row before an alarm.
        empty_rows: annotated training rows whose mask is empty.
        annotated_rows: annotated training rows.
        drawn_empty_share: share of empty masks among the annotated ones that are drawn; None: that
            of the rows.
    """

    check_every: int
    patience: int
    empty_rows: int
    annotated_rows: int
    drawn_empty_share: float | None = None

    @property
    def empty_share(self) -> float:
        """Share of the annotated masks that the net sees whose mask is empty."""
        if self.drawn_empty_share is not None:
            return self.drawn_empty_share
        return self.empty_rows / self.annotated_rows if self.annotated_rows else 0.0


_OPTIMISATION = (
    "Likely optimisation: first try to overfit a batch of rows that have foreground (train.py "
    "--overfit-batches 1; if even that fails, it is the masks or the code), then check the "
    "learning rate and the mask values (debug_masks.py), and only then suspect imbalance and "
    "the loss."
)


def empty_question(context: Context) -> str:
    """The question about empty masks; nothing where they are too few to matter."""
    if context.empty_share < EMPTY_SHARE:
        return ""
    share = f"{context.empty_rows / context.annotated_rows:.0%}"
    if context.drawn_empty_share is not None:
        share += f", and {context.drawn_empty_share:.0%} of those drawn"
    return (
        f"{context.empty_rows} of {context.annotated_rows} annotated training rows "
        f"({share}) have an empty mask: are these masks really annotated as "
        "empty, or did nobody draw them? If undrawn, set has_segmentation to false for them; "
        "no choice of loss repairs that."
    )


def _no_foreground(context: Context, window: Tally) -> str:
    return (
        "collapse, cause (a), the data: not one annotated foreground pixel in any batch so far, so "
        "all-zero is the right answer and a loss of 0 means nothing. Fix the data: run "
        "debug_masks.py, check has_segmentation and the mask values; if the files do have "
        "foreground, check whether resizing to a small --image-size loses it."
    )


def _not_predicted(context: Context, window: Tally) -> str:
    what = (
        "nothing is predicted above 0.5"
        if is_silent(window)
        else f"the mean probability is under {FAINT_RATIO:g} of the targets' mean"
    )
    parts = [
        "collapse, cause (b), foreground is there but not predicted: for "
        f"{context.patience} checks ({context.patience * context.check_every} batches) {what} "
        "although the targets have foreground."
    ]
    if window.pred_mean >= 0.5 * window.target_mean:
        parts.append(
            "pred_mean alone looks healthy here, which is typical of focal loss and of masks that "
            "are partly undrawn."
        )
    return " ".join([*parts, *filter(None, [empty_question(context)]), _OPTIMISATION])


def mostly_missed(context: Context, window: Tally) -> str:
    """For a net that predicts a little of the foreground now and then."""
    parts = [
        "collapse, cause (b), most of the foreground is missed: in at least "
        f"{MISSED_CHECKS} of the last {MISSED_WITHIN} checks ({context.check_every} batches each) "
        f"the net found less than {MISSED_RECALL:.0%} of it, and it does not get better.",
        empty_question(context),
        _OPTIMISATION,
    ]
    return " ".join(filter(None, parts))


def validation_fell(name: str, scores: ScoreWatch, question: str) -> str:
    """For a run whose validation score is far below its best, whatever the training loss says."""
    last = ", ".join(f"{score:.4f}" for score in scores.streak[-3:])
    parts = [
        f"the validation {name} fell: {len(scores.streak)} epochs in a row under half of the best, "
        f"{scores.best:.4f} in epoch {scores.best_epoch} (best.pt keeps it); the last: {last}.",
        question,
        "Usual causes: training masks left empty because nobody drew them (debug_masks.py counts "
        "them), a learning rate that is too high, a loss that lets rare pixels go; if the training "
        "loss still falls, overfitting.",
    ]
    return " ".join(filter(None, parts))


def undrawn(context: Context, window: Tally) -> str:
    """The question for a run that survives although its empty masks look undrawn."""
    area = window.pred_positive / window.target_positive
    return (
        f"a question about the data: {empty_question(context)} The net predicts {area:.1f} times "
        f"the drawn area and only {window.precision:.0%} of that is drawn, as it would be if the "
        "empty rows held the same objects."
    )


def _all_foreground(context: Context, window: Tally) -> str:
    return (
        f"collapse, the other way: {window.pred_positive:.1%} of all pixels are predicted as "
        "foreground. Check whether foreground and background are swapped in the masks, the "
        "learning rate, and the weight of a loss that favours recall (Tversky beta, pos_weight)."
    )


TEXTS: dict[Cause, Callable[[Context, Tally], str]] = {
    Cause.NO_FOREGROUND: _no_foreground,
    Cause.NOT_PREDICTED: _not_predicted,
    Cause.ALL_FOREGROUND: _all_foreground,
}
