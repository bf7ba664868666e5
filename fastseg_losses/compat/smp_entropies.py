"""Cross-entropies as in segmentation_models_pytorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg_losses.compat.fused import computed_in, flat, fused, mean_factor, number, reduced
from fastseg_losses.compat.smp_inputs import MULTICLASS_MODE, by_mode


class SoftBCEWithLogitsLoss(nn.Module):
    """Binary cross-entropy whose mean is over all elements, those that are ignored among them.

    Fused for the reductions "mean" and "sum" without `weight` and with a pos_weight of one value or
    one a class, (C, 1, 1).

    Args:
        weight: of each element, broadcast.
        ignore_index: target value whose elements are 0.
        reduction: "mean", "sum"; anything else: each element's value.
        smooth_factor: s; the target t becomes t (1 - s) + (1 - t) s.
        pos_weight: weight of the positive class, broadcast.

    Example:
        >>> import torch
        >>> criterion = SoftBCEWithLogitsLoss(smooth_factor=0.1)
        >>> criterion(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
        tensor(0.6931)
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.smooth_factor = smooth_factor
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            y_pred: logits of any shape.
            y_true: the same shape; 0 and 1, or soft.

        Returns:
            A scalar, or each element's value.

        Raises:
            ValueError: shapes that differ.
        """
        if y_pred.shape != y_true.shape:
            raise ValueError(
                f"y_true: expected y_pred's shape {tuple(y_pred.shape)}, got {tuple(y_true.shape)}"
            )
        by_class = self._weighs_classes(y_pred)
        pos_weight = self.pos_weight
        if (
            self.reduction not in ("mean", "sum")
            or self.weight is not None
            or not (pos_weight is None or by_class or pos_weight.numel() == 1)
        ):
            return self._by_pytorch(y_pred, y_true)
        mean = self.reduction == "mean"
        logits, targets = (y_pred, y_true) if by_class else flat(y_pred, y_true)
        if pos_weight is not None:
            pos_weight = pos_weight.flatten()
        weight, factor = mean_factor(y_pred.numel()) if mean else (1.0, 1.0)
        loss = fused(
            (logits, targets, None, None, pos_weight),
            "multilabel" if by_class else "binary",
            (("bce", weight, 2.0 * number(self.smooth_factor or 0.0)),),
            reduction="sum",
            ignore_index=self.ignore_index,
        )
        return loss if factor == 1.0 else loss * factor

    def _weighs_classes(self, y_pred: Tensor) -> bool:
        """Whether pos_weight has a value for each channel: (C, 1, ...) or (1, C, 1, ...)."""
        if self.pos_weight is None or y_pred.dim() < 3:
            return False
        shape = tuple(self.pos_weight.shape)
        each = (y_pred.shape[1], *(1,) * (y_pred.dim() - 2))
        return shape in (each, (1, *each))

    def _by_pytorch(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        y_pred = y_pred.to(computed_in(y_pred))
        targets = y_true.to(y_pred.dtype)
        if self.smooth_factor is not None:
            targets = (1 - targets) * self.smooth_factor + targets * (1 - self.smooth_factor)
        loss = F.binary_cross_entropy_with_logits(
            y_pred, targets, self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        if self.ignore_index is not None:
            loss = torch.where(y_true == self.ignore_index, 0.0, loss)
        return reduced(loss, self.reduction)


class SoftCrossEntropyLoss(nn.Module):
    """Cross-entropy whose mean is over all pixels, those that are ignored among them.

    Fused for the reductions "mean" and "sum" with classes along dimension 1.

    Args:
        reduction: "mean", "sum"; anything else: each pixel's value.
        smooth_factor: e; the target becomes t (1 - e) + e / C. None: no smoothing (there an error).
        ignore_index: class id whose pixels are 0.
        dim: along which the classes lie.

    Example:
        >>> import torch
        >>> criterion = SoftCrossEntropyLoss(smooth_factor=0.1)
        >>> criterion(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.long))
        tensor(1.0986)
    """

    def __init__(
        self,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        ignore_index: int | None = -100,
        dim: int = 1,
    ) -> None:
        super().__init__()
        self.smooth_factor = smooth_factor
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.dim = dim

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            y_pred: (N, C, *spatial) logits.
            y_true: class ids (N, *spatial) or (N, 1, *spatial).

        Returns:
            A scalar, or each pixel's value.
        """
        if self.dim != 1 or self.reduction not in ("mean", "sum") or y_pred.shape[1] == 1:
            return self._by_pytorch(y_pred, y_true)
        mean = self.reduction == "mean"
        logits, targets = by_mode(MULTICLASS_MODE, y_pred, y_true)
        weight, factor = mean_factor(targets.numel()) if mean else (1.0, 1.0)
        loss = fused(
            (logits, targets),
            "multiclass",
            (("ce", weight, number(self.smooth_factor or 0.0)),),
            reduction="sum",
            ignore_index=self.ignore_index,
        )
        return loss if factor == 1.0 else loss * factor

    def _by_pytorch(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        log_p = F.log_softmax(y_pred.to(computed_in(y_pred)), self.dim)
        e = float(self.smooth_factor or 0.0)
        ids = y_true.unsqueeze(self.dim) if y_true.dim() == y_pred.dim() - 1 else y_true
        ignored = None if self.ignore_index is None else ids == self.ignore_index
        known = ids if ignored is None else ids.masked_fill(ignored, 0)
        nll = -log_p.gather(self.dim, known)
        loss = (1 - e) * nll - e / log_p.shape[self.dim] * log_p.sum(self.dim, keepdim=True)
        # as there: without an ignore_index the classes' dimension is gone
        loss = loss.squeeze(self.dim) if ignored is None else loss.masked_fill(ignored, 0.0)
        return reduced(loss, self.reduction)
