"""Autograd and operators around the kernels; with `plans.py`, all that knows both torch and them.

Eager calls go through an `autograd.Function` straight to a kept launch plan; compiled calls go
through two `torch.library` operators, opaque to the compiler. Both end in the same two launches;
for large float32 logits, eager calls take one that reads the inputs once (kernels/single.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastseg_losses.backends import takes_triton, torch_loss
from fastseg_losses.inputs import check_inputs, check_stats_out
from fastseg_losses.plans import PLANS, Inputs, key_of, plan_for
from fastseg_losses.spec import LossSpec
from fastseg_losses.stats import bad_targets_error, stats_size

if TYPE_CHECKING:
    from fastseg_losses.kernels.launch import Plan

# int32 a device, zeroed before any capture: a captured launch takes 1 + groups of them for good.
CAPTURE_COUNTERS = 1 << 16


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
    compiling = torch.compiler.is_compiling()
    if PLANS and not compiling and (backend == "auto" or backend == "triton"):
        try:
            # seen before: nothing is left to check
            plan = PLANS.get(key_of(spec, inputs)) if inputs[0].is_cuda else None
        except AttributeError:
            plan = None  # no tensor: the long way says so
    if plan is None:
        if not takes_triton(backend, inputs[0]):
            return torch_loss(spec, inputs, stats_out)
        if compiling:
            check_inputs(spec.mode, *inputs)
            loss, row, _ = loss_forward(*inputs, spec.key)
            return loss, row if stats_out is None else stats_out.copy_(row)
        plan, inputs = plan_for(spec, inputs)
    _raise_alarm()
    logits = inputs[0]
    if stats_out is not None:
        check_stats_out(stats_out, stats_size(spec.term_names), logits.device)
    elif want_stats:
        stats_out = logits.new_empty(stats_size(spec.term_names), dtype=torch.float32)
    if logits.requires_grad and torch.is_grad_enabled():
        return _FusedLoss.apply(plan, stats_out, *inputs), stats_out
    return _launch_forward(plan, inputs, stats_out)[0], stats_out


# ---- the little state that launches share


_ASSUMED: dict[torch.device, Tensor] = {}  # see _settle_kernel
_CAPTURED: dict[torch.device, tuple[Tensor, int]] = {}  # counters for captures, how many are taken
_UNREAD: dict[torch.device, Tensor] = {}
_ALARM: list[Any] = []  # an int32 in pinned host memory that the kernel sets on bad targets


def _counters(plan: Plan, device: torch.device, stream: int) -> Tensor:
    """Zeroed counters that no launch in flight shares.

    Launches of one stream follow each other, and each leaves its counters at 0. A captured launch
    may be replayed beside any other, so it gets counters of its own.
    """
    size = 1 + plan.groups
    if device.type == "cuda" and torch._C._cuda_isCurrentStreamCapturing():
        slab, taken = _CAPTURED.get(device, (None, 0))
        if slab is None or taken + size > slab.numel():
            return torch.zeros(size, dtype=torch.int32, device=device)  # one more node a replay
        _CAPTURED[device] = slab, taken + size
        return slab[taken : taken + size]
    counters = plan.counters.get(stream)
    if counters is None:
        counters = torch.zeros(size, dtype=torch.int32, device=device)
        plan.counters[stream] = counters
        if device.type == "cuda" and device not in _CAPTURED:
            _CAPTURED[device] = torch.zeros(CAPTURE_COUNTERS, dtype=torch.int32, device=device), 0
    return counters


def _assumed(device: torch.device) -> Tensor:
    """The upstream gradient that came last, 1 at first: the best guess at the next one."""
    if device not in _ASSUMED:
        _ASSUMED[device] = torch.ones(1, dtype=torch.float32, device=device)
    return _ASSUMED[device]


def _unread(device: torch.device) -> Tensor:
    """Where statistics go that nobody reads, from any number of launches at once."""
    if device not in _UNREAD:
        _UNREAD[device] = torch.empty(64, dtype=torch.float32, device=device)
    return _UNREAD[device]


def _alarm(device: torch.device) -> Tensor:
    if not _ALARM:
        flag = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        _ALARM.extend((flag, flag.numpy()))  # read through numpy: 0.1 us in place of 3
    return _ALARM[0]


def _raise_alarm() -> None:
    if _ALARM and _ALARM[1][0]:
        _ALARM[1][0] = 0
        raise bad_targets_error("some of an earlier call")


# ---- the launches


def _launch_forward(
    plan: Plan, inputs: Inputs, row: Tensor | None, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss and the table that backward needs; the statistics go into `row`."""
    logits = inputs[0]
    device = logits.device
    if _is_foreign(device):
        with torch.cuda.device(device):
            return _launch_forward(plan, inputs, row, table)
    loss = logits.new_empty(plan.loss_shape, dtype=torch.float32)
    scratch = logits.new_empty(plan.scratch_size, dtype=torch.float32)
    table = scratch if table is None else table  # one allocation for both costs 4 us less
    row = _unread(device) if row is None else row
    stream = _stream(device)
    counters = _counters(plan, device, stream)
    plan.forward((loss, row, table, scratch, counters, _alarm(device), *inputs), stream)
    return loss, table


