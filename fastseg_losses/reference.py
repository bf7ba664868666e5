"""The specification: every loss in plain PyTorch, for any device and dtype.

It is also the torch backend. Shapes here are canonical: `logits` and `targets` are (N, C, P) with P
the product of the spatial sizes, `live` is a bool tensor that broadcasts to (N, C, P), or None when
every pixel is valid.
Half-precision logits are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg_losses.spec import LossSpec, PointTerm, RegionTerm
from fastseg_losses.stats import TARGET_TOLERANCE

SCORE_FLOOR = 1e-7  # smallest score under the logarithm, and smallest base of a power below 1


@dataclass
class Sums:
    """Sums over the valid pixels of each (sample, class), all (N, C).

    I = sum p t, P = sum p, T = sum t, V = their number; one sum for each pointwise term.
    """

    I: Tensor  # noqa: E741
    P: Tensor
    T: Tensor
    V: Tensor
    points: tuple[Tensor, ...] = ()


# ---- per-pixel terms


def bce(x: Tensor, t: Tensor, pos_weight: Tensor | None, label_smoothing: float) -> Tensor:
    """softplus(x) - x t, with PyTorch's pos_weight and the target smoothed to t (1 - e) + e / 2."""
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / 2
    weight = (
        None if pos_weight is None else pos_weight.to(x).reshape(-1, 1)
    )  # (C, 1) against (N, C, P)
    return F.binary_cross_entropy_with_logits(x, t, pos_weight=weight, reduction="none")


def missed(x: Tensor, t: Tensor, kind: str) -> Tensor:
    """1 - p_t, accurate where p_t rounds to 1; the kinds differ where a target is soft.

    "product": p_t = p t + (1 - p)(1 - t); "likelihood": p_t = exp(-bce); "margin":
    p_t = sigmoid(x (2 t - 1)).
    """
    if kind == "likelihood":
        nll = bce(x, t, None, 0.0)
        # each where it is accurate: the one's value near 0, the other's derivative p_t far from it
        return torch.where(nll < 0.5, -torch.expm1(-nll), 1 - torch.exp(-nll))
    if kind == "margin":
        return torch.sigmoid(x * (1 - 2 * t))
    return t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)


def focal(x: Tensor, t: Tensor, alpha: float | None, gamma: float, kind: str = "product") -> Tensor:
    """alpha_t (1 - p_t)**gamma bce (Lin et al. 2017, eq. 5)."""
    alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    # Below the floor the power has no slope: at gamma < 1 an exact 0 would have an infinite one.
    power = missed(x, t, kind).clamp_min(1e-30) ** gamma
    return alpha_t * power * bce(x, t, None, 0.0)


def point_value(term: PointTerm, x: Tensor, t: Tensor, pos_weight: Tensor | None) -> Tensor:
    """The value of one pointwise term at every pixel."""
    if term.name == "bce":
        return bce(x, t, pos_weight, term.label_smoothing)
    return focal(x, t, term.alpha, term.gamma, term.miss)


# ---- region terms


def region_value(term: RegionTerm, I: Tensor, P: Tensor, T: Tensor) -> Tensor:  # noqa: E741
    """((1 - score) or -log(score)) ** gamma, where alpha weighs FP = P - I and beta FN = T - I.

    score = (I + s) / (I + alpha FP + beta FN + s) (Salehi et al. 2017, eq. 4). An empty group
    without smoothing (0 / 0) scores 1: nothing was asked for and nothing was predicted. A term with
    a floor has that as its least denominator in place of the exception.
    """
    below = term.smooth if term.smooth_dr is None else term.smooth_dr
    whole = (1 - term.alpha - term.beta) * I + term.alpha * P + term.beta * T + below
    if term.floor > 0:
        score = (I + term.smooth) / whole.clamp_min(term.floor)
    else:
        empty = whole == 0
        score = torch.where(empty, 1.0, (I + term.smooth) / torch.where(empty, 1.0, whole))
    floor = term.floor if term.floor > 0 else SCORE_FLOOR
    loss = -torch.log(score.clamp_min(floor)) if term.log_loss else term.offset - score
    # loss ** gamma, continued as a straight line below the floor: at gamma < 1 its slope at 0 would
    # be infinite.
    return loss * loss.clamp_min(SCORE_FLOOR) ** (term.gamma - 1)


