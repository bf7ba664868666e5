"""The specification of multiclass mode: one of C classes at every pixel; see `reference.py`.

Shapes here are canonical: `logits` (N, C, P); `targets` class ids (N, 1, P) of any integer dtype,
or probabilities (N, C, P). Groups are (sample, class) pairs, or classes with batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg_losses.reference import (
    Sums,
    combine,
    point_value,
    region_parts,
    region_values,
    safe_divide,
)
from fastseg_losses.spec import LossSpec, PointTerm
from fastseg_losses.stats import TARGET_TOLERANCE


@dataclass
class Pixels:
    """One call's pixels, those that do not count set to logits and targets of 0.

    Attributes:
        x: (N, C, P) logits.
        t: (N, C, P) target of each class.
        label: (N, P) the target's class; -1 where an id is no class.
        live: (N, P) bool, which pixels count.
        ids: whether the targets were class ids.
        bad: (N, P) number of targets that no formula is for.
    """

    x: Tensor
    t: Tensor
    label: Tensor
    live: Tensor
    ids: bool
    bad: Tensor


def read_pixels(logits: Tensor, targets: Tensor, live: Tensor | None) -> Pixels:
    """Bring a call's tensors to `Pixels`; half-precision logits to float32."""
    N, C, P = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    counts = logits.new_ones((N, 1, P), dtype=torch.bool)
    live = counts if live is None else live.expand(N, 1, P)
    # where, not a product: a pixel that does not count may hold NaN, and NaN * 0 is NaN.
    x = torch.where(live, logits.to(dtype), 0.0)
    ids = targets.shape != logits.shape
    if ids:
        label = targets.to(torch.int64)
        known = (label >= 0) & (label < C)
        bad = (~known & live)[:, 0].to(torch.int64)
        label = torch.where(known & live, label, -1)
        t = (label == torch.arange(C, device=label.device)[:, None]).to(dtype)
        label = label[:, 0]
    else:
        t = torch.where(live, targets.to(dtype), 0.0)
        label = t.argmax(1)
        bad = (~((t - 0.5).abs() <= 0.5 + TARGET_TOLERANCE)).sum(1)  # NaN too
    return Pixels(x, t, label, live[:, 0], ids, bad)


# ---- softmax: per-pixel terms, (N, P)


def of_targets(log_p: Tensor, t: Tensor) -> Tensor:
    """log_p, 0 where it is -inf and the target 0.

    So a class that was ruled out by a logit of -inf costs nothing where it is not the target. Only
    there: log_p is the slope of a soft target that requires grad.
    """
    return torch.where((t == 0) & (log_p == -torch.inf), 0.0, log_p)


def cross_entropy(log_p: Tensor, t: Tensor, w: Tensor, label_smoothing: float) -> Tensor:
    """Sum over c of w_c t_c (-log p_c), as in PyTorch; the target smoothed to t (1 - e) + e / C."""
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / t.shape[1]
    return -(w[:, None] * t * of_targets(log_p, t)).sum(1)


def softmax_focal(
    log_p: Tensor, t: Tensor, w: Tensor, alpha: Tensor | None, gamma: float
) -> Tensor:
    """Sum over c of w_c t_c alpha_c (1 - p_c)**gamma (-log p_c) (Lin et al. 2017, eq. 5)."""
    log_p = of_targets(log_p, t)
    miss = -torch.expm1(log_p)  # 1 - p, accurate where p rounds to 1
    balance = w if alpha is None else w * alpha.to(w)
    # Below the floor the power has no slope: at gamma < 1 an exact 0 would have an infinite one.
    return -(balance[:, None] * t * miss.clamp_min(1e-30) ** gamma * log_p).sum(1)


def softmax_point(
    term: PointTerm, log_p: Tensor, t: Tensor, w: Tensor, alpha: Tensor | None
) -> Tensor:
    """The value of one pointwise term at every pixel, class weights inside."""
    if term.name == "ce":
        return cross_entropy(log_p, t, w, term.label_smoothing)
    return softmax_focal(log_p, t, w, alpha, term.gamma)


# ---- sums, reductions


