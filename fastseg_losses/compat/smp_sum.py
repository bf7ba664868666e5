"""Several losses of segmentation_models_pytorch at once: what the package has no class for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from fastseg_losses.compat.fused import fused, is_own
from fastseg_losses.compat.smp_focal import FocalLoss
from fastseg_losses.compat.smp_inputs import MULTICLASS_MODE, by_mode, sums_of
from fastseg_losses.compat.smp_regions import _RegionLoss

MOST_REGIONS = 3  # that one launch takes, beside one focal loss


class SumLoss(_Loss):
    """The weighted sum of losses, in one launch each way where they share what they read.

    `dice(x, y) + focal(x, y)` reads the tensors twice and adds two gradients of the logits' size;
    this is the same number. Fused: Dice, Jaccard and Tversky losses (three at most) and a
    focal loss, of one mode and one ignore_index, from logits, without class weights, not
    subclassed. With a multiclass focal loss, whose activation is another, and in every other case
    each loss has launches of its own.

    Args:
        *losses: losses of this module, called with the same tensors.
        weights: a factor for each; None: 1.

    Raises:
        ValueError: no loss, or another number of weights.

    Example:
        >>> import torch
        >>> from fastseg_losses.compat.smp import DiceLoss
        >>> criterion = SumLoss(DiceLoss("binary"), FocalLoss("binary"), weights=(1.0, 0.5))
        >>> criterion(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
        tensor(0.4200)
    """

    def __init__(self, *losses: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = (1.0,) * len(losses) if weights is None else tuple(weights)
        if not losses or len(weights) != len(losses):
            raise ValueError(
                f"weights: expected one for each of {len(losses) or 'at least one'} losses, got "
                f"{len(weights)}"
            )
        self.losses = nn.ModuleList(losses)
        self.weights = weights

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Compute the sum.

        Args:
            y_pred: what the losses take.
            y_true: see there.
        """
        losses: list[Any] = list(self.losses)
        pairs = list(zip(losses, self.weights, strict=True))
        if not self._is_fused(losses, y_pred.shape):
            return torch.stack([w * loss(y_pred, y_true) for loss, w in pairs]).sum(0)
        regions = tuple(loss.term(w) for loss, w in pairs if isinstance(loss, _RegionLoss))
        points = tuple(loss.term(w) for loss, w in pairs if isinstance(loss, FocalLoss))
        mode, ignored = losses[0].mode, losses[0].ignore_index
        alone = mode == MULTICLASS_MODE and not regions
        inputs = by_mode(mode, y_pred, y_true)
        return fused(
            inputs,
            mode,
            points,
            regions,
            ignore_index=ignored,
            activation="sigmoid" if alone else None,
            **(sums_of(inputs[1], from_logits=True) if regions else {}),
        )

    def _is_fused(self, losses: list[Any], shape: torch.Size) -> bool:
        focal = [loss for loss in losses if is_own(loss, FocalLoss)]
        regions = [loss for loss in losses if is_own(loss, _RegionLoss)]
        known = focal + regions
        if any(isinstance(weight, Tensor) for weight in self.weights):
            return False  # it may want a gradient
        if len(known) < len(losses) or len(focal) > 1 or len(regions) > MOST_REGIONS:
            return False
        if known[0].mode == MULTICLASS_MODE and shape[1] == 1:
            return False
        alike = len({(loss.mode, loss.ignore_index) for loss in known}) == 1
        activations = focal and regions and known[0].mode == MULTICLASS_MODE
        return alike and not activations and all(x.is_plain() and x.from_logits for x in known)
