"""From logits to masks: the class of each pixel, at a resolution of choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg_losses.arguments import (
    MODES,
    UPSAMPLES,
    Backend,
    Mode,
    Upsample,
    check_choice,
    check_flag,
    check_number,
)
from fastseg_losses.backends import BACKENDS, takes_triton
from fastseg_losses.inputs import FLOATING
from fastseg_losses.ops_masks import launch_masks
from fastseg_losses.tracing import is_traced
from fastseg_losses.upsampling import LINEAR, interpolate, spatial_size

# The most classes whose ids a mask's dtype holds.
BYTE_CLASSES, WORD_CLASSES = 2**8, 2**15


class Request(NamedTuple):
    """One call, checked.

    Attributes:
        logits: (N, C, *spatial), C = 1 in binary mode.
        size: the spatial size of the masks.
        classes: whether the mask is the arg max over C; else each channel has its own.
        upsample: "bilinear" or "nearest".
        align_corners: of `F.interpolate`.
        cut: the logit above which a pixel is foreground.
    """

    logits: Tensor
    size: tuple[int, ...]
    classes: bool
    upsample: str
    align_corners: bool
    cut: float


@torch.no_grad()
def predict_mask(
    logits: Tensor,
    size: Sequence[int] | None = None,
    *,
    mode: Mode = "multiclass",
    upsample: Upsample = "bilinear",
    align_corners: bool = False,
    threshold: float = 0.5,
    backend: Backend = "auto",
) -> Tensor:
    """The predicted mask at full resolution, from logits of any resolution.

    What `F.interpolate(logits, size, ...)` and `argmax(1)`, or `sigmoid() > threshold`, give (of
    equal classes the first; two that are equal within float32 rounding may change places), without
    the upsampled logits: the kernel (2-D space) writes the mask alone, the torch backend upsamples
    one sample at a time, in float32 (float64 for float64), with upsample="nearest" none at all.

    Args:
        logits: (N, C, *spatial), 1-D to 3-D space, float32, float16, bfloat16 or float64, before
            the activation; in binary mode (N, 1, *spatial) or (N, *spatial).
        size: spatial size of the mask; None: that of the logits.
        mode: "multiclass" (the likeliest class), "binary" or "multilabel" (p > threshold).
        upsample: "bilinear" (in 1-D linear, in 3-D trilinear) or "nearest".
        align_corners: of `F.interpolate`, for upsample="bilinear".
        threshold: probability above which a pixel is foreground, above 0 and below 1; not in
            multiclass mode.
        backend: "auto", "triton" or "torch".

    Returns:
        A mask as the losses take it for a target: (N, *size) in multiclass and binary mode,
        (N, C, *size) in multilabel mode; uint8, with more than 256 classes int16.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument outside its range, or a shape that does not fit.
        RuntimeError: backend="triton" where the kernels cannot run.

    Example:
        >>> import torch
        >>> predict_mask(torch.tensor([[[0.0, 1.0]], [[0.5, 0.0]]]).movedim(0, 1), [4])
        tensor([[1, 1, 0, 0]], dtype=torch.uint8)
    """
    check_choice("backend", backend, BACKENDS)
    request = _checked(logits, size, mode, upsample, align_corners, threshold)
    masks = _masks(request, backend)
    return masks if mode == "multilabel" else masks[:, 0]


def _masks(request: Request, backend: str) -> Tensor:
    """Masks (N, C, *size), or (N, 1, *size), by the backend that is asked for."""
    logits, size = request.logits, request.size
    flat = len(size) == 2
    if backend == "triton" and not flat:
        raise ValueError(
            f"logits: backend='triton' makes masks in 2-D, got shape {tuple(logits.shape)}; use "
            "backend='torch' or 'auto'"
        )
    if not flat or is_traced(logits) or not takes_triton(backend, logits):
        return _torch_masks(request)
    channels = 1 if request.classes else logits.shape[1]
    masks = logits.new_empty((len(logits), channels, *size), dtype=_dtype(request))
    if channels > 1:  # each for itself
        logits = logits.reshape(-1, 1, *logits.shape[2:])
    launch_masks(
        masks.view(len(logits), *size),
        logits,
        upsample=request.upsample,
        align_corners=request.align_corners,
        least=request.cut,
    )
    return masks


def _torch_masks(request: Request) -> Tensor:
    logits, size = request.logits, request.size
    channels = 1 if request.classes else logits.shape[1]
    masks = logits.new_empty((len(logits), channels, *size), dtype=_dtype(request))
    for sample, mask in zip(logits.split(1), masks.split(1), strict=True):
        if request.upsample == "bilinear" and size != tuple(logits.shape[2:]):
            sample = interpolate(sample, size, "bilinear", align_corners=request.align_corners)
        values = sample.argmax(1, keepdim=True) if request.classes else sample > request.cut
        if tuple(values.shape[2:]) != size:
            # What is nearest commutes with a choice at each pixel. In float32, which holds the ids
            # and which `F.interpolate` takes on every device.
            values = F.interpolate(values.float(), size=size, mode="nearest")
        mask.copy_(values)
    return masks


def _dtype(request: Request) -> torch.dtype:
    wide = request.classes and request.logits.shape[1] > BYTE_CLASSES
    return torch.int16 if wide else torch.uint8


def _checked(
    logits: Tensor,
    size: Sequence[int] | None,
    mode: str,
    upsample: str | None,
    align_corners: bool,
    threshold: float,
) -> Request:
    check_choice("mode", mode, MODES)
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a torch.Tensor, got {type(logits).__name__}")
    if logits.dtype not in FLOATING:
        raise TypeError(
            "logits: expected float32, float16, bfloat16 or float64 (before the activation), got "
            f"{logits.dtype}"
        )
    check_choice("upsample", upsample, UPSAMPLES)
    assert upsample is not None
    check_flag("align_corners", align_corners)
    if align_corners and upsample != "bilinear":
        raise ValueError("align_corners: True is for upsample='bilinear', got it with 'nearest'")
    check_number("threshold", threshold, 0.0, 1.0, above=True)
    if threshold == 1:
        raise ValueError(f"threshold: expected a number above 0 and below 1, got {threshold!r}")
    if mode == "multiclass" and threshold != 0.5:
        raise ValueError(
            f"threshold: expected none in mode 'multiclass' (the likeliest class), got {threshold}"
        )
    x, full = _with_channel(logits, None if size is None else _checked_size(size), mode)
    cut = math.log(threshold / (1 - threshold))
    return Request(x, full, mode == "multiclass", upsample, align_corners, cut)


def _checked_size(size: Sequence[int]) -> tuple[int, ...]:
    if isinstance(size, str) or not isinstance(size, Sequence):
        raise TypeError(f"size: expected a sequence of whole numbers, or None, got {size!r}")
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in size):
        raise TypeError(f"size: expected whole numbers, got {tuple(size)}")
    if not all(n >= 1 for n in size):
        raise ValueError(f"size: expected numbers of at least 1, got {tuple(size)}")
    return tuple(size)


def _with_channel(
    logits: Tensor, size: tuple[int, ...] | None, mode: str
) -> tuple[Tensor, tuple[int, ...]]:
    """Logits as (N, C, *spatial), and the masks' spatial size."""
    shape = tuple(logits.shape)
    if mode == "binary" and size is not None:  # (N, 1, W) may be a row of W or 1 x W pixels
        low = shape[1:] if len(shape) == len(size) + 1 else shape[2:]
    else:
        low = spatial_size(mode, logits)
    channels = len(shape) - len(low)
    if len(low) not in LINEAR or min(shape[1:]) < 1 or channels == 2 and _is_wrong(mode, shape[1]):
        form = "(N, 1, *spatial) or (N, *spatial)" if mode == "binary" else "(N, C, *spatial)"
        few = " with C of at least 2" if mode == "multiclass" else ""
        raise ValueError(
            f"logits: expected {form}{few}, 1-D to 3-D space, in mode {mode!r}, got {shape}"
        )
    if mode == "multiclass" and shape[1] > WORD_CLASSES:
        raise ValueError(f"logits: expected at most {WORD_CLASSES} classes, got {shape[1]}")
    size = low if size is None else size
    if len(size) != len(low):
        raise ValueError(
            f"size: expected {len(low)} numbers for logits of shape {shape}, got {size}"
        )
    return (logits if channels == 2 else logits[:, None]), size


def _is_wrong(mode: str, channels: int) -> bool:
    """Whether logits with so many channels are none of this mode."""
    return channels != 1 if mode == "binary" else mode == "multiclass" and channels < 2
