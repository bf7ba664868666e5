"""The backward kernel of low-resolution logits, each class for itself.

A program walks down a strip of cells. Each cell's slopes become shares of its four corners; a logit
is the corner of four cells, and its gradient the sum of their four shares: those of the cell to the
left come from another thread, those of the row above are kept from the step before.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.cell_pieces import fetch_piece, ready_targets
from fastseg_losses.kernels.gradient import load_coefs, slope_of_terms
from fastseg_losses.kernels.interpolation import (
    from_left,
    outputs_of,
    places,
    ready_corners,
    shares_of,
    slopes_between,
)
from fastseg_losses.kernels.pixels import pixel_base
from fastseg_losses.kernels.stacking import stacked, unstacked
from fastseg_losses.kernels.terms import NEUTRAL

NORMS = finalize.NORMS


@triton.jit
def fetch_place(
    logits_ptr, targets_ptr, positions_ptr, weights_ptr,
    step, j, there, h, w, H, W,
    logits_stride_y, logits_stride_x, targets_stride_y, targets_stride_x,
    MOST_Y: tl.constexpr, MOST_X: tl.constexpr, START_Y: tl.constexpr, START_X: tl.constexpr,
    EACH_Y: tl.constexpr, EACH_X: tl.constexpr, WHOLE: tl.constexpr, GRAB: tl.constexpr,
):  # fmt: skip
    """What fetch_piece gives of a step, and the places along x."""
    PIECES_Y: tl.constexpr = MOST_Y // EACH_Y
    PIECES_X: tl.constexpr = MOST_X // EACH_X
    positions_x, weights_x = places(
        positions_ptr + h * MOST_Y, weights_ptr + h * MOST_Y,
        j, (step + PIECES_X * PIECES_Y) % PIECES_X, w, W, MOST_X, START_X, EACH_X,
    )  # fmt: skip
    step_y = (step + PIECES_X * PIECES_Y) // PIECES_X - PIECES_Y
    step_y = tl.where(step_y < 0, step_y + h * PIECES_Y, step_y)  # the ring's last row
    corners, raw, positions_y, weights_y, last_y = fetch_piece(
        logits_ptr, targets_ptr, positions_ptr, weights_ptr, positions_x,
        step_y, j, there, h, w, H, logits_stride_y, logits_stride_x,
        targets_stride_y, targets_stride_x, MOST_Y, START_Y, EACH_Y, WHOLE, GRAB,
    )  # fmt: skip
    return corners, raw, positions_y, weights_y, last_y, positions_x, weights_x


NOT_SPECIALIZED = (
    *("dloss_ptr", "pos_weight_ptr", "positions_ptr", "weights_ptr"),
    *("N", "C", "h", "w", "H", "W", "rows", "strips", "blocks", "pos_weight_stride"),
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
    exchange_ptr,  # (programs, 2, BLOCK_W) float32, for values from one thread to the next
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
    H,
    W,
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
    GRAB: tl.constexpr,
    WHOLE: tl.constexpr,  # every place of every cell has an output
    FULL: tl.constexpr,  # and every thread has a cell
    RING: tl.constexpr,  # a row is one block; else each block starts with the cell before it
    MOST_Y: tl.constexpr,
    MOST_X: tl.constexpr,
    START_Y: tl.constexpr,
    START_X: tl.constexpr,
    SPLIT_Y: tl.constexpr,
    SPLIT_X: tl.constexpr,
    EACH_Y: tl.constexpr,
    EACH_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PTX: tl.constexpr,
):
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    MASKED: tl.constexpr = PIXEL_VALID or HAS_IGNORE or not FULL
    PIECES: tl.constexpr = MOST_Y // EACH_Y * (MOST_X // EACH_X)
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
    exchange_ptr += pid.to(tl.int64) * (2 * BLOCK_W)
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
        zero = tl.zeros([BLOCK_W], tl.float32)
        left = zero  # the lower shares of the row above
        right = zero
        totals = (zero, zero, zero, zero)
        # A row is stored a turn later, when what the neighbours have given is there.
        late = (zero, zero)
        stride_y = tl.cast(dlogits_stride_y, tl.int64)
        ahead = fetch_place(
            logits_ptr, targets_ptr, positions_ptr, weights_ptr, begin * PIECES,
            j, there, h, w, H, W, logits_stride_y, logits_stride_x,
            targets_stride_y, targets_stride_x,
            MOST_Y, MOST_X, START_Y, START_X, EACH_Y, EACH_X, WHOLE, GRAB,
        )  # fmt: skip
        for step in range(begin * PIECES, end * PIECES):
            corners, raw, positions_y, weights_y, last_y, positions_x, weights_x = ahead
            ahead = fetch_place(
                logits_ptr, targets_ptr, positions_ptr, weights_ptr,
                tl.minimum(step + 1, end * PIECES - 1),
                j, there, h, w, H, W, logits_stride_y, logits_stride_x,
                targets_stride_y, targets_stride_x,
                MOST_Y, MOST_X, START_Y, START_X, EACH_Y, EACH_X, WHOLE, GRAB,
            )  # fmt: skip
            across = (slopes_between(weights_x, last_x, SPLIT_X), weights_x, last_x)
            down = (slopes_between(weights_y, last_y, SPLIT_Y), weights_y, last_y)
            targets, lives = ready_targets(
                raw, valid_ptr, positions_y, positions_x, there, valid_stride_y, valid_stride_x,
                ignore_index, WHOLE, PIXEL_VALID, HAS_IGNORE, GRAB, PTX,
            )  # fmt: skip
            corners = ready_corners(corners, 1.0, True)
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
            if PIECES > 1:
                sums = ()
                for k in tl.static_range(4):
                    sums = sums + (totals[k] + shares[k],)
                shares = sums
            totals = shares
            if (step + PIECES) % PIECES == PIECES - 1:
                row = (step + PIECES) // PIECES - 1
                if row > first:
                    gradient = (late[0] + late[1]).to(dlogits_ptr.dtype.element_ty)
                    tl.store(columns_ptr + (row - 1) * stride_y, gradient, mask=own)
                # both rows' right shares together: one value a cell goes to its neighbour
                moved = from_left(exchange_ptr, row, right + totals[1], before, BLOCK_W)
                late = (left + totals[0], moved)
                left = totals[2]
                right = totals[3]
                totals = (zero, zero, zero, zero)
        gradient = (late[0] + late[1]).to(dlogits_ptr.dtype.element_ty)
        tl.store(columns_ptr + (end - 1) * stride_y, gradient, mask=own)
    else:
        nothing = tl.zeros([BLOCK_W], dlogits_ptr.dtype.element_ty)
        for row in range(first, end):
            tl.store(columns_ptr + row * tl.cast(dlogits_stride_y, tl.int64), nothing, mask=own)
