"""How the multiclass kernels hold a tile: all classes of a few pixels, in registers.

A tile is a tuple of STEPS tensors [LANES, ROWS, WIDTH], one for every LANES classes: pixel
start + row * WIDTH + neighbour, class step * LANES + lane. With one lane a thread holds all classes
of its pixels and a softmax needs no exchange between threads; many classes are spread over the
lanes of a warp, so that a thread's share still fits into its registers. The lanes come first,
because Triton deals threads out along the first of dimensions that are alike: so all lanes of a
pixel lie in one warp, and what they exchange needs no barrier.

What belongs to a pixel and not to a class (its label, say) is [LANES, ROWS, WIDTH] too, the same in
all lanes: loaded so, it lies as the logits do, and nothing has to be moved between threads.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels.special import LN2, LOG2E, exp2, log1p_unit, log2, reciprocal


@triton.jit
def lanes_of(LANES: tl.constexpr):
    """The lanes as [LANES, 1, 1]."""
    return tl.arange(0, LANES)[:, None, None]


@triton.jit
def classes_of(j: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """The classes of step j, [LANES, ROWS, 1]; with one lane a number, whose loads are cheaper."""
    if LANES == 1:
        return j
    else:
        return j * LANES + lanes_of(LANES) + tl.arange(0, ROWS)[None, :, None] * 0


@triton.jit
def load_each(ptr, c, FIRST: tl.constexpr, C: tl.constexpr):
    """Entries c of a (C,) vector as float32, 0 for those before FIRST and past the last."""
    return tl.load(ptr + c, mask=(c >= FIRST) & (c < C), other=0.0).to(tl.float32)


@triton.jit
def tile_offsets(ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """A tile's pixels from its start on, the same in all lanes."""
    rows = tl.arange(0, ROWS)[None, :, None] * WIDTH + lanes_of(LANES) * 0
    return rows + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def clamped_offsets(
    left,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The same, but no further than the last of the `left` pixels that there are.

    To read a pixel twice is cheaper than to mask a load: that costs an instruction for every value.
    """
    if ALIGNED:  # whole rows, so that loads stay wide; `left` is a multiple of WIDTH
        rows = tl.arange(0, ROWS)[None, :, None] * WIDTH + lanes_of(LANES) * 0
        return tl.minimum(rows, left - WIDTH) + tl.arange(0, WIDTH)[None, None, :]
    else:
        return tl.minimum(tile_offsets(ROWS, LANES, WIDTH), left - 1)


@triton.jit
def pixel_pointers(base_ptr, offsets, start, stride_p, UNIT: tl.constexpr):
    """Pointers to a tile's pixels; the tile's start in 64 bits."""
    if UNIT:
        return base_ptr + start + offsets
    else:
        stride = tl.cast(stride_p, tl.int64)
        return base_ptr + start * stride + offsets * stride


@triton.jit
def class_stride(stride_c, ALIGNED: tl.constexpr):
    """The stride between classes in 64 bits; loads are as wide as it is known to be even."""
    stride = tl.cast(stride_c, tl.int64)
    if ALIGNED:
        stride = tl.multiple_of(stride, 16)
    return stride


@triton.jit
def load_classes(
    base_ptr,
    offsets,
    start,
    stride_c,
    stride_p,
    other,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A tile's values of every class as float32; `other` for classes past the last."""
    stride = class_stride(stride_c, ALIGNED)
    ptrs = pixel_pointers(base_ptr, offsets, start, stride_p, UNIT) + lanes_of(LANES) * stride
    values = ()
    for j in tl.static_range(STEPS):
        if (j + 1) * LANES > C:
            present = j * LANES + lanes_of(LANES) < C
            ahead = ptrs + j * LANES * stride
            value = tl.load(ahead, mask=present, other=0).to(tl.float32)
            value = tl.where(present, value, other)
        else:
            value = tl.load(ptrs + j * LANES * stride).to(tl.float32)
        values = values + (value,)
    return values


@triton.jit
def read_tile(
    logits_ptr,
    targets_ptr,
    valid_ptr,
    start,
    end,
    logits_stride_c,
    logits_stride_p,
    targets_stride_c,
    targets_stride_p,
    valid_stride_p,
    ignore_index,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTMAX: tl.constexpr,
    IDS: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGNED: tl.constexpr,
    PIXEL_VALID: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
):
    """A tile's logits, targets, what counts of it, and its labels' logits.

    The targets: the label (-1 where it is none), or every class's. Where a pixel does not count,
    its label is -1, its targets are 0 and its logits 0; but without a mask by pixel, what lies
    behind the last pixel has that pixel's logits. Where there is no label, its logit is anything.
    """
    offsets = clamped_offsets(end - start, ROWS, LANES, WIDTH, ALIGNED)
    live = tile_offsets(ROWS, LANES, WIDTH) < end - start
    xs = load_classes(
        logits_ptr, offsets, start, logits_stride_c, logits_stride_p, float("-inf"),
        C, STEPS, LANES, UNIT, ALIGNED,
    )  # fmt: skip
    x_y = 0.0
    if PIXEL_VALID:
        ptrs = pixel_pointers(valid_ptr, offsets, start, valid_stride_p, UNIT)
        live = live & (tl.load(ptrs) != 0)
    if IDS:
        ptrs = pixel_pointers(targets_ptr, offsets, start, targets_stride_p, UNIT)
        y = tl.load(ptrs)
        # wide enough for C and for a negative ignore_index, and no id wraps into a class
        if y.dtype.primitive_bitwidth < 32:
            y = y.to(tl.int32)
        elif not y.dtype.is_int_signed():
            y = y.to(tl.int64)
        known = (y >= 0) & (y < C)
        if HAS_IGNORE:
            live = live & (y != ignore_index)
        target = tl.where(live & known, y.to(tl.int32), -1)
        if SOFTMAX:
            # Once more, and from the L1 cache: to pick it from the others takes two instructions a
            # class.
            ptrs = pixel_pointers(logits_ptr, offsets, start, logits_stride_p, UNIT)
            ptrs += tl.maximum(target, 0) * tl.cast(logits_stride_c, tl.int64)
            x_y = tl.load(ptrs).to(tl.float32)
    else:
        target = load_classes(
            targets_ptr, offsets, start, targets_stride_c, targets_stride_p, 0.0,
            C, STEPS, LANES, UNIT, ALIGNED,
        )  # fmt: skip
        if not (PIXEL_VALID or HAS_IGNORE):
            new = ()
            for j in tl.static_range(STEPS):
                new = new + (tl.where(live, target[j], 0.0),)
            target = new
    if PIXEL_VALID or HAS_IGNORE:
        new = ()
        for j in tl.static_range(STEPS):
            x = tl.where(live, xs[j], 0.0)
            if (j + 1) * LANES > C:
                x = tl.where(j * LANES + lanes_of(LANES) < C, x, float("-inf"))
            new = new + (x,)
        xs = new
        if not IDS:
            new = ()
            for j in tl.static_range(STEPS):
                new = new + (tl.where(live, target[j], 0.0),)
            target = new
    return xs, target, live, x_y


@triton.jit
def over_lanes(value, LANES: tl.constexpr):
    """The sum over the lanes, in every lane."""
    if LANES == 1:
        return value
    else:
        return tl.sum(value, 0, keep_dims=True)


@triton.jit
def largest_of(xs, STEPS: tl.constexpr, LANES: tl.constexpr):
    """The largest over the classes."""
    largest = xs[0]
    for j in tl.static_range(1, STEPS):
        largest = tl.maximum(largest, xs[j])
    return largest if LANES == 1 else tl.max(largest, 0, keep_dims=True)


@triton.jit
def first_largest(xs, STEPS: tl.constexpr, LANES: tl.constexpr):
    """The largest over the classes, and the first class that is as large, as a float.

    The class along with the maximum: to compare with the finished one leaves a predicate of every
    class waiting, more than there are registers for.
    """
    largest = xs[0]
    first = tl.zeros_like(largest)
    for j in tl.static_range(1, STEPS):
        first = tl.where(xs[j] > largest, float(j * LANES), first)
        largest = tl.maximum(largest, xs[j])
    if LANES > 1:
        first += lanes_of(LANES).to(tl.float32)
        over = tl.max(largest, 0, keep_dims=True)
        first = tl.min(tl.where(largest == over, first, float(1 << 23)), 0, keep_dims=True)
        largest = over
    return largest, first


@triton.jit
def softmax(xs, largest, STEPS: tl.constexpr, LANES: tl.constexpr, PTX: tl.constexpr):
    """e = exp(x - largest) of every class, their sum, its inverse, its logarithm.

    The difference first: of the largest, e is exactly 1, however large the logits are, so that the
    logarithm and what the sum exceeds 1 by vanish together.
    """
    es = ()
    total = tl.zeros_like(largest)
    for j in tl.static_range(STEPS):
        e = exp2((xs[j] - largest) * LOG2E, PTX)
        es = es + (e,)
        total += e
    total = over_lanes(total, LANES)
    log_total = tl.where(
        total < 2.0, log1p_unit(tl.minimum(total - 1.0, 1.0)), log2(total, PTX) * LN2
    )
    return es, total, reciprocal(total, PTX), log_total


@triton.jit
def label_class(x_y, y, largest, total, r, log_total, PTX: tl.constexpr):
    """p, 1 - p and -log p of the label's class, as the softmax terms take them; finite for none."""
    x = tl.where(y >= 0, x_y, largest)
    e = exp2((x - largest) * LOG2E, PTX)
    return e * r, (total - e) * r, (largest - x) + log_total


@triton.jit
def spread_target(
    target, like, j: tl.constexpr, e, IDS: tl.constexpr, SMOOTHED: tl.constexpr, C: tl.constexpr
):
    """The target of step j's classes, smoothed; of class ids what smoothing adds to every class."""
    if IDS:
        t = e / C + tl.zeros_like(like)
    else:
        t = target[j]
        if SMOOTHED:
            t = t + e * (1.0 / C - t)
    return t
