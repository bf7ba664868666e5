"""Specs, dtypes and devices in the kernels' terms."""

from __future__ import annotations

from typing import Any

import torch

from fastseg_losses.inputs import Sizes
from fastseg_losses.spec import LossSpec
from fastseg_losses.state import index_of

# Kernels count pixels of a group and groups in 32 bits; offsets beyond a group have 64.
MAX_PIXELS = 2**31 - 2**20
MAX_GROUPS = 2**26
# A tile of the multiclass kernels holds all classes: 32 lanes of 32.
MAX_CLASSES = 1024


def check_sizes(spec: LossSpec, sizes: Sizes) -> None:
    """Check that the kernels' counters and tiles hold a call of these sizes.

    Raises:
        ValueError: they do not.
    """
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


def device_of(device: torch.device) -> Any:
    """What a plan must know of the device."""
    from fastseg_losses.kernels import launch

    multiprocessors = 1
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    ptx = device.type == "cuda" and torch.version.hip is None
    hopper = ptx and torch.cuda.get_device_capability(device) == (9, 0)
    return launch.Device(multiprocessors, ptx, hopper, index_of(device))


def kind_of(dtype: torch.dtype) -> str:
    """What kind of targets a dtype holds, see launch.Layout."""
    if dtype.is_floating_point:
        return "soft"
    return "signed" if dtype.is_signed else "unsigned"


def formula_of(spec: LossSpec, class_weighted: bool, has_pos_weight: bool, *, hard: bool) -> Any:
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
