"""The one place that knows both torch and the kernels: launch plans, autograd, operators.

Eager calls go through an `autograd.Function` straight to a kept launch plan; compiled calls go
through two `torch.library` operators, opaque to the compiler. Both end in the same two launches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastseg_losses import reference
from fastseg_losses.backends import takes_triton
from fastseg_losses.inputs import Sizes, canonical_strides, check_inputs, live_pixels
from fastseg_losses.spec import LossSpec
from fastseg_losses.stats import FIELDS, bad_targets_error, stats_size

if TYPE_CHECKING:
    from fastseg_losses.kernels.launch import Plan

MAX_PLANS = 1024  # a plan is about 5 kB; a training run has a handful of shapes
# int32 a device, zeroed before any capture: a captured launch takes 1 + groups of them for good.
CAPTURE_COUNTERS = 1 << 16

# logits, targets, valid, class_weights, pos_weight
Inputs = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]


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
    logits = inputs[0]
    if not takes_triton(backend, logits):
        return _torch_loss(spec, inputs, stats_out)
    if torch.compiler.is_compiling():
        check_inputs(spec.mode, *inputs)
        loss, row, _ = loss_forward(*inputs, spec.key)
        return loss, row if stats_out is None else stats_out.copy_(row)
    plan, inputs = _plan(spec, inputs)
    _raise_alarm()
    if stats_out is not None:
        _check_stats_out(stats_out, stats_size(spec.term_names), logits.device)
    elif want_stats:
        size = stats_size(spec.term_names)
        stats_out = torch.empty(size, dtype=torch.float32, device=logits.device)
    if logits.requires_grad and torch.is_grad_enabled():
        return _FusedLoss.apply(plan, stats_out, *inputs), stats_out
    return _launch_forward(plan, inputs, stats_out)[0], stats_out


# ---- the torch backend


def _torch_loss(spec: LossSpec, inputs: Inputs, stats_out: Tensor | None) -> tuple[Tensor, Tensor]:
    logits, targets, valid, class_weights, pos_weight = inputs
    sizes = check_inputs(spec.mode, *inputs)
    x, t = logits.reshape(sizes), targets.reshape(sizes)
    live = live_pixels(sizes, t, valid, spec.ignore_index)
    loss, row = reference.loss_and_stats(spec, x, t, live, class_weights, pos_weight)
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = int(row[FIELDS.index("bad_targets")])
        if bad:
            raise bad_targets_error(f"{bad} valid targets")
    if stats_out is not None:
        _check_stats_out(stats_out, row.numel(), logits.device)
        row = stats_out.copy_(row)
    return loss, row


def _check_stats_out(stats_out: Tensor, size: int, device: torch.device) -> None:
    if not isinstance(stats_out, Tensor):
        raise TypeError(f"stats_out: expected a torch.Tensor or None, got {stats_out!r}")
    if (
        stats_out.dtype != torch.float32
        or tuple(stats_out.shape) != (size,)
        or stats_out.device != device
        or not stats_out.is_contiguous()
    ):
        raise ValueError(
            f"stats_out: expected a contiguous float32 tensor of shape ({size},) on {device}, got "
            f"{stats_out.dtype} {tuple(stats_out.shape)} on {stats_out.device}"
        )


# ---- launch plans


_PLANS: dict[tuple[Any, ...], Plan | None] = {}


def _plan(spec: LossSpec, inputs: Inputs) -> tuple[Plan, Inputs]:
    """The launch plan for these tensors, made at first sight, and the tensors to launch it with."""
    logits, targets, valid, class_weights, pos_weight = inputs
    if not isinstance(targets, Tensor) or not (valid is None or isinstance(valid, Tensor)):
        check_inputs(spec.mode, *inputs)  # says what is wrong
    key = (
        *(spec.key, logits.shape, logits.stride(), logits.dtype, logits.device),
        *(targets.shape, targets.stride(), targets.dtype, targets.device, targets.requires_grad),
        # compiled code may rely on pointers of 16 bytes
        *(logits.data_ptr() % 16, targets.data_ptr() % 16),
        *(_key_of(valid), _key_of(class_weights), _key_of(pos_weight)),
    )
    try:
        plan = _PLANS[key]
    except KeyError:
        if len(_PLANS) >= MAX_PLANS:
            _PLANS.clear()
        plan = _PLANS[key] = _make_plan(spec, inputs)
    if plan is None:  # pixels without one stride: the documented copy
        live = valid if valid is None else valid.contiguous()
        copies = (logits.contiguous(), targets.contiguous(), live)
        return _plan(spec, (*copies, class_weights, pos_weight))
    return plan, inputs


def _key_of(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % 16


def _make_plan(spec: LossSpec, inputs: Inputs) -> Plan | None:
    from fastseg_losses.kernels import launch

    logits, targets, valid, class_weights, pos_weight = inputs
    sizes = check_inputs(spec.mode, *inputs)
    gradient = torch.empty_like(logits, device="meta")
    strides = [
        canonical_strides(spec.mode, sizes, tensor) for tensor in (logits, targets, gradient)
    ]
    valid_kind, valid_strides = "none", (0, 0)
    if valid is not None and valid.dim() == 1:
        valid_kind, valid_strides = "sample", (valid.stride(0), 0)
    elif valid is not None:
        at = canonical_strides("binary", Sizes(sizes.N, 1, sizes.P), valid)
        strides.append(at)
        valid_kind, valid_strides = "pixel", (0, 0) if at is None else (at[0], at[2])
    if None in strides:
        return None
    device = logits.device
    layout = launch.Layout(
        *sizes,
        *strides[:3],
        valid=valid_strides,
        logits_bytes=logits.element_size(),
        targets_bytes=targets.element_size(),
        targets_kind=_kind_of(targets.dtype),
        valid_kind=valid_kind,
        pos_weight_stride=0 if pos_weight is None or pos_weight.numel() == 1 else 1,
    )
    multiprocessors = 1
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    ptx = device.type == "cuda" and torch.version.hip is None
    formula = _formula(spec, pos_weight is not None)
    return launch.Plan(layout, formula, launch.Device(multiprocessors, ptx))


def _kind_of(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "soft"
    return "signed" if dtype.is_signed else "unsigned"


def _formula(spec: LossSpec, has_pos_weight: bool) -> Any:
    """The spec in the kernels' terms: which device functions, and their numbers."""
    from fastseg_losses.kernels import launch

    names = []
    alpha_neg, alpha_pos, gamma, smoothing = 1.0, 1.0, 0.0, 0.0
    for term in spec.points:
        if term.name == "bce":
            smoothing = term.label_smoothing
            names.append("weighted_bce" if smoothing or has_pos_weight else "bce")
        else:
            gamma = term.gamma
            if term.alpha is not None:
                alpha_neg, alpha_pos = 1.0 - term.alpha, term.alpha
            names.append("focal_squared" if gamma == 2.0 else "focal")
    return launch.Formula(
        points=tuple(names),
        point_weights=tuple(term.weight for term in spec.points),
        region_weights=tuple(term.weight for term in spec.regions),
        region_params=tuple((r.alpha, r.beta, r.smooth, r.gamma) for r in spec.regions),
        logs=tuple(term.log_loss for term in spec.regions),
        term_params=(alpha_neg, alpha_pos, gamma, smoothing),
        reduction=spec.reduction,
        batch=spec.batch,
        skip_absent=spec.absent == "skip",
        ignore_index=None if spec.ignore_index is None else float(spec.ignore_index),
    )


