"""Statistics of several batches put together, weighted by what was valid in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastseg_losses.stats import SegmentationSnapshot


@dataclass
class Tally:
    """Sums over the snapshots that were added; means over their valid pixels.

    A batch without a valid pixel counts as a batch and enters no mean. Loss, means and shares
    are weighted by valid pixels, Dice and IoU come from the summed counts (never a mean of
    per-batch scores, which an empty batch would distort).

    Attributes:
        num_classes: Number of classes in multiclass mode, else 0. With it, `class_tp`, `class_fp`
            and `class_fn` hold the counts of each.
    """

    num_classes: int = 0
    batches: int = 0
    valid: float = 0.0
    tp: float = 0.0
    fp: float = 0.0
    fn: float = 0.0
    nonfinite: float = 0.0
    bad_targets: float = 0.0
    class_tp: list[float] = field(init=False)
    class_fp: list[float] = field(init=False)
    class_fn: list[float] = field(init=False)
    _pred_max: float = -math.inf
    _loss: float = 0.0
    _pred: float = 0.0
    _target: float = 0.0
    _pred_positive: float = 0.0
    _target_positive: float = 0.0

    def __post_init__(self) -> None:
        """Start the counts of the classes."""
        self.class_tp, self.class_fp, self.class_fn = ([0.0] * self.num_classes for _ in range(3))

    def add(self, snapshot: SegmentationSnapshot) -> None:
        """Take in one batch."""
        self.batches += 1
        self.nonfinite += snapshot.nonfinite
        self.bad_targets += snapshot.bad_targets
        weight = snapshot.valid
        if weight == 0:
            return
        self.valid += weight
        self.tp += snapshot.tp
        self.fp += snapshot.fp
        self.fn += snapshot.fn
        self.class_tp = _added(self.class_tp, snapshot.class_tp)
        self.class_fp = _added(self.class_fp, snapshot.class_fp)
        self.class_fn = _added(self.class_fn, snapshot.class_fn)
        self._pred_max = max(self._pred_max, snapshot.pred_max)
        self._loss += weight * snapshot.loss
        self._pred += weight * snapshot.pred_mean
        self._target += weight * snapshot.target_mean
        self._pred_positive += weight * snapshot.pred_positive
        self._target_positive += weight * snapshot.target_positive

    @classmethod
    def joined(cls, parts: Sequence[Tally]) -> Tally:
        """The tally of the batches of all parts."""
        whole = cls(parts[0].num_classes)
        for part in parts:
            for name, value in vars(part).items():
                mine = getattr(whole, name)
                if name == "_pred_max":
                    whole._pred_max = max(mine, value)
                elif isinstance(value, list):
                    setattr(whole, name, _added(mine, value))
                elif name != "num_classes":
                    setattr(whole, name, mine + value)
        return whole

    @property
    def loss(self) -> float:
        """Mean loss; NaN if nothing was valid."""
        return self._mean(self._loss)

    @property
    def pred_mean(self) -> float:
        """Mean probability; NaN if nothing was valid."""
        return self._mean(self._pred)

    @property
    def target_mean(self) -> float:
        """Mean target; NaN if nothing was valid."""
        return self._mean(self._target)

    @property
    def pred_max(self) -> float:
        """Largest probability; NaN if nothing was valid."""
        return self._pred_max if self.valid else math.nan

    @property
    def pred_positive(self) -> float:
        """Share of pixels with p > 0.5; NaN if nothing was valid."""
        return self._mean(self._pred_positive)

    @property
    def target_positive(self) -> float:
        """Share of pixels with t > 0.5; NaN if nothing was valid."""
        return self._mean(self._target_positive)

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn); NaN if neither side has foreground: nothing to score."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """Intersection over union, tp / (tp + fp + fn); NaN if neither side has foreground."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the predicted pixels that are right; NaN if none was predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the target's pixels that were predicted; NaN if the target has none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def class_pred(self) -> list[float]:
        """Share of pixels at which each class is predicted; NaN if nothing was valid."""
        return [self._mean(sum(pair)) for pair in zip(self.class_tp, self.class_fp, strict=True)]

    @property
    def class_target(self) -> list[float]:
        """Share of pixels at which each class is the target; NaN if nothing was valid."""
        return [self._mean(sum(pair)) for pair in zip(self.class_tp, self.class_fn, strict=True)]

    @property
    def class_iou(self) -> list[float]:
        """Each class's IoU; NaN if it is neither predicted nor there."""
        counts = zip(self.class_tp, self.class_fp, self.class_fn, strict=True)
        return [_ratio(tp, tp + fp + fn) for tp, fp, fn in counts]

    @property
    def class_dice(self) -> list[float]:
        """Each class's Dice; NaN if it is neither predicted nor there."""
        counts = zip(self.class_tp, self.class_fp, self.class_fn, strict=True)
        return [_ratio(2 * tp, 2 * tp + fp + fn) for tp, fp, fn in counts]

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the classes that occur in the targets; NaN if there is none."""
        return self._mean_of(self.class_iou)

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the classes that occur in the targets; NaN if there is none."""
        return self._mean_of(self.class_dice)

    def _mean_of(self, scores: Sequence[float]) -> float:
        # A class that is only predicted would add a 0 however few its pixels are; what it took
        # from the others already counts there.
        counts = zip(scores, self.class_tp, self.class_fn, strict=True)
        occurring = [score for score, tp, fn in counts if tp + fn]
        return _ratio(sum(occurring), len(occurring))

    def _mean(self, total: float) -> float:
        return total / self.valid if self.valid else math.nan


def _added(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
