"""Notice when a net's predictions collapse, say why that is believed, and tell the causes apart.

This is the monitor of binary mode; `class_monitor` is that of multiclass. It judges by the ratio
of prediction to target: a ``pred_mean`` of 0.002 is right where the targets' mean is 0.002, and a
``pred_mean`` of 0.1 can belong to a net that never once exceeds 0.5.
"""

from __future__ import annotations

from collections import deque

from fastseg_losses.training.findings import (
    TEXTS,
    Cause,
    Context,
    Finding,
    empty_question,
    mostly_missed,
    undrawn,
)
from fastseg_losses.training.judgement import (
    EMPTY_SHARE,
    LEARNING_FACTOR,
    MISSED_WITHIN,
    has_found,
    is_faint,
    is_full,
    is_missed,
    is_silent,
    keeps_missing,
    looks_undrawn,
)
from fastseg_losses.training.tally import Tally
from fastseg_losses.training.watch import Monitor

_PATIENT = tuple(TEXTS)
_COLLAPSES = {*_PATIENT, Cause.MOSTLY_MISSED}


class CollapseMonitor(Monitor):
    """Judges the statistics of a training run every ``check_every`` batches.

    Collapse needs ``patience`` bad checks in a row. Before the net has found any foreground, the
    first ``warmup`` checks are not judged at all: with the defaults and 50 batches a check, the
    first possible alarm comes after batch 250; a net that had found the foreground and lost it is
    reported after 100 batches. A net that misses most of the foreground most of the time, in 4 of
    6 checks and not in a row, is reported too, unless it gets better. NaN, Inf and bad targets are
    reported at once. A state is reported once, and again only after a recovery, which is reported
    too.

    Args:
        check_every: batches between two checks.
        patience: bad checks in a row before an alarm.
        warmup: checks that are not judged at the start.
        empty_rows: annotated training rows whose mask is empty, from the census.
        annotated_rows: annotated training rows, from the census.
        drawn_empty_share: share of empty masks among the annotated ones that are drawn, where
            foreground is oversampled; None: that of the rows.
    """

    def __init__(
        self,
        *,
        check_every: int = 50,
        patience: int = 2,
        warmup: int = 3,
        empty_rows: int = 0,
        annotated_rows: int = 0,
        drawn_empty_share: float | None = None,
    ) -> None:
        super().__init__(check_every=check_every, patience=patience, warmup=warmup)
        self.context = Context(check_every, patience, empty_rows, annotated_rows, drawn_empty_share)
        self._streak_precision = 0.0
        self._streak: dict[Cause, int] = {}
        self._recent: deque[Tally] = deque(maxlen=MISSED_WITHIN)

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
        if window.target_positive > 0 and not self._is_warming_up():
            self._recent.append(window)
        collapsed = self._reported & _COLLAPSES
        if not collapsed and keeps_missing(self._recent):
            text = mostly_missed(self.context, window)
            findings.append(self._report_once(Cause.MOSTLY_MISSED, text, window, lr))
        # Not merely "no longer bad": a net that hovers around 0.5, or swings, would be reported as
        # recovered and collapsed in turns.
        swings = any(map(is_missed, list(self._recent)[-(MISSED_WITHIN // 2) :]))
        if collapsed and not bad and not swings and has_found(window):
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

    def _is_warming_up(self) -> bool:
        return not self._found and self._checks <= self.warmup

    def _empty_question(self) -> str:
        return empty_question(self.context)

    def _bad_causes(self, window: Tally) -> set[Cause] | None:
        """What this check alone would say; patience comes after. None: it says nothing."""
        if self._is_warming_up():
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
