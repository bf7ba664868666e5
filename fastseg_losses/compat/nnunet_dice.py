"""nnU-Net's Dice losses: the negative score, over labels or regions, also summed over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collectives
from torch import Tensor, nn

from fastseg_losses.compat.fused import fused, number

FLOOR = 1e-8  # least denominator


def softmax_helper_dim0(x: Tensor) -> Tensor:
    """A softmax over dimension 0."""
    return torch.softmax(x, 0)


def softmax_helper_dim1(x: Tensor) -> Tensor:
    """A softmax over the channels; as `apply_nonlin` it is computed in the kernel."""
    return torch.softmax(x, 1)


def class_ids(target: Tensor) -> Tensor:
    """Labels as an integer dtype."""
    return target.int() if target.is_floating_point() or target.dtype == torch.bool else target


class _Dice(nn.Module):
    def __init__(
        self,
        apply_nonlin: Callable | None,
        batch_dice: bool,
        do_bg: bool,
        smooth: float,
        ddp: bool,
        clip_tp: float | None,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = smooth
        self.ddp = ddp
        self.clip_tp = clip_tp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            x: (B, C, *spatial).
            y: labels (B, 1, *spatial) or (B, *spatial) of any dtype, or regions of x's shape.
            loss_mask: (B, 1, *spatial), 0 where a pixel does not count.

        Returns:
            A scalar from -1 to 0.
        """
        activation = self._activation()
        if activation == "softmax" and x.shape[1] == 1:
            activation = "identity"  # of one class it is 1, and no launch has it
        if activation == "identity" and self.apply_nonlin is not None:
            x = self.apply_nonlin(x)
        if y.dim() == x.dim() - 1:
            y = y[:, None]
        ids = y.shape != x.shape
        labelled = ids or activation == "softmax"
        mode = "multiclass" if labelled else "multilabel"
        valid = None if loss_mask is None else loss_mask.bool()
        inputs = (x, class_ids(y) if ids else y, valid)
        shared = {**self.shared(), "activation": _name(activation, labelled)}
        if self.is_fused() and (labelled or self.do_bg):
            return fused(inputs, mode, (), (self.term(1.0),), **shared)
        return self._from_sums(
            fused(inputs, mode, reduction="sums", activation=shared["activation"])
        )

    def term(self, weight: float) -> tuple[Any, ...]:
        """The region term that this loss is."""
        s = number(self.smooth) / 2
        return ("dice", number(weight), 0.5, 0.5, s, 1.0, False, s, FLOOR / 2, 0.0)

    def shared(self) -> dict[str, Any]:
        """What else the loss asks for."""
        return {"include_background": self.do_bg, "batch": self.batch_dice, "absent": "all"}

    def is_fused(self) -> bool:
        """Whether the loss is one of sums over this rank alone, as they are."""
        return not self._over_ranks() and self.clip_tp is None

    def _over_ranks(self) -> bool:
        return bool(self.ddp and self.batch_dice and dist.is_available() and dist.is_initialized())

    def _activation(self) -> str:
        """Which of the kernels' activations `apply_nonlin` is; anything else is computed first."""
        if self.apply_nonlin in (torch.sigmoid, torch.nn.functional.sigmoid):
            return "sigmoid"
        # nnU-Net's own function of that name, too
        name = getattr(self.apply_nonlin, "__name__", "")
        return "softmax" if name == softmax_helper_dim1.__name__ else "identity"

    def _from_sums(self, sums: Tensor) -> Tensor:
        I, P, T, _ = sums.unbind(0)  # noqa: E741
        if self.batch_dice:
            I, P, T = I.sum(0), P.sum(0), T.sum(0)  # noqa: E741
        if self._over_ranks():
            I, P, T = collectives.all_reduce(torch.stack([I, P, T])).unbind(0)  # noqa: E741
        whole = P + T
        if self.clip_tp is not None:  # FP and FN stay what they were
            clipped = I.clamp_min(self.clip_tp)
            whole = whole + 2 * (clipped - I)
            I = clipped  # noqa: E741
        score = (2 * I + self.smooth) / (whole + self.smooth).clamp_min(FLOOR)
        return -(score if self.do_bg else score[..., 1:]).mean()


def _name(activation: str, labelled: bool) -> str | None:
    """An activation as a spec names it: None is the mode's own."""
    own = "softmax" if labelled else "sigmoid"
    return None if activation == own else activation


class SoftDiceLoss(_Dice):
    """The negative Dice score, -(2I + s) / max(P + T + s, 1e-8), averaged over (sample, class).

    Args:
        apply_nonlin: torch.sigmoid and nnU-Net's softmax_helper_dim1 are computed in the kernel,
            anything else before it.
        batch_dice: one score a class over the batch.
        do_bg: whether class 0 has a score.
        smooth: s.
        ddp: with batch_dice, over the batches of all ranks.
        clip_tp: least I; computed from the sums.

    Example:
        >>> import torch
        >>> criterion = SoftDiceLoss(torch.sigmoid)
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
        tensor(-0.6800)
    """

    def __init__(
        self,
        apply_nonlin: Callable | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        super().__init__(apply_nonlin, batch_dice, do_bg, smooth, ddp, clip_tp)


class MemoryEfficientSoftDiceLoss(_Dice):
    """The same as `SoftDiceLoss`, which keeps no more memory here.

    Args:
        apply_nonlin: see there, as for the others.
        batch_dice: see there.
        do_bg: see there.
        smooth: see there.
        ddp: see there.

    Example:
        >>> import torch
        >>> criterion = MemoryEfficientSoftDiceLoss(torch.sigmoid)
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
        tensor(-0.6800)
    """

    def __init__(
        self,
        apply_nonlin: Callable | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
    ) -> None:
        super().__init__(apply_nonlin, batch_dice, do_bg, smooth, ddp, None)
