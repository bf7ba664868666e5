"""Logits of a lower resolution than the targets: sizes, checks, and the interpolation itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg_losses.inputs import Inputs
from fastseg_losses.spec import LossSpec

# F.interpolate's names of what is linear along each axis, by the number of spatial axes.
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def interpolate(
    logits: Tensor, size: tuple[int, ...], upsample: str, *, align_corners: bool = False
) -> Tensor:
    """`F.interpolate` to a spatial size, linear along every axis or nearest; float32 at least.

    Args:
        logits: (N, C, *spatial) or (N, *spatial), any floating dtype.
        size: the spatial size of the result.
        upsample: "bilinear" (in 1-D linear, in 3-D trilinear) or "nearest".
        align_corners: see `torch.nn.functional.interpolate`.

    Returns:
        (N, C, *size) or (N, *size), float32, or float64 for float64 logits.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    x = x if logits.dim() == len(size) + 2 else x[:, None]
    if upsample == "nearest":
        full = F.interpolate(x, size=size, mode="nearest")
    else:
        full = F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=align_corners)
    return full if logits.dim() == len(size) + 2 else full[:, 0]


def spatial_size(mode: str, logits: Tensor) -> tuple[int, ...]:
    """The logits' spatial size, read as the losses read it: (N, 1, *) and (N, *) in binary mode."""
    shape = tuple(logits.shape)
    channel = mode != "binary" or len(shape) > 1 and shape[1] == 1
    return shape[2 if channel else 1 :]


def full_size(spec: LossSpec, logits: Tensor, targets: Tensor) -> tuple[int, ...]:
    """The spatial size of the targets, which the logits are brought to.

    Raises:
        TypeError: something is no tensor.
        ValueError: the targets have another number of axes, or a smaller size.
    """
    for name, tensor in (("logits", logits), ("targets", targets)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    low = spatial_size(spec.mode, logits)
    asked = f"upsample={spec.upsample!r}"
    if len(low) not in LINEAR or min(low) < 1:
        raise ValueError(
            f"logits: expected 1-D to 3-D space with {asked}, got shape {tuple(logits.shape)}"
        )
    size = tuple(targets.shape[max(0, targets.dim() - len(low)) :])
    if len(size) < len(low) or targets.dim() - len(low) not in (1, 2):
        raise ValueError(
            f"targets: expected {len(low)}-D space as the logits of shape {tuple(logits.shape)}, "
            f"got shape {tuple(targets.shape)}"
        )
    if any(large < small for large, small in zip(size, low, strict=True)):
        raise ValueError(
            f"targets: expected a spatial size of at least the logits' {low} with {asked} (to "
            f"lower the resolution is not offered), got {size}"
        )
    return size


def full_spec(spec: LossSpec, inputs: Inputs) -> LossSpec:
    """The spec, or that of logits at the targets' size where they have it already."""
    logits, targets = inputs[:2]
    size = full_size(spec, logits, targets)
    return spec.full if size == spatial_size(spec.mode, logits) else spec


def stand_in(spec: LossSpec, logits: Tensor, targets: Tensor) -> Tensor:
    """A tensor of one element that has the shape of the upsampled logits, for checks of shapes."""
    size = full_size(spec, logits, targets)
    shape = (*logits.shape[: logits.dim() - len(size)], *size)
    return logits.new_empty(()).expand(shape)


def upsampled(spec: LossSpec, inputs: Inputs) -> tuple[LossSpec, Inputs]:
    """The same loss on logits of the targets' size, computed by PyTorch."""
    logits, *rest = inputs
    size = full_size(spec, logits, rest[0])  # type: ignore[arg-type]
    assert spec.upsample is not None
    full = interpolate(logits, size, spec.upsample, align_corners=spec.align_corners)
    return spec.full, (full, *rest)  # type: ignore[return-value]