# ---- the little state that launches share


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}
_CAPTURED: dict[torch.device, tuple[Tensor, int]] = {}  # counters for captures, how many are taken
_UNREAD: dict[torch.device, Tensor] = {}
_ALARM: list[Any] = []  # an int32 in pinned host memory that the kernel sets on bad targets


def _counters(groups: int, device: torch.device, stream: int) -> Tensor:
    """Zeroed counters that no launch in flight shares.

    Launches of one stream follow each other, and each leaves its counters at 0. A captured launch
    may be replayed beside any other, so it gets counters of its own.
    """
    size = 1 + groups
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        slab, taken = _CAPTURED.get(device, (None, 0))
        if slab is None or taken + size > slab.numel():
            return torch.zeros(size, dtype=torch.int32, device=device)  # one more node a replay
        _CAPTURED[device] = slab, taken + size
        return slab[taken : taken + size]
    counters = _COUNTERS.get((device, stream))
    if counters is None or counters.numel() < size:
        counters = torch.zeros(max(size, 1024), dtype=torch.int32, device=device)
        _COUNTERS[device, stream] = counters
        if device.type == "cuda" and device not in _CAPTURED:
            _CAPTURED[device] = torch.zeros(CAPTURE_COUNTERS, dtype=torch.int32, device=device), 0
    return counters


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


# ---- the two launches


def _launch_forward(
    plan: Plan, inputs: Inputs, row: Tensor | None, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss and the table that backward needs; the statistics go into `row`."""
    device = inputs[0].device
    if _is_foreign(device):
        with torch.cuda.device(device):
            return _launch_forward(plan, inputs, row, table)
    loss = torch.empty(plan.loss_shape, dtype=torch.float32, device=device)
    scratch = torch.empty(plan.scratch_size, dtype=torch.float32, device=device)
    table = scratch if table is None else table  # one allocation for both costs 1 us less
    row = _unread(device) if row is None else row
    stream = _stream(device)
    counters = _counters(plan.groups, device, stream)
    plan.forward((loss, row, table, scratch, counters, _alarm(device), *inputs), stream)
    return loss, table


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
    # What Triton itself asks; torch.cuda.current_stream builds an object for it, 2 us a call.
    return torch._C._cuda_getCurrentRawStream(device.index)


def _is_foreign(device: torch.device) -> bool:
    """Whether another device than this one is current; kernels are launched on the current one."""
    return device.type == "cuda" and device.index != torch.cuda.current_device()


# ---- eager: autograd


class _FusedLoss(torch.autograd.Function):
    """The two launches as one differentiable step; keeps the caller's tensors and the table."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, row: Tensor | None, *inputs: Any) -> Tensor:
        loss, ctx.table = _launch_forward(plan, inputs, row)
        ctx.plan = plan
        ctx.save_for_backward(*inputs)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        # Grad mode is on under create_graph only; the guard costs 3 us.
        gradient = _guarded_backward if torch.is_grad_enabled() else _launch_backward_of
        return None, None, gradient(ctx, dloss), None, None, None, None


def _launch_backward_of(ctx: Any, dloss: Tensor) -> Tensor:
    return _launch_backward(ctx.plan, ctx.saved_tensors, ctx.table, dloss)


# Differentiating the gradient once more raises.
_guarded_backward = once_differentiable(_launch_backward_of)


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
    plan, inputs = _plan(parsed, (logits, targets, valid, class_weights, pos_weight))
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
    plan, inputs = _plan(LossSpec.from_key(spec), inputs)
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
