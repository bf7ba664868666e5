"""Which backend serves a call: the kernels where they can run, plain PyTorch elsewhere."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import get_args

import torch
from torch import Tensor

from fastseg_losses import reference_binary, reference_multiclass
from fastseg_losses.arguments import Backend
from fastseg_losses.inputs import Inputs, check_call, check_stats_out, is_soft, live_pixels
from fastseg_losses.spec import LossSpec
from fastseg_losses.state import cache_trouble
from fastseg_losses.stats import row_length
from fastseg_losses.target_values import check_ids, check_range
from fastseg_losses.tracing import is_traced
from fastseg_losses.upsampling import spatial_size, upsampled

BACKENDS: tuple[str, ...] = get_args(Backend)
MIN_TRITON = (3, 4)
MIN_CAPABILITY = (8, 0)  # the oldest NVIDIA generation the kernels are compiled for in the tests

_TROUBLES: dict[tuple[str, int | None], str] = {}


def takes_triton(backend: str, logits: Tensor, spec: LossSpec | None = None) -> bool:
    """Whether the kernels serve this call.

    Args:
        backend: one of `BACKENDS`.
        logits: the call's logits.
        spec: the loss, if it is one.

    Raises:
        TypeError: backend="triton" with float64 logits.
        ValueError: backend="triton" with low-resolution logits of other than 2-D space.
        RuntimeError: backend="triton" where the kernels cannot run; the message says why.
    """
    if backend == "torch" or not isinstance(logits, Tensor) or logits.numel() == 0:
        return False  # an empty batch is 0 with a live graph; there is nothing to launch
    low = () if spec is None or spec.upsample is None else spatial_size(spec.mode, logits)
    if low and len(low) != 2:
        if backend == "triton":
            raise ValueError(
                f"logits: backend='triton' upsamples in 2-D, got shape {tuple(logits.shape)}; use "
                "backend='torch' or 'auto'"
            )
        return False
    if backend == "auto":
        if not logits.is_cuda or logits.dtype == torch.float64:
            return False
        trouble = _trouble(logits.device.type, logits.device.index)
        if trouble:
            _warn_once(trouble)
        return not trouble
    if backend != "triton":
        raise ValueError(
            f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {backend!r}"
        )
    if logits.dtype == torch.float64:
        raise TypeError(
            "logits: backend='triton' computes in float32; use backend='torch' for float64"
        )
    trouble = _trouble(logits.device.type, logits.device.index)
    if trouble:
        raise RuntimeError(f"backend='triton': {trouble}; use backend='torch' or 'auto'")
    return True


def find_trouble(device_type: str, index: int | None) -> str:
    """Why the kernels cannot run on a device; empty when they can."""
    try:
        triton = importlib.import_module("triton")
        version = tuple(int(part) for part in triton.__version__.split(".")[:2])
        interpreted = version >= MIN_TRITON and triton.knobs.runtime.interpret
    except Exception as error:  # a broken Triton fails in many ways; say which
        return f"Triton could not be imported ({type(error).__name__}: {error})"
    if version < MIN_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, MIN_TRITON))}"
    if interpreted:
        on_cpu = device_type == "cpu"
        return "" if on_cpu else "TRITON_INTERPRET=1 runs the kernels on CPU tensors only"
    if device_type != "cuda":
        return (
            f"the kernels run on CUDA tensors, not on {device_type} "
            "(TRITON_INTERPRET=1 for tests on the CPU)"
        )
    if torch.version.hip is None:
        found = torch.cuda.get_device_capability(index)
        if found < MIN_CAPABILITY:
            least = ".".join(map(str, MIN_CAPABILITY))
            return f"the GPU's compute capability {found[0]}.{found[1]} is under {least}"
    try:  # Triton's part that talks to the device, which it builds at its first use
        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        cause = cache_trouble(error) or f"{type(error).__name__}: {error}"
        return f"Triton's driver cannot be set up: {cause}"
    return ""


@torch.compiler.assume_constant_result
def _trouble(device_type: str, index: int | None) -> str:
    # A dict and not lru_cache, which torch.compile would trace into, with a warning.
    if (device_type, index) not in _TROUBLES:
        _TROUBLES[device_type, index] = find_trouble(device_type, index)
    return _TROUBLES[device_type, index]


@torch.compiler.disable
@cache
def _warn_once(trouble: str) -> None:
    message = f"fastseg_losses falls back to plain PyTorch: {trouble}"
    warnings.warn(message, RuntimeWarning, stacklevel=5)


# ---- the torch backend


def torch_loss(
    spec: LossSpec,
    inputs: Inputs,
    stats_out: Tensor | None,
    *,
    want_stats: bool = False,
    constants: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Loss and statistics row by the reference.

    Args:
        spec: what to compute.
        inputs: logits, targets, valid, class_weights, pos_weight, as the caller passed them.
        stats_out: where the row goes, or None.
        want_stats: whether the row is wanted without a place to go.
        constants: whether only the logits may require grad, as with the kernels.

    Returns:
        The loss, and the row if anybody wants it.

    Raises:
        TypeError: see `inputs.check_call`.
        ValueError: see `inputs.check_call`; on the CPU also targets that no formula is for.
    """
    if spec.upsample is not None:
        spec, inputs = upsampled(spec, inputs)
    logits, targets, valid, class_weights, vector = inputs
    sizes = check_call(spec, inputs, constants=constants)
    if stats_out is not None:
        check_stats_out(stats_out, row_length(spec, logits), logits.device)
        want_stats = True
    ids = spec.mode == "multiclass" and not is_soft(logits, targets)
    x, t = logits.reshape(sizes), targets.reshape((sizes.N, 1, sizes.P) if ids else sizes)
    live = live_pixels(sizes, t, valid, spec.ignore_index)
    # The kernels leave a flag on the device; here the caller gets the error at once.
    at_once = logits.device.type == "cpu" and not is_traced(logits)
    if spec.mode == "multiclass":
        classes = reference_multiclass.read_pixels(x, t, live)
        if at_once and classes.bad is not None:
            check_ids(t, classes.bad, sizes.C)
        elif at_once:
            check_range(classes.t, classes.live, multiclass=True)
        loss, row = reference_multiclass.loss_and_stats(
            spec, classes, class_weights, vector, want_stats=want_stats
        )
    else:
        pixels = reference_binary.read_pixels(x, t, live)
        if at_once and targets.dtype != torch.bool:
            check_range(pixels.t, pixels.live, multiclass=False)
        loss, row = reference_binary.loss_and_stats(
            spec, pixels, class_weights, vector, want_stats=want_stats
        )
    if stats_out is not None and row is not None:
        row = stats_out.copy_(row)
    return loss, row
