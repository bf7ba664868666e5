"""The one place that knows both torch and the kernels: choice of backend, launch plans, autograd, operators.

Eager calls go through an `autograd.Function` straight to a kept launch plan; compiled calls go through two `torch.library`
operators, opaque to the compiler. Both end in the same two launches.
"""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastseg_losses import reference
from fastseg_losses.inputs import Sizes, canonical_strides, check_inputs, live_pixels
from fastseg_losses.spec import LossSpec
from fastseg_losses.stats import FIELDS, bad_targets_error, stats_size

if TYPE_CHECKING:
    from fastseg_losses.kernels.launch import Plan

BACKENDS = ("auto", "triton", "torch")
MIN_TRITON = (3, 4)
MIN_CAPABILITY = (8, 0)  # the oldest NVIDIA generation the kernels are compiled for in the tests
MAX_PLANS = 1024  # a plan is about 5 kB; a training run has a handful of shapes


def segmentation_loss(
    spec: LossSpec,
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None,
    class_weights: Tensor | None,
    pos_weight: Tensor | None,
    backend: str,
    stats_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute a loss and its statistics row on the backend that `backend` and the tensors ask for.

    Args:
        spec: what to compute.
        logits: (N, C, *spatial).
        targets: see `inputs.check_inputs`.
        valid: bool (N,) or (N, *spatial), or None.
        class_weights: (C,) or None.
        pos_weight: (1,) or (C,), or None.
        backend: one of `BACKENDS`.
        stats_out: float32 (stats_size,) into which the row is written, or None.

    Returns:
        The loss under the spec's reduction, and the row.
    """
    if not _takes_triton(backend, logits):
        return _torch_loss(spec, logits, targets, valid, class_weights, pos_weight, stats_out)
    tensors = (logits, targets, valid, class_weights, pos_weight)
    if torch.compiler.is_compiling():
        check_inputs(spec.mode, *tensors)
        loss, row, _ = loss_forward(*tensors, spec.key)
        return loss, row if stats_out is None else stats_out.copy_(row)
    plan, tensors = _plan(spec, tensors)
    if _ALARM and _ALARM[0][0]:
        _ALARM[0].fill_(0)
        raise bad_targets_error("some of an earlier call")
    size = stats_size(spec.term_names)
    if stats_out is None:
        stats_out = torch.empty(size, dtype=torch.float32, device=logits.device)
    else:
        _check_stats_out(stats_out, size, logits.device)
    return _FusedLoss.apply(plan, stats_out, *tensors), stats_out


# ---- the torch backend


def _torch_loss(
    spec: LossSpec,
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None,
    class_weights: Tensor | None,
    pos_weight: Tensor | None,
    stats_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    sizes = check_inputs(spec.mode, logits, targets, valid, class_weights, pos_weight)
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


# ---- choice of backend


def _takes_triton(backend: str, logits: Tensor) -> bool:
    """Whether the kernels serve this call; raises where they were asked for and cannot."""
    if backend == "torch" or not isinstance(logits, Tensor) or logits.numel() == 0:
        return False  # an empty batch is 0 with a live graph; there is nothing to launch
    if backend == "auto":
        if not logits.is_cuda or logits.dtype == torch.float64:
            return False
        trouble = _trouble(logits.device.type, logits.device.index)
        if trouble:
            _warn_once(trouble)
        return not trouble
    if logits.dtype == torch.float64:
        raise TypeError("logits: backend='triton' computes in float32; use backend='torch' for float64")
    trouble = _trouble(logits.device.type, logits.device.index)
    if trouble:
        raise RuntimeError(f"backend='triton': {trouble}; use backend='torch' or 'auto'")
    return True


@torch.compiler.assume_constant_result
def _trouble(device_type: str, index: int | None) -> str:
    """Why the kernels cannot run on a device; empty when they can."""
    if (device_type, index) not in _TROUBLES:
        _TROUBLES[device_type, index] = _find_trouble(device_type, index)
    return _TROUBLES[device_type, index]


_TROUBLES: dict[tuple[str, int | None], str] = {}


def _find_trouble(device_type: str, index: int | None) -> str:
    try:
        triton = importlib.import_module("triton")
        version = tuple(int(part) for part in triton.__version__.split(".")[:2])
        if version < MIN_TRITON:
            return f"Triton {triton.__version__} is older than {'.'.join(map(str, MIN_TRITON))}"
        launch = importlib.import_module("fastseg_losses.kernels.launch")
    except Exception as error:  # a broken Triton fails in many ways; say which
        return f"Triton could not be imported ({type(error).__name__}: {error})"
    if launch.INTERPRETED:
        return "" if device_type == "cpu" else "TRITON_INTERPRET=1 runs the kernels on CPU tensors only"
    if device_type != "cuda":
        return f"the kernels run on CUDA tensors, not on {device_type} (TRITON_INTERPRET=1 for tests on the CPU)"
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < MIN_CAPABILITY:
        found = torch.cuda.get_device_capability(index)
        return f"the GPU's compute capability {found[0]}.{found[1]} is under {'.'.join(map(str, MIN_CAPABILITY))}"
    return ""


@torch.compiler.disable
@lru_cache(maxsize=None)
def _warn_once(trouble: str) -> None:
    warnings.warn(f"fastseg_losses falls back to plain PyTorch: {trouble}", RuntimeWarning, stacklevel=5)


# ---- launch plans and the little state that launches share


_PLANS: dict[tuple, Plan | None] = {}
_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}
_ALARM: list[Tensor] = []  # one int32 in pinned host memory that the kernel sets on targets outside [0, 1]

Inputs = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]  # logits, targets, valid, weights


def _plan(spec: LossSpec, inputs: Inputs) -> tuple[Plan, Inputs]:
    """The launch plan for these tensors, checked and laid out at first sight, and the tensors to launch it with."""
    logits, targets, valid, class_weights, pos_weight = inputs
    key = (
        spec.key,
        *(logits.shape, logits.stride(), logits.dtype, logits.device),
        *(targets.shape, targets.stride(), targets.dtype, targets.device, targets.requires_grad),
        # compiled code may rely on pointers of 16 bytes
        *(logits.data_ptr() % 16, targets.data_ptr() % 16),
        valid if valid is None else (valid.shape, valid.stride(), valid.dtype, valid.device, valid.data_ptr() % 16),
        class_weights if class_weights is None else (class_weights.shape, class_weights.dtype, class_weights.device),
        pos_weight if pos_weight is None else (pos_weight.shape, pos_weight.dtype, pos_weight.device),
    )
    if key not in _PLANS:
        if len(_PLANS) >= MAX_PLANS:
            _PLANS.clear()
        _PLANS[key] = _make_plan(spec, inputs)
    plan = _PLANS[key]
    if plan is None:  # pixels without one stride: the documented copy
        copies = (logits.contiguous(), targets.contiguous(), valid if valid is None else valid.contiguous())
        return _plan(spec, (*copies, class_weights, pos_weight))
    return plan, inputs


def _make_plan(spec: LossSpec, inputs: Inputs) -> Plan | None:
    from fastseg_losses.kernels import launch

    logits, targets, valid, class_weights, pos_weight = inputs
    sizes = check_inputs(spec.mode, logits, targets, valid, class_weights, pos_weight)
    gradient = torch.empty_like(logits, device="meta")
    strides = [canonical_strides(spec.mode, sizes, tensor) for tensor in (logits, targets, gradient)]
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
        binary_targets=targets.dtype == torch.bool,
        valid_kind=valid_kind,
        pos_weight_stride=0 if pos_weight is None or pos_weight.numel() == 1 else 1,
    )
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    else:
        multiprocessors = 1
    ptx = device.type == "cuda" and torch.version.hip is None
    return launch.Plan(layout, _formula(spec, pos_weight), launch.Device(multiprocessors, ptx))


def _formula(spec: LossSpec, pos_weight: Tensor | None) -> Any:
    """The spec in the kernels' terms: which device functions, and their numbers."""
    from fastseg_losses.kernels import launch

    names = []
    alpha_neg, alpha_pos, gamma, smoothing = 1.0, 1.0, 0.0, 0.0
    for term in spec.points:
        if term.name == "bce":
            smoothing = term.label_smoothing
            names.append("weighted_bce" if smoothing or pos_weight is not None else "bce")
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


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def _counters(plan: Plan, device: torch.device, stream: int | None) -> Tensor:
    """Zeroed counters that no launch in flight shares: launches of one stream follow each other, and each leaves them 0.

    A captured launch may be replayed beside any other, so it gets counters of its own, zeroed inside the graph.
    """
    size = 1 + plan.groups
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.int32, device=device)
    counters = _COUNTERS.get((device, stream or 0))
    if counters is None or counters.numel() < size:
        counters = torch.zeros(max(size, 256), dtype=torch.int32, device=device)
        _COUNTERS[device, stream or 0] = counters
    return counters


