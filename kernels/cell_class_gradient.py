"""The multiclass backward kernel of low-resolution logits.

A program walks down a strip of cells, all classes of a row before the next row. What the row above
has given to a class's logits waits in memory, where the same thread picks it up: in the gradient
itself if that is float32, else in a buffer. The row that two strips share is begun by the lower
one, at its start, and completed by the upper one, at its end, which waits for a flag (flags.py):
to compute the row above a second time, as cell_gradient.py does, was a fifth of the work.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.cell_class_slopes import (
    fetch_region,
    mean_slopes,
    pick_up,
    put_off,
    sigmoid_slopes,
    softmax_class,
    softmax_outputs,
)
from fastseg_losses.kernels.cell_classes import any_of, class_outputs, fetch_class, read_labels
from fastseg_losses.kernels.flags import await_flag, raise_flag
from fastseg_losses.kernels.interpolation import (
    both_from_left,
    corner_pointers,
    locate,
    output_pointers,
    shares_of,
)
from fastseg_losses.kernels.pixels import pixel_base

NORMS = finalize.NORMS

NOT_SPECIALIZED = (
    *("dloss_ptr", "vector_ptr", "positions_ptr", "weights_ptr"),
    *("N", "h", "w", "H", "W", "rows", "strips", "blocks", "vector_stride", "kept_start"),
    *("flags_start",),
    *("dloss_stride_k", "dloss_stride_n", "dloss_stride_c", "ignore_index"),
    *("dlogits_stride_n", "dlogits_stride_c", "dlogits_stride_y", "dlogits_stride_x"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_y", "logits_stride_x"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_y", "targets_stride_x"),
    *("valid_stride_n", "valid_stride_y", "valid_stride_x"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _cell_class_gradient_kernel(
    # outputs
    dlogits_ptr,  # (N, C, h, w)
    exchange_ptr,  # (programs, 4, BLOCK_W); not IN_PLACE: then (programs, 3, C, BLOCK_W)
    # inputs
    dloss_ptr,  # see _class_gradient_kernel
    table_ptr,  # see _cell_class_sums_kernel
    logits_ptr,  # (N, C, h, w)
    targets_ptr,  # class ids (N, H, W), or soft (N, C, H, W)
    valid_ptr,  # (N, H, W) or (N,) or None
    vector_ptr,  # sigmoid: pos_weight (C,) or (1,) or None
    positions_ptr,  # (h MOST_Y + w MOST_X,) see cells.py
    weights_ptr,  # likewise
    dloss_stride_k,
    dloss_stride_n,
    dloss_stride_c,
    # sizes
    N,
    h,
    w,
    H,
    W,
    rows,  # of cells in a strip, at least 2
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
    vector_stride,
    flags_start,  # behind table_ptr, as kept_start
    kept_start,
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    ignore_index,
    # constexprs
    C: tl.constexpr,
    TERMS: tl.constexpr,
    SMOOTHED: tl.constexpr,
    SPREAD: tl.constexpr,
    SOFTMAX: tl.constexpr,
    REGION: tl.constexpr,  # whether there is a region term
    SUMS: tl.constexpr,
    PER_CLASS: tl.constexpr,
    FIRST: tl.constexpr,
    BATCH: tl.constexpr,
    VALID_KIND: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    IDS: tl.constexpr,
    IN_PLACE: tl.constexpr,  # float32: what waits for the next row lies in the gradient
    WHOLE: tl.constexpr,
    FULL: tl.constexpr,
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
    ALL: tl.constexpr = WHOLE and not PIXEL_VALID and not HAS_IGNORE  # outputs count
    PIECES_X: tl.constexpr = MOST_X // EACH_X
    PIECES: tl.constexpr = MOST_Y // EACH_Y * PIECES_X
    NUM_POINT: tl.constexpr = len(TERMS) if SOFTMAX else len(TERMS) - 2
    OVERLAP: tl.constexpr = 0 if RING else 1
    # The forward launch's order backwards: what it read last is still in the L2 cache.
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    block = pid % blocks
    strip = pid // blocks % strips
    n = pid // blocks // strips
    # The ring's last cells come first too, for what row 0 has of them.
    first = strip * rows - 1
    end = tl.minimum(first + rows, h)

    dlogits_ptr += pixel_base(n, 0, dlogits_stride_n, 0, False)
    logits_ptr += pixel_base(n, 0, logits_stride_n, 0, False)
    targets_ptr += pixel_base(n, 0, targets_stride_n, 0, False)
    annotated = True
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, False)
    if VALID_KIND == "sample":
        annotated = tl.load(valid_ptr) != 0
    stride_c = tl.cast(logits_stride_c, tl.int64)
    targets_stride_c = tl.cast(targets_stride_c, tl.int64)
    dlogits_stride_c = tl.cast(dlogits_stride_c, tl.int64)
    KEPT: tl.constexpr = 2 if IDS else 1  # of each output
    kept_ptr = table_ptr + kept_start + n * tl.cast(H, tl.int64) * W * KEPT

    lane = tl.arange(0, BLOCK_W)
    at = block * (BLOCK_W - OVERLAP) - OVERLAP + lane
    there = at < w
    j = tl.where(at < 0, w - 1, at)
    before = tl.where(lane == 0, (w - 1 if RING else 0), lane - 1)
    own = there & (lane >= OVERLAP)
    columns_ptr = dlogits_ptr + j * tl.cast(dlogits_stride_x, tl.int64)
    dlogits_stride_y = tl.cast(dlogits_stride_y, tl.int64)
    buffers_ptr = exchange_ptr + tl.num_programs(0).to(tl.int64) * (4 * BLOCK_W)
    buffers_ptr += pid.to(tl.int64) * (3 * C * BLOCK_W) + lane
    slot: tl.constexpr = C * BLOCK_W
    below = blocks * (3 * slot) + 2 * slot  # of the strip below, where its first row waits
    exchange_ptr += pid.to(tl.int64) * (4 * BLOCK_W)
    flags_ptr = (table_ptr + flags_start).to(tl.pointer_type(tl.int32), bitcast=True) + pid
    last = (tl.where(end < h, end - 1, h), h)  # the row whose lower neighbour is shared, if any
    if annotated:
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
        turn = 0
        for step in range(first * PIECES, end * PIECES):
            done = tl.cast(step, tl.int32) + PIECES  # the interpreter's steps are Python's
            row = done // PIECES - 1
            piece = done % PIECES
            if (row == last[0]) & (piece == 0):
                await_flag(flags_ptr + blocks)
            # of the ring's last row, which comes first, only the lower shares are needed
            i = tl.where(row < 0, h - 1, row)
            positions_y, positions_x, across, down = locate(
                positions_ptr, weights_ptr, i, j, piece // PIECES_X, piece % PIECES_X, h, w, H, W,
                MOST_Y, MOST_X, START_Y, START_X, SPLIT_Y, SPLIT_X, EACH_Y, EACH_X,
            )  # fmt: skip
            spots = output_pointers(
                targets_ptr, positions_y, positions_x, targets_stride_y, targets_stride_x
            )
            labels, lives = read_labels(
                spots, valid_ptr, positions_y, positions_x, there,
                valid_stride_y, valid_stride_x, ignore_index, C, IDS, WHOLE, PIXEL_VALID,
                HAS_IGNORE,
            )  # fmt: skip
            needed = any_of(lives)
            if ALL:
                needed = None  # a load without a mask takes an instruction less
            ptrs = corner_pointers(logits_ptr, i, j, h, w, logits_stride_y, logits_stride_x)
            lses = labels
            pushes = labels
            at_labels = labels
            if SOFTMAX:
                kept = output_pointers(kept_ptr, positions_y, positions_x, W * KEPT, KEPT)
                lses, means, pushes = mean_slopes(
                    ptrs, stride_c, needed, lives, kept, across, down,
                    spots, targets_stride_c, dloss_ptr, table_ptr, points_ptr,
                    group, groups, dloss_stride_k, dloss_stride_c, region_factor, point_factor,
                    term_params, TERMS, SMOOTHED, SPREAD, REGION, IDS, SUMS, PER_CLASS, C, FIRST,
                    EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, PTX,
                )  # fmt: skip
                pushes, at_labels = softmax_outputs(
                    labels, lives, means, pushes, kept, dloss_ptr, table_ptr,
                    points_ptr, group, groups, dloss_stride_k, dloss_stride_c,
                    region_factor, point_factor, term_params,
                    TERMS, SMOOTHED, REGION, IDS, SUMS, PER_CLASS, C, FIRST, PTX,
                )  # fmt: skip
            zero = tl.zeros([BLOCK_W], tl.float32)
            classes = ()
            for k in tl.static_range(EACH_Y * EACH_X):
                classes = classes + (labels[k].to(tl.float32),)
            # A class's rows are stored a turn later, when what the neighbours have given is there.
            late = (zero, zero, zero, zero, zero, zero)
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
                zs = class_outputs(corners, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, SOFTMAX)
                targets_c = c * targets_stride_c
                if SOFTMAX:
                    slopes = softmax_class(
                        zs, lses, pushes, classes, at_labels, lives, spots, targets_c,
                        d_overlap, d_mass, points_ptr, c, point_factor, term_params,
                        TERMS, SMOOTHED, SPREAD, REGION, IDS, IN_PLACE, C, PTX,
                    )  # fmt: skip
                else:
                    slopes = sigmoid_slopes(
                        zs, labels, lives, spots, targets_c, d_overlap, d_mass,
                        points_ptr, vector_ptr, c, point_factor, vector_stride, term_params,
                        TERMS, IDS, C, PTX,
                    )  # fmt: skip
                shares = shares_of(slopes, across, down, EACH_Y, EACH_X)
                class_ptr = columns_ptr + c * dlogits_stride_c
                buffer_ptr = buffers_ptr + c * BLOCK_W
                done_ptr = class_ptr - dlogits_stride_c
                put_off(
                    (done_ptr, dlogits_stride_y, buffer_ptr - BLOCK_W, slot, below),
                    late[0] + late[2] + late[4], late[1] + late[3] + late[5],
                    row, piece, first, last, own & (c + lane * 0 > 0), PIECES, IN_PLACE,
                )  # fmt: skip
                top, bottom = both_from_left(
                    exchange_ptr, turn, shares[1], shares[3], before, BLOCK_W
                )
                upper, lower = pick_up(
                    (class_ptr, dlogits_stride_y, buffer_ptr, slot, below),
                    row, piece, first, last, own, IN_PLACE,
                )  # fmt: skip
                late = (shares[0], shares[2], top, bottom, upper, lower)
                turn += 1
            class_ptr = columns_ptr + (C - 1) * dlogits_stride_c
            buffer_ptr = buffers_ptr + (C - 1) * BLOCK_W
            put_off(
                (class_ptr, dlogits_stride_y, buffer_ptr, slot, below),
                late[0] + late[2] + late[4], late[1] + late[3] + late[5],
                row, piece, first, last, own, PIECES, IN_PLACE,
            )  # fmt: skip
            if (strip > 0) & (row == first) & (piece == PIECES - 1):
                raise_flag(flags_ptr)
    else:
        nothing = tl.zeros([BLOCK_W], dlogits_ptr.dtype.element_ty)
        for row in range(tl.maximum(first, 0), end):
            for c in range(C):
                ptrs = columns_ptr + c * dlogits_stride_c + row * dlogits_stride_y
                tl.store(ptrs, nothing, mask=own)
