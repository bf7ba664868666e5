"""Launch plans of logits that have a lower resolution than the targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastseg_losses.formulas import check_sizes, device_of, formula_of, kind_of
from fastseg_losses.inputs import Inputs, check_call, is_soft
from fastseg_losses.spec import LossSpec
from fastseg_losses.state import made_aside
from fastseg_losses.upsampling import full_size, spatial_size, stand_in

if TYPE_CHECKING:
    from fastseg_losses.kernels.cell_mask import MaskPlan
    from fastseg_losses.kernels.launch import Plan


def make_cell_plan(spec: LossSpec, inputs: Inputs) -> Plan | None:
    """A plan with its tables on the device; None if the weights of the classes must be packed.

    Raises:
        TypeError: see `inputs.check_call`, as for ValueError.
    """
    from fastseg_losses.kernels import cell_class_plan, cell_plan

    logits, targets, valid, class_weights, pos_weight = inputs
    full = stand_in(spec, logits, targets)
    sizes = check_call(spec, (full, *inputs[1:]))
    check_sizes(spec, sizes)
    if any(w is not None and not w.is_contiguous() for w in (class_weights, pos_weight)):
        return None
    multiclass = spec.mode == "multiclass"
    ids = multiclass and not is_soft(full, targets)
    kind = "ids" if ids else "soft" if multiclass else kind_of(targets.dtype)
    low, high = spatial_size(spec.mode, logits), full.shape[full.dim() - 2 :]
    assert spec.upsample is not None
    axes = _axes(low, high, spec.upsample, align_corners=spec.align_corners)
    layout = cell_plan.CellLayout(
        *(sizes.N, sizes.C, *axes, _strides(logits), _strides(targets)),
        dlogits=_strides(torch.empty_like(logits, device="meta")),
        valid=(0, 0, 0) if valid is None else _valid_strides(valid),
        logits_bytes=logits.element_size(),
        # of a bool mask every byte but 0 is True: read one by one
        targets_align=16 if targets.dtype == torch.uint8 and targets.data_ptr() % 16 == 0 else 1,
        targets_kind=kind,
        valid_kind="none" if valid is None else "sample" if valid.dim() == 1 else "pixel",
        pos_weight_stride=0 if pos_weight is None or pos_weight.numel() == 1 else 1,
    )
    weighted = (class_weights is not None, pos_weight is not None)
    formula = formula_of(spec, *weighted, hard=kind != "soft")
    device = logits.device
    make = cell_class_plan.CellClassPlan if multiclass else cell_plan.CellPlan
    plan = make(layout, formula, device_of(device))
    plan.tables = _tables(layout, device)
    return plan


def make_mask_plan(
    logits: Tensor, size: tuple[int, int], upsample: str, *, align_corners: bool, least: float
) -> MaskPlan:
    """A plan for the class map of logits (N, C, h, w), or of one class above `least`."""
    from fastseg_losses.kernels import cell_mask, cell_plan

    N, C, *low = logits.shape
    strides = _strides(logits)
    layout = cell_plan.CellLayout(
        *(N, C, *_axes(low, size, upsample, align_corners=align_corners), strides, strides),
        dlogits=strides,
        valid=(0, 0, 0),
        logits_bytes=logits.element_size(),
        targets_align=1,
        targets_kind="ids",
        valid_kind="none",
        pos_weight_stride=0,
    )
    plan = cell_mask.MaskPlan(layout, device_of(logits.device), least)
    plan.tables = _tables(layout, logits.device)
    return plan


def _axes(
    low: Sequence[int], high: Sequence[int], upsample: str, *, align_corners: bool
) -> tuple[Any, Any, tuple[int, int]]:
    """The cells along y and x, in whole pieces, and the pieces' size."""
    from fastseg_losses.kernels import cell_tiles, cells

    y, x = (
        cells.axis_cells(small, large, upsample, align_corners=align_corners)
        for small, large in zip(low, high, strict=True)
    )
    each = cell_tiles.piece_of(y.most, x.most)
    return y.padded(each[0]), x.padded(each[1]), each


def _tables(layout: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the cells' outputs lie, and their weights, along y and then x."""
    y, x = layout.y, layout.x
    positions = np.concatenate([y.positions.ravel(), x.positions.ravel()])
    weights = np.concatenate([y.weights.ravel(), x.weights.ravel()])
    return _on_device(positions, device), _on_device(weights, device)


def kept_size(spec: LossSpec, logits: Tensor, targets: Tensor) -> int:
    """How many numbers of its outputs a softmax keeps for backward, also for symbolic sizes."""
    y, x = full_size(spec, logits, targets)
    soft = is_soft(stand_in(spec, logits, targets), targets)
    return logits.shape[0] * y * x * (1 if soft else 2)


def _strides(tensor: Tensor) -> tuple[int, int, int, int]:
    """Strides (n, c, y, x) of a tensor (N, C, y, x) or (N, y, x)."""
    stride = tensor.stride()
    return stride[0], 0 if tensor.dim() == 3 else stride[1], stride[-2], stride[-1]


def _valid_strides(valid: Tensor) -> tuple[int, int, int]:
    if valid.dim() == 1:
        return valid.stride(0), 0, 0
    n, _, y, x = _strides(valid)
    return n, y, x


def _on_device(table: Any, device: torch.device) -> Tensor:
    """A table that outlives the call and that launches on any stream may read at once."""
    tensor = torch.from_numpy(table)
    if device.type != "cuda":
        return tensor
    return made_aside(lambda: tensor.pin_memory().to(device, non_blocking=True), device)
