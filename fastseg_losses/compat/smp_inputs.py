"""What segmentation_models_pytorch's losses take, brought to what the kernels take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseg_losses.compat.fused import flat

BINARY_MODE = "binary"
MULTICLASS_MODE = "multiclass"
MULTILABEL_MODE = "multilabel"


def check_mode(mode: str, class_weights: Any) -> None:
    """As there.

    Raises:
        AssertionError: no such mode.
        ValueError: class weights for one class.
    """
    if mode not in (BINARY_MODE, MULTICLASS_MODE, MULTILABEL_MODE):
        raise AssertionError(f"mode: expected 'binary', 'multiclass' or 'multilabel', got {mode!r}")
    if class_weights is not None and mode == BINARY_MODE:
        raise ValueError("class_weights are not supported with mode=binary")


def to_tensor(values: Any, dtype: torch.dtype) -> Tensor | None:
    """A list, an array or a tensor as a tensor of that dtype; as there, None of anything else."""
    if isinstance(values, (Tensor, list, tuple)) or hasattr(values, "__array__"):
        return torch.as_tensor(values).to(dtype)
    return None


def by_mode(mode: str, y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and targets in the shapes that the mode has here; no copy of what is packed.

    Without spatial dimensions every sample has one pixel.

    Raises:
        AssertionError: batches of different sizes.
        TypeError: multiclass targets that are no class ids.
    """
    if y_true.shape[0] != y_pred.shape[0]:
        raise AssertionError(
            f"y_true: expected a batch of {y_pred.shape[0]} as y_pred, got {y_true.shape[0]}"
        )
    if mode == BINARY_MODE:
        return flat(y_pred, y_true)
    if mode == MULTICLASS_MODE and y_true.is_floating_point():
        y_true = y_true.long()
    if y_pred.dim() > 2 and y_true.shape == pixels_of(mode, y_pred.shape):
        return y_pred, y_true  # as in `flat`
    y_pred = y_pred.flatten(2) if y_pred.dim() > 2 else y_pred[..., None]
    return y_pred, y_true.reshape(pixels_of(mode, y_pred.shape))


def pixels_of(mode: str, shape: torch.Size) -> tuple[int, ...]:
    """The shape of targets for logits of this one."""
    return shape if mode == MULTILABEL_MODE else (shape[0], *shape[2:])


def only_class(
    y_pred: Tensor, y_true: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A softmax over one class as probabilities of one label, 1; targets and valid as for labels.

    Targets that name no class become -1, which is an error wherever it is read.
    """
    valid = None if ignore_index is None else y_true != ignore_index
    return torch.softmax(y_pred, 1), torch.where(y_true == 0, 1, -1)[:, None], valid


def sums_of(y_true: Tensor, from_logits: bool) -> dict[str, Any]:
    """How the sums of the region losses are taken, and which classes count.

    min(p, t) is p t where targets are hard, but for probabilities that are exactly 0 or 1. A class
    without a target loses nothing and counts in the mean.
    """
    soft = y_true.is_floating_point() or not from_logits
    overlap = "minimum" if soft else "product"
    return {"batch": True, "absent": "zero", "overlap": overlap}
