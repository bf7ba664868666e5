"""Prediction and target statistics that the loss kernel writes on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

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
# Soft labels of float16 or from interpolation may miss [0, 1] by a rounding; a mask of 0 and 255
# misses it by far.
TARGET_TOLERANCE = 1e-3


def stats_size(term_names: Sequence[str]) -> int:
    """Number of float32 elements of a statistics row."""
    return len(FIELDS) + len(term_names)


class _Ratios(Generic[Value]):
    """Overlap scores from the hard counts at p > 0.5; 0 / 0 is NaN: there is nothing to score."""

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

    Attributes:
        loss: weighted sum of the terms' mean values (the loss itself under reduction="mean").
        pred_mean: mean probability over valid pixels, in [0, 1].
        target_mean: mean target over valid pixels, in [0, 1].
        pred_max: largest probability, in [0, 1].
        pred_positive: share of valid pixels with p > 0.5.
        target_positive: share of valid pixels with t > 0.5.
        tp: number of pixels with p > 0.5 and t > 0.5.
        fp: number of pixels with p > 0.5 and t <= 0.5.
        fn: number of pixels with p <= 0.5 and t > 0.5.
        valid: number of valid pixels (elements: pixels times classes).
        nonfinite: number of valid logits that are NaN or infinite.
        bad_targets: number of valid targets outside [0, 1].
        terms: each term's mean value, unweighted, by name.
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


def decode(values: Sequence[float], term_names: Sequence[str]) -> SegmentationSnapshot:
    """Read a statistics row that was copied to the host.

    Args:
        values: `stats_size(term_names)` floats.
        term_names: the criterion's `term_names`.

    Raises:
        ValueError: the row's length does not fit the names.
    """
    expected = stats_size(term_names)
    if len(values) != expected:
        raise ValueError(
            f"values: expected {expected} floats for terms {tuple(term_names)}, got {len(values)}"
        )
    numbers = [float(v) for v in values]
    fields: dict[str, Any] = dict(zip(FIELDS, numbers, strict=False))
    terms = dict(zip(term_names, numbers[len(FIELDS) :], strict=True))
    return SegmentationSnapshot(**fields, terms=terms)


class SegmentationStats(_Ratios[torch.Tensor]):
    """Statistics of one loss call, still on the device.

    Reading an attribute is a 0-d view and never syncs. Attributes are those of
    `SegmentationSnapshot`, as 0-d float32 tensors; `cpu()` reads them all at once.

    Args:
        tensor: float32 (stats_size,), the row that the loss wrote.
        term_names: names of the terms behind it.

    Example:
        >>> import torch
        >>> from fastseg_losses import DiceLoss
        >>> x, t = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> _, stats = DiceLoss()(x, t, return_stats=True)
        >>> stats.cpu().pred_mean, stats.cpu().target_positive
        (0.5, 1.0)
    """

    __slots__ = ("tensor", "term_names")

    def __init__(self, tensor: torch.Tensor, term_names: Sequence[str]) -> None:
        self.tensor = tensor
        self.term_names = tuple(term_names)

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in FIELDS:
            return self.tensor[FIELDS.index(name)]
        raise AttributeError(f"SegmentationStats has no attribute {name!r}")

    @property
    def terms(self) -> dict[str, torch.Tensor]:
        """Each term's mean value, unweighted, as 0-d tensors by name."""
        return {name: self.tensor[len(FIELDS) + i] for i, name in enumerate(self.term_names)}

    def cpu(self) -> SegmentationSnapshot:
        """Copy the row to the host: one copy, one sync.

        Raises:
            ValueError: targets were outside [0, 1] (a mask of 0 and 255, most often).
        """
        snapshot = decode(self.tensor.tolist(), self.term_names)
        if snapshot.bad_targets:
            raise bad_targets_error(f"{snapshot.bad_targets:.0f} valid targets")
        return snapshot

    def __repr__(self) -> str:
        return (
            f"SegmentationStats(on {self.tensor.device}, terms={self.term_names}; .cpu() reads it)"
        )


def bad_targets_error(what: str) -> ValueError:
    """The error for targets outside [0, 1], the same wherever it is noticed."""
    return ValueError(
        f"targets: expected values in [0, 1], got {what} outside; divide a mask of 0 and 255 by "
        "255, or name the ignored value as ignore_index"
    )
