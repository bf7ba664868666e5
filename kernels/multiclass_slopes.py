"""The gradient of every class of a tile, from what the table says of its classes.

With h_k = dL/dp_k and u_k the pull of the pointwise terms (terms.py), a softmax gives
dL/dx_k = p_k (h_k - sum of p h + sum of u) - u_k.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.gradient import slope_of_terms
from fastseg_losses.kernels.multiclass import (
    label_class,
    lanes_of,
    largest_of,
    load_each,
    over_lanes,
    softmax,
    spread_target,
)
from fastseg_losses.kernels.terms import NEUTRAL

NORMS = finalize.NORMS


@triton.jit
def load_region(
    dloss_ptr,
    table_ptr,
    c,
    group,
    groups,
    dloss_stride_k,
    dloss_stride_c,
    C: tl.constexpr,
    FIRST: tl.constexpr,
    SUMS: tl.constexpr,
    PER_CLASS: tl.constexpr,
):
    """dL/dI and dL/dP of classes c of a group that starts at `group` in the table; 0 for none.

    Up to a factor that all classes share. SUMS: they are the upstream gradient. PER_CLASS: each
    class has an upstream gradient of its own.
    """
    there = (c >= FIRST) & (c < C)
    if SUMS:
        ptrs = dloss_ptr + c * dloss_stride_c
        d_overlap = tl.load(ptrs, mask=there, other=0.0).to(tl.float32)
        d_mass = tl.load(ptrs + dloss_stride_k, mask=there, other=0.0).to(tl.float32)
    else:
        table_ptr += NORMS + group
        d_overlap = load_each(table_ptr, c, FIRST, C)
        d_mass = load_each(table_ptr + groups, c, FIRST, C)
        if PER_CLASS:
            each = tl.load(dloss_ptr + (c - FIRST) * dloss_stride_c, mask=there, other=0.0)
            d_overlap *= each.to(tl.float32)
            d_mass *= each.to(tl.float32)
    return d_overlap, d_mass


@triton.jit
def load_point(points_ptr, k: tl.constexpr, c, factor, C: tl.constexpr):
    """The weight of a pointwise term for a target of classes c; 0 for none."""
    return load_each(points_ptr + k * C, c, 0, C) * factor


@triton.jit
def region_slope(
    d_overlap, d_mass, p, t, IDS: tl.constexpr, MINIMUM: tl.constexpr, SQUARED: tl.constexpr
):
    """dL/dp from dL/dI and dL/dP; of class ids without the label's dL/dI."""
    slope = d_mass
    if SQUARED:
        slope = d_mass * (2.0 * p)
    if not IDS:
        if MINIMUM:  # where they are equal, half of the slope
            t = tl.where(p < t, 1.0, tl.where(p == t, 0.5, 0.0))
        slope += d_overlap * t
    return slope


