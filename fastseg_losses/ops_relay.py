"""Several losses of the same logits, whose gradients are added up as they are written.

Two activations are two losses with launches of their own, MONAI's Dice with a softmax and focal
with sigmoids. Autograd would add their gradients afterwards: it reads both and writes a third, 320
us of 1122 us at 8x19x512x1024. Here each loss hands its logits on to the next, so that in backward
it is given the next one's gradient, and adds its own to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastseg_losses.inputs import Inputs
from fastseg_losses.ops import _gradient, _keep, _OnceOnly, _Step, plan_of_step, segmentation_loss
from fastseg_losses.ops_launches import launch_forward
from fastseg_losses.spec import LossSpec
from fastseg_losses.tracing import is_batched

if TYPE_CHECKING:
    from fastseg_losses.kernels.multiclass_plan import ClassPlan


class _Box:
    """A gradient between the loss that wrote it and the loss that adds to it.

    Apart from the relay, whose logits hold the graph: a cycle that the collector cannot see.
    """

    gradient: Tensor | None = None


class Relay:
    """Logits on their way from one loss to the next.

    Args:
        logits: what the first loss is given. Each loss leaves here what the next one has to take;
            one that takes anything else has a gradient of its own, which autograd adds.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._first = True
        self._box = _Box()

    def loss(self, spec: LossSpec, inputs: Inputs, backend: str) -> Tensor:
        """As `segmentation_loss` of these, without statistics."""
        found = self._plan_for(spec, inputs, backend)
        if found is None:
            return segmentation_loss(spec, inputs, backend=backend)[0]
        plan, inputs = found
        box = None if self._first else self._box
        loss, self.logits = _RelayedLoss.apply(self.logits, spec, plan, inputs, self._box, box)
        self._first = False
        return loss

    def _plan_for(
        self, spec: LossSpec, inputs: Inputs, backend: str
    ) -> tuple[ClassPlan, Inputs] | None:
        """A plan that can add to a gradient, and its tensors; None without, or if none is wanted.

        Raises:
            ValueError: of an earlier call, see `state.raise_alarm`; of this one, see `plan_for`.
        """
        logits = inputs[0]
        if logits is not self.logits or spec.mode != "multiclass" or spec.upsample is not None:
            return None
        found = plan_of_step(spec, inputs, backend)
        # logits that had to be copied are no longer those that the next loss is to take
        return found if found is not None and found[1][0] is logits else None


class _RelayedLoss(_Step):
    """A loss, and its logits as the next loss has to take them.

    given: where the next loss leaves its gradient; left: where this one does, for the one before.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        spec: LossSpec,
        plan: ClassPlan,
        inputs: Inputs,
        given: _Box,
        left: _Box | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.given, ctx.left = given, left
        _keep(ctx, spec, plan, inputs)
        loss, ctx.table = launch_forward(plan, inputs, None)
        return loss, logits

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, later: Tensor | None) -> Any:
        # To add to another's tensor would change it under their hands: only to what was left here.
        ours = later is not None and later is ctx.given.gradient
        ctx.given.gradient = None
        if dloss is None:
            dlogits = later
        elif torch.is_grad_enabled():  # under create_graph
            dlogits = _sum(_OnceOnly.apply(dloss, ctx.saved_tensors[0], ctx), later)
        elif ours and not is_batched(dloss):
            dlogits = _gradient(ctx, dloss, later)
        else:
            dlogits = _sum(_gradient(ctx, dloss), later)
        if ctx.left is not None:
            ctx.left.gradient = dlogits
        return dlogits, None, None, None, None, None


def _sum(own: Tensor, later: Tensor | None) -> Tensor:
    return own if later is None else own + later
