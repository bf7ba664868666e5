"""What the multiclass forward kernel does with a tile: its terms, its sums for every class."""

import triton
import triton.language as tl

from fastseg_losses.kernels import multiclass_rows
from fastseg_losses.kernels.multiclass import (
    classes_of,
    first_largest,
    label_class,
    lanes_of,
    load_each,
    over_lanes,
    softmax,
    spread_target,
)
from fastseg_losses.kernels.special import LOG2E, equal, exp2, reciprocal
from fastseg_losses.kernels.sums import join_halves
from fastseg_losses.kernels.terms import NEUTRAL, pixel_of

# A thread counts target, predicted and hit pixels of a class in one float, eight of its 24 bits
# each, up to MAX_COUNT pixels at a time. A float, because to add a product takes one instruction,
# and in units that are less busy than those for integers and selects.
MAX_COUNT = 255
PREDICTED_ONE = tl.constexpr(float(1 << 8))
HIT_ONE = tl.constexpr(float(1 << 16))
PREDICTED_PLANE = multiclass_rows.PREDICTED_PLANE
HIT_PLANE = multiclass_rows.HIT_PLANE


@triton.jit
def weights_of(ptr, c, C: tl.constexpr):
    """Weights of classes c from a (C,) vector; 1 for None."""
    if ptr is None:
        return 1.0
    else:
        return load_each(ptr, c, 0, C)


@triton.jit
def softmax_points(
    xs,
    target,
    live,
    x_y,
    largest,
    es,
    total,
    r,
    log_total,
    weights_ptr,
    alpha_ptr,
    params,
    TERMS: tl.constexpr,
    BALANCED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    IDS: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    PTX: tl.constexpr,
):
    """Each pointwise term at every pixel, class weights inside; and the label's probability.

    For class ids a term is that of the label's class, for soft targets the sum over the classes.
    """
    gamma = params[2]
    e_smooth = params[3]
    values = ()
    p_y = r
    if IDS:
        p_y, q_y, nll_y = label_class(x_y, target, largest, total, r, log_total, PTX)
        weight = 1.0
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + target, mask=target >= 0, other=0.0)
    for k in tl.static_range(len(TERMS)):
        if IDS:
            value, _ = TERMS[k](p_y, q_y, nll_y, gamma, PTX)
            factor = weight
            if BALANCED[k] and alpha_ptr is not None:
                factor = weight * tl.load(alpha_ptr + target, mask=target >= 0, other=0.0)
            value = tl.where(target >= 0, factor * value, 0.0)
            if SMOOTHED[k]:
                value *= 1.0 - e_smooth
        else:
            value = tl.zeros_like(r)
        if not IDS or SMOOTHED[k]:
            spread = tl.zeros_like(r)
            for j in tl.static_range(STEPS):
                nll = (largest - xs[j]) + log_total
                each, _ = TERMS[k](es[j] * r, (total - es[j]) * r, nll, gamma, PTX)
                c = classes_of(j, ROWS, LANES)
                factor = weights_of(weights_ptr, c, C)
                if BALANCED[k]:
                    factor = factor * weights_of(alpha_ptr, c, C)
                t = spread_target(target, nll, j, e_smooth, IDS, SMOOTHED[k], C)
                # a target of 0 counts for nothing, even where the class was ruled out by -inf
                counts = t != 0.0
                if (j + 1) * LANES > C:
                    counts = counts & (j * LANES + lanes_of(LANES) < C)
                spread += tl.where(counts, t * factor * each, 0.0)
            spread = over_lanes(spread, LANES)
            spread = tl.where(live, spread, 0.0)
            value += spread
        values = values + (value,)
    return values, p_y


