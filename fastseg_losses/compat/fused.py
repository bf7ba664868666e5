"""Specs and calls that the peers' losses share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg_losses.ops import segmentation_loss
from fastseg_losses.spec import LossSpec, PointTerm, RegionTerm

# The fields of a PointTerm and of a RegionTerm, in their order.
Point = tuple[Any, ...]
Region = tuple[Any, ...]

_SPECS: dict[tuple[Any, ...], LossSpec] = {}


@torch.compiler.assume_constant_result  # a dict: torch.compile would trace into an lru_cache
def spec_of(
    mode: str,
    points: tuple[Point, ...],
    regions: tuple[Region, ...],
    reduction: str,
    ignore_index: int | None,
    include_background: bool,
    batch: bool,
    absent: str,
    activation: str | None,
    overlap: str,
    squared: bool,
) -> LossSpec:
    """The spec with these fields, made once; terms as tuples, which torch.compile takes."""
    fields: tuple[Any, ...] = (ignore_index, include_background, batch, absent, activation)
    fields += (overlap, squared)
    key = (mode, points, regions, reduction, *fields)
    if key not in _SPECS:
        terms = (tuple(PointTerm(*p) for p in points), tuple(RegionTerm(*r) for r in regions))
        _SPECS[key] = LossSpec(mode, *terms, reduction, *fields)
    return _SPECS[key]


def fused(
    inputs: Sequence[Tensor | None],
    mode: str,
    points: tuple[Point, ...] = (),
    regions: tuple[Region, ...] = (),
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
    include_background: bool = True,
    batch: bool = False,
    absent: str = "keep",
    activation: str | None = None,
    overlap: str = "product",
    squared: bool = False,
) -> Tensor:
    """A loss through the kernels (the reference where they cannot run), differentiable.

    Args:
        inputs: logits, targets, then what there is of valid, class_weights, and pos_weight (with a
            softmax: focal's alpha).
        mode: see `LossSpec`, as for what follows.
        points: the pointwise terms.
        regions: the region terms.
        reduction: or "sums", for I, P, T and V stacked.
        ignore_index: target value whose pixels do not count.
        include_background: whether class 0 has region terms.
        batch: one group for each class over the batch.
        absent: which groups count.
        activation: None for the mode's own, "sigmoid", or "identity".
        overlap: "product" or "minimum".
        squared: squares in P and T.

    Returns:
        Float32, or float64 for float64 logits.
    """
    spec = spec_of(
        *(mode, points, regions, reduction, ignore_index, include_background, batch, absent),
        *(activation, overlap, squared),
    )
    logits, targets, valid, class_weights, vector = (*inputs, None, None, None)[:5]
    assert logits is not None and targets is not None
    kind = computed_in(logits)
    class_weights = None if class_weights is None else class_weights.to(kind)
    vector = None if vector is None else vector.to(kind)
    loss, _ = segmentation_loss(spec, (logits, targets, valid, class_weights, vector))
    return loss


def mean_factor(size: int) -> tuple[float, float]:
    """What makes a sum over `size` elements their mean: a term's weight, and a factor of the loss.

    The weight is a number of the launch; under torch.compile sizes may be symbols, which a spec
    cannot hold.
    """
    return (1.0, 1 / size) if torch.compiler.is_compiling() else (1 / size, 1.0)


def computed_in(logits: Tensor) -> torch.dtype:
    """Float32 but for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def reduced(each: Tensor, reduction: str | None) -> Tensor:
    """Each element's value under "mean" or "sum"; anything else leaves it."""
    if reduction == "mean":
        return each.mean()
    return each.sum() if reduction == "sum" else each


def flat(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, P), what they are in binary mode."""
    if logits.dim() < 2:
        return logits.reshape(1, -1), targets.reshape(1, -1)
    return logits.flatten(1), targets.flatten(1)
