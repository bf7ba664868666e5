"""The launch that makes a class map of low-resolution logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastseg_losses.cell_plans import make_mask_plan
from fastseg_losses.formulas import MAX_CLASSES
from fastseg_losses.plans import MAX_PLANS
from fastseg_losses.state import (
    guarded,
    index_of,
    is_capturing,
    is_foreign,
    keep_for_replays,
    outlive_launches,
    stream_of,
)

if TYPE_CHECKING:
    from fastseg_losses.kernels.cell_mask import MaskPlan

# Each with the streams on which it has been launched.
_MASK_PLANS: dict[tuple[Any, ...], tuple[MaskPlan, set[int]]] = {}


def launch_masks(
    masks: Tensor,
    logits: Tensor,
    *,
    upsample: str,
    align_corners: bool,
    least: float,
) -> None:
    """Write the masks of logits that `backends.takes_triton` takes.

    Args:
        masks: (N, H, W) of an integer dtype, contiguous.
        logits: (N, C, h, w); of one class the mask is where it is above `least`.
        upsample: "bilinear" or "nearest".
        align_corners: of `F.interpolate`.
        least: see there.

    Raises:
        ValueError: more classes than the kernels take.
    """
    if logits.shape[1] > MAX_CLASSES:
        raise ValueError(
            f"logits: the kernels take at most {MAX_CLASSES} classes, got {logits.shape[1]}; use "
            "backend='torch'"
        )
    device = logits.device
    if is_foreign(index_of(device)):
        with torch.cuda.device(device):
            return launch_masks(
                masks, logits, upsample=upsample, align_corners=align_corners, least=least
            )
    how = (masks.dtype, upsample, align_corners, least)
    key: tuple[Any, ...] = (logits.shape, logits.stride(), logits.dtype, device, masks.shape, how)
    key = (*key, logits.data_ptr() % 16, masks.data_ptr() % 16)
    kept = _MASK_PLANS.get(key)
    if kept is None:
        if len(_MASK_PLANS) >= MAX_PLANS:
            _MASK_PLANS.clear()
        H, W = masks.shape[1:]
        plan = make_mask_plan(logits, (H, W), upsample, align_corners=align_corners, least=least)
        kept = _MASK_PLANS[key] = plan, set()
    plan, streams = kept
    stream = stream_of(index_of(device))
    if is_capturing(device):
        keep_for_replays(plan.tables)
    elif stream not in streams:
        outlive_launches(plan.tables, device)
        streams.add(stream)
    guarded(plan.launch, masks, logits, stream)
