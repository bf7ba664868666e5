"""Notice when a multiclass net collapses: one class swallows the others, or one is never predicted.

Every class is judged by the ratio of its predicted pixels to its target pixels. No class has a
special role: class 0 need not be a background.
"""

from __future__ import annotations

from fastseg_losses.stats import SegmentationSnapshot
from fastseg_losses.training import class_findings as texts
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.judgement import (
    ENOUGH_PIXELS,
    RARE_SHARE,
    checks_until_alarm,
    is_class_found,
    is_class_silent,
    swallowing_class,
)
from fastseg_losses.training.tally import Tally
from fastseg_losses.training.watch import Monitor


class ClassMonitor(Monitor):
    """Judges the statistics of a multiclass training run every ``check_every`` batches.

    Before any class has been found, the first ``warmup`` checks are not judged. Then one class that
    swallows the others is reported after ``patience`` bad checks in a row. A class that is never
    predicted takes longer the rarer it is, ``patience / sqrt(share of the targets)`` checks (7
    with 10 % of the pixels, 20 with 1 %, at a patience of 2), and only ``2 * patience`` once it
    had been found; below 1 % of the targets, one that never came is no collapse, and fewer than
    1000 target pixels are not judged. NaN, Inf and bad targets are reported at once. A state is
    reported once, and again only after a recovery.

    That the most frequent class is found says little (any prediction is right about most of it), so
    it ends neither the warm-up nor a collapse.

    Args:
        num_classes: number of classes.
        check_every: batches between two checks.
        patience: bad checks in a row before an alarm.
        warmup: checks that are not judged at the start.
    """

    def __init__(
        self, num_classes: int, *, check_every: int = 50, patience: int = 2, warmup: int = 3
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2, got {num_classes!r}")
        super().__init__(
            check_every=check_every, patience=patience, warmup=warmup, num_classes=num_classes
        )
        self._found_classes: set[int] = set()
        self._reported_classes: set[int] = set()
        # The class that swallows the others and since how many checks; what each silent class's
        # streak is, in checks and in target pixels.
        self._swallowing: tuple[int | None, int] = (None, 0)
        self._no_lesson = 0
        self._silent = [0] * num_classes
        self._silent_pixels = [0.0] * num_classes

    def _judge(self, window: Tally, lr: float) -> list[Finding]:
        found = {k for k in range(self._num_classes) if is_class_found(window, k)}
        self._found_classes |= found
        most = max(range(self._num_classes), key=window.class_target.__getitem__)
        self._found = self._found or bool(found - {most})
        if not self._found and self._checks <= self.warmup:
            return []
        lesson = self._missing_lesson(lr)
        if lesson is not None or not window.valid:
            return [finding for finding in (lesson,) if finding]
        winner = swallowing_class(window)
        if winner is None:
            self._swallowing = (None, 0)
            findings = [
                *self._judge_classes(window, lr),
                self._judge_recovery(window, found, most, lr),
            ]
        else:
            # It explains why the others are not predicted: nothing more to say about those.
            self._silent = [0] * self._num_classes
            self._silent_pixels = [0.0] * self._num_classes
            findings = [self._judge_swallowing(window, winner, lr)]
        return [finding for finding in findings if finding is not None]

    def _missing_lesson(self, lr: float) -> Finding | None:
        """Whether the targets so far have nothing to tell apart."""
        total = self._total
        text = ""
        if not total.valid:
            text = texts.nothing_annotated()
        elif sum(share > 0 for share in total.class_target) == 1:
            text = texts.one_class_only(total)
        self._no_lesson = self._no_lesson + 1 if text else 0
        if self._no_lesson < self.patience:
            return None
        return self._report_once(Cause.NO_FOREGROUND, text, total, lr)

    def _judge_swallowing(self, window: Tally, winner: int, lr: float) -> Finding | None:
        before, checks = self._swallowing
        checks = checks + 1 if before == winner else 1
        self._swallowing = (winner, checks)
        if checks < self.patience:
            return None
        text = texts.swallowed(window, winner, checks=checks, batches=checks * self.check_every)
        return self._report_once(Cause.ONE_CLASS, text, window, lr)

    def _judge_classes(self, window: Tally, lr: float) -> list[Finding]:
        """The classes whose patience is over at this check."""
        new = self._late_classes(window)
        self._reported_classes.update(new)
        shares = self._total.class_target
        lost = [k for k in new if k in self._found_classes]
        rare = [k for k in new if shares[k] < RARE_SHARE and k not in lost]
        missing = [k for k in new if k not in rare]
        findings = []
        if missing:
            checks = min(self._silent[k] for k in missing)
            text = texts.unpredicted(window, missing, lost, checks)
            findings.append(self._finding(Cause.CLASS_MISSING, text, window, lr))
        if rare:
            text = texts.not_yet(window, rare, min(self._silent[k] for k in rare))
            findings.append(self._finding(Cause.RARE_CLASS_MISSING, text, window, lr))
        return findings

    def _late_classes(self, window: Tally) -> list[int]:
        """Classes not reported yet whose patience is over."""
        late = []
        for k in range(self._num_classes):
            pixels = window.class_tp[k] + window.class_fn[k]
            if not pixels:  # by chance not in this window: neither good nor bad
                continue
            silent = is_class_silent(window, k)
            self._silent[k] = self._silent[k] + 1 if silent else 0
            self._silent_pixels[k] = self._silent_pixels[k] + pixels if silent else 0.0
            needed = checks_until_alarm(
                self.patience, self._total.class_target[k], was_found=k in self._found_classes
            )
            over = self._silent[k] >= needed and self._silent_pixels[k] >= ENOUGH_PIXELS
            if over and k not in self._reported_classes:
                late.append(k)
        return late

    def _judge_recovery(
        self, window: Tally, found: set[int], most: int, lr: float
    ) -> Finding | None:
        back = found & self._reported_classes
        if Cause.ONE_CLASS in self._reported and found - {most}:
            self._reported.discard(Cause.ONE_CLASS)
            back |= found
        if not back:
            return None
        self._reported_classes -= back
        return self._finding(Cause.RECOVERED, texts.recovered(sorted(back)), window, lr)

    def _bad_targets(self) -> tuple[str, str]:
        last = self._num_classes - 1
        return (
            f"are no class id from 0 to {last}",
            "run debug_masks.py --mode multiclass, check --num-classes and --ignore-index.",
        )

    def _evidence(self, seen: Tally | SegmentationSnapshot) -> str:
        right = seen.tp / seen.valid if seen.valid else 0.0
        return (
            f"{texts.shares(seen)}; {right:.1%} of the pixels right, confidence (pred_mean) "
            f"{seen.pred_mean:.3g}, loss {seen.loss:.4g}"
        )
