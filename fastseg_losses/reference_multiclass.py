"""The specification of multiclass mode: one of C classes at every pixel; see `reference.py`.

Shapes here are canonical: `logits` (N, C, P); `targets` class ids (N, 1, P) of any integer dtype,
or probabilities (N, C, P). Groups are (sample, class) pairs, or classes with batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg_losses.reference import (
    Sums,
    combine,
    focal_power,
    nonfinite,
    point_values,
    region_parts,
    region_values,
    safe_divide,
    total,
)
from fastseg_losses.spec import LossSpec, PointTerm
from fastseg_losses.stats import TARGET_TOLERANCE


@dataclass
class Pixels:
    """One call's pixels, those that do not count set to logits and targets of 0.

    Class ids are targets of one class at each pixel: what a term needs of the other classes is 0,
    and is not computed. K, the number of classes that `t` has a target for, is then 1, else C.

    Attributes:
        x: (N, C, P) logits, float32 or float64.
        t: (N, K, P) targets, of the same dtype. Class ids: 1, or 0 where the id is no class.
        label: (N, 1, P) the target's class, the likeliest of probabilities; 0 where t is 0.
        live: (N, 1, P) of that dtype too, 1 where a pixel counts, else 0; None when all do.
        bad: (N, P) bool, at which pixels a class id is no class; None for probabilities.
    """

    x: Tensor
    t: Tensor
    label: Tensor
    live: Tensor | None
    bad: Tensor | None

    def picked(self, each: Tensor) -> Tensor:
        """Of a value of each class, (N, C, P), those of the K classes in `t`."""
        return each if self.bad is None else each.gather(1, self.label)

    def weights(self, w: Tensor) -> Tensor:
        """The weights w, (C,), of the K classes in `t`: (N, 1, P), or (C, 1)."""
        return w[:, None] if self.bad is None else w[self.label]

    def every_target(self) -> Tensor:
        """The targets of all classes, (N, C, P)."""
        if self.bad is None:
            return self.t
        return torch.zeros_like(self.x).scatter_(1, self.label, self.t)


def read_pixels(logits: Tensor, targets: Tensor, live: Tensor | None) -> Pixels:
    """Bring a call's tensors to `Pixels`; half-precision logits to float32."""
    N, C, P = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    x = logits.to(dtype)
    if live is not None:
        live = live.expand(N, 1, P)
        # where, not a product: a pixel that does not count may hold NaN, and NaN * 0 is NaN.
        x = torch.where(live, x, 0.0)
    counts = None if live is None else live.to(dtype)
    if targets.shape == logits.shape:
        t = targets.to(dtype)
        t = t if live is None else torch.where(live, t, 0.0)
        return Pixels(x, t, t.argmax(1, keepdim=True), counts, None)
    label = targets.to(torch.int64)
    known = (label >= 0) & (label < C)
    bad = ~known if live is None else ~known & live
    known = known if live is None else known & live
    return Pixels(x, known.to(dtype), torch.where(known, label, 0), counts, bad[:, 0])


# ---- softmax: per-pixel terms, (N, P); sums over the K classes in t


def of_targets(log_p: Tensor, t: Tensor) -> Tensor:
    """log_p, 0 where it is -inf and the target 0.

    So a class that was ruled out by a logit of -inf costs nothing where it is not the target. Only
    there: log_p is the slope of a soft target that requires grad.
    """
    return torch.where((t == 0) & (log_p == -torch.inf), 0.0, log_p)


