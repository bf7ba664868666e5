"""Deep supervision as in MONAI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss


class DeepSupervisionLoss(_Loss):
    """A loss of every level of a net's outputs, weighted and summed.

    Args:
        loss: of one output and its target.
        weight_mode: "same" (1, 1, ...), "exp" (1, 0.5, 0.25, ..., at least 0.0625) or "two"
            (1, 0.5, 0.5, ...).
        weights: of the levels; used if there are enough.

    Example:
        >>> import torch
        >>> from fastseg_losses.compat.monai import DiceLoss
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
            loss: Tensor = self.loss(_single(input), target)
            return loss
        weights = self.get_weights(len(input))
        total = torch.zeros((), device=target.device)
        for i, level in enumerate(input):
            total = total + weights[i] * self.get_loss(_single(level), target)
        return total


def _single(output: Tensor) -> Tensor:
    """Float64 as float32, as there; half precision is read as it is, to the same numbers."""
    return output.float() if output.dtype == torch.float64 else output


ds_loss = DeepSupervisionLoss
