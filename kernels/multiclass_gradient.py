"""The multiclass backward kernel: one more read of the inputs, the gradient written once."""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.multiclass import (
    class_stride,
    classes_of,
    lanes_of,
    pixel_pointers,
    read_tile,
    tile_offsets,
)
from fastseg_losses.kernels.multiclass_slopes import load_region, sigmoid_slope, softmax_slopes
from fastseg_losses.kernels.pixels import pixel_base

NORMS = finalize.NORMS


NOT_SPECIALIZED = (
    *("dloss_ptr", "vector_ptr", "N", "P", "W", "ignore_index", "vector_stride"),
    *("dlogits_stride_n", "dlogits_stride_c", "dlogits_stride_p"),
    *("dloss_stride_k", "dloss_stride_n", "dloss_stride_c"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_p"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_p"),
    *("valid_stride_n", "valid_stride_p"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _class_gradient_kernel(
    # outputs
    dlogits_ptr,  # (N, C, P)
    # inputs
    dloss_ptr,  # () or (N,), or (N, C), (C,) without the classes before FIRST, or (4, N, C)
    table_ptr,  # see multiclass_finalize.py
    logits_ptr,  # (N, C, P)
    targets_ptr,  # class ids (N, P), or soft (N, C, P)
    valid_ptr,  # (N, P) or (N,) or None
    vector_ptr,  # sigmoid: pos_weight (C,) or (1,) or None
    dloss_stride_k,
    dloss_stride_n,
    dloss_stride_c,
    # sizes
    N,
    P,
    W,  # samples that the forward launch walked at a time
    # strides
    dlogits_stride_n,
    dlogits_stride_c,
    dlogits_stride_p,
    logits_stride_n,
    logits_stride_c,
    logits_stride_p,
    targets_stride_n,
    targets_stride_c,
    targets_stride_p,
    valid_stride_n,
    valid_stride_p,
    vector_stride,
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    ignore_index,
    # constexprs
    C: tl.constexpr,
    TERMS: tl.constexpr,
    SMOOTHED: tl.constexpr,
    SPREAD: tl.constexpr,
    SOFTMAX: tl.constexpr,
    IDENTITY: tl.constexpr,  # the logits are probabilities
    MINIMUM: tl.constexpr,  # I is the sum of min(p, t)
    SQUARED: tl.constexpr,  # P and T are sums of squares
    REGION: tl.constexpr,  # whether there is a region term
    SUMS: tl.constexpr,
    PER_CLASS: tl.constexpr,
    FIRST: tl.constexpr,
    BATCH: tl.constexpr,
    VALID_KIND: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    IDS: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ADD: tl.constexpr,  # to what dlogits holds
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    PTX: tl.constexpr,
):
    TILE: tl.constexpr = ROWS * WIDTH
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    NUM_POINT: tl.constexpr = len(TERMS) if SOFTMAX else len(TERMS) - 2
    if ALIGNED:
        P = P // 16 * 16  # so that the compiler knows, and the mask does not break up wide stores
    # The forward launch's order backwards: what it read last is still in the L2 cache.
    tiles = tl.cdiv(P, TILE)
    back = N * tiles - 1 - tl.program_id(0)
    wave = back // (W * tiles)
    rest = back - wave * (W * tiles)
    width = tl.minimum(W, N - wave * W)
    start = rest // width * TILE
    n = wave * W + rest % width

    dlogits_ptr += pixel_base(n, 0, dlogits_stride_n, 0, ALIGNED)
    logits_ptr += pixel_base(n, 0, logits_stride_n, 0, ALIGNED)
    targets_ptr += pixel_base(n, 0, targets_stride_n, 0, ALIGNED)
    annotated = True
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, ALIGNED and PIXEL_VALID)
    if VALID_KIND == "sample":
        annotated = tl.load(valid_ptr) != 0

    offsets = tile_offsets(ROWS, LANES, WIDTH)
    ptrs = pixel_pointers(dlogits_ptr, offsets, start, dlogits_stride_p, UNIT)
    stride = class_stride(dlogits_stride_c, ALIGNED)
    ptrs += lanes_of(LANES) * stride
    inside = offsets < P - start
    if annotated:
        xs, target, live, x_y = read_tile(
            logits_ptr, targets_ptr, valid_ptr, start, P,
            logits_stride_c, logits_stride_p, targets_stride_c, targets_stride_p, valid_stride_p,
            ignore_index, C, STEPS, ROWS, LANES, WIDTH, SOFTMAX, IDS, UNIT, ALIGNED, PIXEL_VALID,
            HAS_IGNORE,
        )  # fmt: skip
        groups = C if BATCH else N * C
        group = 0 if BATCH else n * C
        dloss_ptr += n.to(tl.int64) * dloss_stride_n
        points_ptr = table_ptr + NORMS + 2 * groups
        region_factor = tl.load(table_ptr)
        point_factor = tl.load(table_ptr + 1)
        share = tl.load(points_ptr + NUM_POINT * C + n)
        point_factor *= share
        if SUMS:
            region_factor = share
        if not PER_CLASS:
            upstream = tl.load(dloss_ptr).to(tl.float32)
            region_factor *= upstream
            point_factor *= upstream
        regions = ()
        classes = ()
        for j in tl.static_range(STEPS):
            c = classes_of(j, ROWS, LANES)
            classes = classes + (c,)
            if REGION:
                region = load_region(
                    dloss_ptr, table_ptr, c, group, groups,
                    dloss_stride_k, dloss_stride_c, C, FIRST, SUMS, PER_CLASS,
                )  # fmt: skip
            else:
                region = (0.0, 0.0)
            regions = regions + (region,)
        if SOFTMAX:
            region_y = (0.0, 0.0)
            if IDS and REGION:
                region_y = load_region(
                    dloss_ptr, table_ptr, target, group, groups,
                    dloss_stride_k, dloss_stride_c, C, FIRST, SUMS, PER_CLASS,
                )  # fmt: skip
            slopes = softmax_slopes(
                xs, target, x_y, regions, region_y, region_factor,
                points_ptr, classes, point_factor, term_params,
                TERMS, SMOOTHED, SPREAD, IDS, REGION, MINIMUM, SQUARED, C, STEPS, LANES, PTX,
            )  # fmt: skip
        else:
            slopes = ()
            for j in tl.static_range(STEPS):
                if IDS:
                    t = tl.where(target == j * LANES + lanes_of(LANES), 1.0, 0.0)
                else:
                    t = target[j]
                slope = sigmoid_slope(
                    xs[j], t, live, regions[j], region_factor,
                    points_ptr, vector_ptr, classes[j], point_factor, vector_stride, term_params,
                    TERMS, IDENTITY, IDS, C, ROWS, LANES, WIDTH, PTX,
                )  # fmt: skip
                slopes = slopes + (slope,)
        for j in tl.static_range(STEPS):
            slope = slopes[j]
            if PIXEL_VALID or HAS_IGNORE:
                slope = tl.where(live, slope, 0.0)
            if ADD:
                there = inside & (j * LANES + lanes_of(LANES) < C)
                slope += tl.load(ptrs + j * LANES * stride, mask=there, other=0.0).to(tl.float32)
            slope = slope.to(dlogits_ptr.dtype.element_ty)
            there = inside & (j * LANES + lanes_of(LANES) < C)
            tl.store(ptrs + j * LANES * stride, slope, mask=there, cache_modifier=".cs")
    elif not ADD:
        zero = tl.zeros([LANES, ROWS, WIDTH], dlogits_ptr.dtype.element_ty)
        for j in tl.static_range(STEPS):
            there = inside & (j * LANES + lanes_of(LANES) < C)
            tl.store(ptrs + j * LANES * stride, zero, mask=there, cache_modifier=".cs")
