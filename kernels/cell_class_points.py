"""What the multiclass forward kernel of low-resolution logits adds up of a piece's outputs."""

import triton
import triton.language as tl

from fastseg_losses.kernels import multiclass_rows
from fastseg_losses.kernels.cell_classes import class_outputs, fetch_class
from fastseg_losses.kernels.interpolation import (
    fetch_corners,
    odd_corners,
    odd_outputs,
    output_of,
    ready_corners,
)
from fastseg_losses.kernels.special import LN2, LOG2E, equal, exp2, log1p_unit, log2, reciprocal
from fastseg_losses.kernels.stacking import stacked
from fastseg_losses.kernels.terms import NEUTRAL, pixel_of

RECORD = multiclass_rows.RECORD
TARGET_PLANE = multiclass_rows.TARGET_PLANE
PREDICTED_PLANE = multiclass_rows.PREDICTED_PLANE
HIT_PLANE = multiclass_rows.HIT_PLANE
ACTUAL_PLANE = multiclass_rows.ACTUAL_PLANE

# A thread counts target, predicted and hit outputs of a class in one float, five bits each, because
# to add a product takes one instruction: at most 16 outputs. A warp adds them up in one int32, ten
# bits each: 512 outputs.
PREDICTED_ONE = tl.constexpr(32.0)
HIT_ONE = tl.constexpr(1024.0)