@triton.jit
def softmax_slopes(
    xs,
    target,
    x_y,
    regions,
    region_y,
    region_factor,
    points_ptr,
    classes,
    factor,
    params,
    TERMS: tl.constexpr,
    SMOOTHED: tl.constexpr,
    SPREAD: tl.constexpr,
    IDS: tl.constexpr,
    REGION: tl.constexpr,
    MINIMUM: tl.constexpr,
    SQUARED: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
    PTX: tl.constexpr,
):
    """The gradient of every class.

    Regions: (dL/dI, dL/dP) of each step's classes and of the label's, without their factor. SPREAD:
    a pointwise term has a target in every class, as soft and smoothed ones do.
    """
    gamma = params[2]
    e_smooth = params[3]
    largest = largest_of(xs, STEPS, LANES)
    es, total, r, log_total = softmax(xs, largest, STEPS, LANES, PTX)
    spread = tl.zeros_like(r)  # sum of u, so far of this lane's classes
    mass = tl.zeros_like(r)  # sum of e h, likewise, without the label's dL/dI
    if IDS:
        p_y, q_y, nll_y = label_class(x_y, target, largest, total, r, log_total, PTX)
        pull_y = tl.zeros_like(r)
        for k in tl.static_range(len(TERMS)):
            _, pull = TERMS[k](p_y, q_y, nll_y, gamma, PTX)
            weight = load_point(points_ptr, k, target, factor, C)
            if SMOOTHED[k]:
                weight *= 1.0 - e_smooth
            pull_y += weight * pull
    pulls = ()
    for j in tl.static_range(STEPS):
        d_overlap, d_mass = regions[j]
        pull_j = 0.0
        if SPREAD:
            pull_j = tl.zeros_like(r)
            for k in tl.static_range(len(TERMS)):
                if not IDS or SMOOTHED[k]:
                    nll = (largest - xs[j]) + log_total
                    _, pull = TERMS[k](es[j] * r, (total - es[j]) * r, nll, gamma, PTX)
                    t = spread_target(target, nll, j, e_smooth, IDS, SMOOTHED[k], C)
                    weight = load_point(points_ptr, k, classes[j], factor, C)
                    share = t * weight
                    pull_j += tl.where(share != 0.0, share * pull, 0.0)
            spread += pull_j
        pulls = pulls + (pull_j,)
        if REGION:
            t = 0.0 if IDS else target[j]
            h = region_slope(d_overlap, d_mass, es[j] * r, t, IDS, MINIMUM, SQUARED)
            mass += es[j] * h
    push = over_lanes(spread, LANES) if SPREAD else spread  # sum of u, and what all classes share
    # The factor after the difference: where p is 1, h and its mean are the same number, and a fused
    # multiply-add of one but not the other would leave 1e-7 of it.
    mean = 0.0
    if REGION:
        mean = r * over_lanes(mass, LANES)
    if IDS:
        # of the label's own pulls (1 - p) is left: p u - u would cancel once more
        d_mass_y = region_y[1] * (2.0 * p_y if SQUARED else 1.0)
        pull = region_factor * ((d_mass_y - mean) + q_y * region_y[0])
        slope_y = p_y * (pull + push) - q_y * pull_y
        push += pull_y - region_factor * (p_y * region_y[0])
    # p (push + factor h) = e (r push + r factor h)
    push *= r
    region_factor *= r
    slopes = ()
    for j in tl.static_range(STEPS):
        d_overlap, d_mass = regions[j]
        slope = push
        if REGION:
            t = 0.0 if IDS else target[j]
            h = region_slope(d_overlap, d_mass, es[j] * r, t, IDS, MINIMUM, SQUARED)
            slope += region_factor * (h - mean)
        slope *= es[j]
        if IDS:
            slope = tl.where(target == j * LANES + lanes_of(LANES), slope_y, slope)
        if SPREAD:
            slope -= pulls[j]
        slopes = slopes + (slope,)
    return slopes


@triton.jit
def sigmoid_slope(
    x,
    t,
    live,
    region,
    region_factor,
    points_ptr,
    pos_weight_ptr,
    c,
    factor,
    pos_weight_stride,
    params,
    TERMS: tl.constexpr,
    IDENTITY: tl.constexpr,
    IDS: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    PTX: tl.constexpr,
):
    """The gradient of one step's classes, each against the rest."""
    there = live & (c < C)
    shape: tl.constexpr = [LANES * ROWS, WIDTH]
    none = tl.zeros([LANES, ROWS, 1], tl.float32)
    coefs = (
        tl.reshape(region_factor * region[0] + none, [LANES * ROWS, 1]),
        tl.reshape(region_factor * region[1] + none, [LANES * ROWS, 1]),
    )
    for k in tl.static_range(len(TERMS) - 2):
        weight = load_point(points_ptr, k, c, factor, C)
        coefs = coefs + (tl.reshape(weight + none, [LANES * ROWS, 1]),)
    pos_weight = 1.0
    if pos_weight_ptr is not None:
        weight = load_each(pos_weight_ptr, c * pos_weight_stride, 0, C)
        pos_weight = tl.reshape(weight + none, [LANES * ROWS, 1])
    terms = (params[0], params[1], params[2], pos_weight, params[3])
    x = tl.reshape(tl.where(there, x, NEUTRAL), shape)
    t = tl.reshape(tl.where(there, t, 0.0), shape)
    slope = slope_of_terms(x, t, coefs, terms, TERMS, IDS, IDENTITY, PTX)
    return tl.reshape(slope, [LANES, ROWS, WIDTH])
