"""Losses of one term as the peers' functions call them: made once, in the peers' dtypes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg_losses import spec as specs
from fastseg_losses.ops import segmentation_loss
from fastseg_losses.spec import LossSpec

_SPECS: dict[tuple[object, ...], LossSpec] = {}


@torch.compiler.assume_constant_result  # a dict: torch.compile would trace into an lru_cache
def _spec_of(mode: str, reduction: str, term: str, *numbers: float | None) -> LossSpec:
    key = (mode, reduction, term, *numbers)
    if key not in _SPECS:
        points = [specs.focal_term(1.0, *numbers)] if term == "focal" else []  # type: ignore[arg-type]
        regions = [specs.dice_term(1.0, *numbers)] if term == "dice" else []  # type: ignore[arg-type]
        _SPECS[key] = specs.make_spec(
            points,
            regions,
            mode=mode,
            reduction=reduction,
            ignore_index=None,
            include_background=True,
            batch=False,
            absent="keep",
            activation=None,
        )
    return _SPECS[key]


def focal(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, mode: str, reduction: str
) -> Tensor:
    """Focal loss; alpha below 0 for no balance, as in the peers."""
    balance = alpha if alpha >= 0 else None
    spec = _spec_of(mode, reduction, "focal", balance, gamma)
    return _loss(spec, inputs, targets)


def dice(inputs: Tensor, targets: Tensor, smooth: float, mode: str) -> Tensor:
    """Dice loss of each (sample, class)."""
    return _loss(_spec_of(mode, "none", "dice", smooth), inputs, targets)


def _loss(spec: LossSpec, inputs: Tensor, targets: Tensor) -> Tensor:
    loss, _ = segmentation_loss(spec, (inputs, targets, None, None, None))
    return loss.to(dtype_of(inputs, targets))


def dtype_of(inputs: Tensor, targets: Tensor) -> torch.dtype:
    """What PyTorch's own arithmetic on both would give."""
    if not targets.is_floating_point():
        return inputs.dtype
    return torch.promote_types(inputs.dtype, targets.dtype)
