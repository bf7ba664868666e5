"""Autograd and operators around the kernels.

With `ops_launches.py`, `ops_generalized.py`, `ops_masks.py`, `plans.py`, `cell_plans.py` and
`formulas.py` all that knows both torch and the kernels.

Eager calls go through an `autograd.Function` straight to a kept launch plan; compiled calls go
through two `torch.library` operators, opaque to the compiler. Both take the same two launches, but
eager calls of float32 logits may take a forward launch that writes the gradient too, so that the
inputs are read once: losses without a region term, and large ones (early_plan.py, single_plan.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastseg_losses.backends import takes_triton, torch_loss
from fastseg_losses.inputs import Inputs, check_call, check_stats_out
from fastseg_losses.ops_launches import launch_backward, launch_early, launch_forward, settle
from fastseg_losses.plans import PLANS, admitted_single, key_of, output_shapes, plan_for
from fastseg_losses.spec import LossSpec
from fastseg_losses.state import is_capturing, is_foreign, raise_alarm
from fastseg_losses.stats import row_length
from fastseg_losses.tracing import is_batched, is_traced, refuse_transforms
from fastseg_losses.upsampling import full_spec, stand_in

if TYPE_CHECKING:
    from fastseg_losses.kernels.launch import Plan


def segmentation_loss(
    spec: LossSpec,
    inputs: Inputs,
    *,
    backend: str = "auto",
    want_stats: bool = False,
    stats_out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute a loss and its statistics row on the backend that `backend` and the tensors ask for.

    Args:
        spec: what to compute.
        inputs: logits (N, C, *spatial), targets (see `inputs.check_inputs`), valid (bool (N,) or
            (N, *spatial), or None), class_weights ((C,) or None), pos_weight ((1,), (C,) or None).
        backend: one of `backends.BACKENDS`.
        want_stats: whether the caller will read the statistics row.
        stats_out: float32 (stats_size,) into which the row is written, or None.

    Returns:
        The loss under the spec's reduction, and the row (None unless wanted).
    """
    plan = None
    compiling = is_traced(inputs[0])
    # compiling first: a look at PLANS would be a guard of compiled code, broken by each new plan
    if not compiling and PLANS and (backend == "auto" or backend == "triton"):
        try:
            # seen before: nothing is left to check
            plan = PLANS.get(key_of(spec, inputs)) if inputs[0].is_cuda else None
        except AttributeError:
            plan = None  # no tensor: the long way says so
    if plan is None:
        actual = spec if spec.upsample is None else full_spec(spec, inputs)
        if not takes_triton(backend, inputs[0], actual):
            return torch_loss(actual, inputs, stats_out, want_stats=want_stats)
        if compiling:
            if not torch.compiler.is_compiling():
                refuse_transforms(inputs[0])
            full = inputs[0]
            if actual.upsample is not None:
                full = stand_in(actual, full, inputs[1])
            check_call(actual, (full, *inputs[1:]))
            if stats_out is not None:
                check_stats_out(stats_out, row_length(spec, inputs[0]), inputs[0].device)
            loss, row, _ = loss_forward(*inputs, actual.key)
            return loss, row if stats_out is None else stats_out.copy_(row)
        raise_alarm()  # before CUDA is asked for anything: it also knows of a fork
        plan, inputs = plan_for(spec, inputs)
    else:
        raise_alarm()
    logits = inputs[0]
    if stats_out is not None:
        check_stats_out(stats_out, row_length(spec, logits), logits.device)
    elif want_stats:
        stats_out = torch.empty_like(plan.blanks.row)
    if logits.requires_grad and torch.is_grad_enabled():
        return _FusedLoss.apply(logits, spec, plan, inputs, stats_out), stats_out
    return launch_forward(plan, inputs, stats_out)[0], stats_out


# ---- eager: autograd


def plan_of_step(spec: LossSpec, inputs: Inputs, backend: str) -> tuple[Plan, Inputs] | None:
    """The plan of an eager call that trains by the kernels, and its tensors; None of another call.

    Raises:
        ValueError: of an earlier call, see `state.raise_alarm`; of this one, see `plan_for`.
    """
    logits = inputs[0]
    if not logits.requires_grad or not torch.is_grad_enabled() or is_traced(logits):
        return None
    if not takes_triton(backend, logits, spec):
        return None
    raise_alarm()
    return plan_for(spec, inputs)


class _Step(torch.autograd.Function):
    """An eager call as a step of autograd.

    What gets a gradient is the first argument; `inputs` goes whole, for autograd to leave alone.
    """

    # In place of one in Python that asks again for torch.func, which `is_traced` has ruled out, and
    # looks into each argument: on an AMD EPYC 4 of the 20 us that a step takes beyond an empty one.
    apply = torch._C._FunctionBase.__dict__["apply"]


