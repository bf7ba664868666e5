"""Notice when a net's predictions collapse, say why that is believed, and tell the causes apart.

The monitor reads decoded statistics rows (`SegmentationSnapshot`) and nothing else: no tensor, no
device. Every ``check_every`` batches it judges the batches since the last check, by the ratio of
prediction to target. A ``pred_mean`` of 0.002 is right where the targets' mean is 0.002, and a
``pred_mean`` of 0.1 can belong to a net that never once exceeds 0.5.
"""

from __future__ import annotations

import math

from fastseg_losses.stats import SegmentationSnapshot
from fastseg_losses.training.findings import TEXTS, Cause, Context, Finding, undrawn
from fastseg_losses.training.judgement import (
    EMPTY_SHARE,
    LEARNING_FACTOR,
    has_found,
    is_faint,
    is_full,
    is_silent,
    looks_undrawn,
)
from fastseg_losses.training.tally import Tally

_PATIENT = tuple(TEXTS)


class CollapseMonitor:
    """Judges the statistics of a training run every ``check_every`` batches.

    Collapse needs ``patience`` bad checks in a row. Before the net has found any foreground, the
    first ``warmup`` checks are not judged at all: with the defaults and 50 batches a check, the
    first possible alarm comes after batch 250; a net that had found the foreground and lost it is
    reported after 100 batches. NaN, Inf and bad targets are reported at once. A state is reported
    once, and again only after a recovery, which is reported too.

    Args:
        check_every: batches between two checks.
        patience: bad checks in a row before an alarm.
        warmup: checks that are not judged at the start.
        empty_rows: annotated training rows whose mask is empty, from the census.
        annotated_rows: annotated training rows, from the census.
    """

    def __init__(
        self,
        *,
        check_every: int = 50,
        patience: int = 2,
        warmup: int = 3,
        empty_rows: int = 0,
        annotated_rows: int = 0,
    ) -> None:
        if min(check_every, patience) < 1 or warmup < 0:
            raise ValueError(
                "check_every, patience, warmup: expected at least 1, 1 and 0, "
                f"got {check_every!r}, {patience!r} and {warmup!r}"
            )
        self.context = Context(check_every, patience, empty_rows, annotated_rows)
        self.warmup = warmup
        self._window = Tally()
        self._total = Tally()
        self._checks = 0
        self._found = False
        self._streak_precision = 0.0
        self._streak: dict[Cause, int] = {}
        self._reported: set[Cause] = set()

    def observe(self, snapshot: SegmentationSnapshot, *, lr: float) -> list[Finding]:
        """Take in the next batch's statistics, in order.

        Args:
            snapshot: the decoded row.
            lr: the learning rate, for the message.

        Returns:
            What there is to say; most often nothing.
        """
        self._window.add(snapshot)
        self._total.add(snapshot)
        finding = self._at_once(snapshot, lr)
        if finding is not None:
            return [finding]
        if self._window.batches < self.context.check_every:
            return []
        window, self._window = self._window, Tally()
        self._checks += 1
        return self._judge(window, lr)

    def _at_once(self, snapshot: SegmentationSnapshot, lr: float) -> Finding | None:
        """What one batch alone proves."""
        if snapshot.bad_targets:
            text = (
                f"{snapshot.bad_targets:.0f} target pixels lie outside [0, 1] in batch "
                f"{self._total.batches}: fix the masks (values 0/255 have to become 0/1)."
            )
            return self._report_once(Cause.BAD_TARGETS, text, snapshot, lr)
        if snapshot.nonfinite:
            text = (
                f"the net put out NaN or Inf: {snapshot.nonfinite:.0f} logits, first in batch "
                f"{self._total.batches}. Lower the learning rate; with float16, check for overflow."
            )
            return self._report_once(Cause.NON_FINITE, text, snapshot, lr)
        if not math.isfinite(snapshot.loss):
            text = (
                f"the loss is {snapshot.loss} although every logit is finite, first in batch "
                f"{self._total.batches}: look at the loss's parameters and at the targets."
            )
            return self._report_once(Cause.NON_FINITE, text, snapshot, lr)
        return None

    def _judge(self, window: Tally, lr: float) -> list[Finding]:
        self._found = self._found or has_found(window)
        bad = self._bad_causes(window)
        if bad is None:
            return []
        for cause in (*_PATIENT, Cause.UNDRAWN_MASKS):
            self._streak[cause] = self._streak.get(cause, 0) + 1 if cause in bad else 0
        findings = []
        for cause in _PATIENT:
            if self._streak[cause] >= self.context.patience:
                text = TEXTS[cause](self.context, window)
                findings.append(self._report_once(cause, text, window, lr))
        if self._keeps_looking_undrawn(window):
            text = undrawn(self.context, window)
            findings.append(self._report_once(Cause.UNDRAWN_MASKS, text, window, lr))
        collapsed = self._reported & set(_PATIENT)
        # Not merely "no longer bad": a net that hovers around 0.5 would be reported as recovered
        # and collapsed in turns.
        if collapsed and not bad and has_found(window):
            self._reported -= collapsed
            text = "predictions recovered: the foreground is predicted again."
            findings.append(self._finding(Cause.RECOVERED, text, window, lr))
        return [finding for finding in findings if finding is not None]

    def _keeps_looking_undrawn(self, window: Tally) -> bool:
        """Whether it is time to ask; early on a healthy net predicts too much as well.

        So it takes twice the patience, and a precision that has stopped rising: with truly empty
        rows it went from 0.42 to 0.63 in six checks, with undrawn ones it stays near 1 - u.
        """
        streak = self._streak[Cause.UNDRAWN_MASKS]
        if streak == 1:
            self._streak_precision = window.precision
        if streak < 2 * self.context.patience:
            return False
        if window.precision > LEARNING_FACTOR * self._streak_precision:
            self._streak[Cause.UNDRAWN_MASKS] = 1
            self._streak_precision = window.precision
            return False
        return True

    def _bad_causes(self, window: Tally) -> set[Cause] | None:
        """What this check alone would say; patience comes after. None: it says nothing."""
        if not self._found and self._checks <= self.warmup:
            return set()
        if not self._total.valid or self._total.target_mean == 0:
            return {Cause.NO_FOREGROUND}
        if is_full(window):
            return {Cause.ALL_FOREGROUND}
        if is_silent(window) or is_faint(window):
            return {Cause.NOT_PREDICTED}
        if not window.target_positive > 0:
            # By chance no foreground in this window: neither bad nor a recovery.
            return None
        empty = self.context.empty_share
        if empty >= EMPTY_SHARE and looks_undrawn(window, empty):
            return {Cause.UNDRAWN_MASKS}
        return set()

    def _report_once(
        self, cause: Cause, text: str, seen: Tally | SegmentationSnapshot, lr: float
    ) -> Finding | None:
        if cause in self._reported:
            return None
        self._reported.add(cause)
        return self._finding(cause, text, seen, lr)

    def _finding(
        self, cause: Cause, text: str, seen: Tally | SegmentationSnapshot, lr: float
    ) -> Finding:
        total = self._total
        evidence = (
            f"Evidence: pred_mean {seen.pred_mean:.3g}, target_mean {seen.target_mean:.3g}, "
            f"pred_positive {seen.pred_positive:.3g}, target_positive {seen.target_positive:.3g}, "
            f"pred_max {seen.pred_max:.3g}, loss {seen.loss:.4g}; {total.batches} batches and "
            f"{total.valid:,.0f} annotated pixels seen, lr {lr:g}."
        )
        return Finding(cause, total.batches, f"{text} {evidence}")
