"""The backward kernel of low-resolution logits, each class for itself.

A program walks down a strip of cells. Each cell's slopes become shares of its four corners; a logit
is the corner of four cells, and its gradient the sum of their four shares: those of the cell to the
left come from another thread, those of the row above are kept from the step before.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.cell_sums import read_targets
from fastseg_losses.kernels.gradient import load_coefs, slope_of_terms
from fastseg_losses.kernels.interpolation import (
    corner_pointers,
    from_left,
    load_corners,
    outputs_of,
    places,
    shares_of,
    slopes_between,
    stacked,
    unstacked,
)
from fastseg_losses.kernels.pixels import pixel_base
from fastseg_losses.kernels.terms import NEUTRAL

NORMS = finalize.NORMS

NOT_SPECIALIZED = (
    *("dloss_ptr", "pos_weight_ptr", "positions_ptr", "weights_ptr"),
    *("N", "C", "h", "w", "rows", "strips", "blocks", "pos_weight_stride"),
    *("dloss_stride_k", "dloss_stride_n", "dloss_stride_c"),
    *("dlogits_stride_n", "dlogits_stride_c", "dlogits_stride_y", "dlogits_stride_x"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_y", "logits_stride_x"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_y", "targets_stride_x"),
    *("valid_stride_n", "valid_stride_y", "valid_stride_x"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _cell_gradient_kernel(
    # outputs
    dlogits_ptr,  # (N, C, h, w)
    exchange_ptr,  # (programs, 4, BLOCK_W) float32, for values from one thread to the next
    # inputs
    dloss_ptr,  # () or (N, C) or (C,), or (4, N, C) with sums
    table_ptr,  # norms, coefs: see finalize.py
    logits_ptr,  # (N, C, h, w)
    targets_ptr,  # (N, C, H, W)
    valid_ptr,  # (N, H, W) or (N,) or None
    pos_weight_ptr,  # (C,) or (1,) or None
    positions_ptr,  # (h MOST_Y + w MOST_X,) see cells.py
    weights_ptr,  # likewise
    dloss_stride_k,
    dloss_stride_n,
    dloss_stride_c,
    # sizes
    N,
    C,
    h,
    w,
    rows,  # of cells in a strip
    strips,
    blocks,  # of BLOCK_W cells in a row
    # strides
    dlogits_stride_n,
    dlogits_stride_c,
    dlogits_stride_y,
    dlogits_stride_x,
    logits_stride_n,
    logits_stride_c,
    logits_stride_y,
    logits_stride_x,
    targets_stride_n,
    targets_stride_c,
    targets_stride_y,
    targets_stride_x,
    valid_stride_n,
    valid_stride_y,
    valid_stride_x,
    pos_weight_stride,
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    ignore_index,
    # constexprs
    TERMS: tl.constexpr,
    SUMS: tl.constexpr,
    BATCH: tl.constexpr,
    VALID_KIND: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    TARGETS: tl.constexpr,
    WHOLE: tl.constexpr,  # every place of every cell has an output
    FULL: tl.constexpr,  # and every thread has a cell
    RING: tl.constexpr,  # a row is one block; else each block starts with the cell before it
    MOST_Y: tl.constexpr,
    MOST_X: tl.constexpr,
    SPLIT_Y: tl.constexpr,
    SPLIT_X: tl.constexpr,
    EACH_Y: tl.constexpr,
    EACH_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PTX: tl.constexpr,
):
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    MASKED: tl.constexpr = PIXEL_VALID or HAS_IGNORE or not FULL
    PIECES_Y: tl.constexpr = MOST_Y // EACH_Y
    PIECES_X: tl.constexpr = MOST_X // EACH_X
    OVERLAP: tl.constexpr = 0 if RING else 1
    # The forward launch's order backwards: what it read last is still in the L2 cache.
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    block = pid % blocks
    first = pid // blocks % strips * rows
    pair = pid // blocks // strips
    n = pair // C
    c = pair % C

    dlogits_ptr += pixel_base(n, c, dlogits_stride_n, dlogits_stride_c, False)
    logits_ptr += pixel_base(n, c, logits_stride_n, logits_stride_c, False)
    targets_ptr += pixel_base(n, c, targets_stride_n, targets_stride_c, False)
    begin = first - 1  # the row above, of which only the lower shares are needed
    end = tl.minimum(first + rows, h)
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, False)
    annotated = True
    if VALID_KIND == "sample":
        annotated = tl.load(valid_ptr) != 0
    pos_weight = 1.0
    if pos_weight_ptr is not None:
        pos_weight = tl.load(pos_weight_ptr + c * pos_weight_stride)
    params = (term_params[0], term_params[1], term_params[2], pos_weight, term_params[3])
    exchange_ptr += pid.to(tl.int64) * (4 * BLOCK_W)
    G = N * C
    g = pair
    if BATCH:
        G = C
        g = c
    dloss_ptr += n.to(tl.int64) * dloss_stride_n + c.to(tl.int64) * dloss_stride_c

    lane = tl.arange(0, BLOCK_W)
    at = block * (BLOCK_W - OVERLAP) - OVERLAP + lane
    there = at < w
    j = tl.where(at < 0, w - 1, at)
    last_x = j == w - 1
    before = tl.where(lane == 0, (w - 1 if RING else 0), lane - 1)
    own = there & (lane >= OVERLAP)
    columns_ptr = dlogits_ptr + j * tl.cast(dlogits_stride_x, tl.int64)
    if annotated:
        coefs = load_coefs(dloss_ptr, table_ptr, g, G, dloss_stride_k, len(TERMS), SUMS)
        carried = tl.zeros([BLOCK_W], tl.float32)  # the lower shares of the row above
        for row in range(begin, end):
            i = tl.where(row < 0, h - 1, row)
            ptrs = corner_pointers(logits_ptr, i, j, h, w, logits_stride_y, logits_stride_x)
            corners, _ = load_corners(ptrs, 0, there, 1.0, True)
            zero = tl.zeros([BLOCK_W], tl.float32)
            totals = (zero, zero, zero, zero)
            for piece in range(PIECES_Y * PIECES_X):
                positions_x, weights_x = places(
                    positions_ptr + h * MOST_Y, weights_ptr + h * MOST_Y,
                    j, piece % PIECES_X, w, MOST_X, EACH_X,
                )  # fmt: skip
                across = (slopes_between(weights_x, last_x), weights_x, last_x)
                positions_y, weights_y = places(
                    positions_ptr, weights_ptr, i, piece // PIECES_X, h, MOST_Y, EACH_Y
                )
                down = (slopes_between(weights_y, i == h - 1), weights_y, i == h - 1)
                targets, lives = read_targets(
                    targets_ptr, valid_ptr, positions_y, positions_x, there,
                    targets_stride_y, targets_stride_x, valid_stride_y, valid_stride_x,
                    ignore_index, WHOLE, PIXEL_VALID, HAS_IGNORE,
                )  # fmt: skip
                xs = outputs_of(corners, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X)
                x = stacked(xs, NEUTRAL)
                t = stacked(targets, 0.0)
                if MASKED:
                    live = stacked(lives, False)
                    x = tl.where(live, x, NEUTRAL)
                slope = slope_of_terms(x, t, coefs, params, TERMS, TARGETS != "soft", False, PTX)
                if MASKED:
                    slope = tl.where(live, slope, 0.0)
                slopes = unstacked(slope, EACH_Y * EACH_X)
                shares = shares_of(slopes, across, down, EACH_Y, EACH_X)
                sums = ()
                for k in tl.static_range(4):
                    sums = sums + (totals[k] + shares[k],)
                totals = sums
            top, bottom = from_left(exchange_ptr, row, totals[1], totals[3], before, BLOCK_W)
            if row >= first:
                gradient = (carried + (totals[0] + top)).to(dlogits_ptr.dtype.element_ty)
                row_ptr = columns_ptr + row * tl.cast(dlogits_stride_y, tl.int64)
                tl.store(row_ptr, gradient, mask=own)
            carried = totals[2] + bottom
    else:
        zero = tl.zeros([BLOCK_W], dlogits_ptr.dtype.element_ty)
        for row in range(first, end):
            tl.store(columns_ptr + row * tl.cast(dlogits_stride_y, tl.int64), zero, mask=own)
