"""Generalised Dice from the sums of all groups: one launch, where PyTorch's operations are 30."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastseg_losses.backends import takes_triton
from fastseg_losses.reference import generalized_dice
from fastseg_losses.state import guarded, index_of, is_foreign, stream_of
from fastseg_losses.tracing import is_traced


def generalized_loss(
    sums: Tensor,
    *,
    first: int,
    weights: str,
    smooth_nr: float,
    smooth_dr: float,
    reduction: str,
    batch: bool,
    backend: str = "auto",
    constants: bool = True,
) -> Tensor:
    """The loss of each sample, or of the batch, under the reduction; see `generalized_dice`.

    Compiled and traced calls take PyTorch's operations: a compiler makes one kernel of them itself.

    Args:
        sums: (4, N, C), I, P, T and V; T gets no gradient (see constants).
        first: channels left out at the start.
        weights: "square", "simple" or "uniform".
        smooth_nr: added above.
        smooth_dr: added below.
        reduction: "mean", "sum" or "none".
        batch: one loss, from the sums of the whole batch.
        backend: one of `backends.BACKENDS`.
        constants: if not, T gets a gradient, by PyTorch's operations.

    Returns:
        (), or with "none" (N, 1), with batch (1,).
    """
    numbers = (smooth_nr, smooth_dr)
    if is_traced(sums) or not constants or not takes_triton(backend, sums):
        I, P, T = (s.sum(0) if batch else s for s in sums[:3, :, first:].unbind(0))  # noqa: E741
        loss = generalized_dice(I, P, T.detach() if constants else T, weights, *numbers)
        if reduction == "none":
            return loss
        return loss.mean() if reduction == "mean" else loss.sum()
    return _Finish.apply(sums, first, weights, numbers, reduction, batch)


class _Finish(torch.autograd.Function):
    """The launch, which gives the slopes with the loss; backward only multiplies."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        first: int,
        weights: str,
        numbers: tuple[float, float],
        reduction: str,
        batch: bool,
    ) -> Tensor:
        _, N, C = sums.shape
        shape: tuple[int, ...] = () if reduction != "none" else (1,) if batch else (N, 1)
        tensors = (sums.new_empty(shape), torch.empty_like(sums), sums)
        scale = 1 / N if reduction == "mean" and not batch else 1.0
        arguments = (N, C, first, numbers, scale, weights, batch, not shape)
        if is_foreign(index_of(sums.device)):
            with torch.cuda.device(sums.device):
                _launch(tensors, arguments)
        else:
            _launch(tensors, arguments)
        ctx.dsums = tensors[1]
        return tensors[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> Any:
        return ctx.dsums * dloss, None, None, None, None, None


MAX_LAUNCHERS = 1024
_LAUNCHERS: dict[Any, Any] = {}


def _launch(tensors: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> None:
    device = tensors[0].device
    launcher = _LAUNCHERS.get((device, arguments))
    if launcher is None:
        from fastseg_losses.kernels.generalized import generalized_launch

        if len(_LAUNCHERS) >= MAX_LAUNCHERS:
            _LAUNCHERS.clear()
        launcher = guarded(generalized_launch(*arguments).bind, tensors)
        _LAUNCHERS[device, arguments] = launcher
    launcher(tensors, (), stream_of(index_of(device)))
