"""Dice, Jaccard and Tversky losses as in segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastseg_losses.compat.fused import Region, fused, keeps, number
from fastseg_losses.compat.smp_inputs import (
    BINARY_MODE,
    MULTICLASS_MODE,
    MULTILABEL_MODE,
    by_mode,
    check_mode,
    only_class,
    sums_of,
    to_tensor,
)


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
        self.classes = to_tensor(classes, torch.long)
        self.from_logits = from_logits
        self.smooth = smooth
        self.eps = eps
        self.log_loss = log_loss
        self.ignore_index = ignore_index
        self.class_weights = to_tensor(class_weights, torch.float)

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
            IndexError: `classes` that there are not.
            NotImplementedError: a subclass has a `compute_score`.
        """
        weights, broadcast = self.class_weights, False
        if weights is not None:
            weights = weights.to(y_pred.device)
            broadcast = weights.shape != y_pred.shape[1:2]
        if broadcast or self._is_hooked():
            return self._aggregate(self._chosen(self._each(y_pred, y_true, "none")))
        if self.classes is not None:
            chosen = self._counts(y_pred)
            weights = chosen if weights is None else chosen * weights
        return self._power(self._each(y_pred, y_true, "mean", weights))

    def term(self, weight: float) -> Region:
        """The region term that this loss is."""
        smooth, last = number(self.smooth), (number(self.eps), 1.0)
        numbers = (*self._numbers(), smooth, 1.0, bool(self.log_loss), smooth)
        return ("tversky", number(weight), *numbers, *last)

    def is_plain(self) -> bool:
        """Whether the loss is that term's mean over all classes."""
        power = getattr(self, "gamma", 1.0)
        unweighted = self.classes is None and self.class_weights is None
        return unweighted and power == 1.0 and not self._is_hooked()

    def _numbers(self) -> tuple[float, float]:
        raise NotImplementedError

    def _is_hooked(self) -> bool:
        """Whether each class's loss is wanted, for a method of the caller's."""
        # not hasattr(self), for which nn.Module looks everywhere at every call
        if hasattr(type(self), "compute_score") or "compute_score" in self.__dict__:
            raise NotImplementedError(
                f"{type(self).__name__}.compute_score is not called: the scores are made in the "
                "kernels; override aggregate_loss, or take the loss from the package itself"
            )
        return False

    def _each(
        self, y_pred: Tensor, y_true: Tensor, reduction: str, weights: Tensor | None = None
    ) -> Tensor:
        """The loss of each class over the batch, or their mean."""
        mode, ignored, valid = self.mode, self.ignore_index, None
        activation = None if self.from_logits else "identity"
        y_pred, y_true = by_mode(mode, y_pred, y_true)
        sums = sums_of(y_true, self.from_logits)
        if mode == MULTICLASS_MODE and y_pred.shape[1] == 1:
            p, y_true, valid = only_class(y_pred, y_true, ignored)
            y_pred = p if self.from_logits else y_pred
            mode, ignored, activation = MULTILABEL_MODE, None, "identity"
        return fused(
            (y_pred, y_true, valid, weights),
            mode,
            regions=(self.term(1.0),),
            reduction=reduction,
            ignore_index=ignored,
            activation=activation,
            **sums,
        )

    def _counts(self, y_pred: Tensor) -> Tensor:
        """How often each of C classes is among `classes`; outside the GPU, which cannot raise."""
        classes = torch.as_tensor(self.classes)
        counts = torch.zeros(y_pred.shape[1], device=classes.device)
        one = torch.ones((), device=classes.device)
        return counts.index_put((classes,), one, accumulate=True).to(y_pred.device)

    def _chosen(self, values: Tensor) -> Tensor:
        return values if self.classes is None else values[self.classes]

    def _aggregate(self, losses: Tensor) -> Tensor:
        """The mean of the chosen classes' losses, weighted."""
        if self.class_weights is None:
            return losses.mean()
        weights = self._chosen(self.class_weights.to(losses.device))
        return (losses * weights).sum() / weights.sum()

    def _power(self, mean: Tensor) -> Tensor:
        """What the loss makes of that mean."""
        return mean


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
        return self._power(super()._aggregate(loss))

    def _aggregate(self, losses: Tensor) -> Tensor:
        return self.aggregate_loss(losses)

    def _numbers(self) -> tuple[float, float]:
        return 0.5, 0.5

    def _is_hooked(self) -> bool:
        return super()._is_hooked() or not keeps(self, DiceLoss, "aggregate_loss")


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

    def _numbers(self) -> tuple[float, float]:
        return number(self.alpha), number(self.beta)

    def _power(self, mean: Tensor) -> Tensor:
        return mean if self.gamma == 1.0 else mean**self.gamma