@triton.jit
def sigmoid_step(
    x,
    t,
    live,
    j,
    weights_ptr,
    pos_weight_ptr,
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
    """One step's classes, each against the rest: p, and the terms [LANES, ROWS], weighted."""
    there = live & (j * LANES + lanes_of(LANES) < C)
    x = tl.reshape(tl.where(there, x, NEUTRAL), [LANES * ROWS, WIDTH])
    t = tl.reshape(tl.where(there, t, 0.0), [LANES * ROWS, WIDTH])
    pos_weight = 1.0
    if pos_weight_ptr is not None:
        c = j * LANES + tl.arange(0, LANES * ROWS) // ROWS
        at = pos_weight_ptr + c * pos_weight_stride
        pos_weight = tl.load(at, mask=c < C, other=0.0)[:, None]
    pixel = pixel_of(x, t, IDS, IDENTITY, PTX)
    terms = (params[0], params[1], params[2], pos_weight, params[3])
    weight = weights_of(weights_ptr, classes_of(j, ROWS, LANES), C)
    if weights_ptr is not None and LANES > 1:
        weight = tl.reshape(weight, [LANES, ROWS])
    values = ()
    for k in tl.static_range(len(TERMS)):
        value, _ = TERMS[k](pixel, terms, PTX)
        values = values + (weight * tl.reshape(value, [LANES, ROWS]),)
    return tl.reshape(pixel[4], [LANES, ROWS, WIDTH]), values


@triton.jit
def add_tile(
    planes,
    sums,
    extremes,
    xs,
    target,
    live,
    x_y,
    weights_ptr,
    vector_ptr,
    vector_stride,
    params,
    TERMS: tl.constexpr,
    BALANCED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    SOFTMAX: tl.constexpr,
    IDENTITY: tl.constexpr,
    MINIMUM: tl.constexpr,
    SQUARED: tl.constexpr,
    IDS: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    PTX: tl.constexpr,
):
    """Add one tile to the planes (I, P, counts, and T of soft targets), sums and extremes.

    The sums: the terms; the likeliest class's probability, and how often it is above 0.5; the same
    of soft targets; how many pixels count; one that shows whether all that was read is finite.
    The extremes: the largest probability, how far a soft target strays from 0.5.
    """
    NUM_POINT: tl.constexpr = len(TERMS)
    largest, first = first_largest(xs, STEPS, LANES)
    lanes = lanes_of(LANES)
    if IDS:
        label = target.to(tl.float32)
        certain = tl.zeros_like(largest) + 1.0
    else:
        certain, label = first_largest(target, STEPS, LANES)
        label = tl.where(live, label, -1.0)
    first = tl.where(live, first, -2.0 - LANES)
    count = tl.where(first == label, 1.0 + HIT_ONE, 1.0)
    # relative to the lane, so that each step compares with a constant
    label -= lanes.to(tl.float32)
    first -= lanes.to(tl.float32)

    values = ()
    finite = tl.zeros_like(largest) + lanes * 0.0
    new_i = ()
    new_p = ()
    new_n = ()
    new_t = ()
    stray = tl.zeros_like(largest)
    if SOFTMAX:
        es, total, r, log_total = softmax(xs, largest, STEPS, LANES, PTX)
        r = tl.where(live, r, 0.0)
        best = r  # the largest's exponential is 1
        values, p_y = softmax_points(
            xs, target, live, x_y, largest, es, total, r, log_total,
            weights_ptr, vector_ptr, params,
            TERMS, BALANCED, SMOOTHED, IDS, C, STEPS, ROWS, LANES, PTX,
        )  # fmt: skip
    else:
        best = largest
        if not IDENTITY:
            best = reciprocal(1.0 + exp2(-largest * LOG2E, PTX), PTX)
        best = tl.where(live, best, 0.0)
        for _k in tl.static_range(NUM_POINT):
            values = values + (tl.zeros([LANES, ROWS], tl.float32),)
    for j in tl.static_range(STEPS):
        is_label = equal(label, float(j * LANES), PTX)
        t = is_label if IDS else target[j]
        if SOFTMAX:
            p = es[j] * r
        else:
            p, added = sigmoid_step(
                xs[j], t, live, j, weights_ptr, vector_ptr, vector_stride, params,
                TERMS, IDENTITY, IDS, C, ROWS, LANES, WIDTH, PTX,
            )  # fmt: skip
            together = ()
            for k in tl.static_range(NUM_POINT):
                together = together + (values[k] + added[k],)
            values = together
        overlap = t * (p_y if IDS and SOFTMAX else p)
        if MINIMUM:
            overlap = tl.minimum(p, t)
        mass = p * p if SQUARED else p
        if not IDS:
            finite += target[j]
            size = target[j] * target[j] if SQUARED else target[j]
            new_t = new_t + (planes[3 * STEPS + j] + tl.sum(size, 2),)
            stray = tl.maximum(stray, tl.abs(target[j] - 0.5))
        new_i = new_i + (planes[j] + tl.sum(overlap, 2),)
        new_p = new_p + (planes[STEPS + j] + tl.sum(mass, 2),)
        counts = planes[2 * STEPS + j] + tl.sum(is_label * count, 2)
        is_first = equal(first, float(j * LANES), PTX)
        new_n = new_n + (counts + PREDICTED_ONE * tl.sum(is_first, 2),)
        there = j * LANES + lanes < C
        finite += xs[j] if (j + 1) * LANES <= C else tl.where(there, xs[j], 0.0)

    added = values if SOFTMAX else ()
    added = added + (best, tl.where(best > 0.5, 1.0, 0.0))
    if not IDS:
        certain = tl.where(live, certain, 0.0)
        added = added + (certain, tl.where(certain > 0.5, 1.0, 0.0))
    added = added + (tl.where(live, 1.0, 0.0), finite)
    new = ()
    if not SOFTMAX:
        for k in tl.static_range(NUM_POINT):
            new = new + (sums[k] + values[k],)
    done: tl.constexpr = 0 if SOFTMAX else NUM_POINT
    for k in tl.static_range(len(added)):
        new = new + (sums[done + k] + tl.sum(added[k], 2),)
    extremes = (
        tl.maximum(extremes[0], tl.max(best, 2)),
        tl.maximum(extremes[1], tl.max(stray, 2)),
    )
    return new_i + new_p + new_n + new_t, new, extremes


@triton.jit
def counted(counts, plane: tl.constexpr):
    """One plane's count out of what a thread has counted."""
    counts = counts.to(tl.int32)
    if plane == PREDICTED_PLANE:
        counts = counts >> 8
    if plane == HIT_PLANE:
        counts = counts >> 16
    return (counts & 255).to(tl.float32)


@triton.jit
def class_sums(values, ROWS: tl.constexpr, LANES: tl.constexpr, BLOCK_STEPS: tl.constexpr):
    """Sums over the rows of one plane's steps, [LANES * BLOCK_STEPS]; lane first, then step."""
    stacked = values
    for _ in tl.static_range(BLOCK_STEPS - len(values)):
        stacked = stacked + (tl.zeros([LANES, ROWS], tl.float32),)
    for _ in tl.static_range(10):
        if len(stacked) > 1:
            stacked = join_halves(stacked)
    return tl.reshape(tl.sum(stacked[0], 1), [LANES * BLOCK_STEPS])
