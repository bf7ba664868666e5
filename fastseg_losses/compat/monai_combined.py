"""DiceCE, DiceFocal and deep supervision as in MONAI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastseg_losses.compat.fused import flat, fused
from fastseg_losses.compat.monai_inputs import check_reduction, class_weight, run
from fastseg_losses.compat.monai_points import FocalLoss
from fastseg_losses.compat.monai_regions import DiceLoss


def _check_lambda(name: str, value: float) -> float:
    if value < 0.0:
        raise ValueError(f"{name} should be no less than 0.0.")
    return value


def _check_shapes(input: Tensor, target: Tensor) -> None:
    """As there.

    Raises:
        ValueError: dimensions or channels that do not fit.
    """
    if input.dim() != target.dim():
        raise ValueError(
            "the number of dimensions for input and target should be the same, got shape "
            f"{input.shape} (nb dims: {input.dim()}) and {target.shape} (nb dims: {target.dim()}). "
            "if target is not one-hot encoded, please provide a tensor with shape B1H[WD]."
        )
    if target.shape[1] != 1 and target.shape[1] != input.shape[1]:
        raise ValueError(
            "number of channels for target is neither 1 (without one-hot encoding) nor the same as "
            f"input, got shape {input.shape} and {target.shape}."
        )


class DiceCELoss(_Loss):
    """Dice and cross-entropy: lambda_dice Dice + lambda_ce CE.

    One launch each way with softmax=True, or for one channel with sigmoid=True. Otherwise
    the activations differ: cross-entropy always has a softmax (one channel: a sigmoid), and each
    loss has launches of its own.

    Args:
        include_background: of Dice, like all that is not named here; see `DiceLoss`.
        to_onehot_y: see there.
        sigmoid: see there.
        softmax: see there.
        other_act: see there.
        squared_pred: see there.
        jaccard: see there.
        reduction: "mean" or "sum", of both.
        smooth_nr: see there.
        smooth_dr: see there.
        batch: see there.
        weight: (C,), of both; cross-entropy's mean is divided by it. One channel: pos_weight.
        lambda_dice: at least 0.
        lambda_ce: at least 0.
        label_smoothing: of cross-entropy; not for one channel.

    Raises:
        ValueError: a negative lambda; shapes that do not fit; see also `DiceLoss`.

    Example:
        >>> import torch
        >>> criterion = DiceCELoss(to_onehot_y=True, softmax=True)
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.uint8))
        tensor(1.3598)
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
        weight: Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction=check_reduction(reduction, ("mean", "sum")))
        flags = (
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            squared_pred,
            jaccard,
        )
        last = (self.reduction, smooth_nr, smooth_dr, batch)
        of_dice = weight[1:] if weight is not None and not include_background else weight
        self.dice = DiceLoss(*flags, *last, weight=of_dice)
        self.register_buffer("weight", weight, persistent=False)
        self.label_smoothing = label_smoothing
        self.lambda_dice = _check_lambda("lambda_dice", lambda_dice)
        self.lambda_ce = _check_lambda("lambda_ce", lambda_ce)

    weight: Tensor | None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss; see `DiceLoss`."""
        _check_shapes(input, target)
        dice, one = self.dice, input.shape[1] == 1
        # of one channel Dice has no weight
        kept = input.shape[1] - (not dice.include_background)
        alike = one or kept > 1 or self.weight is None
        if alike and (dice.sigmoid if one else dice.softmax):
            call = dice._prepare(input, target)
            class_weight(call, dice.class_weight)  # raises where Dice alone would
            region = dice.term(self.lambda_dice)
            weight, vector = (None, self.weight) if one else (self.weight, None)
            return run(
                *(call, (self._term(one, self.lambda_ce),), (region,), self.reduction, weight),
                vector=vector,
                **dice.sums(),
            )
        return self.lambda_dice * dice(input, target) + self.lambda_ce * self._ce(input, target)

    def _term(self, one: bool, weight: float) -> tuple[Any, ...]:
        return ("bce", weight) if one else ("ce", weight, float(self.label_smoothing))

    def _ce(self, input: Tensor, target: Tensor) -> Tensor:
        one = input.shape[1] == 1
        if one:
            both = (*flat(input, target), None, None, self.weight)
            return fused(both, "binary", (self._term(one, 1.0),), reduction=self.reduction)
        if target.shape[1] == 1:
            target = target.long()
        inputs = (input, target, None, self.weight)
        return fused(inputs, "multiclass", (self._term(one, 1.0),), reduction=self.reduction)


class DiceFocalLoss(_Loss):
    """Dice and focal loss: lambda_dice Dice + lambda_focal focal, the latter always with sigmoids.

    One launch each way with sigmoid=True and "mean"; otherwise each loss has launches of its own.

    Args:
        include_background: of both, like all that is not named here; see `DiceLoss`.
        to_onehot_y: see there.
        sigmoid: of Dice.
        softmax: of Dice.
        other_act: of Dice.
        squared_pred: of Dice.
        jaccard: of Dice.
        reduction: "mean", "sum", "none"; see `FocalLoss`.
        smooth_nr: of Dice.
        smooth_dr: of Dice.
        batch: of Dice.
        gamma: of focal.
        weight: of both.
        lambda_dice: at least 0.
        lambda_focal: at least 0.
        alpha: of focal.

    Raises:
        ValueError: a negative lambda; shapes that do not fit; see also `DiceLoss`.

    Example:
        >>> import torch
        >>> criterion = DiceFocalLoss(sigmoid=True)
        >>> criterion(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(0.5066)
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
        gamma: float = 2.0,
        weight: Sequence[float] | float | int | Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        flags = (
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            squared_pred,
            jaccard,
        )
        self.dice = DiceLoss(*flags, reduction, smooth_nr, smooth_dr, batch, weight=weight)
        self.focal = FocalLoss(include_background, to_onehot_y, gamma, alpha, weight, reduction)
        self.to_onehot_y = to_onehot_y
        self.lambda_dice = _check_lambda("lambda_dice", lambda_dice)
        self.lambda_focal = _check_lambda("lambda_focal", lambda_focal)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss; see `DiceLoss`."""
        _check_shapes(input, target)
        dice, focal = self.dice, self.focal
        # of one channel Dice has no weight
        kept = input.shape[1] - (not dice.include_background)
        alike = kept > 1 or focal.class_weight is None
        if dice.sigmoid and dice.reduction == "mean" and alike:
            call = dice._prepare(input, target)
            if focal.is_fused(call):
                weight = class_weight(call, dice.class_weight, points=True)
                terms = (focal.term(self.lambda_focal),), (dice.term(self.lambda_dice),)
                return run(call, *terms, "mean", weight, **dice.sums())
        return self.lambda_dice * dice(input, target) + self.lambda_focal * focal(input, target)


class DeepSupervisionLoss(_Loss):
    """A loss of every level of a net's outputs, weighted and summed.

    Args:
        loss: of one output and its target.
        weight_mode: "same" (1, 1, ...), "exp" (1, 0.5, 0.25, ..., at least 0.0625) or "two"
            (1, 0.5, 0.5, ...).
        weights: of the levels; used if there are enough.

    Example:
        >>> import torch
        >>> criterion = DeepSupervisionLoss(DiceLoss(sigmoid=True))
        >>> outputs = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
        >>> criterion(outputs, torch.ones(1, 1, 8, 8))
        tensor(0.5000)
    """

    def __init__(
        self, loss: _Loss, weight_mode: str = "exp", weights: list[float] | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weight_mode = weight_mode
        self.weights = weights
        self.interp_mode = "nearest-exact"

    def get_weights(self, levels: int = 1) -> list[float]:
        """The levels' weights."""
        levels = max(1, levels)
        if self.weights is not None and len(self.weights) >= levels:
            return self.weights[:levels]
        if self.weight_mode == "exp":
            return [max(0.5**level, 0.0625) for level in range(levels)]
        lower = 0.5 if self.weight_mode == "two" else 1.0
        return [1.0] + [lower] * (levels - 1)

    def get_loss(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one level; its target is resized to the nearest pixels."""
        if input.shape[2:] != target.shape[2:]:
            target = F.interpolate(target, size=input.shape[2:], mode=self.interp_mode)
        loss: Tensor = self.loss(input, target)
        return loss

    def forward(self, input: None | Tensor | list[Tensor], target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: an output, or a list of them, the largest first.
            target: of the largest.

        Raises:
            ValueError: no input.
        """
        if input is None:
            raise ValueError("input shouldn't be None.")
        if isinstance(input, Tensor):
            loss: Tensor = self.loss(input, target)
            return loss
        weights = self.get_weights(len(input))
        total = torch.zeros((), device=target.device)
        for weight, level in zip(weights, input, strict=True):
            total = total + weight * self.get_loss(level, target)
        return total


ds_loss = DeepSupervisionLoss
