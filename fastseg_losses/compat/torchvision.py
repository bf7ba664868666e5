"""`torchvision.ops.sigmoid_focal_loss`."""

from __future__ import annotations

from torch import Tensor

from fastseg_losses import reference
from fastseg_losses.compat.fused import computed_in, focal_of, fused, rounded
from fastseg_losses.spec import PointTerm

__all__ = ["sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    r"""Focal loss as in RetinaNet: \alpha_t (1 - p_t)^\gamma bce of every element.

    "mean" and "sum" are fused: one launch forward, one backward. "none" writes a value for every
    element and is computed by PyTorch.

    Args:
        inputs: logits of any shape, float32, float16, bfloat16 or float64.
        targets: the same shape, floating in [0, 1] (or integer, bool: not in torchvision).
        alpha: weight of the positive class, 1 - alpha for the negative; below 0: none.
        gamma: exponent, at least 0.
        reduction: "none", "mean" over all elements, or "sum".

    Returns:
        A scalar, or with "none" a tensor of the inputs' shape.

    Raises:
        ValueError: another reduction; another shape of the targets; gamma below 0.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, eq. 5.

    Example:
        >>> import torch
        >>> x, t = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8).round()
        >>> each = sigmoid_focal_loss(x, t)
        >>> torch.allclose(sigmoid_focal_loss(x, t, reduction="mean"), each.mean())
        True
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
    if inputs.shape != targets.shape:
        raise ValueError(
            f"targets: expected the inputs' shape {tuple(inputs.shape)}, got {tuple(targets.shape)}"
        )
    term = focal_of(alpha, gamma)
    if reduction == "none":
        kind = computed_in(inputs)
        each = reference.point_value(PointTerm(*term), inputs.to(kind), targets.to(kind), None)
        return rounded(each, inputs, targets)
    # with dimensions for classes kept, strides of any order are read where they are
    mode = "multilabel" if inputs.dim() > 2 else "binary"
    if inputs.dim() < 2:
        inputs, targets = inputs.reshape(1, -1), targets.reshape(1, -1)
    return rounded(fused((inputs, targets), mode, (term,), reduction=reduction), inputs, targets)