@triton.jit
def label_terms(
    sums, ptrs, stride_c, labels, lives, state, across, down, weights_ptr, alpha_ptr, params,
    TERMS: tl.constexpr, BALANCED: tl.constexpr, SMOOTHED: tl.constexpr,
    EACH_X: tl.constexpr, SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Add the label's part of the pointwise terms; each output's p and -log p of its label."""
    largest, first, total = state
    ps = ()
    nlls = ()
    for k in tl.static_range(len(labels)):
        known = labels[k] >= 0
        at = tl.maximum(labels[k], 0)
        corners = ready_corners(fetch_corners(ptrs, at * stride_c, known), LOG2E, False)
        z = output_of(corners, across, down, k // EACH_X, k % EACH_X, SPLIT_Y, SPLIT_X)
        # Of the largest the difference is exactly 0, so that the logarithm and what the sum
        # exceeds 1 by vanish together.
        below = tl.where(known, largest[k] - z, 0.0)
        e = exp2(-below, PTX)
        r = reciprocal(total[k], PTX)
        log_total = tl.where(
            total[k] < 2.0, log1p_unit(tl.minimum(total[k] - 1.0, 1.0)), log2(total[k], PTX) * LN2
        )
        p = tl.where(known, e * r, 0.0)
        nll = tl.where(known, below * LN2 + log_total, 0.0)
        nll = tl.where(nll >= 1e29, float("inf"), nll)  # a label that -inf has ruled out
        weight = 1.0
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + at, mask=known, other=0.0)
        new = ()
        for m in tl.static_range(len(TERMS)):
            value, _ = TERMS[m](p, (total[k] - e) * r, nll, params[2], PTX)
            factor = weight
            if BALANCED[m] and alpha_ptr is not None:
                factor = weight * tl.load(alpha_ptr + at, mask=known, other=0.0)
            if SMOOTHED[m]:
                factor = factor * (1.0 - params[3])
            new = new + (sums[m] + tl.where(known, factor * value, 0.0),)
        sums = new
        ps = ps + (p,)
        nlls = nlls + (nll,)
    return sums, ps, nlls


@triton.jit
def spread_terms(
    sums, z, lse, p, t, live, c, weights_ptr, alpha_ptr, params,
    TERMS: tl.constexpr, BALANCED: tl.constexpr, SMOOTHED: tl.constexpr,
    IDS: tl.constexpr, C: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Add what soft or smoothed targets of class c have in the pointwise terms."""
    nll = (lse - z) * LN2
    new = ()
    for m in tl.static_range(len(TERMS)):
        value = sums[m]
        if not IDS or SMOOTHED[m]:
            share = tl.zeros_like(z) + spread_share(t, params[3], IDS, SMOOTHED[m], C)
            each, _ = TERMS[m](p, 1.0 - p, nll, params[2], PTX)
            factor = 1.0
            if weights_ptr is not None:
                factor = tl.load(weights_ptr + c)
            if BALANCED[m] and alpha_ptr is not None:
                factor = factor * tl.load(alpha_ptr + c)
            # a target of 0 counts for nothing, even where the class was ruled out by -inf
            value += tl.where(live & (share != 0.0), factor * share * each, 0.0)
        new = new + (value,)
    return new


@triton.jit
def spread_share(t, e, IDS: tl.constexpr, SMOOTHED: tl.constexpr, C: tl.constexpr):
    """A soft target, smoothed; of class ids what smoothing gives to every class."""
    if IDS:
        return e / C
    elif SMOOTHED:
        return t + e * (1.0 / C - t)
    else:
        return t


@triton.jit
def add_classes(
    row_ptr, sums, ptrs, stride_c, spots, targets_stride_c,
    labels, lives, there, lses, p_labels, first, across, down,
    weights_ptr, vector_ptr, vector_stride, params,
    TERMS: tl.constexpr, BALANCED: tl.constexpr, SMOOTHED: tl.constexpr, SPREAD: tl.constexpr,
    SOFTMAX: tl.constexpr, IDS: tl.constexpr, C: tl.constexpr,
    EACH_Y: tl.constexpr, EACH_X: tl.constexpr, SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
    BLOCK_W: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Add the piece to every class's planes, BLOCK_W classes at a time; the terms' sums.

    The labels and the likeliest classes as floats.
    """
    lane = tl.arange(0, BLOCK_W)
    zero = tl.zeros([BLOCK_W], tl.float32)
    on_label = ()
    for k in tl.static_range(EACH_Y * EACH_X):
        on_label = on_label + (tl.where(first[k] == labels[k], 1.0 + HIT_ONE, 1.0),)
    before = sums
    if SPREAD:
        # 128 classes of 16 outputs one after the other would be off by 3e-6: a sum of sums
        sums = nothing(before)
    ahead = fetch_class(ptrs, 0, stride_c, there, C)
    for start in range(0, C, BLOCK_W):
        overlaps = zero
        masses = zero
        soft = zero
        actual = zero
        counts = tl.zeros([BLOCK_W], tl.int32)
        for c in range(start, tl.minimum(start + BLOCK_W, C)):
            corners = ahead
            ahead = fetch_class(ptrs, c + 1, stride_c, there, C)
            zs = class_outputs(corners, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, SOFTMAX)
            overlap = zero
            mass = zero
            share = zero
            count = zero
            labelled = zero
            spread = nothing(sums)
            class_c = tl.cast(c, tl.float32)
            ts = ()
            for k in tl.static_range(EACH_Y * EACH_X):
                is_label = equal(labels[k], class_c, PTX)
                count += is_label * on_label[k]
                count += PREDICTED_ONE * equal(first[k], class_c, PTX)
                t = is_label
                if not IDS:
                    at = spots[k] + c * targets_stride_c
                    t = tl.load(at, mask=lives[k], other=0.0).to(tl.float32)
                    share += t
                    labelled += is_label
                ts = ts + (t,)
                if SOFTMAX:
                    p = exp2(zs[k] - lses[k], PTX)
                    mass += p
                    overlap += t * (p_labels[k] if IDS else p)
                    if SPREAD:
                        spread = spread_terms(
                            spread, zs[k], lses[k], p, t, lives[k], c, weights_ptr, vector_ptr,
                            params, TERMS, BALANCED, SMOOTHED, IDS, C, PTX,
                        )  # fmt: skip
            if SPREAD:
                sums = added(sums, spread)
            if not SOFTMAX:
                live = stacked(lives, False)
                x = tl.where(live, stacked(zs, NEUTRAL), NEUTRAL)
                t = stacked(ts, 0.0)
                pixel = pixel_of(x, t, IDS, False, PTX)
                overlap = tl.sum(pixel[4] * t, 1)
                mass = tl.sum(pixel[4], 1)
                pos_weight = 1.0
                if vector_ptr is not None:
                    pos_weight = tl.load(vector_ptr + c * vector_stride)
                each = (params[0], params[1], params[2], pos_weight, params[3])
                weight = 1.0
                if weights_ptr is not None:
                    weight = tl.load(weights_ptr + c)
                new = ()
                for m in tl.static_range(len(TERMS)):
                    value, _ = TERMS[m](pixel, each, PTX)
                    new = new + (sums[m] + weight * value,)
                sums = new
            here = lane == c - start
            overlaps = tl.where(here, tl.sum(overlap), overlaps)
            masses = tl.where(here, tl.sum(mass), masses)
            n = count.to(tl.int32)
            n = (n & 31) | ((n & 992) << 5) | ((n >> 10) << 20)
            counts = tl.where(here, tl.sum(n), counts)
            if not IDS:
                soft = tl.where(here, tl.sum(share), soft)
                actual = tl.where(here, tl.sum(labelled), actual)
        inside = start + lane < C
        at_ptr = row_ptr + RECORD + start + lane
        add_to(at_ptr, overlaps, inside)
        add_to(at_ptr + C, masses, inside)
        if IDS:
            soft = (counts & 1023).to(tl.float32)
        add_to(at_ptr + TARGET_PLANE * C, soft, inside)
        add_to(at_ptr + PREDICTED_PLANE * C, ((counts >> 10) & 1023).to(tl.float32), inside)
        add_to(at_ptr + HIT_PLANE * C, (counts >> 20).to(tl.float32), inside)
        if not IDS:
            add_to(at_ptr + ACTUAL_PLANE * C, actual, inside)
    if SPREAD:
        sums = added(before, sums)
    return sums


@triton.jit
def nothing(values):
    """A zero for each value."""
    zeros = ()
    for k in tl.static_range(len(values)):
        zeros = zeros + (tl.zeros_like(values[k]),)
    return zeros


@triton.jit
def added(a, b):
    """The sums of two tuples' values."""
    sums = ()
    for k in tl.static_range(len(a)):
        sums = sums + (a[k] + b[k],)
    return sums


@triton.jit
def add_to(ptrs, value, inside):
    """Add to what the same threads have stored before."""
    tl.store(ptrs, tl.load(ptrs, mask=inside, other=0.0) + value, mask=inside)


@triton.jit
def soft_labels(
    spots, targets_stride_c, lives, C: tl.constexpr
):  # fmt: skip
    """Of soft targets the likeliest class (-1 where none counts), its target, the worst stray."""
    labels = ()
    certains = ()
    stray = tl.zeros(lives[0].shape, tl.float32)
    for k in tl.static_range(len(spots)):
        label = tl.where(lives[k], 0, -1)
        certain = tl.load(spots[k], mask=lives[k], other=0.0).to(tl.float32)
        worst = tl.abs(certain - 0.5)
        for c in range(1, C):
            ptrs = spots[k] + c * targets_stride_c
            t = tl.load(ptrs, mask=lives[k], other=0.0).to(tl.float32)
            label = tl.where(t > certain, c, label)
            certain = tl.maximum(certain, t)
            worst = tl.maximum(worst, tl.abs(t - 0.5), propagate_nan=tl.PropagateNan.ALL)
        labels = labels + (label,)
        certains = certains + (certain,)
        stray = tl.maximum(stray, worst, propagate_nan=tl.PropagateNan.ALL)
    return labels, certains, stray


@triton.jit
def count_odd(
    ptrs, stride_c, there, lives, across, down, spots, targets_stride_c,
    C: tl.constexpr, IDS: tl.constexpr,
    EACH_Y: tl.constexpr, EACH_X: tl.constexpr, SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
):  # fmt: skip
    """How many of a piece's logits are not finite, and how many soft targets not in [0, 1]."""
    strange = tl.zeros((), tl.float32)
    wrong = tl.zeros((), tl.float32)
    for c in range(C):
        odd = odd_corners(ptrs, c * stride_c, there)
        odd = odd_outputs(odd, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X)
        for k in tl.static_range(EACH_Y * EACH_X):
            strange += tl.sum(tl.where(lives[k], odd[k], 0.0))
            if not IDS:
                at = spots[k] + c * targets_stride_c
                t = tl.load(at, mask=lives[k], other=0.5).to(tl.float32)
                wrong += tl.sum(tl.where(tl.abs(t - 0.5) <= 0.501, 0.0, 1.0))
    return strange, wrong
