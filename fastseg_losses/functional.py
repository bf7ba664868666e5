"""The losses as functions, `region_sums` for formulas of your own, `predict_mask` for masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastseg_losses.arguments import Activation, Backend, Mode, Upsample
from fastseg_losses.make_spec import sums_spec
from fastseg_losses.ops import segmentation_loss
from fastseg_losses.prediction import predict_mask
from fastseg_losses.spec import LossSpec

__all__ = ["RegionSums", "predict_mask", "region_sums", "segmentation_loss"]


class RegionSums(NamedTuple):
    """Differentiable sums over the valid pixels of each (sample, class), all float32 (N, C)."""

    I: Tensor  # noqa: E741
    P: Tensor
    T: Tensor
    V: Tensor


def region_sums(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None = None,
    *,
    mode: Mode = "binary",
    ignore_index: int | None = None,
    activation: Activation = None,
    upsample: Upsample = None,
    align_corners: bool = False,
    backend: Backend = "auto",
) -> RegionSums:
    r"""Sum what every region loss is made of: I = \sum p t, P = \sum p, T = \sum t, V = pixels.

    All in one read. Any formula over these four small tensors is differentiable through the fused
    backward pass; for batch Dice across ranks, all-reduce them first.

    Args:
        logits: (N, C, *spatial) float32, float16, bfloat16 or float64, before the activation; in
            binary mode (N, *spatial) too.
        targets: the logits' shape; bool, integer or floating in [0, 1]. In multiclass mode class
            ids (N, *spatial) or (N, 1, *spatial), or probabilities of the logits' shape.
        valid: bool (N,) or (N, *spatial), or None.
        mode: "binary", "multilabel" or "multiclass".
        ignore_index: target value whose pixels count for nothing, or None.
        activation: None (a softmax in multiclass mode, else a sigmoid) or "sigmoid".
        upsample: "bilinear" or "nearest", from logits of a lower resolution; see `SharedArguments`.
        align_corners: of `F.interpolate`, for upsample="bilinear".
        backend: "auto", "triton" or "torch".

    Returns:
        I, P, T and V, each (N, C), float32 (float64 for float64 logits).

    Raises:
        TypeError: a tensor of the wrong type or dtype.
        ValueError: shapes, devices or target values that do not fit.

    Example:
        >>> import torch
        >>> sums = region_sums(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        >>> (1 - 2 * sums.I / (sums.P + sums.T)).mean()  # Dice without smoothing
        tensor(0.3333)
    """
    spec = _sums_spec(mode, ignore_index, activation, upsample, align_corners)
    sums, _ = segmentation_loss(spec, (logits, targets, valid, None, None), backend=backend)
    return RegionSums(*sums.unbind(0))


_SUMS: dict[tuple[str, int | None, str | None, str | None, bool], LossSpec] = {}


@torch.compiler.assume_constant_result  # a dict: torch.compile would trace into an lru_cache
def _sums_spec(
    mode: str,
    ignore_index: int | None,
    activation: str | None,
    upsample: str | None,
    align_corners: bool,
) -> LossSpec:
    key = (mode, ignore_index, activation, upsample, align_corners)
    if key not in _SUMS:
        _SUMS[key] = sums_spec(*key)
    return _SUMS[key]
