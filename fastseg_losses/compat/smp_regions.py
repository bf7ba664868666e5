"""Dice, Jaccard and Tversky losses as in segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastseg_losses.compat.fused import Region, flat, fused

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


def by_mode(mode: str, y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and targets in the shapes that the mode has here; no copy of what is packed.

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
    y_pred = y_pred.flatten(2)
    if mode == MULTILABEL_MODE:
        return y_pred, y_true.reshape(y_pred.shape)
    if y_true.is_floating_point():
        y_true = y_true.long()
    return y_pred, y_true.reshape(y_pred.shape[0], -1)


def sums_of(y_true: Tensor, from_logits: bool) -> dict[str, Any]:
    """How the sums of the region losses are taken, and which classes count.

    min(p, t) is p t where targets are hard, but for probabilities that are exactly 0 or 1. A class
    without a target loses nothing and counts in the mean.
    """
    soft = y_true.is_floating_point() or not from_logits
    overlap = "minimum" if soft else "product"
    return {"batch": True, "absent": "zero", "overlap": overlap}


class _RegionLoss(_Loss):
    """What the three have in common; `_numbers` gives (alpha, beta)."""

    def __init__(
        self,
        mode: str,
        classes: Sequence[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        check_mode(mode, class_weights)
        super().__init__()
        if classes is not None and mode == BINARY_MODE:
            raise AssertionError("Masking classes is not supported with mode=binary")
        self.mode = mode
        self.classes = None if classes is None else torch.as_tensor(classes, dtype=torch.long)
        self.from_logits = from_logits
        self.smooth = smooth
        self.eps = eps
        self.log_loss = log_loss
        self.ignore_index = ignore_index
        self.class_weights = (
            None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float)
        )

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            y_pred: (N, C, *spatial) logits, or probabilities without `from_logits`.
            y_true: binary: as many elements as y_pred; multilabel: y_pred's shape; both 0 and 1 of
                any dtype, or soft. Multiclass: class ids (N, *spatial) or (N, 1, *spatial).

        Returns:
            A scalar.

        Raises:
            AssertionError: batches of different sizes.
        """
        weights = self._weights(y_pred)
        if self._is_hooked():
            return self._hooked(self._each(y_pred, y_true, "none"))
        return self._each(y_pred, y_true, "mean", weights)

    def term(self, weight: float) -> Region:
        """The region term that this loss is."""
        smooth, last = float(self.smooth), (float(self.eps), 1.0)
        numbers = (*self._numbers(), smooth, 1.0, bool(self.log_loss), smooth)
        return ("tversky", weight, *numbers, *last)

    def is_plain(self) -> bool:
        """Whether the loss is that term's mean over all classes."""
        power = getattr(self, "gamma", 1.0)
        unweighted = self.classes is None and self.class_weights is None
        return unweighted and power == 1.0 and not self._is_hooked()

    def _numbers(self) -> tuple[float, float]:
        raise NotImplementedError

    def _is_hooked(self) -> bool:
        """Whether each class's loss is wanted, for Python to make one number of."""
        return False

    def _hooked(self, losses: Tensor) -> Tensor:
        raise NotImplementedError

    def _each(
        self, y_pred: Tensor, y_true: Tensor, reduction: str, weights: Tensor | None = None
    ) -> Tensor:
        """The loss of each class over the batch, or their mean."""
        y_pred, y_true = by_mode(self.mode, y_pred, y_true)
        return fused(
            (y_pred, y_true, None, weights),
            self.mode,
            regions=(self.term(1.0),),
            reduction=reduction,
            ignore_index=self.ignore_index,
            activation=None if self.from_logits else "identity",
            **sums_of(y_true, self.from_logits),
        )

    def _weights(self, y_pred: Tensor) -> Tensor | None:
        """One weight for each of C classes; 0 for those that are not among `classes`."""
        weights = self.class_weights
        if weights is not None:
            weights = weights.to(y_pred.device)
        if self.classes is None:
            return weights
        classes = self.classes.to(y_pred.device)
        counts = torch.zeros(y_pred.shape[1], device=y_pred.device)
        chosen = counts.index_add(
            0, classes % y_pred.shape[1], torch.ones_like(classes, dtype=torch.float)
        )
        return chosen if weights is None else chosen * weights


