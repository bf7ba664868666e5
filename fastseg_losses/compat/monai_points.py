"""Focal loss as in MONAI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastseg_losses import reference
from fastseg_losses.compat.fused import computed_in, number
from fastseg_losses.compat.monai_inputs import (
    Call,
    check_reduction,
    check_weight,
    class_weight,
    one_hot_mask,
    prepare,
    run,
)
from fastseg_losses.ops_relay import Relay
from fastseg_losses.spec import PointTerm


class FocalLoss(_Loss):
    r"""Focal loss of every element, \alpha_t (1 - p_t)^\gamma bce, or with a softmax.

    With use_softmax -\alpha_y (1 - p_y)^\gamma \log p_y of the target's channel and 0 of the
    others, which are in the mean all the same. Fused for "mean" and "sum", but for one alpha a
    channel with sigmoids.

    Args:
        include_background: whether channel 0 has a loss; without it, it has no part in a softmax.
        to_onehot_y: targets are labels (B, 1, *spatial), read as they are.
        gamma: exponent, at least 0.
        alpha: weight of the positive class, 1 - alpha of the negative; with a softmax of every
            channel but the first, which has 1 - alpha (ignored without the background); or one a
            channel, with sigmoids for positive targets alone. None: no balance.
        weight: a number, or one a channel that has a loss; multiplies, is not normalised.
        reduction: "mean", "sum" over (sample, channel) of the mean over space, "none".
        use_softmax: a softmax over the channels.
        ignore_index: see `DiceLoss`. A mean is then over pixels, so C times as large with sigmoids.

    Raises:
        ValueError: an unknown reduction; targets of another shape; weights of another number.

    Source: Lin et al. 2017, eq. 5.

    Example:
        >>> import torch
        >>> criterion = FocalLoss(to_onehot_y=True)
        >>> criterion(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(0.1733)
    """

    class_weight: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Sequence[float] | float | int | Tensor | None = None,
        reduction: Any = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=check_reduction(reduction))
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.gamma = gamma
        self.weight = weight
        self.use_softmax = use_softmax
        self.ignore_index = ignore_index
        self.alpha: float | Tensor | None
        if alpha is None or isinstance(alpha, (int, float)):
            self.alpha = None if alpha is None else float(alpha)
        else:
            self.alpha = torch.as_tensor(alpha)
        self.register_buffer("class_weight", check_weight(weight))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, C, *spatial) logits.
            target: (B, C, *spatial), or (B, 1, *spatial) labels with to_onehot_y.

        Returns:
            Float32, as there.
        """
        return self._of(input, target, self.to_onehot_y)

    def _of(
        self, input: Tensor, target: Tensor, labels: bool, relay: Relay | None = None
    ) -> Tensor:
        """The loss, where `labels` says what the targets are."""
        loss = self._value(input, target, labels, relay)
        return loss.float() if loss.dtype == torch.float64 else loss

    def _value(self, input: Tensor, target: Tensor, labels: bool, relay: Relay | None) -> Tensor:
        call = self._prepare(input, target, labels)
        if self.class_weight is not None and self.class_weight.dim() and call.classes == 1:
            raise ValueError("Per-class class_weight is not supported for single-channel outputs.")
        wanted = self.reduction
        if wanted == "sum" and input.dim() == 2:
            wanted = "mean"  # a mean over no axes is one over all
        if wanted == "none" or not self.is_fused(call):
            return self._by_pytorch(input, target, labels, wanted)
        masked = self.ignore_index is not None
        # with a mask every sample's mean has a divisor of its own
        reduction = "none" if wanted == "sum" and masked else wanted
        weight, vector = class_weight(call, self.class_weight, points=not call.softmax), None
        if call.classes == 1 and self.class_weight is not None:  # a number
            weight = self.class_weight.to(input.device, torch.float32).reshape(1)
            weight = torch.nn.functional.pad(weight, (call.dropped, 0))
        if call.softmax:  # as class weights they would be in the divisor
            weight, vector = None, self._alpha(call, weight)
        scale = 1.0
        if call.softmax and wanted == "mean" and not masked:
            scale = 1 / call.C  # a mean over elements
        elif masked and not call.softmax and wanted == "mean":
            scale = call.classes  # a mean over pixels
        elif masked and not call.softmax and call.mode == "multiclass":
            scale = call.C
        loss = run(call, (self.term(scale),), (), reduction, weight, vector=vector, through=relay)
        if reduction == "sum":
            return loss / max(1, math.prod(input.shape[2:]))
        return loss.sum() if wanted == "sum" else loss

    def term(self, weight: float) -> tuple[Any, ...]:
        """The pointwise term that this loss is, with sigmoids or a softmax."""
        alpha = None if self.use_softmax or self.alpha is None else number(self.alpha)
        return ("focal", number(weight), 0.0, alpha, number(self.gamma), "margin")

    def is_fused(self, call: Call) -> bool:
        """Whether a term of the library is this loss, for a mean or a sum."""
        if self.use_softmax:
            return call.C > 1 and not call.dropped
        return not isinstance(self.alpha, Tensor) or self.alpha.dim() == 0

    def _prepare(self, input: Tensor, target: Tensor, labels: bool) -> Call:
        softmax = self.use_softmax and input.shape[1] > 1
        return prepare(
            input,
            target,
            include_background=self.include_background,
            to_onehot_y=labels,
            sigmoid=not softmax,
            softmax=softmax,
            ignore_index=self.ignore_index,
            mismatch=ValueError,
        )

    def _channel_alpha(self, C: int, device: torch.device) -> Tensor | None:
        """Of each of C channels, with a softmax."""
        if self.alpha is None:
            return None
        if isinstance(self.alpha, Tensor) and self.alpha.dim():
            if self.alpha.shape[0] != C:
                raise ValueError(
                    f"The length of alpha ({self.alpha.shape[0]}) must match the number of classes "
                    f"({C})."
                )
            return self.alpha.to(device, torch.float32)
        alpha = float(self.alpha)
        return torch.tensor([1 - alpha] + [alpha] * (C - 1), device=device)

    def _alpha(self, call: Call, weight: Tensor | None) -> Tensor | None:
        """What multiplies the focal loss of each class, with a softmax."""
        alpha = self._channel_alpha(call.C, call.inputs[0].device)
        if alpha is None or weight is None:
            return weight if alpha is None else alpha
        return alpha * weight

    def _by_pytorch(self, input: Tensor, target: Tensor, labels: bool, reduction: str) -> Tensor:
        """Every element's value, and its reduction."""
        C, space = input.shape[1], tuple(range(2, input.dim()))
        one = C == 1 or not labels
        mask = None
        if self.ignore_index is not None:
            one_hot = target.shape[1] > 1
            mask = (
                one_hot_mask(target, self.ignore_index) if one_hot else target != self.ignore_index
            )
        classes = torch.arange(C, device=input.device).reshape(-1, *(1,) * len(space))
        t = target if one else target.long() == classes
        dropped = 0 if self.include_background or C == 1 else 1
        dtype = computed_in(input)
        x, t = input[:, dropped:].to(dtype), t[:, dropped:].to(dtype)
        if mask is not None:
            x, t = torch.where(mask, x, 0.0), torch.where(mask, t, 0.0)
        each = self._each(x, t)
        if mask is not None:
            each = each * mask
        if self.class_weight is not None:
            weight = self.class_weight.to(each)
            if weight.dim() and weight.numel() != x.shape[1]:
                raise ValueError(
                    f"The number of class_weight ({weight.numel()}) must match the number of "
                    f"output channels ({x.shape[1]})."
                )
            each = each * (channels(weight, each) if weight.dim() else weight)
        if reduction == "none":
            return each
        if reduction == "mean":
            return each.mean() if mask is None else each.sum() / mask.sum().clamp_min(1)
        if mask is None:
            return each.mean(space).sum()
        return (each.sum(space) / mask.sum(space).clamp_min(1)).sum()

    def _each(self, x: Tensor, t: Tensor) -> Tensor:
        alpha = self.alpha
        if self.use_softmax:
            log_p = x.log_softmax(1)
            each = -t * log_p * (-torch.expm1(log_p)).clamp_min(1e-30) ** self.gamma
            if isinstance(alpha, float) and not self.include_background:
                warnings.warn(
                    "`include_background=False`, scalar `alpha` ignored when using softmax.",
                    stacklevel=4,
                )
                return each
            factor = self._channel_alpha(x.shape[1], x.device)
            return each if factor is None else each * channels(factor, x)
        by_class = isinstance(alpha, Tensor) and alpha.dim() > 0
        balance = None if by_class or alpha is None else float(alpha)
        term = PointTerm("focal", 1.0, 0.0, balance, self.gamma, "margin")
        each = reference.point_value(term, x, t, None)
        if not by_class:
            return each
        factor = self._channel_alpha(x.shape[1], x.device)
        assert factor is not None
        return each * torch.where(t == 1, channels(factor, x), 1.0)


def channels(vector: Tensor, like: Tensor) -> Tensor:
    """A value for each channel of a tensor (B, C, *spatial)."""
    return vector.to(like).reshape(-1, *(1,) * (like.dim() - 2))
