"""nnU-Net's losses (`nnunetv2/training/loss`), without top-k cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastseg_losses.compat.fused import fused, is_own, number
from fastseg_losses.compat.nnunet_dice import (
    MemoryEfficientSoftDiceLoss,
    SoftDiceLoss,
    _Dice,
    class_ids,
    softmax_helper_dim0,
    softmax_helper_dim1,
)

__all__ = [
    "DC_and_BCE_loss",
    "DC_and_CE_loss",
    "DeepSupervisionWrapper",
    "MemoryEfficientSoftDiceLoss",
    "RobustCrossEntropyLoss",
    "SoftDiceLoss",
    "softmax_helper_dim0",
    "softmax_helper_dim1",
]


class RobustCrossEntropyLoss(nn.CrossEntropyLoss):
    """Cross-entropy of labels (B, 1, *spatial) or (B, *spatial) of any dtype, fused.

    Arguments as in `torch.nn.CrossEntropyLoss`; "none" is computed by PyTorch.

    Example:
        >>> import torch
        >>> criterion = RobustCrossEntropyLoss()
        >>> criterion(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(1.0986)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, C, *spatial) logits.
            target: labels, also floating.
        """
        if target.dim() == input.dim():
            assert target.shape[1] == 1, f"target: expected one channel, got {target.shape[1]}"
            target = target[:, 0]
        if self.reduction == "none" or input.dim() < 2 or input.shape[1] == 1:
            return super().forward(input, target.long())
        term = ("ce", 1.0, number(self.label_smoothing))
        # PyTorch has no "none" here: an index that no label has
        inputs = (input, class_ids(target), None, self.weight)
        return fused(
            inputs,
            "multiclass",
            (term,),
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )


class DC_and_CE_loss(nn.Module):  # noqa: N801
    """weight_ce CE + weight_dice (-Dice), of label maps with a softmax: one launch each way.

    Where cross-entropy has class weights, or Dice is summed over ranks, each has its own launches.

    Args:
        soft_dice_kwargs: of dice_class.
        ce_kwargs: of `RobustCrossEntropyLoss`.
        weight_ce: factor; 0 leaves it out.
        weight_dice: factor; 0 leaves it out.
        ignore_label: label that does not count.
        dice_class: `SoftDiceLoss` or `MemoryEfficientSoftDiceLoss`; of another, each has its own.

    Source: Isensee et al. 2021, nnU-Net.

    Example:
        >>> import torch
        >>> criterion = DC_and_CE_loss({"batch_dice": True, "do_bg": False}, {})
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(0.0131)
    """

    def __init__(
        self,
        soft_dice_kwargs: dict[str, Any],
        ce_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: Callable[..., _Dice] = SoftDiceLoss,
    ) -> None:
        super().__init__()
        if ignore_label is not None:
            ce_kwargs = {**ce_kwargs, "ignore_index": ignore_label}
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ignore_label = ignore_label
        self.ce = RobustCrossEntropyLoss(**ce_kwargs)
        self.dc = dice_class(apply_nonlin=softmax_helper_dim1, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            net_output: (B, C, *spatial) logits.
            target: (B, 1, *spatial) labels of any dtype.

        Raises:
            AssertionError: an ignore label and targets of several channels.
        """
        if self.ignore_label is not None and target.shape[1] != 1:
            raise AssertionError(
                "ignore label is not implemented for one hot encoded target variables "
                f"(DC_and_CE_loss), got {tuple(target.shape)}"
            )
        ce, dc = self.ce, self.dc
        if self._is_fused(net_output, target, ce, dc):
            term = ("ce", number(self.weight_ce), number(ce.label_smoothing))
            return fused(
                (net_output, class_ids(target)),
                "multiclass",
                (term,),
                (dc.term(self.weight_dice),),
                ignore_index=self.ignore_label,
                **dc.shared(),
            )
        loss = net_output.new_zeros((), dtype=torch.float32)
        if self.weight_dice != 0:
            mask = None if self.ignore_label is None else target != self.ignore_label
            labels = target if mask is None else torch.where(mask, target, 0)
            loss = loss + self.weight_dice * dc(net_output, labels, loss_mask=mask)
        if self.weight_ce != 0:
            loss = loss + self.weight_ce * ce(net_output, target[:, 0])
        return loss

    def _is_fused(self, net_output: Tensor, target: Tensor, ce: Any, dc: Any) -> bool:
        """Whether one launch is both losses."""
        if not (is_own(dc, _Dice) and is_own(ce, RobustCrossEntropyLoss)):
            return False
        if net_output.shape[1] == 1 or target.shape[1] != 1 or not _are_factors(self):
            return False
        if self.weight_ce == 0 or self.weight_dice == 0 or ce.reduction != "mean":
            return False
        # an index of cross-entropy alone is no label of the Dice loss
        index, label = ce.ignore_index, self.ignore_label
        alike = index < 0 if label is None else index == label
        return alike and ce.weight is None and dc.is_fused() and dc._activation() == "softmax"


