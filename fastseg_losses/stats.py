"""Prediction and target statistics that the loss kernel writes on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from fastseg_losses.spec import LossSpec

Value = TypeVar("Value", torch.Tensor, float)

# Order of the first elements of the statistics row; the terms' values follow. The kernel's finish
# and the reference write it.
FIELDS = (
    "loss",
    "pred_mean",
    "target_mean",
    "pred_max",
    "pred_positive",
    "target_positive",
    "tp",
    "fp",
    "fn",
    "valid",
    "nonfinite",
    "bad_targets",
)
# In multiclass mode, C elements for each of these at the row's end.
CLASS_FIELDS = ("class_pred", "class_target", "class_tp", "class_fp", "class_fn")
# What belongs to each class, and what says the same of all pixels.
OF_ALL = {
    "class_pred": "pred_positive",
    "class_target": "target_positive",
    "class_tp": "tp",
    "class_fp": "fp",
    "class_fn": "fn",
    "class_iou": "iou",
    "class_dice": "dice",
}
# Soft labels of float16 or from interpolation may miss [0, 1] by a rounding; a mask of 0 and 255
# misses it by far.
TARGET_TOLERANCE = 1e-3


def row_size(term_names: Sequence[str], num_classes: int = 0) -> int:
    """Number of float32 elements of a statistics row; num_classes: 0 but in multiclass mode."""
    return len(FIELDS) + len(term_names) + len(CLASS_FIELDS) * num_classes


def row_length(spec: LossSpec, logits: torch.Tensor) -> int:
    """Number of float32 elements of a spec's statistics row for these logits."""
    return row_size(spec.term_names, per_class(spec, logits))


def per_class(spec: LossSpec, logits: torch.Tensor) -> int:
    """How many classes have statistics of their own: C in multiclass mode, else 0."""
    return logits.shape[1] if spec.mode == "multiclass" else 0


class _Ratios(Generic[Value]):
    """Overlap scores from the hard counts; 0 / 0 is NaN: there is nothing to score."""

    tp: Value
    fp: Value
    fn: Value

    @property
    def iou(self) -> Value:
        """tp / (tp + fp + fn)."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def dice(self) -> Value:
        """2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> Value:
        """tp / (tp + fp)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Value:
        """tp / (tp + fn)."""
        return _ratio(self.tp, self.tp + self.fn)


def _ratio(part: Value, whole: Value) -> Value:
    if isinstance(whole, float):
        return part / whole if whole else float("nan")
    return part / whole


@dataclass(frozen=True)
class SegmentationSnapshot(_Ratios[float]):
    """Statistics of one loss call as Python floats.

    In multiclass mode a pixel counts once: its probability is that of the likeliest class, its
    target that of the target's class (1 for a class id), it is a hit (tp) where both classes are
    the same, and both fp and fn where they are not.

    Attributes:
        loss: weighted sum of the terms' mean values (the loss itself under reduction="mean").
        pred_mean: mean probability over valid pixels, in [0, 1].
        target_mean: mean target over valid pixels, in [0, 1].
        pred_max: largest probability, in [0, 1].
        pred_positive: share of valid pixels with p > 0.5.
        target_positive: share of valid pixels with t > 0.5.
        tp: number of pixels with p > 0.5 and t > 0.5 (multiclass: at the arg max, see above).
        fp: number of pixels with p > 0.5 and t <= 0.5.
        fn: number of pixels with p <= 0.5 and t > 0.5.
        valid: number of valid pixels (multilabel: elements, pixels times classes).
        nonfinite: number of valid logits that are NaN or infinite.
        bad_targets: number of valid targets outside [0, 1], or of class ids outside 0 to C - 1.
        terms: each term's mean value, unweighted, by name.
        class_pred: multiclass, C values: share of valid pixels where the class is the likeliest.
        class_target: share of valid pixels where it is the target's (the target's likeliest).
        class_tp: number of pixels where it is both.
        class_fp: number of pixels where it is the likeliest and not the target's.
        class_fn: number of pixels where it is the target's and not the likeliest.
    """

    loss: float
    pred_mean: float
    target_mean: float
    pred_max: float
    pred_positive: float
    target_positive: float
    tp: float
    fp: float
    fn: float
    valid: float
    nonfinite: float
    bad_targets: float
    terms: Mapping[str, float]
    class_pred: tuple[float, ...] = ()
    class_target: tuple[float, ...] = ()
    class_tp: tuple[float, ...] = ()
    class_fp: tuple[float, ...] = ()
    class_fn: tuple[float, ...] = ()

    @property
    def class_iou(self) -> tuple[float, ...]:
        """Each class's tp / (tp + fp + fn)."""
        counts = zip(self.class_tp, self.class_fp, self.class_fn, strict=True)
        return tuple(_ratio(tp, tp + fp + fn) for tp, fp, fn in counts)

    @property
    def class_dice(self) -> tuple[float, ...]:
        """Each class's 2 tp / (2 tp + fp + fn)."""
        counts = zip(self.class_tp, self.class_fp, self.class_fn, strict=True)
        return tuple(_ratio(2 * tp, 2 * tp + fp + fn) for tp, fp, fn in counts)