class DiceLoss(_RegionLoss):
    r"""Dice loss of each class over the whole batch, 1 - (I + s) / (P / 2 + T / 2 + s), averaged.

    I = \sum \min(p, t), which is \sum p t where targets are hard; a class without a target pixel in
    the batch costs nothing.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        classes: which classes count; None: all. Not for binary.
        log_loss: -log(score) in place of 1 - score.
        from_logits: whether y_pred is before the activation.
        smooth: s, which counts twice what `fastseg_losses.DiceLoss` means by it.
        ignore_index: target value whose pixels do not count.
        eps: least denominator, and least score under the logarithm.
        class_weights: (C,), need not be normalised. Not for binary.

    Raises:
        AssertionError: another mode, or classes for binary.
        ValueError: class weights for binary.

    Example:
        >>> import torch
        >>> criterion = DiceLoss("binary")
        >>> criterion(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
        tensor(0.3333)
    """

    def aggregate_loss(self, loss: Tensor) -> Tensor:
        """The mean of the classes' losses, weighted; a subclass may do otherwise."""
        return self._mean(loss)

    def _mean(self, loss: Tensor) -> Tensor:
        if self.class_weights is None:
            return loss.mean()
        weights = self.class_weights.to(loss.device)
        if self.classes is not None:
            weights = weights[self.classes.to(loss.device)]
        return (loss * weights).sum() / weights.sum()

    def _numbers(self) -> tuple[float, float]:
        return 0.5, 0.5

    def _is_hooked(self) -> bool:
        return type(self).aggregate_loss.__module__ != __name__  # a subclass's

    def _hooked(self, losses: Tensor) -> Tensor:
        chosen = losses if self.classes is None else losses[self.classes.to(losses.device)]
        return self.aggregate_loss(chosen)


class JaccardLoss(_RegionLoss):
    """Jaccard loss of each class over the whole batch, 1 - (I + s) / (P + T - I + s), averaged.

    Arguments and errors as in `DiceLoss`.

    Example:
        >>> import torch
        >>> criterion = JaccardLoss("multiclass", smooth=1.0)
        >>> logits = torch.zeros(1, 2, 4, 4)
        >>> criterion(logits, torch.tensor([0, 1]).expand(1, 8, 2).reshape(1, 4, 4))
        tensor(0.6154)
    """

    def _numbers(self) -> tuple[float, float]:
        return 1.0, 1.0


class TverskyLoss(DiceLoss):
    """Tversky loss, (mean of 1 - (I + s) / (I + alpha FP + beta FN + s)) ** gamma.

    The power is that of the mean; `fastseg_losses.TverskyLoss` takes it of each class.

    Args:
        mode: as in `DiceLoss`, like all that is not named here.
        classes: see there.
        log_loss: see there.
        from_logits: see there.
        smooth: see there.
        ignore_index: see there.
        eps: see there.
        alpha: weight of false positives.
        beta: weight of false negatives.
        gamma: the power.
        class_weights: see there.

    Example:
        >>> import torch
        >>> criterion = TverskyLoss("binary", alpha=0.3, beta=0.7)
        >>> criterion(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
        tensor(0.4118)
    """

    def __init__(
        self,
        mode: str,
        classes: Sequence[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights
        )
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Compute the loss; see `DiceLoss`."""
        loss = super().forward(y_pred, y_true)
        return loss if self.gamma == 1.0 or self._is_hooked() else loss**self.gamma

    def aggregate_loss(self, loss: Tensor) -> Tensor:
        """The power of the mean of the classes' losses; a subclass may do otherwise."""
        return self._mean(loss) ** self.gamma

    def _numbers(self) -> tuple[float, float]:
        return float(self.alpha), float(self.beta)