def _are_factors(loss: Any) -> bool:
    """Whether the terms' weights are numbers, that want no gradient."""
    return not (isinstance(loss.weight_ce, Tensor) or isinstance(loss.weight_dice, Tensor))


class DC_and_BCE_loss(nn.Module):  # noqa: N801
    """weight_ce BCE + weight_dice (-Dice), of regions with sigmoids: one launch each way.

    Args:
        bce_kwargs: of `torch.nn.BCEWithLogitsLoss`; pos_weight (C, 1, ...) is fused.
        soft_dice_kwargs: of dice_class.
        weight_ce: factor.
        weight_dice: factor.
        use_ignore_label: the target's last channel is 1 where pixels do not count. The BCE is then
            a mean over pixels, so C times as large.
        dice_class: `SoftDiceLoss` or `MemoryEfficientSoftDiceLoss`.

    Example:
        >>> import torch
        >>> criterion = DC_and_BCE_loss({}, {})
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
        tensor(0.0131)
    """

    def __init__(
        self,
        bce_kwargs: dict[str, Any],
        soft_dice_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: Callable[..., _Dice] = MemoryEfficientSoftDiceLoss,
    ) -> None:
        super().__init__()
        if use_ignore_label:
            bce_kwargs = {**bce_kwargs, "reduction": "none"}
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.use_ignore_label = use_ignore_label
        self.ce = nn.BCEWithLogitsLoss(**bce_kwargs)
        self.dc = dice_class(apply_nonlin=torch.sigmoid, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            net_output: (B, C, *spatial) logits.
            target: (B, C, *spatial) of 0 and 1, with an ignore label (B, C + 1, *spatial).
        """
        regions, mask = target, None
        if self.use_ignore_label:
            regions, mask = target[:, :-1], ~target[:, -1:].bool()
        C, ce, dc = net_output.shape[1], self.ce, self.dc
        positive = getattr(ce, "pos_weight", None)
        each = (C, *(1,) * (net_output.dim() - 2))
        alike = positive is None or positive.numel() == 1 or tuple(positive.shape) == each
        if alike and self._is_fused(ce, dc) and (C == 1 or dc.do_bg):
            weight = number(self.weight_ce) * (C if self.use_ignore_label else 1)
            vector = None if positive is None else positive.flatten()
            return fused(
                (net_output, regions, mask, None, vector),
                "multilabel",
                (("bce", weight),),
                (dc.term(self.weight_dice),),
                **{**dc.shared(), "include_background": True},
            )
        bce = ce(net_output, regions.to(net_output.dtype))
        if mask is not None:
            bce = (bce * mask).sum() / mask.sum().clamp_min(1)
        return self.weight_ce * bce + self.weight_dice * dc(net_output, regions, loss_mask=mask)

    def _is_fused(self, ce: Any, dc: Any) -> bool:
        """Whether one launch is both losses, but for sizes."""
        if not (is_own(dc, _Dice) and is_own(ce, nn.BCEWithLogitsLoss)):
            return False
        if ce.reduction != ("none" if self.use_ignore_label else "mean"):
            return False
        plain = ce.weight is None and _are_factors(self) and dc.is_fused()
        return plain and dc._activation() == "sigmoid"


class DeepSupervisionWrapper(nn.Module):
    """A loss of every level, weighted and summed; levels of weight 0 are not computed.

    Args:
        loss: called with one item of every argument.
        weight_factors: of the levels; None: 1 each (there an error).

    Raises:
        AssertionError: no weight that is not 0.

    Example:
        >>> import torch
        >>> criterion = DeepSupervisionWrapper(torch.nn.L1Loss(), (1.0, 0.5))
        >>> criterion([torch.ones(2), torch.ones(1)], [torch.zeros(2), torch.zeros(1)])
        tensor(1.5000)
    """

    def __init__(self, loss: Callable[..., Tensor], weight_factors: Sequence[float] | None = None):
        super().__init__()
        if weight_factors is not None and not any(weight_factors):
            raise AssertionError("At least one weight factor should be != 0.0")
        self.weight_factors = None if weight_factors is None else tuple(weight_factors)
        self.loss = loss

    def forward(self, *args: Sequence[Tensor]) -> Tensor:
        """Compute the loss.

        Args:
            *args: lists of the same length, the loss's arguments for every level.

        Raises:
            AssertionError: an argument that is no list.
            IndexError: more levels than weights.
        """
        for each in args:
            if not isinstance(each, (tuple, list)):
                raise AssertionError(f"all args must be either tuple or list, got {type(each)}")
        weights = (1.0,) * len(args[0]) if self.weight_factors is None else self.weight_factors
        levels = enumerate(zip(*args, strict=False))
        losses = [weights[i] * self.loss(*level) for i, level in levels if weights[i] != 0.0]
        return torch.stack(losses).sum(0)