def _alarm(device: torch.device) -> Tensor:
    if not _ALARM:
        _ALARM.append(torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda"))
    return _ALARM[0]


# ---- the two launches


def _launch_forward(plan: Plan, inputs: Inputs, row: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the table; the statistics go into `row`."""
    device = inputs[0].device
    loss = torch.empty(plan.loss_shape, dtype=torch.float32, device=device)
    table = torch.empty(plan.table_size, dtype=torch.float32, device=device)
    workspace = torch.empty(plan.workspace_size, dtype=torch.float32, device=device)
    with _on(device):
        stream = _stream(device)
        counters = _counters(plan, device, stream)
        plan.forward((loss, row, table, workspace, counters, _alarm(device), *inputs), stream)
    return loss, table


def _launch_backward(plan: Plan, inputs: Inputs, table: Tensor, dloss: Tensor) -> Tensor:
    logits, targets, valid, _, pos_weight = inputs
    dlogits = torch.empty_like(logits)
    strides = (0,) * (3 - dloss.dim()) + dloss.stride()  # (k, n, c); a scalar is the same for all
    with _on(logits.device):
        plan.backward(
            (dlogits, dloss, table, logits, targets, valid, pos_weight), strides, _stream(logits.device)
        )
    return dlogits


def _on(device: torch.device) -> Any:
    """The device's context, entered only where another device is current: entering costs 3 us."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


# ---- eager: autograd


class _FusedLoss(torch.autograd.Function):
    """The two launches as one differentiable step; keeps the caller's tensors and the table."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, row: Tensor, *inputs: Any) -> Tensor:
        loss, table = _launch_forward(plan, inputs, row)
        ctx.plan = plan
        ctx.save_for_backward(table, *inputs)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> Any:
        table, *inputs = ctx.saved_tensors
        return None, None, _launch_backward(ctx.plan, tuple(inputs), table, dloss), None, None, None, None


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
    row = torch.empty(stats_size(parsed.term_names), dtype=torch.float32, device=logits.device)
    loss, table = _launch_forward(plan, inputs, row)
    return loss, row, table


@loss_forward.register_fake
def _(logits, targets, valid, class_weights, pos_weight, spec):  # type: ignore[no-untyped-def]
    parsed = LossSpec.from_key(spec)
    N, C = logits.shape[0], 1 if parsed.mode == "binary" else logits.shape[1]
    groups = C if parsed.batch else N * C
    shape = {"mean": (), "sum": (), "none": (C,) if parsed.batch else (N, C), "sums": (4, N, C)}
    return (
        logits.new_empty(shape[parsed.reduction], dtype=torch.float32),
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
    plan, inputs = _plan(LossSpec.from_key(spec), (logits, targets, valid, class_weights, pos_weight))
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