def cross_entropy(log_p: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """Sum over c of w_c t_c (-log p_c), as in PyTorch."""
    return -(w * t * of_targets(log_p, t)).sum(1)


def softmax_focal(
    log_p: Tensor, t: Tensor, w: Tensor, alpha: Tensor | None, gamma: float
) -> Tensor:
    """Sum over c of w_c t_c alpha_c (1 - p_c)**gamma (-log p_c) (Lin et al. 2017, eq. 5)."""
    log_p = of_targets(log_p, t)
    miss = -torch.expm1(log_p)  # 1 - p, accurate where p rounds to 1
    balance = w if alpha is None else w * alpha
    return -(balance * t * focal_power(miss, gamma) * log_p).sum(1)


def softmax_points(
    terms: Sequence[PointTerm], pixels: Pixels, w: Tensor, alpha: Tensor | None
) -> list[Tensor]:
    """The values of the pointwise terms at every pixel, class weights inside."""
    every = torch.log_softmax(pixels.x, 1)
    log_p, t, weights = pixels.picked(every), pixels.t, pixels.weights(w)
    balance = None if alpha is None else pixels.weights(alpha.to(w))
    values = []
    for term in terms:
        e = term.label_smoothing
        if term.name == "focal":
            values.append(softmax_focal(log_p, t, weights, balance, term.gamma))
        elif e:  # every class is a target: t (1 - e) + e / C
            smoothed = pixels.every_target() * (1 - e) + e / w.numel()
            values.append(cross_entropy(every, smoothed, w[:, None]))
        else:
            values.append(cross_entropy(log_p, t, weights))
    return values


# ---- sums, reductions


def point_sums(
    spec: LossSpec, pixels: Pixels, w: Tensor, vector: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Each pointwise term's sum over a sample's valid pixels, and what a mean divides it by: (N,).

    The divisor is the sum of w_y for class ids and their number for probabilities, as in PyTorch;
    the sum of w_c over valid elements where each class has a sigmoid of its own.
    """
    live = None if pixels.live is None else pixels.live[:, 0]
    count = valid_counts(pixels)
    if not spec.softmax:
        each = point_values(spec.points, pixels.x, pixels.every_target(), vector)
        classes = torch.ones_like(w) if spec.absent == "all" else w
        return [total((w[:, None] * v).sum(1), live) for v in each], count * classes.sum()
    each = softmax_points(spec.points, pixels, w, vector)
    divisor = count if pixels.bad is None else (pixels.weights(w) * pixels.t)[:, 0].sum(-1)
    return [total(value, live) for value in each], divisor


def valid_counts(pixels: Pixels) -> Tensor:
    """The number of each sample's valid pixels, (N,)."""
    N, _, P = pixels.x.shape
    return pixels.x.new_full((N,), P) if pixels.live is None else pixels.live.sum((1, 2))


def activated(spec: LossSpec, x: Tensor) -> Tensor:
    """The probability of every class."""
    if spec.activation == "identity":
        return x
    return torch.softmax(x, 1) if spec.softmax else torch.sigmoid(x)


def region_sums(spec: LossSpec, pixels: Pixels) -> Sums:
    """I, P, T and V of each (sample, class), (N, C)."""
    p = activated(spec, pixels.x)
    I, P, T = region_parts(spec, p, pixels.every_target())  # noqa: E741
    V = valid_counts(pixels)[:, None].expand(p.shape[:2])
    return Sums(I=total(I, pixels.live), P=total(P, pixels.live), T=T.sum(-1), V=V)


def term_values(
    spec: LossSpec,
    points: tuple[list[Tensor], Tensor],
    sums: Sums | None,
    w: Tensor,
    reduction: str,
) -> list[Tensor]:
    """Each term under the given reduction, unweighted, in the order of `spec.term_names`.

    Args:
        spec: the loss.
        points: what `point_sums` gives.
        sums: what `region_sums` gives; None without region terms.
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
    if sums is None:
        return values
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
    points: tuple[list[Tensor], Tensor],
    sums: Sums | None,
    w: Tensor,
) -> Tensor:
    """The statistics row, float32: `stats.FIELDS`, the terms, `stats.CLASS_FIELDS` for C each."""
    C, live = pixels.x.shape[1], torch.ones_like(pixels.label, dtype=torch.bool)
    if pixels.live is not None:
        live = pixels.live > 0
    p = activated(spec, pixels.x)
    valid = valid_counts(pixels).sum()
    if p.numel():
        # max, which takes half as long as argmax on a CPU
        best, winner = p.amax(1, keepdim=True), pixels.x.max(1, keepdim=True).indices
        certain = pixels.t.amax(1, keepdim=True)
        largest = best.masked_fill(~live | best.isnan(), 0.0).amax()
    else:
        best = certain = p.sum(1, keepdim=True)
        winner, largest = pixels.label, valid
    target = live if pixels.bad is None else pixels.t > 0  # where `label` is the target's

    def of_each(label: Tensor, where: Tensor) -> Tensor:
        zeros = torch.zeros(C, dtype=torch.int64, device=label.device)
        return zeros.scatter_add_(0, label.flatten(), where.flatten().to(torch.int64))

    predicted, actual = of_each(winner, live), of_each(pixels.label, target)
    hit = of_each(winner, target & (winner == pixels.label))
    soft = ~((pixels.t - 0.5).abs() <= 0.5 + TARGET_TOLERANCE)  # NaN too
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
        nonfinite(pixels.x),
        (soft if pixels.bad is None else pixels.bad).sum(),
        *values,
    ]
    shares = [safe_divide(count.to(valid), valid) for count in (predicted, actual)]
    counts = [hit, predicted - hit, actual - hit]
    each = torch.cat([share.float() for share in shares] + [count.float() for count in counts])
    return torch.cat([torch.stack([value.to(torch.float32) for value in row]), each])


def loss_and_stats(
    spec: LossSpec,
    pixels: Pixels,
    class_weights: Tensor | None = None,
    vector: Tensor | None = None,
    *,
    want_stats: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """A loss as its spec describes it, and the statistics row.

    A class id that no class has makes the loss NaN: nothing is hidden.

    Args:
        spec: what to compute; reduction "sums" gives I, P, T, V stacked as (4, N, C).
        pixels: what `read_pixels` gives.
        class_weights: (C,) or None.
        vector: softmax: focal's alpha, (C,) or None; else pos_weight, (1,), (C,) or None.
        want_stats: whether the row is wanted.

    Returns:
        The loss: a scalar for "mean" and "sum"; for "none" (N, C) of region terms alone, (C,) with
        batch, one class less without the background, and (N,) where a pointwise term is among the
        terms. And the row, float32, or None.
    """
    w = pixels.x.new_ones(pixels.x.shape[1])
    w = w if class_weights is None else class_weights.to(w)
    whole = spec.reduction == "sums"
    sums = region_sums(spec, pixels) if spec.regions or whole else None
    points = point_sums(spec, pixels, w, vector) if spec.points else ([], w)
    row = statistics(spec, pixels, points, sums, w) if want_stats else None
    if sums is not None and whole:
        loss = torch.stack([sums.I, sums.P, sums.T, sums.V])
    else:
        loss = combine(spec, term_values(spec, points, sums, w, spec.reduction))
    if pixels.bad is None:
        return loss, row
    bad = pixels.bad.any(-1)
    if spec.reduction not in ("sums", "none") or spec.batch:
        bad = bad.any()
    elif loss.dim() > 1:
        bad = bad[:, None]
    return loss * torch.where(bad, torch.nan, 1.0).to(loss), row
