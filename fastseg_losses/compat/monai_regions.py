"""Dice, Tversky and generalised Dice losses as in MONAI."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastseg_losses.compat.monai_inputs import (
    Call,
    check_activation,
    check_reduction,
    check_weight,
    class_weight,
    prepare,
    run,
)


def region(
    alpha: float, beta: float, smooth_nr: float, smooth_dr: float, weight: float = 1.0
) -> tuple[Any, ...]:
    """The fields of a RegionTerm."""
    return ("tversky", weight, alpha, beta, smooth_nr, 1.0, False, smooth_dr)


class _RegionLoss(_Loss):
    """Flags that all of them have."""

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable | None,
        reduction: Any,
        smooth_nr: float,
        smooth_dr: float,
        batch: bool,
        soft_label: bool,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=check_reduction(reduction))
        check_activation(sigmoid, softmax, other_act)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.soft_label = soft_label
        self.ignore_index = ignore_index

    def _prepare(self, input: Tensor, target: Tensor, **more: Any) -> Call:
        return prepare(
            input,
            target,
            include_background=self.include_background,
            to_onehot_y=self.to_onehot_y,
            sigmoid=self.sigmoid,
            softmax=self.softmax,
            other_act=self.other_act,
            **{"ignore_index": self.ignore_index, **more},
        )

    def _overlap(self) -> str:
        return "minimum" if self.soft_label else "product"


class DiceLoss(_RegionLoss):
    r"""Dice loss of each (sample, channel), 1 - (2I + nr) / (P + T + dr).

    I = \sum p t, P = \sum p, T = \sum t. All of it fused; other_act is computed by PyTorch.

    Args:
        include_background: whether channel 0 has a loss.
        to_onehot_y: targets are labels (B, 1, *spatial), read as they are.
        sigmoid: apply a sigmoid; none of the three: the input holds probabilities.
        softmax: apply a softmax over the channels.
        other_act: apply this.
        squared_pred: P and T are sums of squares.
        jaccard: 1 - (2I + nr) / (2 (P + T - I) + dr).
        reduction: "mean" over (sample, channel) pairs, "sum", or "none", (B, C, 1, ...).
        smooth_nr: nr.
        smooth_dr: dr.
        batch: sum over the batch first; "none" is then (C, 1, ...).
        weight: a number, or one a channel that has a loss; multiplies, is not normalised.
        soft_label: I = \sum \min(p, t), right for soft targets.
        ignore_index: label that does not count. One-hot targets: the channel whose pixels do not,
            or for a number that is none, pixels of no class do not.

    Raises:
        TypeError: other_act cannot be called.
        ValueError: more than one activation; an unknown reduction; weights of another number.

    Example:
        >>> import torch
        >>> criterion = DiceLoss(to_onehot_y=True, softmax=True)
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.uint8))
        tensor(0.6667)
    """

    class_weight: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: Any = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | float | int | Tensor | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        flags = (include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        super().__init__(*flags, smooth_nr, smooth_dr, batch, soft_label, ignore_index)
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.register_buffer("class_weight", check_weight(weight))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, C, *spatial).
            target: (B, C, *spatial), or (B, 1, *spatial) labels with to_onehot_y.

        Raises:
            AssertionError: shapes that do not fit.
        """
        return self._loss(self._prepare(input, target), input.dim() - 2)

    def term(self, weight: float = 1.0) -> tuple[Any, ...]:
        """The region term that this loss is."""
        share = 1.0 if self.jaccard else 0.5
        return region(share, share, self.smooth_nr / 2, self.smooth_dr / 2, weight)

    def sums(self) -> dict[str, Any]:
        """How I, P and T are summed up."""
        overlap = "product" if self.squared_pred else self._overlap()
        return {"batch": self.batch, "overlap": overlap, "squared": self.squared_pred}

    def _loss(self, call: Call, space: int) -> Tensor:
        weight = class_weight(call, self.class_weight)
        loss = run(call, (), (self.term(),), self.reduction, weight, **self.sums())
        return loss.reshape(*loss.shape, *(1,) * space) if self.reduction == "none" else loss


class MaskedDiceLoss(DiceLoss):
    """Dice loss of the pixels that a mask leaves; see `DiceLoss`, which has the arguments.

    Labels outside the mask become background, as there: with `include_background` they are a
    background that was not predicted.

    Example:
        >>> import torch
        >>> criterion = MaskedDiceLoss(sigmoid=True)
        >>> mask = torch.tensor([1.0, 0.0]).expand(1, 1, 4, 2)
        >>> criterion(torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2), mask)
        tensor(0.3333)
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: Any = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | float | int | Tensor | None = None,
        soft_label: bool = False,
    ) -> None:
        flags = (
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            squared_pred,
            jaccard,
        )
        super().__init__(*flags, reduction, smooth_nr, smooth_dr, batch, weight, soft_label)

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            input: see `DiceLoss`, as for target.
            target: see there.
            mask: (B, 1, *spatial) or (1, 1, *spatial), 0 where a pixel does not count.

        Raises:
            ValueError: a mask of another batch size or of several channels.
        """
        if mask is None:
            warnings.warn("No mask value specified for the MaskedLoss.", stacklevel=2)
            return super().forward(input, target)
        if input.shape[0] != mask.shape[0] and mask.shape[0] != 1:
            raise ValueError(
                f"Batch size of mask ({mask.shape}) must be one or equal to input ({input.shape})."
            )
        if mask.shape[1] != 1:
            raise ValueError(f"Mask ({mask.shape}) must have only one channel.")
        valid = (mask != 0).expand(input.shape[0], 1, *input.shape[2:])
        space = input.dim() - 2
        if not (self.to_onehot_y and self.include_background and input.shape[1] > 1):
            return self._loss(self._prepare(input, target, valid=valid), space)
        p = torch.sigmoid(input) if self.sigmoid else input
        p = torch.softmax(p, 1) if self.softmax else p
        p = p if self.other_act is None else self.other_act(p)
        as_is: dict[str, Any] = {"sigmoid": False, "softmax": False, "to_onehot_y": True}
        call = prepare(p * valid, target * valid, include_background=True, **as_is)
        return self._loss(call, space)


class TverskyLoss(_RegionLoss):
    """Tversky loss of each (sample, channel), 1 - (I + nr) / (I + alpha FP + beta FN + dr).

    Args:
        include_background: see `DiceLoss`, as for all that is not named here.
        to_onehot_y: see there.
        sigmoid: see there.
        softmax: see there.
        other_act: see there.
        alpha: weight of false positives.
        beta: weight of false negatives.
        reduction: "none" gives (B, C), with batch (C,).
        smooth_nr: nr.
        smooth_dr: dr.
        batch: see there.
        soft_label: see there.
        ignore_index: see there.

    Example:
        >>> import torch
        >>> criterion = TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7)
        >>> criterion(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(0.4118)
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: Any = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        flags = (include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        super().__init__(*flags, smooth_nr, smooth_dr, batch, soft_label, ignore_index)
        self.alpha = alpha
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss; see `DiceLoss`."""
        call = self._prepare(input, target)
        numbers = (float(self.alpha), float(self.beta), self.smooth_nr, self.smooth_dr)
        sums: dict[str, Any] = {"batch": self.batch, "overlap": self._overlap()}
        weight = class_weight(call, None)
        return run(call, (), (region(*numbers),), self.reduction, weight, **sums)