def decode(
    values: Sequence[float], term_names: Sequence[str], num_classes: int = 0
) -> SegmentationSnapshot:
    """Read a statistics row that was copied to the host.

    Args:
        values: `row_size(term_names, num_classes)` floats.
        term_names: the criterion's `term_names`.
        num_classes: C in multiclass mode, else 0.

    Raises:
        ValueError: the row's length does not fit the names.
    """
    expected = row_size(term_names, num_classes)
    if len(values) != expected:
        raise ValueError(
            f"values: expected {expected} floats for terms {tuple(term_names)}, got {len(values)}"
        )
    numbers = [float(v) for v in values]
    fields: dict[str, Any] = dict(zip(FIELDS, numbers, strict=False))
    behind = row_size(term_names)
    terms = dict(zip(term_names, numbers[len(FIELDS) : behind], strict=True))
    for k, name in enumerate(CLASS_FIELDS):
        start = behind + k * num_classes
        fields[name] = tuple(numbers[start : start + num_classes])
    return SegmentationSnapshot(**fields, terms=terms)


class SegmentationStats(_Ratios[torch.Tensor]):
    """Statistics of one loss call, still on the device.

    Reading an attribute is a 0-d view and never syncs. Attributes are those of
    `SegmentationSnapshot`, as 0-d float32 tensors, those of the classes (C,); `cpu()` reads them
    all at once.

    Args:
        tensor: float32 (row_size,), the row that the loss wrote.
        term_names: names of the terms behind it.
        num_classes: C in multiclass mode, else 0.

    Example:
        >>> import torch
        >>> from fastseg_losses import DiceLoss
        >>> x, t = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> _, stats = DiceLoss()(x, t, return_stats=True)
        >>> stats.cpu().pred_mean, stats.cpu().target_positive
        (0.5, 1.0)
    """

    __slots__ = ("tensor", "term_names", "num_classes")

    def __init__(
        self, tensor: torch.Tensor, term_names: Sequence[str], num_classes: int = 0
    ) -> None:
        self.tensor = tensor
        self.term_names = tuple(term_names)
        self.num_classes = num_classes

    if TYPE_CHECKING:  # what __getattr__ finds, for checkers and editors
        loss: torch.Tensor
        pred_mean: torch.Tensor
        target_mean: torch.Tensor
        pred_max: torch.Tensor
        pred_positive: torch.Tensor
        target_positive: torch.Tensor
        valid: torch.Tensor
        nonfinite: torch.Tensor
        bad_targets: torch.Tensor
        class_pred: torch.Tensor
        class_target: torch.Tensor
        class_tp: torch.Tensor
        class_fp: torch.Tensor
        class_fn: torch.Tensor
    else:

        def __getattr__(self, name: str) -> torch.Tensor:
            if name in FIELDS:
                return self.tensor[FIELDS.index(name)]
            if name in CLASS_FIELDS and self.num_classes:
                start = row_size(self.term_names) + CLASS_FIELDS.index(name) * self.num_classes
                return self.tensor[start : start + self.num_classes]
            if name in OF_ALL:
                raise AttributeError(
                    f"SegmentationStats has {name!r} only in mode='multiclass'; {OF_ALL[name]!r} "
                    "is that of all pixels"
                )
            raise AttributeError(f"SegmentationStats has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        """The names that this row has, the classes' in multiclass mode alone."""
        hidden = () if self.num_classes else OF_ALL
        return sorted({*super().__dir__(), *FIELDS, *CLASS_FIELDS} - {*hidden})

    @property
    def terms(self) -> dict[str, torch.Tensor]:
        """Each term's mean value, unweighted, as 0-d tensors by name."""
        return {name: self.tensor[len(FIELDS) + i] for i, name in enumerate(self.term_names)}

    @property
    def class_iou(self) -> torch.Tensor:
        """Each class's tp / (tp + fp + fn), (C,)."""
        return self.class_tp / (self.class_tp + self.class_fp + self.class_fn)

    @property
    def class_dice(self) -> torch.Tensor:
        """Each class's 2 tp / (2 tp + fp + fn), (C,)."""
        return 2 * self.class_tp / (2 * self.class_tp + self.class_fp + self.class_fn)

    def cpu(self) -> SegmentationSnapshot:
        """Copy the row to the host: one copy, one sync.

        Raises:
            ValueError: targets were outside [0, 1] (a mask of 0 and 255, most often); no values to
                read on device "meta".
        """
        if self.tensor.is_meta:
            raise ValueError("stats: a tensor on device 'meta' holds no values to read")
        snapshot = decode(self.tensor.tolist(), self.term_names, self.num_classes)
        if snapshot.bad_targets:
            classes = self.num_classes
            raise bad_targets_error(f"{snapshot.bad_targets:.0f} valid targets", classes)
        return snapshot

    def __repr__(self) -> str:
        return (
            f"SegmentationStats(on {self.tensor.device}, terms={self.term_names}; .cpu() reads it)"
        )


def bad_targets_error(what: str, num_classes: int = 0) -> ValueError:
    """The error for targets that no formula is for, the same wherever it is noticed.

    Args:
        what: which of them.
        num_classes: C in multiclass mode, else 0; -1 if it is not known any more.
    """
    if num_classes:
        last = f"{num_classes - 1}" if num_classes > 0 else "C - 1"
        return ValueError(
            f"targets: expected class ids from 0 to {last} (soft targets: probabilities in [0, 1])"
            f", got {what} outside; name the id of ignored pixels as ignore_index"
        )
    return ValueError(
        f"targets: expected values in [0, 1], got {what} outside; divide a mask of 0 and 255 by "
        "255 (ignore_index is for a value that marks pixels to leave out)"
    )
