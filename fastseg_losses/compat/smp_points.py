"""Focal loss and cross-entropies as in segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from fastseg_losses import reference
from fastseg_losses.compat.fused import flat, fused, reduced
from fastseg_losses.compat.smp_regions import BINARY_MODE, MULTICLASS_MODE, by_mode, check_mode


class FocalLoss(_Loss):
    r"""Focal loss with sigmoids, \alpha_t (1 - p_t)^\gamma bce.

    Multiclass: of each class against the rest, averaged over the classes.

    Fused for the reductions "mean" and "sum" unless `normalized` or `reduced_threshold` is given.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        alpha: weight of the positive class, 1 - alpha of the negative; None: no balance.
        gamma: exponent, at least 0.
        ignore_index: target value whose pixels do not count.
        from_logits: whether y_pred is before the activation; if not, binary and multilabel
            probabilities become logits again, and multiclass ones their logarithms.
        eps: how far those probabilities stay from 0 and 1.
        reduction: "mean", "sum", "batchwise_mean" (a sum over the samples), or none.
        normalized: divide by the sum of (1 - p_t)^gamma, then still by the number of pixels.
        reduced_threshold: the factor becomes ((1 - p_t) / threshold)^gamma, and 1 where p_t is
            below the threshold.
        class_weights: (C,), need not be normalised. Not for binary.

    Raises:
        AssertionError: another mode.
        ValueError: class weights for binary.

    Source: Lin et al. 2017, eq. 5; Sergievskiy & Ponamarev 2019 (reduced).

    Example:
        >>> import torch
        >>> criterion = FocalLoss("multiclass")
        >>> criterion(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.long))
        tensor(0.1733)
    """

    def __init__(
        self,
        mode: str,
        alpha: float | None = None,
        gamma: float | None = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        eps: float = 1e-7,
        reduction: str | None = "mean",
        normalized: bool = False,
        reduced_threshold: float | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        check_mode(mode, class_weights)
        super().__init__()
        self.mode = mode
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        self.reduction = reduction  # type: ignore[assignment]
        self.eps = eps
        self.alpha = alpha
        self.gamma = gamma
        self.normalized = normalized
        self.reduced_threshold = reduced_threshold
        self.class_weights = (
            None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float)
        )

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            y_pred: (N, C, *spatial) logits, or probabilities without `from_logits`.
            y_true: see `DiceLoss`.

        Returns:
            A scalar; with another reduction than "mean" and "sum" what is left, averaged over the
            classes.
        """
        if not self.from_logits:
            y_pred = y_pred.clamp(self.eps, 1 - self.eps)
            one_of_many = self.mode == MULTICLASS_MODE
            y_pred = y_pred.log() if one_of_many else torch.log(y_pred / (1 - y_pred))
        plain = not self.normalized and self.reduced_threshold is None
        if not plain or self.reduction not in ("mean", "sum"):
            return self._by_pytorch(y_pred, y_true)
        logits, targets = by_mode(self.mode, y_pred, y_true)
        weights = self.class_weights
        if weights is not None:
            weights = weights.to(y_pred.device)
        gamma = 2.0 if self.gamma is None else float(self.gamma)
        alpha = None if self.alpha is None else float(self.alpha)
        loss = fused(
            (logits, targets, None, weights),
            self.mode,
            (("focal", 1.0, 0.0, alpha, gamma, "likelihood"),),
            reduction=str(self.reduction),
            ignore_index=self.ignore_index,
            activation="sigmoid" if self.mode == MULTICLASS_MODE else None,
        )
        if self.reduction == "mean" or self.mode == BINARY_MODE:
            return loss
        return loss / (y_pred.shape[1] if weights is None else weights.sum())

    def _by_pytorch(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Class by class, each element's value."""
        if self.mode == BINARY_MODE:
            return self._one_class(y_pred.reshape(-1), y_true.reshape(-1), None)
        ignored = None if self.ignore_index is None else y_true == self.ignore_index
        losses = []
        for c in range(y_pred.shape[1]):
            if self.mode == MULTICLASS_MODE:
                losses.append(self._one_class(y_pred[:, c], (y_true == c).long(), ignored))
            else:
                dropped = None if ignored is None else ignored[:, c]
                losses.append(self._one_class(y_pred[:, c], y_true[:, c], dropped))
        stacked = torch.stack(losses)
        if self.class_weights is None:
            return stacked.mean()
        weights = self.class_weights.to(stacked.device)
        return (stacked * weights).sum() / weights.sum()

    def _one_class(self, x: Tensor, t: Tensor, ignored: Tensor | None) -> Tensor:
        if ignored is None and self.ignore_index is not None:
            ignored = t == self.ignore_index
        if ignored is not None:
            x, t = x[~ignored], t[~ignored]
        t = t.to(x.dtype)
        nll = reference.bce(x, t, None, 0.0)
        factor = reference.missed(x, t, "likelihood")
        gamma = 2.0 if self.gamma is None else self.gamma
        if self.reduced_threshold is None:
            factor = factor.clamp_min(1e-30) ** gamma
        else:
            power = (factor / self.reduced_threshold).clamp_min(1e-30) ** gamma
            factor = torch.where(1 - factor < self.reduced_threshold, 1.0, power)
        loss = factor * nll
        if self.alpha is not None:
            loss = loss * (self.alpha * t + (1 - self.alpha) * (1 - t))
        if self.normalized:
            loss = loss / factor.sum().clamp_min(1e-6)
        if self.reduction == "batchwise_mean":
            return loss.sum(0)
        return reduced(loss, self.reduction)


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
        one = self.pos_weight is None or self.pos_weight.numel() == 1
        if (
            self.reduction not in ("mean", "sum")
            or self.weight is not None
            or not (one or by_class)
        ):
            return self._by_pytorch(y_pred, y_true)
        mean = self.reduction == "mean"
        logits, targets = (y_pred, y_true) if by_class else flat(y_pred, y_true)
        pos_weight = None if self.pos_weight is None else self.pos_weight.flatten()
        loss = fused(
            (logits, targets, None, None, pos_weight),
            "multilabel" if by_class else "binary",
            (("bce", 1.0, 2.0 * float(self.smooth_factor or 0.0)),),
            reduction="mean" if mean and self.ignore_index is None else "sum",
            ignore_index=self.ignore_index,
        )
        return loss / y_pred.numel() if mean and self.ignore_index is not None else loss

    def _weighs_classes(self, y_pred: Tensor) -> bool:
        """Whether pos_weight has a value for each channel: (C, 1, ...) or (1, C, 1, ...)."""
        if self.pos_weight is None or y_pred.dim() < 3:
            return False
        shape = tuple(self.pos_weight.shape)
        each = (y_pred.shape[1], *(1,) * (y_pred.dim() - 2))
        return shape in (each, (1, *each))

    def _by_pytorch(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
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
        if self.dim != 1 or self.reduction not in ("mean", "sum"):
            return self._by_pytorch(y_pred, y_true)
        mean = self.reduction == "mean"
        logits, targets = y_pred.flatten(2), y_true.reshape(y_pred.shape[0], -1)
        loss = fused(
            (logits, targets),
            "multiclass",
            (("ce", 1.0, float(self.smooth_factor or 0.0)),),
            reduction="mean" if mean and self.ignore_index is None else "sum",
            ignore_index=self.ignore_index,
        )
        return loss / targets.numel() if mean and self.ignore_index is not None else loss

    def _by_pytorch(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        log_p = F.log_softmax(y_pred, self.dim)
        e = float(self.smooth_factor or 0.0)
        ids = y_true.unsqueeze(self.dim) if y_true.dim() == y_pred.dim() - 1 else y_true
        ignored = None if self.ignore_index is None else ids == self.ignore_index
        known = ids if ignored is None else ids.masked_fill(ignored, 0)
        nll = -log_p.gather(self.dim, known)
        loss = (1 - e) * nll - e / log_p.shape[self.dim] * log_p.sum(self.dim, keepdim=True)
        # as there: without an ignore_index the classes' dimension is gone
        loss = loss.squeeze(self.dim) if ignored is None else loss.masked_fill(ignored, 0.0)
        return reduced(loss, self.reduction)
