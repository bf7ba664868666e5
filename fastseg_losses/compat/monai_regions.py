"""Dice and Tversky losses as in MONAI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastseg_losses.compat.fused import number, reduced
from fastseg_losses.compat.monai_inputs import (
    Call,
    as_one_group,
    check_activation,
    check_length,
    check_reduction,
    check_weight,
    class_weight,
    prepare,
    run,
)
from fastseg_losses.ops_relay import Relay


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
            **{
                "to_onehot_y": self.to_onehot_y,
                "sigmoid": self.sigmoid,
                "softmax": self.softmax,
                "other_act": self.other_act,
                "ignore_index": self.ignore_index,
                **more,
            },
        )

    def _is_one_group(self, input: Tensor) -> bool:
        """Whether everything is summed up: without space there is no axis to sum over."""
        return input.dim() == 2 and not self.batch

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
        reduction: "mean" over (sample, channel) pairs, "sum", or "none", (B, C, 1, ...). Of inputs
            (B, C) without `batch` there is one Dice of everything, as there.
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
        return self._loss(self._prepare(input, target), input)

    def term(self, weight: float = 1.0) -> tuple[Any, ...]:
        """The region term that this loss is."""
        share = 1.0 if self.jaccard else 0.5
        smooth = number(self.smooth_nr) / 2, number(self.smooth_dr) / 2
        return region(share, share, *smooth, number(weight))

    def sums(self) -> dict[str, Any]:
        """How I, P and T are summed up."""
        overlap = "product" if self.squared_pred else self._overlap()
        return {"batch": self.batch, "overlap": overlap, "squared": self.squared_pred}

    def _loss(self, call: Call, input: Tensor, relay: Relay | None = None) -> Tensor:
        if self._is_one_group(input):
            loss = run(as_one_group(call), (), (self.term(),), "sum", **self.sums())
            if self.class_weight is None or call.classes == 1:
                return loss
            check_length(self.class_weight, call.classes)
            losses = loss * self.class_weight.to(loss).expand(call.classes)
            return reduced(losses, self.reduction)
        weight = class_weight(call, self.class_weight)
        loss = run(call, (), (self.term(),), self.reduction, weight, through=relay, **self.sums())
        if self.reduction != "none":
            return loss
        return loss.reshape(*loss.shape, *(1,) * (input.dim() - 2))


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
        reduction: "none" gives (B, C), with batch (C,), without space ().
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
        weights = number(self.alpha), number(self.beta)
        term = region(*weights, number(self.smooth_nr), number(self.smooth_dr))
        sums: dict[str, Any] = {"batch": self.batch, "overlap": self._overlap()}
        if self._is_one_group(input):
            return run(as_one_group(call), (), (term,), "sum", **sums)
        weight = class_weight(call, None)
        return run(call, (), (term,), self.reduction, weight, **sums)