def point_sums(
    spec: LossSpec, pixels: Pixels, w: Tensor, vector: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Each pointwise term's sum over a sample's valid pixels, and what a mean divides it by: (N,).

    The divisor is the sum of w_y for class ids and their number for probabilities, as in PyTorch;
    the sum of w_c over valid elements where each class has a sigmoid of its own.
    """

    def total(value: Tensor) -> Tensor:
        return torch.where(pixels.live, value, 0.0).sum(-1)

    count = total(torch.ones_like(pixels.x[:, 0]))
    if not spec.softmax:
        values = [point_value(term, pixels.x, pixels.t, vector) for term in spec.points]
        classes = torch.ones_like(w) if spec.absent == "all" else w
        return [total((w[:, None] * v).sum(1)) for v in values], count * classes.sum()
    log_p = torch.log_softmax(pixels.x, 1)
    values = [softmax_point(term, log_p, pixels.t, w, vector) for term in spec.points]
    divisor = total((w[:, None] * pixels.t).sum(1)) if pixels.ids else count
    return [total(v) for v in values], divisor


def activated(spec: LossSpec, x: Tensor) -> Tensor:
    """The probability of every class."""
    if spec.activation == "identity":
        return x
    return torch.softmax(x, 1) if spec.softmax else torch.sigmoid(x)


def region_sums(spec: LossSpec, pixels: Pixels) -> Sums:
    """I, P, T and V of each (sample, class), (N, C)."""
    p = torch.where(pixels.live[:, None], activated(spec, pixels.x), 0.0)
    V = pixels.live[:, None].expand_as(p).to(p).sum(-1)
    I, P, T = region_parts(spec, p, pixels.t)  # noqa: E741
    return Sums(I=I.sum(-1), P=P.sum(-1), T=T.sum(-1), V=V)


def term_values(
    spec: LossSpec, points: tuple[list[Tensor], Tensor], sums: Sums, w: Tensor, reduction: str
) -> list[Tensor]:
    """Each term under the given reduction, unweighted, in the order of `spec.term_names`.

    Args:
        spec: the loss.
        points: what `point_sums` gives.
        sums: what `region_sums` gives.
        w: (C,) weights of the classes.
        reduction: "mean", "sum", "none".
    """
    totals, divisor = points
    reduce = {
        "mean": lambda total: safe_divide(total.sum(), divisor.sum()),
        "sum": lambda total: total.sum(),
        "none": lambda total: safe_divide(total, divisor),
    }[reduction]
    values = [reduce(total) for total in totals]
    if not spec.include_background:
        sums, w = Sums(sums.I[:, 1:], sums.P[:, 1:], sums.T[:, 1:], sums.V[:, 1:]), w[1:]
    if reduction == "none" and values:
        reduction = "sample"
    return values + region_values(spec, sums, w, reduction)


# ---- statistics


@torch.no_grad()
def statistics(
    spec: LossSpec,
    pixels: Pixels,
    logits: Tensor,
    points: tuple[list[Tensor], Tensor],
    sums: Sums,
    w: Tensor,
) -> Tensor:
    """The statistics row, float32: `stats.FIELDS`, the terms, `stats.CLASS_FIELDS` for C each."""
    live, C = pixels.live, logits.shape[1]
    p = activated(spec, pixels.x)
    valid = live.to(p).sum()
    if p.numel():
        best, winner = p.amax(1), pixels.x.argmax(1)
        certain = pixels.t.amax(1)
        largest = best.masked_fill(~live | best.isnan(), 0.0).amax()
    else:
        best = certain = p.sum(1)
        winner, largest = pixels.label, valid
    classes = torch.arange(C, device=live.device)[:, None, None]
    predicted = ((winner == classes) & live).flatten(1).sum(1)  # (C,)
    actual = ((pixels.label == classes) & live).flatten(1).sum(1)
    hit = ((winner == classes) & (pixels.label == classes) & live).flatten(1).sum(1)
    values = term_values(spec, points, sums, w, "mean")
    row = [
        combine(spec, values) if values else valid * 0,
        safe_divide(torch.where(live, best, 0.0).sum(), valid),
        safe_divide(torch.where(live, certain, 0.0).sum(), valid),
        largest,
        safe_divide(((best > 0.5) & live).to(valid).sum(), valid),
        safe_divide(((certain > 0.5) & live).to(valid).sum(), valid),
        hit.sum(),
        valid - hit.sum(),
        valid - hit.sum(),
        valid,
        (~logits.isfinite() & live[:, None]).sum(),
        pixels.bad.sum(),
        *values,
    ]
    shares = [safe_divide(count.to(valid), valid) for count in (predicted, actual)]
    counts = [hit, predicted - hit, actual - hit]
    each = torch.cat([share.float() for share in shares] + [count.float() for count in counts])
    return torch.cat([torch.stack([value.to(torch.float32) for value in row]), each])


def loss_and_stats(
    spec: LossSpec,
    logits: Tensor,
    targets: Tensor,
    live: Tensor | None,
    class_weights: Tensor | None = None,
    vector: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A loss as its spec describes it, and the statistics row.

    A class id that no class has makes the loss NaN: nothing is hidden.

    Args:
        spec: what to compute; reduction "sums" gives I, P, T, V stacked as (4, N, C).
        logits: (N, C, P) floating.
        targets: class ids (N, 1, P), integer; or probabilities (N, C, P), any dtype.
        live: bool, broadcastable to (N, 1, P): which pixels count; None for all.
        class_weights: (C,) or None.
        vector: softmax: focal's alpha, (C,) or None; else pos_weight, (1,), (C,) or None.

    Returns:
        The loss: a scalar for "mean" and "sum"; for "none" (N, C) of region terms alone, (C,) with
        batch, one class less without the background, and (N,) where a pointwise term is among the
        terms. And the row, float32.
    """
    pixels = read_pixels(logits, targets, live)
    C = logits.shape[1]
    w = pixels.x.new_ones(C) if class_weights is None else class_weights.to(pixels.x)
    sums = region_sums(spec, pixels)
    points = point_sums(spec, pixels, w, vector)
    row = statistics(spec, pixels, logits, points, sums, w)
    bad = pixels.bad.sum(-1) > 0 if pixels.ids else torch.zeros_like(pixels.live[:, 0])
    if spec.reduction == "sums":
        loss = torch.stack([sums.I, sums.P, sums.T, sums.V])
    else:
        loss = combine(spec, term_values(spec, points, sums, w, spec.reduction))
    if spec.reduction not in ("sums", "none") or spec.batch:
        bad = bad.any()
    elif loss.dim() > 1:
        bad = bad[:, None]
    return loss * torch.where(bad, torch.nan, 1.0).to(loss), row
