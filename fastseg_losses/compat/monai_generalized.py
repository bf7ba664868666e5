"""Generalised Dice loss as in MONAI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastseg_losses.compat.fused import chosen_backend, fused, number
from fastseg_losses.compat.monai_regions import _RegionLoss
from fastseg_losses.ops_generalized import Finish

WEIGHTS = ("square", "simple", "uniform")


class GeneralizedDiceLoss(_RegionLoss):
    r"""Generalised Dice loss of each sample, 1 - (2 \sum w I + nr) / (\sum w (P + T) + dr).

    The sums over the channels are weighted by w = 1 / T^2 of each; where T is 0, by the largest
    other weight of the sample. I, P and T come from the kernels.

    Args:
        include_background: see `DiceLoss`, as for all that is not named here.
        to_onehot_y: see there.
        sigmoid: see there.
        softmax: see there.
        other_act: see there.
        w_type: "square", "simple" (1 / T) or "uniform" (1).
        reduction: "none" gives (B, 1, ...), with batch (1, 1, ...).
        smooth_nr: nr.
        smooth_dr: dr.
        batch: see there; the weights are those of the whole batch.
        soft_label: see there.

    Raises:
        TypeError: see there.
        ValueError: see there; an unknown w_type.

    Source: Sudre et al. 2017, Generalised Dice overlap.

    Example:
        >>> import torch
        >>> criterion = GeneralizedDiceLoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.tensor([0, 0, 0, 1]).expand(1, 1, 4, 4)
        >>> criterion(torch.zeros(1, 2, 4, 4), labels)
        tensor(0.6250)
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        w_type: Any = "square",
        reduction: Any = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        flags = (include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        super().__init__(*flags, smooth_nr, smooth_dr, batch, soft_label)
        self.w_type = str(getattr(w_type, "value", w_type))
        if self.w_type not in WEIGHTS:
            raise ValueError(
                f"w_type: expected one of {', '.join(map(repr, WEIGHTS))}, got {w_type!r}"
            )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss; see `DiceLoss`.

        Raises:
            IndexError: inputs (B, C) without `batch`.
            NotImplementedError: a subclass has a `w_func`.
        """
        if hasattr(type(self), "w_func") or "w_func" in self.__dict__:
            raise NotImplementedError(
                f"{type(self).__name__}.w_func is not called: the weights are made in the kernel; "
                "take the loss from the package itself"
            )
        call = self._prepare(input, target)
        if self._is_one_group(input):
            raise IndexError(f"input: expected (B, C, *spatial) or batch=True, got {input.shape}")
        shared = {**call.shared, "include_background": True}
        finish = Finish(
            first=call.dropped,
            weights=self.w_type,
            smooth_nr=number(self.smooth_nr),
            smooth_dr=number(self.smooth_dr),
            reduction=self.reduction,
            batch=bool(self.batch),
        )
        constants = not call.inputs[1].requires_grad
        loss = fused(
            call.inputs,
            call.mode,
            reduction="sums",
            overlap=self._overlap(),
            through=finish if constants else None,
            **shared,
        )
        if not constants:
            loss = finish.of_sums(loss, chosen_backend(), constants=False)
        if self.reduction == "none":
            return loss.reshape(*loss.shape, *(1,) * (input.dim() - 2))
        return loss