def generalized_dice(
    I: Tensor,  # noqa: E741
    P: Tensor,
    T: Tensor,
    weights: str,
    smooth_nr: float,
    smooth_dr: float,
) -> Tensor:
    """1 - (2 sum w I + nr) / (sum w (P + T) + dr) over the last axis, which is kept with size 1.

    w is 1 / T**2 ("square"), 1 / T ("simple") or 1 ("uniform"); where T is 0, the largest of the
    other channels, and 0 where no channel has a target.
    """
    w = torch.ones_like(T)
    if weights != "uniform":
        w = 1 / (T * T if weights == "square" else T)
        infinite = w.isinf()
        w = w.masked_fill(infinite, 0.0)
        w = torch.where(infinite, w.amax(-1, keepdim=True), w)
    over = 2 * (w * I).sum(-1, keepdim=True) + smooth_nr
    return 1 - over / ((w * (P + T)).sum(-1, keepdim=True) + smooth_dr)


# ---- sums, reductions


def region_parts(spec: LossSpec, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What every pixel adds to I, P and T."""
    # min(p, t) is (p + t - |p - t|) / 2, also in its slope where they are equal; but that keeps no
    # digit of a small p beside t = 1
    both = p * t if spec.overlap == "product" else torch.minimum(p, t)
    return (both, p * p, t * t) if spec.squared else (both, p, t)


def counted_groups(absent: str, V: Tensor, T: Tensor) -> Tensor:
    """Which groups count in a mean."""
    if absent in ("zero", "all"):
        return torch.ones_like(V, dtype=torch.bool)
    return V > 0 if absent == "keep" else (V > 0) & (T > 0)


def sigmoid_sums(
    spec: LossSpec,
    logits: Tensor,
    targets: Tensor,
    live: Tensor | None,
    pos_weight: Tensor | None = None,
) -> Sums:
    """Sums of every term over each group's valid pixels."""
    x, t = logits, targets
    if live is not None:
        # where, not a product: an invalid pixel may hold NaN, and NaN * 0 is NaN.
        x, t = torch.where(live, x, 0.0), torch.where(live, t, 0.0)

    def total(value: Tensor) -> Tensor:
        return (value if live is None else torch.where(live, value, 0.0)).sum(-1)

    p = x if spec.activation == "identity" else torch.sigmoid(x)
    I, P, T = region_parts(spec, p, t)  # noqa: E741
    return Sums(
        I=total(I),
        P=total(P),
        T=total(T),
        V=total(torch.ones_like(x)),
        points=tuple(total(point_value(term, x, t, pos_weight)) for term in spec.points),
    )


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator; 0 with a live graph where that is 0: there is nothing to average."""
    empty = denominator == 0
    return torch.where(empty, numerator * 0.0, numerator / torch.where(empty, 1.0, denominator))


def term_values(
    spec: LossSpec, sums: Sums, class_weights: Tensor | None, reduction: str
) -> list[Tensor]:
    """Each term under the given reduction, unweighted, in the order of `spec.term_names`."""
    w = (
        sums.V.new_ones(sums.V.shape[1]) if class_weights is None else class_weights.to(sums.V)
    )  # (C,)
    values = []
    for total in sums.points:
        if reduction == "mean":
            divisor = (sums.V if spec.absent == "all" else w * sums.V).sum()
            values.append(safe_divide((w * total).sum(), divisor))
        elif reduction == "sum":
            values.append((w * total).sum())
        else:
            values.append(w * safe_divide(total, sums.V))
    return values + region_values(spec, sums, w, reduction)


def region_values(spec: LossSpec, sums: Sums, w: Tensor, reduction: str) -> list[Tensor]:
    """Each region term under the given reduction, unweighted; w: (C,) weights of the classes."""
    I, P, T, V = (s.sum(0) if spec.batch else s for s in (sums.I, sums.P, sums.T, sums.V))  # noqa: E741
    counts = counted_groups(spec.absent, V, T)
    losing = counts & (T > 0) if spec.absent == "zero" else counts
    weights = torch.where(counts, torch.ones_like(w) if spec.absent == "all" else w, 0.0)
    values = []
    for term in spec.regions:
        weighted = torch.where(losing, w * region_value(term, I, P, T), 0.0)
        if reduction == "mean":
            values.append(safe_divide(weighted.sum(), weights.sum()))
        elif reduction == "sample":  # each sample's own mean
            values.append(safe_divide(weighted.sum(-1), weights.sum(-1)))
        else:
            values.append(weighted.sum() if reduction == "sum" else weighted)
    return values


def combine(spec: LossSpec, values: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the terms."""
    # not spec.terms: torch.compile calls no property of a spec that compat has made
    terms: tuple[PointTerm | RegionTerm, ...] = (*spec.points, *spec.regions)
    weighted = [term.weight * value for term, value in zip(terms, values, strict=True)]
    return torch.stack(weighted).sum(0)


# ---- statistics


@torch.no_grad()
def statistics(
    spec: LossSpec,
    logits: Tensor,
    targets: Tensor,
    live: Tensor | None,
    sums: Sums,
    class_weights: Tensor | None,
) -> Tensor:
    """The statistics row, float32, in the order of `stats.FIELDS` and then `spec.term_names`."""
    live = torch.ones_like(logits, dtype=torch.bool) if live is None else live.expand_as(logits)
    valid = sums.V.sum()
    identity = spec.activation == "identity"
    predicted, actual = (logits > (0.5 if identity else 0.0)) & live, (targets > 0.5) & live
    tp = (predicted & actual).sum()
    largest = (
        logits.masked_fill(~live | logits.isnan(), -torch.inf).amax() if logits.numel() else valid
    )
    values = term_values(spec, sums, class_weights, "mean")
    row = [
        combine(spec, values) if values else valid * 0,
        safe_divide(sums.P.sum(), valid),
        safe_divide(sums.T.sum(), valid),
        torch.where(valid > 0, largest if identity else torch.sigmoid(largest), 0.0),
        safe_divide(predicted.sum().to(valid), valid),
        safe_divide(actual.sum().to(valid), valid),
        tp,
        predicted.sum() - tp,
        actual.sum() - tp,
        valid,
        (~logits.isfinite() & live).sum(),
        (~((targets - 0.5).abs() <= 0.5 + TARGET_TOLERANCE) & live).sum(),  # NaN too
        *values,
    ]
    return torch.stack([value.to(torch.float32) for value in row])


def loss_and_stats(
    spec: LossSpec,
    logits: Tensor,
    targets: Tensor,
    live: Tensor | None,
    class_weights: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A loss as its spec describes it, and the statistics row.

    Args:
        spec: what to compute; reduction "sums" gives I, P, T, V stacked as (4, N, C).
        logits: (N, C, P) floating.
        targets: (N, C, P), any dtype.
        live: bool, broadcastable to (N, C, P): which pixels count; None for all.
        class_weights: (C,) or None.
        pos_weight: (1,) or (C,), or None.

    Returns:
        The loss: a scalar for "mean" and "sum"; (N, C), or (C,) with batch, for "none". And the
        row, float32.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    x, t = logits.to(dtype), targets.to(dtype)
    sums = sigmoid_sums(spec, x, t, live, pos_weight)
    row = statistics(spec, x.detach(), t, live, sums, class_weights)
    if spec.reduction == "sums":
        return torch.stack([sums.I, sums.P, sums.T, sums.V]), row
    return combine(spec, term_values(spec, sums, class_weights, spec.reduction)), row