class _FusedLoss(_Step):
    """The launches as one differentiable step; keeps the caller's tensors and the table."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, spec: LossSpec, plan: Plan, inputs: Inputs, row: Tensor | None
    ) -> Tensor:
        _keep(ctx, spec, plan, inputs)
        early = plan.early
        if early is not None:
            # A replay must not share the assumption with launches around it: captures take two.
            # Only of the current device PyTorch says whether there is a capture.
            if is_foreign(plan.device.index) or is_capturing(logits.device):
                early = None
            elif not early.admitted:
                early = admitted_single(plan, early)
        ctx.early = early
        if early is None:
            loss, ctx.table = launch_forward(plan, inputs, row)
        else:
            loss, ctx.table, ctx.gradient = launch_early(plan, early, inputs, row)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if torch.is_grad_enabled():  # under create_graph
            dlogits = _OnceOnly.apply(dloss, ctx.saved_tensors[0], ctx)
        else:
            dlogits = _gradient(ctx, dloss)
        return dlogits, None, None, None, None


class _OnceOnly(torch.autograd.Function):
    """The gradient as a step that refuses to be differentiated: it is no constant."""

    @staticmethod
    def forward(ctx: Any, dloss: Tensor, logits: Tensor, loss_ctx: Any) -> Tensor:
        return _gradient(loss_ctx, dloss)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "the gradient of a fused loss cannot be differentiated again (double backward); "
            "use backend='torch' for second derivatives"
        )


def _keep(ctx: Any, spec: LossSpec, plan: Plan, inputs: Inputs) -> None:
    """What `_gradient` needs of a call, beside the table."""
    logits, targets, valid, _, pos_weight = inputs
    ctx.spec, ctx.plan, ctx.gradient = spec, plan, None
    ctx.save_for_backward(logits, targets, valid, pos_weight)
    ctx.places = _places(logits, targets, valid)


def _places(logits: Tensor, targets: Tensor, valid: Tensor | None) -> tuple[Any, ...]:
    where = (logits.data_ptr(), logits.stride(), targets.data_ptr(), targets.stride())
    return where if valid is None else (*where, valid.data_ptr(), valid.stride())


def _gradient(
    ctx: Any, dloss: Tensor, onto: Tensor | None = None, table: Tensor | None = None
) -> Tensor:
    table = ctx.table if table is None else table
    logits, targets, valid, pos_weight = ctx.saved_tensors
    if is_batched(dloss):  # of vmap; PyTorch calls an operator once for each
        tensors = (table, logits, targets, valid, None, pos_weight)
        return loss_backward(dloss, *tensors, ctx.spec.key)
    if ctx.gradient is not None:
        # Given away once: a second backward through a retained graph computes its own. So does a
        # capture: replayed twice, it would settle twice.
        dlogits, ctx.gradient = ctx.gradient, None
        if not is_capturing(dlogits.device):
            return settle(ctx.early, table, dlogits, dloss)
    inputs: Inputs = (logits, targets, valid, None, pos_weight)
    plan = ctx.plan
    if _places(logits, targets, valid) != ctx.places:
        # A hook on saved tensors gave back copies, which may lie otherwise.
        plan, inputs = plan_for(ctx.spec, inputs)
    if onto is not None and _layout(onto) != _layout(inputs[0]):
        return launch_backward(plan, inputs, table, dloss) + onto
    return launch_backward(plan, inputs, table, dloss, onto)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.stride()


# ---- compiled: operators


@torch.library.custom_op("fastseg_losses::loss_forward", mutates_args=())
def loss_forward(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None,
    class_weights: Tensor | None,
    pos_weight: Tensor | None,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, statistics row and table (what backward needs of the sums), for a `LossSpec.key`."""
    parsed = LossSpec.from_key(spec)
    raise_alarm()
    plan, inputs = plan_for(parsed, (logits, targets, valid, class_weights, pos_weight))
    row = torch.empty_like(plan.blanks.row)
    table = logits.new_empty((plan.table_size,), dtype=torch.float32)
    loss, _ = launch_forward(plan, inputs, row, table)
    return loss, row, table


@loss_forward.register_fake
def _(logits, targets, valid, class_weights, pos_weight, spec):  # type: ignore[no-untyped-def]
    parsed = LossSpec.from_key(spec)
    loss, table = output_shapes(parsed, logits, targets)
    row = row_length(parsed, logits)
    return tuple(logits.new_empty(shape, dtype=torch.float32) for shape in (loss, (row,), (table,)))


@torch.library.custom_op("fastseg_losses::loss_backward", mutates_args=())
def loss_backward(
    dloss: Tensor,
    table: Tensor,
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None,
    class_weights: Tensor | None,
    pos_weight: Tensor | None,
    spec: str,
) -> Tensor:
    """Gradient of the loss with respect to the logits."""
    inputs = (logits, targets, valid, class_weights, pos_weight)
    plan, inputs = plan_for(LossSpec.from_key(spec), inputs)
    dlogits = launch_backward(plan, inputs, table, dloss)
    if inputs[0] is logits:
        return dlogits
    return torch.empty_like(logits).copy_(dlogits)  # in the layout that the compiler was told


@loss_backward.register_fake
def _(dloss, table, logits, targets, valid, class_weights, pos_weight, spec):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[2], *inputs[:5])
    ctx.spec = inputs[5]
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx: Any, dloss: Tensor, *_: Any) -> tuple:
    table, *inputs = ctx.saved_tensors
    return loss_backward(dloss, table, *inputs, ctx.spec), None, None, None, None, None


loss_forward.register_autograd(_backward, setup_context=_setup_context)
