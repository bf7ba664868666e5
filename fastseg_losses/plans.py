"""From tensors to launch plans; with `ops.py`, all that knows both torch and the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastseg_losses.inputs import (
    Inputs,
    Sizes,
    canonical_strides,
    check_call,
    is_soft,
    target_strides,
)
from fastseg_losses.spec import LossSpec

if TYPE_CHECKING:
    from fastseg_losses.kernels.launch import Plan

MAX_PLANS = 1024  # a plan is about 5 kB; a training run has a handful of shapes
# Kernels count pixels of a group and groups in 32 bits; offsets beyond a group have 64.
MAX_PIXELS = 2**31 - 2**20
MAX_GROUPS = 2**26
# A tile of the multiclass kernels holds all classes: 32 lanes of 32.
MAX_CLASSES = 1024

PLANS: dict[tuple[Any, ...], Plan | None] = {}


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
    if key in PLANS:
        plan = PLANS[key]
    else:
        plan = _make_plan(spec, inputs)
        if len(PLANS) >= MAX_PLANS:
            PLANS.clear()
        PLANS[key] = plan
    return (plan, inputs) if plan is not None else plan_for(spec, _packed(spec, inputs))


def _packed(spec: LossSpec, inputs: Inputs) -> Inputs:
    """The documented copy: of those tensors alone whose pixels have no one stride."""
    logits, targets, valid, class_weights, pos_weight = inputs
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
    from fastseg_losses.kernels import launch, multiclass_plan, single_plan

    logits, targets, valid, class_weights, pos_weight = inputs
    sizes = check_call(spec, inputs)
    if sizes.P >= MAX_PIXELS or sizes.N * sizes.C >= MAX_GROUPS:
        raise ValueError(
            f"logits: the kernels take fewer than {MAX_PIXELS} pixels in each of fewer than "
            f"{MAX_GROUPS} (sample, class) pairs, got {sizes.P} in {sizes.N * sizes.C}; use "
            "backend='torch'"
        )
    if spec.mode == "multiclass" and sizes.C > MAX_CLASSES:
        raise ValueError(
            f"logits: the kernels take at most {MAX_CLASSES} classes, got {sizes.C}; use "
            "backend='torch'"
        )
    at = _strides(spec, sizes, inputs)
    scattered = any(w is not None and not w.is_contiguous() for w in (class_weights, pos_weight))
    if None in at.values() or scattered:
        return None
    valid_kind = "none" if valid is None else "sample" if valid.dim() == 1 else "pixel"
    device = logits.device
    multiclass = spec.mode == "multiclass"
    ids = multiclass and not is_soft(logits, targets)
    kind = "ids" if ids else "soft" if multiclass else _kind_of(targets.dtype)
    layout = launch.Layout(
        *(*sizes, at["logits"], at["targets"], at["dlogits"]),
        valid=(at["valid"][0], at["valid"][2]),
        logits_bytes=logits.element_size(),
        targets_bytes=targets.element_size(),
        targets_kind=kind,
        valid_kind=valid_kind,
        pos_weight_stride=0 if pos_weight is None or pos_weight.numel() == 1 else 1,
    )
    multiprocessors = 1
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    ptx = device.type == "cuda" and torch.version.hip is None
    hopper = ptx and torch.cuda.get_device_capability(device) == (9, 0)
    gpu = launch.Device(multiprocessors, ptx, hopper)
    weighted = (class_weights is not None, pos_weight is not None)
    formula = _formula(spec, *weighted, hard=kind != "soft")
    if formula.absent == "all" and not weighted[0] and valid is None and spec.ignore_index is None:
        formula = formula._replace(absent="keep")  # where every pixel counts they are the same
    if multiclass:
        return multiclass_plan.ClassPlan(layout, formula, gpu)
    plan = launch.Plan(layout, formula, gpu)
    plan.single = single_plan.plan_single(layout, formula, gpu)
    return plan


def _kind_of(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "soft"
    return "signed" if dtype.is_signed else "unsigned"


def _formula(spec: LossSpec, class_weighted: bool, has_pos_weight: bool, *, hard: bool) -> Any:
    """The spec in the kernels' terms: which device functions, and their numbers."""
    from fastseg_losses.kernels import launch

    kinds = [term.name for term in spec.points]
    if len(set(kinds)) < len(kinds) or len(kinds) > 2 or len(spec.regions) > 3:
        raise ValueError(
            "the kernels' records hold a pointwise term of each kind, two in all, and three region "
            f"terms, got {spec.term_names}; use backend='torch'"
        )
    names = []
    alpha_neg, alpha_pos, gamma, smoothing = 1.0, 1.0, 0.0, 0.0
    for term in spec.points:
        if term.name == "ce":
            smoothing = term.label_smoothing
            names.append("ce")
        elif term.name == "bce":
            smoothing = term.label_smoothing
            names.append("weighted_bce" if smoothing or has_pos_weight else "bce")
        else:
            gamma = term.gamma
            if term.alpha is not None:
                alpha_neg, alpha_pos = 1.0 - term.alpha, term.alpha
            # of hard targets all kinds are one
            kind = "" if hard or spec.softmax or term.miss == "product" else f"_{term.miss}"
            names.append(f"focal{kind}_squared" if gamma == 2.0 else f"focal{kind}")
    return launch.Formula(
        points=tuple(names),
        point_weights=tuple(term.weight for term in spec.points),
        region_weights=tuple(term.weight for term in spec.regions),
        region_params=tuple(term.numbers for term in spec.regions),
        logs=tuple(term.log_loss for term in spec.regions),
        powers=tuple(term.gamma != 1 for term in spec.regions),
        term_params=(alpha_neg, alpha_pos, gamma, smoothing),
        reduction=spec.reduction,
        batch=spec.batch,
        absent=spec.absent,
        ignore_index=None if spec.ignore_index is None else float(spec.ignore_index),
        class_weighted=class_weighted,
        identity=spec.activation == "identity",
        minimum=spec.overlap == "minimum",
        squared=spec.squared,
        softmax=spec.softmax,
        first_class=0 if spec.include_background else 1,
        balanced=tuple(spec.softmax and has_pos_weight and t.name == "focal" for t in spec.points),
        smoothed=tuple(spec.softmax and t.label_smoothing > 0 for t in spec.points),
    )


def output_shapes(spec: LossSpec, logits: Tensor) -> tuple[tuple[int, ...], int]:
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
    return shapes.get(spec.reduction, ()), size + (N if multiclass else 0)