def _launch_single(plan: Plan, inputs: Inputs, row: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, table and the gradient for the assumed upstream gradient."""
    logits, targets, _, _, pos_weight = inputs
    device = logits.device
    if _is_foreign(device):
        with torch.cuda.device(device):
            return _launch_single(plan, inputs, row)
    loss = logits.new_empty((), dtype=torch.float32)
    scratch = logits.new_empty(plan.single.scratch_size, dtype=torch.float32)
    dlogits = torch.empty_like(logits)
    row = _unread(device) if row is None else row
    stream = _stream(device)
    counters = _counters(plan, device, stream)
    if targets.dtype == torch.bool:
        targets = targets.view(torch.uint8)
    outputs = (loss, row, scratch, scratch, counters, _alarm(device), dlogits)
    plan.single.forward((*outputs, logits, targets, pos_weight, _assumed(device)), stream)
    return loss, scratch, dlogits


def _settle(plan: Plan, table: Tensor, dlogits: Tensor, dloss: Tensor) -> Tensor:
    """Make the gradient of `_launch_single` that for the upstream gradient that came."""
    device = dlogits.device
    if _is_foreign(device):
        with torch.cuda.device(device):
            return _settle(plan, table, dlogits, dloss)
    used = table[plan.single.used]
    plan.single.settle((dlogits, _assumed(device), dloss, used), _stream(device))
    return dlogits


def _launch_backward(plan: Plan, inputs: Inputs, table: Tensor, dloss: Tensor) -> Tensor:
    logits, targets, valid, _, pos_weight = inputs
    device = logits.device
    if _is_foreign(device):
        with torch.cuda.device(device):
            return _launch_backward(plan, inputs, table, dloss)
    dlogits = torch.empty_like(logits)
    # (k, n, c); a scalar is the same for all
    strides = (0,) * (3 - dloss.dim()) + dloss.stride() if dloss.dim() else (0, 0, 0)
    tensors = (dlogits, dloss, table, logits, targets, valid, pos_weight)
    plan.backward(tensors, strides, _stream(device))
    return dlogits


def _stream(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    # As Triton asks, like the two below: their public forms build objects, 1 to 6 us a call.
    return torch._C._cuda_getCurrentRawStream(device.index)


def _is_foreign(device: torch.device) -> bool:
    """Whether another device than this one is current; kernels are launched on the current one."""
    return device.type == "cuda" and device.index != torch._C._cuda_getDevice()


# ---- eager: autograd


class _FusedLoss(torch.autograd.Function):
    """The launches as one differentiable step; keeps the caller's tensors and the table."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, row: Tensor | None, *inputs: Any) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*inputs)
        if plan.single is None:
            ctx.gradient = None
            loss, ctx.table = _launch_forward(plan, inputs, row)
        else:
            loss, ctx.table, ctx.gradient = _launch_single(plan, inputs, row)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        # Grad mode is on under create_graph only; the guard costs 3 us.
        gradient = _guarded_gradient if torch.is_grad_enabled() else _gradient
        return None, None, gradient(ctx, dloss), None, None, None, None


def _gradient(ctx: Any, dloss: Tensor) -> Tensor:
    inputs = ctx.saved_tensors
    if ctx.gradient is None:
        return _launch_backward(ctx.plan, inputs, ctx.table, dloss)
    # Given away once: a second backward through a retained graph computes its own.
    dlogits, ctx.gradient = ctx.gradient, None
    return _settle(ctx.plan, ctx.table, dlogits, dloss)


# Differentiating the gradient once more raises.
_guarded_gradient = once_differentiable(_gradient)


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
    plan, inputs = plan_for(parsed, (logits, targets, valid, class_weights, pos_weight))
    row = logits.new_empty(stats_size(parsed.term_names), dtype=torch.float32)
    table = logits.new_empty(plan.table_size, dtype=torch.float32)
    loss, _ = _launch_forward(plan, inputs, row, table)
    return loss, row, table


@loss_forward.register_fake
def _(logits, targets, valid, class_weights, pos_weight, spec):  # type: ignore[no-untyped-def]
    parsed = LossSpec.from_key(spec)
    N, C = logits.shape[0], 1 if parsed.mode == "binary" else logits.shape[1]
    shapes = {"none": (C,) if parsed.batch else (N, C), "sums": (4, N, C)}
    groups = C if parsed.batch else N * C
    return (
        logits.new_empty(shapes.get(parsed.reduction, ()), dtype=torch.float32),
        logits.new_empty(stats_size(parsed.term_names), dtype=torch.float32),
        logits.new_empty(2 + (2 + len(parsed.points)) * groups, dtype=torch.float32),
    )


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
    return _launch_backward(plan, inputs, table, dloss)


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
