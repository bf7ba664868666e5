"""Masked Dice loss as in MONAI."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg_losses.compat.fused import computed_in
from fastseg_losses.compat.monai_inputs import check_activation
from fastseg_losses.compat.monai_regions import DiceLoss


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
        check_activation(sigmoid, softmax, other_act)
        rest: Any = (reduction, smooth_nr, smooth_dr, batch, weight, soft_label)
        # the base class's own activations are off, as there
        flags: Any = (False, False, None, squared_pred, jaccard)
        super().__init__(include_background, to_onehot_y, *flags, *rest)
        self.pre_sigmoid = sigmoid
        self.pre_softmax = softmax
        self.pre_other_act = other_act

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            input: see `DiceLoss`, as for target.
            target: see there.
            mask: (B, 1, *spatial) or (1, 1, *spatial), 0 where a pixel does not count.

        Raises:
            ValueError: a mask of another batch size or of several channels.
        """
        act: dict[str, Any] = {
            "sigmoid": self.pre_sigmoid,
            "softmax": self.pre_softmax,
            "other_act": self.pre_other_act,
        }
        if mask is None:
            warnings.warn("No mask value specified for the MaskedLoss.", stacklevel=2)
            return self._loss(self._prepare(input, target, **act), input)
        if input.shape[0] != mask.shape[0] and mask.shape[0] != 1:
            raise ValueError(
                f"Batch size of mask ({mask.shape}) must be one or equal to input ({input.shape})."
            )
        if mask.shape[1] != 1:
            raise ValueError(f"Mask ({mask.shape}) must have only one channel.")
        valid = (mask != 0).expand(input.shape[0], 1, *input.shape[2:])
        if not (self.to_onehot_y and self.include_background and input.shape[1] > 1):
            return self._loss(self._prepare(input, target, valid=valid, **act), input)
        p = input.to(computed_in(input))
        p = torch.sigmoid(p) if self.pre_sigmoid else p
        p = torch.softmax(p, 1) if self.pre_softmax else p
        p = p if self.pre_other_act is None else self.pre_other_act(p)
        return self._loss(self._prepare(p * valid, target * valid), input)
