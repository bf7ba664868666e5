"""DiceFocal as in MONAI."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastseg_losses.compat.fused import is_own, plain
from fastseg_losses.compat.monai_combined import (
    Pair,
    check_lambda,
    check_shapes,
    has_classes,
    weight_of,
)
from fastseg_losses.compat.monai_inputs import class_weight, run
from fastseg_losses.compat.monai_points import FocalLoss
from fastseg_losses.compat.monai_regions import DiceLoss
from fastseg_losses.ops_relay import Relay


class DiceFocalLoss(Pair):
    """Dice and focal loss: lambda_dice Dice + lambda_focal focal, the latter always with sigmoids.

    One launch each way with sigmoid=True and "mean"; otherwise each loss has launches of its own,
    of which, with labels, the second backward one adds to the gradient that the first has written.

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
        # labels are read as they are; the parts have their targets from here, as there
        flags = (include_background, False, sigmoid, softmax, other_act, squared_pred, jaccard)
        self.dice = DiceLoss(*flags, reduction, smooth_nr, smooth_dr, batch, weight=weight)
        self.focal = FocalLoss(include_background, False, gamma, alpha, weight, reduction)
        self.to_onehot_y = to_onehot_y
        self.lambda_dice = check_lambda("lambda_dice", lambda_dice)
        self.lambda_focal = check_lambda("lambda_focal", lambda_focal)
        self._tie()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss; see `DiceLoss`."""
        check_shapes(input, target)
        dice, focal, labels = self.dice, self.focal, bool(self.to_onehot_y)
        if labels and input.shape[1] == 1:
            warnings.warn("single channel prediction, `to_onehot_y=True` ignored.", stacklevel=2)
            labels = False
        if self._is_fused(input, dice, focal):
            call = dice._prepare(input, target, to_onehot_y=labels)
            if focal.is_fused(call):
                weight = class_weight(call, dice.class_weight, points=True)
                terms = (focal.term(self.lambda_focal),), (dice.term(self.lambda_dice),)
                return run(call, *terms, "mean", weight, **dice.sums())
        relay = Relay(plain(input))
        if is_own(dice, DiceLoss):
            call = dice._prepare(relay.logits, target, to_onehot_y=labels)
            region = dice._loss(call, input, relay)
        else:
            region = dice(input, self._targets(input, target, labels))
        if is_own(focal, FocalLoss):
            point = focal._of(relay.logits, target, labels, relay)
        else:
            point = focal(input, self._targets(input, target, labels))
        return self.lambda_dice * region + self.lambda_focal * point

    def _targets(self, input: Tensor, target: Tensor, labels: bool) -> Tensor:
        """What a part of the caller's gets."""
        if not labels:
            return target
        return F.one_hot(target[:, 0].long(), input.shape[1]).movedim(-1, 1).float()

    def _both_weights(self) -> tuple[Tensor | None, Tensor | None]:
        return weight_of(self.dice), weight_of(self.focal)

    def _is_fused(self, input: Tensor, dice: Any, focal: Any) -> bool:
        """Whether one launch is both losses."""
        if not (is_own(dice, DiceLoss) and is_own(focal, FocalLoss)):
            return False
        if isinstance(self.lambda_dice, Tensor) or isinstance(self.lambda_focal, Tensor):
            return False  # they may want a gradient
        if not dice.sigmoid or focal.use_softmax or dice._is_one_group(input):
            return False
        if dice.ignore_index is not None or focal.ignore_index is not None:
            return False
        if not dice.reduction == focal.reduction == "mean":
            return False
        weight = focal.class_weight
        alike = has_classes(dice, input, weight) and self._are_tied(dice.class_weight, weight)
        return alike and dice.include_background == focal.include_background
