"""The gradient of a piece's outputs in every class, and its way to the low-resolution logits.

With h_k = dL/dp_k and u_k the pull of the pointwise terms (terms.py), a softmax gives
dL/dx_k = p_k (h_k - sum of p h + sum of u) - u_k. All factors are in h and u already.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import cell_classes
from fastseg_losses.kernels.cell_class_points import spread_share
from fastseg_losses.kernels.cell_classes import class_outputs, fetch_class
from fastseg_losses.kernels.gradient import slope_of_terms
from fastseg_losses.kernels.multiclass_slopes import load_point, load_region
from fastseg_losses.kernels.special import LN2, LOG2E, equal, exp2, where_equal
from fastseg_losses.kernels.stacking import stacked, unstacked
from fastseg_losses.kernels.terms import NEUTRAL

SKIPPED = cell_classes.SKIPPED


@triton.jit
def spread_pull(
    z, lse, p, t, live, points_ptr, c, factor, params,
    TERMS: tl.constexpr, SMOOTHED: tl.constexpr, IDS: tl.constexpr, C: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """The pull u of class c that soft or smoothed targets have."""
    nll = (lse - z) * LN2
    pull_c = tl.zeros_like(z)
    for m in tl.static_range(len(TERMS)):
        if not IDS or SMOOTHED[m]:
            _, pull = TERMS[m](p, 1.0 - p, nll, params[2], PTX)
            share = tl.zeros_like(z) + spread_share(t, params[3], IDS, SMOOTHED[m], C)
            share = share * load_point(points_ptr, m, c, factor, C)
            pull_c += tl.where(live & (share != 0.0), share * pull, 0.0)
    return pull_c


@triton.jit
def fetch_region(
    dloss_ptr, table_ptr, c, group, groups, dloss_stride_k, dloss_stride_c,
    REGION: tl.constexpr, C: tl.constexpr, FIRST: tl.constexpr,
    SUMS: tl.constexpr, PER_CLASS: tl.constexpr,
):  # fmt: skip
    """`load_region` of class c, or of the last; asked for one class ahead, so that none waits."""
    if REGION:
        return load_region(
            dloss_ptr, table_ptr, tl.minimum(c, C - 1), group, groups,
            dloss_stride_k, dloss_stride_c, C, FIRST, SUMS, PER_CLASS,
        )  # fmt: skip
    else:
        return tl.zeros((), tl.float32), tl.zeros((), tl.float32)


@triton.jit
def mean_slopes(
    ptrs, stride_c, needed, lives, kept, across, down,
    spots, targets_stride_c, dloss_ptr, table_ptr, points_ptr,
    group, groups, dloss_stride_k, dloss_stride_c, region_factor, point_factor, params,
    TERMS: tl.constexpr, SMOOTHED: tl.constexpr, SPREAD: tl.constexpr, REGION: tl.constexpr,
    IDS: tl.constexpr, SUMS: tl.constexpr, PER_CLASS: tl.constexpr,
    C: tl.constexpr, FIRST: tl.constexpr,
    EACH_Y: tl.constexpr, EACH_X: tl.constexpr, SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Of each output the logarithm kept, the sum of p h without the label's dL/dI, the sum of u."""
    nothing = tl.zeros(lives[0].shape, tl.float32)
    lses = ()
    means = ()
    pushes = ()
    for k in tl.static_range(len(lives)):
        lses = lses + (tl.load(kept[k], mask=lives[k], other=SKIPPED),)
        means = means + (nothing,)
        pushes = pushes + (nothing,)
    if REGION or SPREAD:
        ahead = fetch_class(ptrs, 0, stride_c, needed, C)
        pair_ahead = fetch_region(
            dloss_ptr, table_ptr, 0, group, groups, dloss_stride_k, dloss_stride_c,
            REGION, C, FIRST, SUMS, PER_CLASS,
        )  # fmt: skip
        for c in range(C):
            corners = ahead
            d_overlap, d_mass = 0.0, 0.0
            if REGION:
                d_overlap = pair_ahead[0] * region_factor
                d_mass = pair_ahead[1] * region_factor
            ahead = fetch_class(ptrs, c + 1, stride_c, needed, C)
            pair_ahead = fetch_region(
                dloss_ptr, table_ptr, c + 1, group, groups, dloss_stride_k, dloss_stride_c,
                REGION, C, FIRST, SUMS, PER_CLASS,
            )  # fmt: skip
            zs = class_outputs(corners, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, True)
            new_means = ()
            new_pushes = ()
            for k in tl.static_range(len(lives)):
                p = exp2(zs[k] - lses[k], PTX)
                t = 0.0
                if not IDS:
                    at = spots[k] + c * targets_stride_c
                    t = tl.load(at, mask=lives[k], other=0.0).to(tl.float32)
                mean = means[k]
                if REGION:
                    slope = d_mass if IDS else d_mass + d_overlap * t
                    mean += p * slope
                push = pushes[k]
                if SPREAD:
                    push += spread_pull(
                        zs[k], lses[k], p, t, lives[k], points_ptr, c, point_factor, params,
                        TERMS, SMOOTHED, IDS, C, PTX,
                    )  # fmt: skip
                new_means = new_means + (mean,)
                new_pushes = new_pushes + (push,)
            means = new_means
            pushes = new_pushes
    return lses, means, pushes


