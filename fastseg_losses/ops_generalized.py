"""Generalised Dice from the sums of all groups: one launch, where PyTorch's operations are 30."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastseg_losses.backends import takes_triton
from fastseg_losses.inputs import Inputs
from fastseg_losses.ops import _gradient, _keep, _OnceOnly, _Step, plan_of_step, segmentation_loss
from fastseg_losses.ops_launches import launch_forward
from fastseg_losses.reference import generalized_dice
from fastseg_losses.spec import LossSpec
from fastseg_losses.state import guarded, index_of, is_foreign, stream_of
from fastseg_losses.tracing import is_batched, is_traced

if TYPE_CHECKING:
    from fastseg_losses.kernels.launch import Plan


class Finish(NamedTuple):
    """What generalised Dice makes of the sums; see `generalized_dice`.

    Attributes:
        first: channels left out at the start.
        weights: "square", "simple" or "uniform".
        smooth_nr: added above.
        smooth_dr: added below.
        reduction: "mean", "sum" or "none".
        batch: one loss, from the sums of the whole batch.
    """

    first: int
    weights: str
    smooth_nr: float
    smooth_dr: float
    reduction: str
    batch: bool

    def loss(self, spec: LossSpec, inputs: Inputs, backend: str) -> Tensor:
        """The loss of these logits, (), or with "none" (N, 1), with batch (1,).

        Of one or several masks that train, sums and finish are one step: its backward launch takes
        the finish's slopes and the upstream gradient as they are, a launch less.

        Args:
            spec: of the sums, with reduction "sums".
            inputs: see `segmentation_loss`, like backend and what is raised.
            backend: one of `backends.BACKENDS`.
        """
        masks = spec.mode != "multiclass" and spec.upsample is None
        found = plan_of_step(spec, inputs, backend) if masks else None
        if found is not None:
            plan, tensors = found
            return _SumsAndFinish.apply(tensors[0], spec, plan, tensors, self)
        sums, _ = segmentation_loss(spec, inputs, backend=backend)
        return self.of_sums(sums, backend)

    def of_sums(self, sums: Tensor, backend: str = "auto", *, constants: bool = True) -> Tensor:
        """The loss of each sample, or of the batch, under the reduction.

        Compiled and traced calls take PyTorch's operations: a compiler makes one kernel of them.

        Args:
            sums: (4, N, C), I, P, T and V; T gets no gradient (see constants).
            backend: one of `backends.BACKENDS`.
            constants: if not, T gets a gradient, by PyTorch's operations.

        Returns:
            (), or with "none" (N, 1), with batch (1,).
        """
        if not is_traced(sums) and constants and takes_triton(backend, sums):
            return _Finish.apply(sums, self)
        I, P, T = (  # noqa: E741
            s.sum(0) if self.batch else s for s in sums[:3, :, self.first :].unbind(0)
        )
        numbers = (self.smooth_nr, self.smooth_dr)
        loss = generalized_dice(I, P, T.detach() if constants else T, self.weights, *numbers)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()


class _Finish(_Step):
    """The launch, which gives the slopes with the loss; backward only multiplies."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, finish: Finish) -> Tensor:
        loss, ctx.dsums = _launch(sums, finish)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> Any:
        return ctx.dsums * dloss, None


class _SumsAndFinish(_Step):
    """Both launches as one step."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, spec: LossSpec, plan: Plan, inputs: Inputs, finish: Finish
    ) -> Tensor:
        _keep(ctx, spec, plan, inputs)
        sums, ctx.table = launch_forward(plan, inputs, None)
        loss, ctx.dsums = _launch(sums, finish)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if torch.is_grad_enabled():  # under create_graph
            dlogits = _OnceOnly.apply(ctx.dsums * dloss, ctx.saved_tensors[0], ctx)
        elif dloss.dim() or is_batched(dloss):
            dlogits = _gradient(ctx, ctx.dsums * dloss)
        else:
            # by which the launch multiplies: see gradient.load_coefs
            dlogits = _gradient(ctx, ctx.dsums, table=dloss)
        return dlogits, None, None, None, None


MAX_LAUNCHERS = 1024
_LAUNCHERS: dict[Any, Any] = {}


def _launch(sums: Tensor, finish: Finish) -> tuple[Tensor, Tensor]:
    """The loss and its slopes in the sums."""
    device = sums.device
    if is_foreign(index_of(device)):
        with torch.cuda.device(device):
            return _launch(sums, finish)
    _, N, C = sums.shape
    reduced, batch = finish.reduction != "none", finish.batch
    shape: tuple[int, ...] = () if reduced else (1,) if batch else (N, 1)
    tensors = (sums.new_empty(shape), torch.empty_like(sums), sums)
    launcher = _LAUNCHERS.get((device, N, C, finish))
    if launcher is None:
        from fastseg_losses.kernels.generalized import generalized_launch

        if len(_LAUNCHERS) >= MAX_LAUNCHERS:
            _LAUNCHERS.clear()
        scale = 1 / N if finish.reduction == "mean" and not batch else 1.0
        numbers = (finish.smooth_nr, finish.smooth_dr)
        launch = generalized_launch(
            N, C, finish.first, numbers, scale, finish.weights, batch, reduced
        )
        launcher = guarded(launch.bind, tensors)
        _LAUNCHERS[device, N, C, finish] = launcher
    launcher(tensors, (), stream_of(index_of(device)))
    return tensors[:2]
