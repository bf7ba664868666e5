"""The specification: every loss in plain PyTorch, for any device and dtype.

It is also the torch backend. Here are the terms and their reductions; `reference_binary.py` and
`reference_multiclass.py` read a call's pixels and put the terms together. What nobody asked for is
not computed: no region sums without a region term, no statistics that nobody reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg_losses.spec import LossSpec, PointTerm, RegionTerm

SCORE_FLOOR = 1e-7  # smallest score under the logarithm, and smallest base of a power below 1


@dataclass
class Sums:
    """Sums over the valid pixels of each (sample, class), all (N, C).

    I = sum p t, P = sum p, T = sum t, V = their number.
    """

    I: Tensor  # noqa: E741
    P: Tensor
    T: Tensor
    V: Tensor


def total(value: Tensor, live: Tensor | None) -> Tensor:
    """Sum over the pixels that count; the value is finite where they do not, see `Pixels`."""
    return (value if live is None else value * live).sum(-1)


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


def focal_power(miss: Tensor, gamma: float) -> Tensor:
    """miss**gamma, with slopes that are finite at an exact 0."""
    # Below the floor the power has no slope: at gamma < 1 it would be infinite at 0, at gamma < 2
    # the slope's slope. A whole gamma has no such place.
    return (miss if gamma % 1 == 0 else miss.clamp_min(1e-30)) ** gamma


def focal(
    x: Tensor,
    t: Tensor,
    alpha: float | None,
    gamma: float,
    kind: str = "product",
    nll: Tensor | None = None,
) -> Tensor:
    """alpha_t (1 - p_t)**gamma bce (Lin et al. 2017, eq. 5); nll: the bce, if it is known."""
    alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    nll = bce(x, t, None, 0.0) if nll is None else nll
    return alpha_t * focal_power(missed(x, t, kind), gamma) * nll


def point_value(
    term: PointTerm, x: Tensor, t: Tensor, pos_weight: Tensor | None, nll: Tensor | None = None
) -> Tensor:
    """The value of one pointwise term at every pixel; nll: bce(x, t, None, 0.0), if it is known."""
    if term.name == "bce":
        if nll is not None and pos_weight is None and not term.label_smoothing:
            return nll
        return bce(x, t, pos_weight, term.label_smoothing)
    return focal(x, t, term.alpha, term.gamma, term.miss, nll)


def point_values(
    terms: Sequence[PointTerm], x: Tensor, t: Tensor, pos_weight: Tensor | None
) -> list[Tensor]:
    """The values of the pointwise terms at every pixel."""
    nll = bce(x, t, None, 0.0) if len(terms) > 1 else None  # which they share
    return [point_value(term, x, t, pos_weight, nll) for term in terms]


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
    if term.gamma == 1:
        return loss
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


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, where 0 / 0 is 0 with a live graph: there is nothing to average."""
    return numerator / torch.where(denominator == 0, 1.0, denominator)


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
    return sum(weighted[1:], weighted[0])


def nonfinite(x: Tensor) -> Tensor:
    """How many elements are NaN or infinite; pixels that do not count hold 0."""
    return (
        x - x
    ).count_nonzero()  # x - x is 0 where x is finite; isfinite takes four times as long
