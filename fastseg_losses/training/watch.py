"""What watching a run needs in every mode: windows of batches, and what one batch alone proves.

A monitor reads decoded statistics rows (`SegmentationSnapshot`) and nothing else: no tensor, no
device. Every ``check_every`` batches it judges the batches since the last check.
"""

from __future__ import annotations

import math
from typing import Any

from fastseg_losses.stats import SegmentationSnapshot
from fastseg_losses.training.findings import Cause, Finding, validation_fell
from fastseg_losses.training.plain_state import from_plain, to_plain
from fastseg_losses.training.score_watch import ScoreWatch, Turn
from fastseg_losses.training.tally import Tally


class Monitor:
    """Gathers batches into windows and reports NaN, Inf and bad targets at once.

    A state is reported once, and again only after a recovery, which is reported too.

    Args:
        check_every: batches between two checks.
        patience: bad checks in a row before an alarm.
        warmup: checks that are not judged at the start.
        num_classes: number of classes in multiclass mode, else 0.
    """

    def __init__(
        self, *, check_every: int, patience: int, warmup: int, num_classes: int = 0
    ) -> None:
        if min(check_every, patience) < 1 or warmup < 0:
            raise ValueError(
                "check_every, patience, warmup: expected at least 1, 1 and 0, "
                f"got {check_every!r}, {patience!r} and {warmup!r}"
            )
        self.check_every = check_every
        self.patience = patience
        self.warmup = warmup
        self._num_classes = num_classes
        self._window = Tally(num_classes)
        self._total = Tally(num_classes)
        self._checks = 0
        self._found = False
        self._reported: set[Cause] = set()
        self._scores = ScoreWatch(patience * check_every)

    def state_dict(self) -> dict[str, Any]:
        """What it has seen and said so far, as plain values."""
        remembered = {name: v for name, v in vars(self).items() if name.startswith("_")}
        plain: dict[str, Any] = to_plain(remembered)
        return plain

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        vars(self).update(from_plain(state))

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
        if self._window.batches < self.check_every:
            return []
        window, self._window = self._window, Tally(self._num_classes)
        self._checks += 1
        return self._judge(window, lr)

    def observe_validation(self, val: Tally, *, lr: float) -> list[Finding]:
        """Take in an epoch's validation: Dice, or with classes their mean IoU.

        Args:
            val: the counts of all validation rows.
            lr: the learning rate, for the message.

        Returns:
            A finding when the score has fallen far below its best for several epochs in a row, or
            has come back; most often nothing.
        """
        name, score = ("mean IoU", val.mean_iou) if val.num_classes else ("Dice", val.dice)
        turn = self._scores.add(score, self._total.batches)
        if turn is None:
            return []
        if turn is Turn.RECOVERED:
            best = f"{self._scores.best:.4f}"
            text = f"the validation {name} recovered: {score:.4f}, the best was {best}."
            return [self._finding(Cause.RECOVERED, text, val, lr)]
        text = validation_fell(name, self._scores, self._empty_question())
        return [self._finding(Cause.VALIDATION_FELL, text, val, lr)]

    def _empty_question(self) -> str:
        """A question about empty training masks, where there are enough of them to ask."""
        return ""

    def _at_once(self, snapshot: SegmentationSnapshot, lr: float) -> Finding | None:
        """What one batch alone proves."""
        if snapshot.bad_targets:
            wrong, advice = self._bad_targets()
            text = (
                f"{snapshot.bad_targets:.0f} target pixels {wrong} in batch "
                f"{self._total.batches}: {advice}"
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
        """What a window of batches shows."""
        raise NotImplementedError

    def _bad_targets(self) -> tuple[str, str]:
        """What is wrong with the targets that the loss counts as bad, and what to do."""
        return "lie outside [0, 1]", "fix the masks (values 0/255 have to become 0/1)."

    def _evidence(self, seen: Tally | SegmentationSnapshot) -> str:
        """The numbers behind a finding."""
        return (
            f"pred_mean {seen.pred_mean:.3g}, target_mean {seen.target_mean:.3g}, "
            f"pred_positive {seen.pred_positive:.3g}, target_positive {seen.target_positive:.3g}, "
            f"pred_max {seen.pred_max:.3g}, loss {seen.loss:.4g}"
        )

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
            f"Evidence: {self._evidence(seen)}; {total.batches} batches and "
            f"{total.valid:,.0f} annotated pixels seen, lr {lr:g}."
        )
        return Finding(cause, total.batches, f"{text} {evidence}")
