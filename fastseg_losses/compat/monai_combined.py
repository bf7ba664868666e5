"""Dice beside another loss as in MONAI, and DiceCE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from fastseg_losses.compat.fused import flat, fused, is_own, keeps, number
from fastseg_losses.compat.monai_inputs import check_reduction, class_weight, run
from fastseg_losses.compat.monai_regions import DiceLoss


def check_lambda(name: str, value: float) -> float:
    """As there.

    Raises:
        ValueError: a negative one.
    """
    if value < 0.0:
        raise ValueError(f"{name} should be no less than 0.0.")
    return value


def check_shapes(input: Tensor, target: Tensor) -> None:
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


def weight_of(part: nn.Module) -> Tensor | None:
    """The classes' weights of a part, which may be of a foreign class."""
    return getattr(part, "class_weight", None)


class Pair(_Loss):
    """Two losses that got the same weights; one launch has one vector of them for both."""

    _tied: tuple[Tensor | None, Tensor | None]

    def _both_weights(self) -> tuple[Tensor | None, Tensor | None]:
        raise NotImplementedError

    def _tie(self) -> None:
        """Remember the two buffers: their values cannot be compared without a wait for the GPU."""
        self._tied = self._both_weights()

    def _are_tied(self, first: Tensor | None, second: Tensor | None) -> bool:
        """Whether both weights are still those of the constructor, wherever they were moved."""
        return first is self._tied[0] and second is self._tied[1]

    def _apply(self, *args: Any, **kwargs: Any) -> Pair:
        tied = self._are_tied(*self._both_weights())
        super()._apply(*args, **kwargs)
        if tied:
            self._tie()
        return self


def has_classes(dice: DiceLoss, input: Tensor, weight: Tensor | None) -> bool:
    """Whether Dice weighs the classes as the other loss does; of one channel it has no weight."""
    return weight is None or input.shape[1] - (not dice.include_background) > 1


class DiceCELoss(Pair):
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
        super().__init__()
        reduction = check_reduction(reduction, ("mean", "sum"))
        flags = (
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            squared_pred,
            jaccard,
        )
        last = (reduction, smooth_nr, smooth_dr, batch)
        of_dice = weight[1:] if weight is not None and not include_background else weight
        self.dice = DiceLoss(*flags, *last, weight=of_dice)
        self.cross_entropy = nn.CrossEntropyLoss(
            weight, reduction=reduction, label_smoothing=label_smoothing
        )
        self.binary_cross_entropy = nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=weight)
        self.lambda_dice = check_lambda("lambda_dice", lambda_dice)
        self.lambda_ce = check_lambda("lambda_ce", lambda_ce)
        self._tie()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss; see `DiceLoss`."""
        check_shapes(input, target)
        dice, one = self.dice, input.shape[1] == 1
        part: Any = self.binary_cross_entropy if one else self.cross_entropy
        if self._is_fused(input, dice, part, one):
            call = dice._prepare(input, target)
            if not one and part.weight is not None:
                class_weight(call, dice.class_weight)  # raises where Dice alone would
            smoothing = 0.0 if one else part.label_smoothing
            terms = (_term(one, self.lambda_ce, smoothing),), (dice.term(self.lambda_dice),)
            weight, vector = (None, part.pos_weight) if one else (part.weight, None)
            return run(call, *terms, dice.reduction, weight, vector=vector, **dice.sums())
        entropy = self.bce(input, target) if one else self.ce(input, target)
        return self.lambda_dice * dice(input, target) + self.lambda_ce * entropy

    def ce(self, input: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy alone, of labels (B, 1, *spatial) or probabilities."""
        labels = target.shape[1] == 1 and input.shape[1] > 1
        entropy: Any = self.cross_entropy
        if input.shape[1] == 1 or not _is_plain(entropy, one=False):
            if labels:
                target = target[:, 0].long()
            elif not target.is_floating_point():
                target = target.to(input.dtype)
            loss: Tensor = entropy(input, target)
            return loss
        inputs = (input, target.long() if labels else target, None, entropy.weight)
        ignored = entropy.ignore_index if labels else None
        term = _term(False, 1.0, entropy.label_smoothing)
        reduction = entropy.reduction
        return fused(inputs, "multiclass", (term,), reduction=reduction, ignore_index=ignored)

    def bce(self, input: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy alone, of one channel."""
        entropy: Any = self.binary_cross_entropy
        if not _is_plain(entropy, one=True) or input.shape != target.shape:
            if not target.is_floating_point():
                target = target.to(input.dtype)
            loss: Tensor = entropy(input, target)
            return loss
        both = (*flat(input, target), None, None, entropy.pos_weight)
        return fused(both, "binary", (_term(True, 1.0),), reduction=entropy.reduction)

    def _both_weights(self) -> tuple[Tensor | None, Tensor | None]:
        return weight_of(self.dice), getattr(self.cross_entropy, "weight", None)

    def _is_fused(self, input: Tensor, dice: Any, part: Any, one: bool) -> bool:
        """Whether one launch is both losses; `part`: the cross-entropy of this input."""
        if not (is_own(dice, DiceLoss) and _is_plain(part, one)):
            return False
        if not keeps(self, DiceCELoss, "ce", "bce") or dice.reduction != part.reduction:
            return False
        if isinstance(self.lambda_dice, Tensor) or isinstance(self.lambda_ce, Tensor):
            return False  # they may want a gradient
        if dice._is_one_group(input) or not (dice.sigmoid if one else dice.softmax):
            return False
        if one:  # Dice has no weight
            return True
        weight = part.weight
        alike = has_classes(dice, input, weight) and self._are_tied(dice.class_weight, weight)
        return alike and part.ignore_index < 0


def _term(one: bool, weight: Any, smoothing: Any = 0.0) -> tuple[Any, ...]:
    return ("bce", number(weight)) if one else ("ce", number(weight), number(smoothing))


def _is_plain(part: Any, one: bool) -> bool:
    """Whether a cross-entropy is PyTorch's, as the library has it."""
    if not is_own(part, nn.BCEWithLogitsLoss if one else nn.CrossEntropyLoss):
        return False
    if part.reduction not in ("mean", "sum"):
        return False
    if not one:
        return True
    return part.weight is None and (part.pos_weight is None or part.pos_weight.numel() == 1)
