"""What the multiclass kernels of low-resolution logits share: labels, logits, a first pass.

Logits are in units of log 2 here, so that 2**z needs no product. Of a piece's outputs there is no
room for all classes: each pass walks over the classes and makes the outputs anew from the corners.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels.cell_pieces import has_output
from fastseg_losses.kernels.interpolation import (
    fetch_corners,
    not_finite,
    output_pointers,
    outputs_of,
    ready_corners,
)
from fastseg_losses.kernels.special import LOG2E, exp2, greater

SKIPPED = tl.constexpr(float("inf"))  # the logarithm of an output that does not count: p is 0


@triton.jit
def read_labels(
    spots,
    valid_ptr,
    positions_y,
    positions_x,
    there,
    valid_stride_y,
    valid_stride_x,
    ignore_index,
    C: tl.constexpr,
    IDS: tl.constexpr,
    WHOLE: tl.constexpr,
    PIXEL_VALID: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
):
    """A piece's labels (-1 for no class, or of soft targets), and which of its outputs count.

    spots: pointers to their targets.
    """
    valids = spots
    if PIXEL_VALID:
        valids = output_pointers(
            valid_ptr, positions_y, positions_x, valid_stride_y, valid_stride_x
        )
    labels = ()
    lives = ()
    for k in tl.static_range(len(spots)):
        live = has_output(k, positions_y, positions_x, there, WHOLE)
        if PIXEL_VALID:
            live = live & (tl.load(valids[k], mask=live, other=0) != 0)
        label = tl.full(there.shape, -1, tl.int32)
        if IDS:
            y = tl.load(spots[k], mask=live, other=0)
            # wide enough for C and for a negative ignore_index, and no id wraps into a class
            if y.dtype.primitive_bitwidth < 32:
                y = y.to(tl.int32)
            elif not y.dtype.is_int_signed():
                y = y.to(tl.int64)
            if HAS_IGNORE:
                live = live & (y != ignore_index)
            label = tl.where(live & (y >= 0) & (y < C), y.to(tl.int32), -1)
        labels = labels + (label,)
        lives = lives + (live,)
    return labels, lives


@triton.jit
def any_of(lives):
    """Cells of which an output counts; of others nothing is read, so that a NaN there is none."""
    some = lives[0]
    for k in tl.static_range(1, len(lives)):
        some = some | lives[k]
    return some


@triton.jit
def fetch_class(ptrs, c, stride_c, there, C: tl.constexpr):
    """The corners of class c, or of the last; asked for one class ahead, so that none waits."""
    return fetch_corners(ptrs, tl.minimum(c, C - 1) * stride_c, there)


@triton.jit
def class_outputs(
    corners, across, down, EACH_Y: tl.constexpr, EACH_X: tl.constexpr,
    SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr, SOFTMAX: tl.constexpr,
):  # fmt: skip
    """A piece's outputs of one class from its corners."""
    SCALE: tl.constexpr = LOG2E if SOFTMAX else 1.0
    corners = ready_corners(corners, SCALE, not SOFTMAX)
    return outputs_of(corners, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X)


@triton.jit
def see_classes(
    state, trace, corners, c, across, down, COUNT: tl.constexpr,
    EACH_Y: tl.constexpr, EACH_X: tl.constexpr, SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
    SOFTMAX: tl.constexpr, TRACE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Take COUNT classes from c on into the largest logits, who has them, and the sums of 2**z.

    The sums are relative to the largest so far: one more exponential for COUNT classes.
    """
    outputs = ()
    for u in tl.static_range(COUNT):
        zs = class_outputs(corners[u], across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, SOFTMAX)
        outputs = outputs + (zs,)
        if TRACE:
            trace += not_finite(corners[u])
    class_c = tl.cast(c, tl.float32)
    largest, first, total = state
    new_largest = ()
    new_first = ()
    new_total = ()
    for k in tl.static_range(EACH_Y * EACH_X):
        top = largest[k]
        who = first[k]
        for u in tl.static_range(COUNT):
            # by a product: for a select the compiler keeps, and packs, a predicate of every output
            more = greater(outputs[u][k], top, PTX)
            who = tl.fma(more, class_c + u - who, who)
            top = tl.maximum(top, outputs[u][k])
        new_largest = new_largest + (top,)
        new_first = new_first + (who,)
        if SOFTMAX:
            sum_k = total[k] * exp2(largest[k] - top, PTX)
            for u in tl.static_range(COUNT):
                sum_k += exp2(outputs[u][k] - top, PTX)
            new_total = new_total + (sum_k,)
        else:
            new_total = new_total + (total[k],)
    return (new_largest, new_first, new_total), trace


@triton.jit
def survey(
    ptrs, stride_c, there, across, down, trace, C: tl.constexpr, COUNT: tl.constexpr,
    EACH_Y: tl.constexpr, EACH_X: tl.constexpr, SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
    SOFTMAX: tl.constexpr, TRACE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Of each output the largest logit, the first class with it, the sum of 2**(z - largest).

    The class as a float. TRACE: the trace becomes NaN where a logit is not finite.
    """
    nothing = tl.zeros(across[2].shape, tl.float32)
    largest = ()
    first = ()
    total = ()
    for _k in tl.static_range(EACH_Y * EACH_X):
        largest = largest + (nothing + float("-inf"),)
        first = first + (nothing,)
        total = total + (nothing,)
    state = (largest, first, total)
    ahead = ()
    for u in tl.static_range(COUNT):
        ahead = ahead + (fetch_class(ptrs, u, stride_c, there, C),)
    for c in range(0, C // COUNT * COUNT, COUNT):
        corners = ahead
        ahead = ()
        for u in tl.static_range(COUNT):
            ahead = ahead + (fetch_class(ptrs, c + COUNT + u, stride_c, there, C),)
        state, trace = see_classes(
            state, trace, corners, c, across, down, COUNT,
            EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, SOFTMAX, TRACE, PTX,
        )  # fmt: skip
    if C % COUNT > 0:
        state, trace = see_classes(
            state, trace, ahead, C // COUNT * COUNT, across, down, C % COUNT,
            EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, SOFTMAX, TRACE, PTX,
        )  # fmt: skip
    return state, trace
