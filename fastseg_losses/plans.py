"""From tensors to launch plans, which are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastseg_losses.cell_plans import kept_size, make_cell_plan
from fastseg_losses.formulas import check_sizes, device_of, formula_of, kind_of
from fastseg_losses.inputs import (
    Inputs,
    Sizes,
    canonical_strides,
    check_call,
    is_soft,
    target_strides,
)
from fastseg_losses.spec import LossSpec
from fastseg_losses.state import unread_on
from fastseg_losses.stats import row_length
from fastseg_losses.upsampling import full_spec, spatial_size

if TYPE_CHECKING:
    from fastseg_losses.kernels.early_plan import EarlyPlan
    from fastseg_losses.kernels.launch import Plan
    from fastseg_losses.kernels.single_plan import SinglePlan

MAX_PLANS = 1024  # a plan is about 5 kB; a training run has a handful of shapes

PLANS: dict[tuple[Any, ...], Plan | None] = {}
UNSEEN: Any = object()


class Blanks(NamedTuple):
    """The shapes of a call's small float32 tensors, as tensors without memory of their own.

    `torch.empty_like` of one takes half the host time of `new_empty` with size and dtype, 1.1 of
    2.1 us on an AMD EPYC.
    """

    loss: Tensor
    row: Tensor  # the statistics
    unread: Tensor  # no shape, but where they go if nobody reads them
    scratch: Tensor


def key_of(spec: LossSpec, inputs: Inputs) -> tuple[Any, ...]:
    """What a plan depends on.

    Raises:
        AttributeError: something is no tensor.
    """
    logits, targets, valid, class_weights, pos_weight = inputs
    return (
        *(spec.key, logits.shape, logits.stride(), logits.dtype, logits.device),
        *(targets.shape, targets.stride(), targets.dtype, targets.device, targets.requires_grad),
        # compiled code may rely on pointers of 16 bytes
        *(logits.data_ptr() % 16, targets.data_ptr() % 16),
        None if valid is None else _traits(valid),
        None if class_weights is None else _traits(class_weights),
        None if pos_weight is None else _traits(pos_weight),
    )


def _traits(tensor: Tensor) -> tuple[Any, ...]:
    kind = (tensor.dtype, tensor.device, tensor.requires_grad)
    return tensor.shape, tensor.stride(), *kind, tensor.data_ptr() % 16


def plan_for(spec: LossSpec, inputs: Inputs) -> tuple[Plan, Inputs]:
    """The launch plan for these tensors, made at first sight, and the tensors to launch it with.

    Raises:
        TypeError: see `inputs.check_call`, as for ValueError.
    """
    try:
        key = key_of(spec, inputs)
    except AttributeError:
        check_call(spec, inputs)  # says what is no tensor
        raise
    plan = PLANS.get(key, UNSEEN)  # one look: another thread may drop all plans after it
    if plan is UNSEEN:
        plan = _make_plan(spec, inputs)
        if plan is not None:
            plan.blanks = _blanks(plan, spec, inputs[0])
            if plan.early is not None:
                _give_blank(plan.early, inputs[0].device)
        if len(PLANS) >= MAX_PLANS:
            PLANS.clear()
        PLANS[key] = plan
    return (plan, inputs) if plan is not None else plan_for(spec, _packed(spec, inputs))


def _blanks(plan: Plan, spec: LossSpec, logits: Tensor) -> Blanks:
    unread = unread_on(logits.device)
    one = unread[:1]
    row, scratch = (one.expand(size) for size in (row_length(spec, logits), plan.scratch_size))
    return Blanks(one[0].expand(plan.loss_shape), row, unread, scratch)


def _give_blank(early: EarlyPlan, device: torch.device) -> None:
    early.blank = unread_on(device)[:1].expand(early.scratch_size)


def _packed(spec: LossSpec, inputs: Inputs) -> Inputs:
    """The documented copy: of those tensors alone whose pixels have no one stride."""
    logits, targets, valid, class_weights, pos_weight = inputs
    if spec.upsample is not None:
        spec = full_spec(spec, inputs)
    if spec.upsample is not None:  # of those kernels each axis has a stride of its own
        classes = None if class_weights is None else class_weights.contiguous()
        vector = None if pos_weight is None else pos_weight.contiguous()
        return logits, targets, valid, classes, vector
    sizes = check_call(spec, inputs)
    at = _strides(spec, sizes, inputs)
    return (
        logits if at["logits"] and at["dlogits"] else logits.contiguous(),
        targets if at["targets"] else targets.contiguous(),
        valid if valid is None or at["valid"] else valid.contiguous(),
        class_weights if class_weights is None else class_weights.contiguous(),
        pos_weight if pos_weight is None else pos_weight.contiguous(),
    )


def _strides(spec: LossSpec, sizes: Sizes, inputs: Inputs) -> dict[str, Any]:
    """Strides (n, c, p) of each tensor, None where its pixels have no one stride."""
    logits, targets, valid, _, _ = inputs
    mode = spec.mode
    at: dict[str, Any] = {
        "logits": canonical_strides(mode, sizes, logits),
        "targets": target_strides(mode, sizes, logits, targets),
        "dlogits": canonical_strides(mode, sizes, torch.empty_like(logits, device="meta")),
        "valid": (0, 0, 0),
    }
    if valid is not None and valid.dim() == 1:
        at["valid"] = (valid.stride(0), 0, 0)
    elif valid is not None:
        at["valid"] = canonical_strides("binary", Sizes(sizes.N, 1, sizes.P), valid)
    return at


def _make_plan(spec: LossSpec, inputs: Inputs) -> Plan | None:
    """A plan; None if a tensor has to be copied first."""
    from fastseg_losses.kernels import early_plan, launch, multiclass_plan, single_plan

    if spec.upsample is not None:
        spec = full_spec(spec, inputs)
    if spec.upsample is not None:
        return make_cell_plan(spec, inputs)
    logits, targets, valid, class_weights, pos_weight = inputs
    sizes = check_call(spec, inputs)
    check_sizes(spec, sizes)
    at = _strides(spec, sizes, inputs)
    scattered = any(w is not None and not w.is_contiguous() for w in (class_weights, pos_weight))
    if None in at.values() or scattered:
        return None
    valid_kind = "none" if valid is None else "sample" if valid.dim() == 1 else "pixel"
    multiclass = spec.mode == "multiclass"
    ids = multiclass and not is_soft(logits, targets)
    kind = "ids" if ids else "soft" if multiclass else kind_of(targets.dtype)
    aligned = logits.data_ptr() % 16 == 0 and targets.data_ptr() % 16 == 0
    layout = launch.Layout(
        *(*sizes, at["logits"], at["targets"], at["dlogits"]),
        valid=(at["valid"][0], at["valid"][2]),
        logits_bytes=logits.element_size(),
        targets_bytes=targets.element_size(),
        targets_kind=kind,
        valid_kind=valid_kind,
        pos_weight_stride=0 if pos_weight is None or pos_weight.numel() == 1 else 1,
        aligned=aligned,
        # not of bool masks: any byte but 0 is True, as in one of 0 and 255 that is viewed as bool
        packed=aligned and (logits.dtype, targets.dtype) == (torch.bfloat16, torch.uint8),
    )
    gpu = device_of(logits.device)
    weighted = (class_weights is not None, pos_weight is not None)
    formula = formula_of(spec, *weighted, hard=kind != "soft")
    if formula.absent == "all" and not weighted[0] and valid is None and spec.ignore_index is None:
        formula = formula._replace(absent="keep")  # where every pixel counts they are the same
    if multiclass:
        return multiclass_plan.ClassPlan(layout, formula, gpu)
    plan = launch.Plan(layout, formula, gpu)
    call = (layout, formula, gpu)
    plan.early = early_plan.plan_points(*call) or single_plan.plan_single(*call)
    return plan


def admitted_single(plan: Plan, single: SinglePlan) -> SinglePlan | None:
    """The plan that takes the single launch where its kernel may serve, see `single_plan.admit`."""
    from fastseg_losses.kernels.single_plan import admit

    admitted = admit(single)
    if admitted is not None:
        _give_blank(admitted, single.blank.device)
    plan.early = admitted
    return admitted


def output_shapes(spec: LossSpec, logits: Tensor, targets: Tensor) -> tuple[tuple[int, ...], int]:
    """Shape of the loss and size of the table, also for symbolic sizes."""
    N, C = logits.shape[0], 1 if spec.mode == "binary" else logits.shape[1]
    multiclass = spec.mode == "multiclass"
    groups = C if spec.batch else N * C
    classes = C if spec.include_background else C - 1
    each: tuple[int, ...] = (classes,) if spec.batch else (N, classes)
    if multiclass and spec.points:
        each = (N,)
    shapes = {"none": each, "sums": (4, N, C)}
    size = 2 + 2 * groups + len(spec.points) * (C if multiclass else groups)
    size += N if multiclass else 0
    if spec.upsample is not None and multiclass:
        from fastseg_losses.kernels.cells import flag_places

        size += flag_places(N, *spatial_size(spec.mode, logits))
        if spec.softmax:
            size += -size % 16 + kept_size(spec, logits, targets)
    return shapes.get(spec.reduction, ()), size
