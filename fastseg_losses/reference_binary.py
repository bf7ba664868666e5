"""The specification of binary and multilabel mode: a sigmoid for each class; see `reference.py`.

Shapes here are canonical: `logits` and `targets` are (N, C, P), `live` is a bool tensor that
broadcasts to (N, C, P), or None when every pixel is valid. Groups are (sample, class) pairs, or
classes with batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg_losses.reference import (
    Sums,
    combine,
    nonfinite,
    point_values,
    region_parts,
    region_values,
    safe_divide,
    total,
)
from fastseg_losses.spec import LossSpec
from fastseg_losses.stats import TARGET_TOLERANCE


@dataclass
class Pixels:
    """One call's pixels, those that do not count set to logits and targets of 0.

    Attributes:
        x: (N, C, P) logits, float32 or float64.
        t: (N, C, P) targets, of the same dtype.
        live: of that dtype too, broadcastable to (N, C, P): 1 where a pixel counts, else 0; None
            when all do.
    """

    x: Tensor
    t: Tensor
    live: Tensor | None


def read_pixels(logits: Tensor, targets: Tensor, live: Tensor | None) -> Pixels:
    """Bring a call's tensors to `Pixels`."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    x, t = logits.to(dtype), targets.to(dtype)
    if live is None:
        return Pixels(x, t, None)
    # where, not a product: an invalid pixel may hold NaN, and NaN * 0 is NaN.
    return Pixels(torch.where(live, x, 0.0), torch.where(live, t, 0.0), live.to(dtype))


# ---- sums, reductions


def valid_counts(pixels: Pixels) -> Tensor:
    """V, the number of valid pixels of each (sample, class), (N, C)."""
    N, C, P = pixels.x.shape
    if pixels.live is None:
        return pixels.x.new_full((N, C), P)
    return pixels.live.expand(N, C, P).sum(-1)


def region_sums(spec: LossSpec, pixels: Pixels, V: Tensor) -> Sums:
    """I, P and T of each (sample, class), beside its V."""
    p = pixels.x if spec.activation == "identity" else torch.sigmoid(pixels.x)
    I, P, T = (total(part, pixels.live) for part in region_parts(spec, p, pixels.t))  # noqa: E741
    return Sums(I, P, T, V)


def term_values(
    spec: LossSpec,
    points: Sequence[Tensor],
    V: Tensor,
    sums: Sums | None,
    class_weights: Tensor | None,
    reduction: str,
) -> list[Tensor]:
    """Each term under the given reduction, unweighted, in the order of `spec.term_names`.

    Args:
        spec: the loss.
        points: each pointwise term's sums, (N, C).
        V: what `valid_counts` gives.
        sums: what `region_sums` gives; None without region terms.
        class_weights: (C,) or None.
        reduction: "mean", "sum", "none".
    """
    w = V.new_ones(V.shape[1]) if class_weights is None else class_weights.to(V)  # (C,)
    values = []
    for point in points:
        if reduction == "mean":
            divisor = (V if spec.absent == "all" else w * V).sum()
            values.append(safe_divide((w * point).sum(), divisor))
        elif reduction == "sum":
            values.append((w * point).sum())
        else:
            values.append(w * safe_divide(point, V))
    return values if sums is None else values + region_values(spec, sums, w, reduction)


# ---- statistics


@torch.no_grad()
def statistics(
    spec: LossSpec,
    pixels: Pixels,
    points: Sequence[Tensor],
    V: Tensor,
    sums: Sums | None,
    class_weights: Tensor | None,
) -> Tensor:
    """The statistics row, float32, in the order of `stats.FIELDS` and then `spec.term_names`."""
    x, t = pixels.x.detach(), pixels.t
    live = None if pixels.live is None else pixels.live > 0

    def count(where: Tensor) -> Tensor:
        return (where if live is None else where & live).count_nonzero()

    sums = region_sums(spec, pixels, V) if sums is None else sums
    valid = V.sum()
    identity = spec.activation == "identity"
    hot, drawn = x > (0.5 if identity else 0.0), t > 0.5
    predicted, actual, tp = count(hot), count(drawn), count(hot & drawn)
    seen = x.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    seen = seen if live is None else seen.masked_fill(~live, -torch.inf)
    largest = seen.amax() if x.numel() else valid
    values = term_values(spec, points, V, sums, class_weights, "mean")
    row = [
        combine(spec, values) if values else valid * 0,
        safe_divide(sums.P.sum(), valid),
        safe_divide(sums.T.sum(), valid),
        torch.where(valid > 0, largest if identity else torch.sigmoid(largest), 0.0),
        safe_divide(predicted.to(valid), valid),
        safe_divide(actual.to(valid), valid),
        tp,
        predicted - tp,
        actual - tp,
        valid,
        nonfinite(x),
        count(~((t - 0.5).abs() <= 0.5 + TARGET_TOLERANCE)),  # NaN too
        *values,
    ]
    return torch.stack([value.to(torch.float32) for value in row])


def loss_and_stats(
    spec: LossSpec,
    pixels: Pixels,
    class_weights: Tensor | None = None,
    pos_weight: Tensor | None = None,
    *,
    want_stats: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """A loss as its spec describes it, and the statistics row.

    Args:
        spec: what to compute; reduction "sums" gives I, P, T, V stacked as (4, N, C).
        pixels: what `read_pixels` gives.
        class_weights: (C,) or None.
        pos_weight: (1,) or (C,), or None.
        want_stats: whether the row is wanted.

    Returns:
        The loss: a scalar for "mean" and "sum"; (N, C), or (C,) with batch, for "none". And the
        row, float32, or None.
    """
    V = valid_counts(pixels)
    each = point_values(spec.points, pixels.x, pixels.t, pos_weight)
    points = [total(value, pixels.live) for value in each]
    whole = spec.reduction == "sums"
    sums = region_sums(spec, pixels, V) if spec.regions or whole else None
    row = statistics(spec, pixels, points, V, sums, class_weights) if want_stats else None
    if sums is not None and whole:
        return torch.stack([sums.I, sums.P, sums.T, sums.V]), row
    return combine(spec, term_values(spec, points, V, sums, class_weights, spec.reduction)), row