@triton.jit
def softmax_outputs(
    labels, lives, means, pushes, kept, dloss_ptr, table_ptr, points_ptr,
    group, groups, dloss_stride_k, dloss_stride_c, region_factor, point_factor, params,
    TERMS: tl.constexpr, SMOOTHED: tl.constexpr, REGION: tl.constexpr,
    IDS: tl.constexpr, SUMS: tl.constexpr, PER_CLASS: tl.constexpr,
    C: tl.constexpr, FIRST: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Of each output what all classes share, sum of u - sum of p h, and its label's slope."""
    shared = ()
    at_labels = ()
    for k in tl.static_range(len(labels)):
        push = pushes[k]
        mean = means[k]
        slope = push
        if IDS:
            nll = tl.load(kept[k] + 1, mask=lives[k], other=0.0)
            p = exp2(nll * (-LOG2E), PTX)
            # 1 - p by a series where the difference keeps few digits
            series = nll * (1.0 - nll * (0.5 - nll * (1.0 / 6.0 - nll * (1.0 / 24.0))))
            q = tl.where(nll < 0.05, series, 1.0 - p)
            pull_y = tl.zeros_like(nll)
            for m in tl.static_range(len(TERMS)):
                _, pull = TERMS[m](p, q, nll, params[2], PTX)
                weight = load_point(points_ptr, m, labels[k], point_factor, C)
                if SMOOTHED[m]:
                    weight *= 1.0 - params[3]
                pull_y += weight * pull
            slope = p * push - q * pull_y
            push += pull_y
            if REGION:
                d_overlap, d_mass = load_region(
                    dloss_ptr, table_ptr, labels[k], group, groups,
                    dloss_stride_k, dloss_stride_c, C, FIRST, SUMS, PER_CLASS,
                )  # fmt: skip
                d_overlap *= region_factor
                d_mass *= region_factor
                # of the label's own dL/dI (1 - p) is left: the difference would cancel
                slope += p * ((d_mass - mean) + q * d_overlap)
                mean += p * d_overlap
        shared = shared + (push - mean,)
        at_labels = at_labels + (slope,)
    return shared, at_labels


@triton.jit
def softmax_class(
    zs, lses, shared, labels, at_labels, lives, spots, targets_c,
    d_overlap, d_mass, points_ptr, c, point_factor, params,
    TERMS: tl.constexpr, SMOOTHED: tl.constexpr, SPREAD: tl.constexpr, REGION: tl.constexpr,
    IDS: tl.constexpr, SELECT: tl.constexpr, C: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The slopes of class c; the labels as floats.

    SELECT: a label's own slope by a select, two instructions, or by products, three. Of selects,
    with bfloat16 logits, ptxas makes all comparisons first and packs their predicates, six each.
    16x150 float32: 1905 us with it forward and backward, 1993 without; 8x19 bfloat16: 306, 296.
    """
    slopes = ()
    for k in tl.static_range(len(zs)):
        z = zs[k]
        is_label = 0.0
        if IDS and not SELECT:  # the label's p becomes 0, and its slope is added
            is_label = equal(labels[k], tl.cast(c, tl.float32), PTX)
            z = tl.fma(is_label, -3e38, z)  # finite: others have 0 of it
        p = exp2(z - lses[k], PTX)
        t = 0.0
        if not IDS:
            t = tl.load(spots[k] + targets_c, mask=lives[k], other=0.0).to(tl.float32)
        if REGION and IDS:
            slope = p * (d_mass + shared[k])
        elif REGION:
            slope = p * (d_mass + d_overlap * t + shared[k])
        else:
            slope = p * shared[k]
        if IDS:
            if SELECT:
                slope = where_equal(labels[k], tl.cast(c, tl.float32), at_labels[k], slope, PTX)
            else:
                slope = tl.fma(is_label, at_labels[k], slope)
        if SPREAD:
            if IDS and not SELECT:
                p = exp2(zs[k] - lses[k], PTX)
            slope -= spread_pull(
                zs[k], lses[k], p, t, lives[k], points_ptr, c, point_factor, params,
                TERMS, SMOOTHED, IDS, C, PTX,
            )  # fmt: skip
        slopes = slopes + (slope,)
    return slopes


@triton.jit
def sigmoid_slopes(
    zs, labels, lives, spots, targets_c, d_overlap, d_mass,
    points_ptr, pos_weight_ptr, c, point_factor, pos_weight_stride, params,
    TERMS: tl.constexpr, IDS: tl.constexpr, C: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The slopes of class c against the rest."""
    ts = ()
    for k in tl.static_range(len(zs)):
        if IDS:
            t = tl.where(labels[k] == c, 1.0, 0.0)
        else:
            t = tl.load(spots[k] + targets_c, mask=lives[k], other=0.0).to(tl.float32)
        ts = ts + (t,)
    coefs = (d_overlap, d_mass)
    for m in tl.static_range(len(TERMS) - 2):
        coefs = coefs + (load_point(points_ptr, m, c, point_factor, C),)
    pos_weight = 1.0
    if pos_weight_ptr is not None:
        pos_weight = tl.load(pos_weight_ptr + c * pos_weight_stride)
    terms = (params[0], params[1], params[2], pos_weight, params[3])
    live = stacked(lives, False)
    x = tl.where(live, stacked(zs, NEUTRAL), NEUTRAL)
    slope = slope_of_terms(x, stacked(ts, 0.0), coefs, terms, TERMS, IDS, False, PTX)
    return unstacked(tl.where(live, slope, 0.0), len(zs))


@triton.jit
def pick_up(places_of, row, piece, first, last, own, IN_PLACE: tl.constexpr):
    """What a class's two rows of gradient have had so far of the cells around them.

    A strip's first row has had nothing; the row below its last was begun by the strip below.
    """
    # compared as vectors: of scalars the interpreter makes masks of integers
    none = tl.where(own, 0, 0)
    upper = own & (row + none >= 0) & ((row + none > first) | (piece + none > 0))
    lower = own & (row + none < last[1] - 1) & ((row + none == last[0]) | (piece + none > 0))
    upper_ptr, lower_ptr = waiting(places_of, row, first, last, IN_PLACE)
    return tl.load(upper_ptr, mask=upper, other=0.0), tl.load(lower_ptr, mask=lower, other=0.0)


@triton.jit
def waiting(places_of, row, first, last, IN_PLACE: tl.constexpr):
    """Where rows that are not complete wait in float32."""
    class_ptr, stride_y, buffer_ptr, slot, theirs = places_of
    upper_ptr = class_ptr + row * stride_y
    lower_ptr = upper_ptr + stride_y
    if not IN_PLACE:
        upper_ptr = buffer_ptr + tl.where(row == first, 2, row & 1) * slot
        lower_ptr = buffer_ptr + tl.where(row == last[0], theirs, ((row + 1) & 1) * slot)
    return upper_ptr, lower_ptr


@triton.jit
def put_off(
    places_of, top, bottom, row, piece, first, last, own,
    PIECES: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Store two rows of a class's gradient as far as they have come.

    A row is complete with the last piece of the cells below it; the row that two strips share, with
    the last piece of the strip above.
    """
    none = tl.where(own, 0, 0)
    upper = own & (row + none >= 0)
    lower = own & (row + none < last[1] - 1)
    upper_ptr, lower_ptr = waiting(places_of, row, first, last, IN_PLACE)
    if IN_PLACE:
        tl.store(lower_ptr, bottom, mask=lower)
        tl.store(upper_ptr, top, mask=upper)
    else:
        class_ptr, stride_y, _, _, _ = places_of
        class_ptr += row * stride_y
        done = piece + none == PIECES - 1
        shared = done & (row + none == last[0])
        tl.store(lower_ptr, bottom, mask=lower & ~shared)
        tl.store(class_ptr + stride_y, bottom.to(class_ptr.dtype.element_ty), mask=lower & shared)
        whole = done & (row + none > first)
        tl.store(upper_ptr, top, mask=upper & ~whole)
        tl.store(class_ptr, top.to(class_ptr.dtype.element_ty), mask=upper & whole)
