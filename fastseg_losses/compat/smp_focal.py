"""Focal loss as in segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastseg_losses import reference
from fastseg_losses.compat.fused import Point, computed_in, fused, number, reduced
from fastseg_losses.compat.smp_inputs import (
    BINARY_MODE,
    MULTICLASS_MODE,
    MULTILABEL_MODE,
    by_mode,
    check_mode,
    to_tensor,
)


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
        ValueError: class weights for binary; at the call, sizes that do not fit.

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
        self.class_weights = to_tensor(class_weights, torch.float)

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
            y_pred = y_pred.to(computed_in(y_pred))  # 1 - eps is 1 in half precision
            y_pred = y_pred.clamp(self.eps, 1 - self.eps)
            one_of_many = self.mode == MULTICLASS_MODE
            y_pred = y_pred.log() if one_of_many else torch.log(y_pred / (1 - y_pred))
        weights = self.class_weights
        if weights is not None:
            weights = weights.to(y_pred.device)
        broadcast = weights is not None and weights.shape != y_pred.shape[1:2]
        if broadcast or self._is_reshaped() or self.reduction not in ("mean", "sum"):
            return self._by_pytorch(y_pred, y_true)
        if y_true.shape[:1] != y_pred.shape[:1]:
            if self.mode != BINARY_MODE or y_true.numel() != y_pred.numel():
                raise ValueError(
                    f"y_true: expected as many elements as y_pred {tuple(y_pred.shape)}, got "
                    f"{tuple(y_true.shape)}"
                )
            y_pred, y_true = y_pred.reshape(1, -1), y_true.reshape(1, -1)
        mode, ignored, valid = self.mode, self.ignore_index, None
        logits, targets = by_mode(mode, y_pred, y_true)
        activation = "sigmoid" if mode == MULTICLASS_MODE else None
        if mode == MULTICLASS_MODE and logits.shape[1] == 1:
            valid = None if ignored is None else targets != ignored
            mode, ignored, activation = MULTILABEL_MODE, None, None
            targets = (targets == 0)[:, None]
        loss = fused(
            (logits, targets, valid, weights),
            mode,
            (self.term(1.0),),
            reduction=str(self.reduction),
            ignore_index=ignored,
            activation=activation,
        )
        if self.reduction == "mean" or self.mode == BINARY_MODE:
            return loss
        return loss / (y_pred.shape[1] if weights is None else weights.sum())

    def term(self, weight: float) -> Point:
        """The pointwise term that this loss is."""
        gamma = 2.0 if self.gamma is None else number(self.gamma)
        alpha = None if self.alpha is None else number(self.alpha)
        return ("focal", number(weight), 0.0, alpha, gamma, "likelihood")

    def is_plain(self) -> bool:
        """Whether the loss is that term's mean over all elements, with sigmoids."""
        usual = self.class_weights is None and self.reduction == "mean" and self.from_logits
        return usual and not self._is_reshaped()

    def _is_reshaped(self) -> bool:
        return self.normalized or self.reduced_threshold is not None

    def _by_pytorch(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Class by class, each element's value."""
        y_pred = y_pred.to(computed_in(y_pred))
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
