"""The mask losses of SAM 2's training code (`training/loss_fns.py`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg_losses.compat.fused import focal_of, fused, rounded

__all__ = ["dice_loss", "iou_loss", "sigmoid_focal_loss"]


def dice_loss(
    inputs: Tensor,
    targets: Tensor,
    num_objects: float | Tensor,
    loss_on_multimask: bool = False,
) -> Tensor:
    """Dice loss of each mask, 1 - (2I + 1) / (P + T + 1), over the number of objects.

    One launch forward, one backward.

    Args:
        inputs: logits, (N, *spatial) or flattened (N, P); with loss_on_multimask (N, M, H, W).
        targets: the same number of elements a mask, in [0, 1]; of dice_loss also one mask for all.
        num_objects: what the sum is divided by, a number or a tensor of one.
        loss_on_multimask: whether each mask keeps its own value.

    Returns:
        The sum over the masks / num_objects; with loss_on_multimask (N, M) / num_objects.

    Raises:
        ValueError: loss_on_multimask and a tensor that is not (N, M, H, W).

    Source: Ravi et al. 2024, SAM 2, appendix C.2.2.

    Example:
        >>> import torch
        >>> x, t = torch.zeros(3, 16), torch.ones(3, 16)
        >>> dice_loss(x, t, num_objects=3)
        tensor(0.3200)
    """
    inputs, targets, mode = _masks(inputs, targets, loss_on_multimask)
    if targets.shape != inputs.shape and not loss_on_multimask:
        targets = targets.expand_as(inputs)
    region = ("dice", 1.0, 0.5, 0.5, 0.5)
    loss = rounded(fused((inputs, targets), mode, (), (region,), reduction="none"), inputs, targets)
    return (loss if loss_on_multimask else loss.sum()) / num_objects


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    num_objects: float | Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    loss_on_multimask: bool = False,
) -> Tensor:
    """Focal loss, the mean over each mask's pixels, over the number of objects.

    One launch forward, one backward. Of masks (N, H, W) it is the mean over H of the sums over W,
    as there.

    Args:
        inputs: see `dice_loss`.
        targets: see `dice_loss`.
        num_objects: see `dice_loss`.
        alpha: weight of the positive class, 1 - alpha for the negative; below 0: none.
        gamma: exponent, at least 0.
        loss_on_multimask: see `dice_loss`.

    Returns:
        See `dice_loss`.

    Raises:
        ValueError: as `dice_loss`; gamma below 0.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, eq. 5.

    Example:
        >>> import torch
        >>> x, t = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8).round()
        >>> sigmoid_focal_loss(x, t, num_objects=2, loss_on_multimask=True).shape
        torch.Size([2, 3])
    """
    pixels = inputs[0].numel() if inputs.shape[0] else 1
    # as there: of masks that are not flattened, the mean of each row's sums
    rows = 1.0 if loss_on_multimask or inputs.dim() < 3 else pixels / inputs.shape[1]
    inputs, targets, mode = _masks(inputs, targets, loss_on_multimask)
    point = focal_of(alpha, gamma)
    loss = rounded(fused((inputs, targets), mode, (point,), reduction="none"), inputs, targets)
    loss = loss if rows == 1.0 else loss * rows
    return (loss if loss_on_multimask else loss.sum()) / num_objects


def iou_loss(
    inputs: Tensor,
    targets: Tensor,
    pred_ious: Tensor,
    num_objects: float | Tensor,
    loss_on_multimask: bool = False,
    use_l1_loss: bool = False,
) -> Tensor:
    """How far the IoU that was predicted for each mask is from what it has, logits cut at 0.

    The masks get no gradient. Computed by PyTorch: comparisons and counts, no activation.

    Args:
        inputs: logits, (N, M, H, W).
        targets: the same shape; foreground is what exceeds 0.
        pred_ious: (N, M).
        num_objects: see `dice_loss`.
        loss_on_multimask: see `dice_loss`.
        use_l1_loss: the absolute difference in place of its square.

    Returns:
        See `dice_loss`.

    Raises:
        ValueError: a tensor that is not (N, M, H, W).

    Example:
        >>> import torch
        >>> x, t = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
        >>> iou_loss(x, t, torch.tensor([[0.5]]), num_objects=1)
        tensor(0.2500)
    """
    inputs, targets, _ = _masks(inputs, targets, multimask=True)
    predicted, actual = inputs.flatten(2) > 0, targets.flatten(2) > 0
    overlap = (predicted & actual).sum(-1).float()
    ious = overlap / (predicted | actual).sum(-1).float().clamp_min(1.0)
    difference = F.l1_loss if use_l1_loss else F.mse_loss
    loss = difference(pred_ious, ious, reduction="none")
    return (loss if loss_on_multimask else loss.sum()) / num_objects


def _masks(inputs: Tensor, targets: Tensor, multimask: bool) -> tuple[Tensor, Tensor, str]:
    """Both in one shape, and the mode that has the results wanted."""
    if multimask:
        for name, tensor in (("inputs", inputs), ("targets", targets)):
            if tensor.dim() != 4:
                raise ValueError(f"{name}: expected (N, M, H, W), got {tuple(tensor.shape)}")
        return (
            inputs,
            targets.expand(torch.broadcast_shapes(inputs.shape, targets.shape)),
            "multilabel",
        )
    return inputs.flatten(1), targets.flatten(1), "binary"
