"""The forward kernel of low-resolution logits, each class for itself; no output is written.

As in sums.py all sums come from one read and the loss is finished in the same launch.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.cell_pieces import fetch_piece, fetch_targets, ready_targets
from fastseg_losses.kernels.interpolation import (
    corner_pointers,
    not_finite,
    odd_corners,
    odd_outputs,
    outputs_of,
    places,
    ready_corners,
    slopes_between,
)
from fastseg_losses.kernels.last_program import complete_record, finish_program
from fastseg_losses.kernels.pixels import pixel_base
from fastseg_losses.kernels.stacking import stacked
from fastseg_losses.kernels.sums import add_tile, columns_sum
from fastseg_losses.kernels.terms import NEUTRAL

RECORD = finalize.RECORD
TARGET = finalize.TARGET
ACTUAL = finalize.ACTUAL
FIRST_POINT = finalize.FIRST_POINT
VALID = finalize.VALID


# Sizes and strides change from call to call, and small tensors sit at any address: neither may
# start a compilation.
NOT_SPECIALIZED = (
    *("loss_ptr", "stats_ptr", "counters_ptr", "alarm_ptr", "class_weights_ptr", "pos_weight_ptr"),
    *(
        "positions_ptr",
        "weights_ptr",
        "N",
        "C",
        "h",
        "w",
        "H",
        "W",
        "S",
        "blocks",
        "pos_weight_stride",
    ),
    *("logits_stride_n", "logits_stride_c", "logits_stride_y", "logits_stride_x"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_y", "targets_stride_x"),
    *("valid_stride_n", "valid_stride_y", "valid_stride_x", "workspace_start"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _cell_sums_kernel(
    # outputs
    loss_ptr,  # () or (G,) or (4, G)
    stats_ptr,  # (NUM_FIELDS + terms,)
    table_ptr,  # norms, coefs: see finalize.py
    workspace_ptr,  # groups, partials: see finalize.py
    counters_ptr,  # (1 + G,) int32, with BATCH N C more; all 0 before and after
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    logits_ptr,  # (N, C, h, w)
    targets_ptr,  # (N, C, H, W)
    valid_ptr,  # (N, H, W) or (N,) or None
    class_weights_ptr,  # (C,) or None
    pos_weight_ptr,  # (C,) or (1,) or None
    positions_ptr,  # (h MOST_Y + w MOST_X,) see cells.py
    weights_ptr,  # likewise
    # sizes
    N,
    C,
    h,
    w,
    H,
    W,
    S,  # programs a (sample, class)
    blocks,  # of BLOCK_W cells in a row
    # strides
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
    pos_weight_stride,  # 0 for one value, 1 for one a class
    workspace_start,  # behind workspace_ptr: the table may come first in the same tensor
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    point_weights,
    region_weights,
    region_params,
    ignore_index,
    # constexprs
    TERMS: tl.constexpr,
    COLUMNS: tl.constexpr,  # of the terms' sums in a record, and of the count of live pixels
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    VALID_KIND: tl.constexpr,  # "none", "sample", "pixel"
    HAS_IGNORE: tl.constexpr,
    TARGETS: tl.constexpr,  # "soft" in [0, 1], or 0 and 1 of a "signed" or "unsigned" type
    GRAB: tl.constexpr,  # targets of a byte that are read together
    WHOLE: tl.constexpr,  # every place of every cell has an output
    FULL: tl.constexpr,  # and every thread has a cell
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
    HARD: tl.constexpr = TARGETS != "soft"
    NUM_POINT: tl.constexpr = len(TERMS) - (5 if HARD else 6)
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    MASKED: tl.constexpr = PIXEL_VALID or HAS_IGNORE or not FULL
    PIECES_Y: tl.constexpr = MOST_Y // EACH_Y
    PIECES_X: tl.constexpr = MOST_X // EACH_X
    pid = tl.program_id(0)
    s = pid % S
    n = pid // S // C
    c = pid // S % C
    rows = S // blocks

    logits_ptr += pixel_base(n, c, logits_stride_n, logits_stride_c, False)
    targets_ptr += pixel_base(n, c, targets_stride_n, targets_stride_c, False)
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, False)
    steps = h * PIECES_Y
    if VALID_KIND == "sample":
        if tl.load(valid_ptr) == 0:
            steps = 0  # not annotated: nothing of the sample is read
    pos_weight = 1.0
    if pos_weight_ptr is not None:
        pos_weight = tl.load(pos_weight_ptr + c * pos_weight_stride)
    params = (term_params[0], term_params[1], term_params[2], pos_weight, term_params[3])

    j = s % blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    there = j < w
    last_x = j == w - 1
    zero = tl.zeros([BLOCK_W], tl.float32)
    sums = ()
    for _k in tl.static_range(len(TERMS) + (1 if MASKED else 0)):
        sums = sums + (zero,)
    bottom = tl.full([BLOCK_W], float("-inf"), tl.float32)
    extremes = (bottom, zero, bottom)
    trace = zero  # NaN where a logit is not finite
    bits = tl.zeros([BLOCK_W], tl.int32)  # of all targets that are read together
    for piece_x in range(PIECES_X):
        positions_x, weights_x = places(
            positions_ptr + h * MOST_Y,
            weights_ptr + h * MOST_Y,
            j,
            piece_x,
            w,
            W,
            MOST_X,
            START_X,
            EACH_X,
        )
        across = (slopes_between(weights_x, last_x, SPLIT_X), weights_x, last_x)
        ahead = fetch_piece(
            logits_ptr, targets_ptr, positions_ptr, weights_ptr, positions_x,
            s // blocks, j, there, h, w, H, logits_stride_y, logits_stride_x,
            targets_stride_y, targets_stride_x, MOST_Y, START_Y, EACH_Y, WHOLE, GRAB,
        )  # fmt: skip
        for step in range(s // blocks, steps, rows):
            corners, raw, positions_y, weights_y, last_y = ahead
            # asked for one step ahead, so that none waits
            ahead = fetch_piece(
                logits_ptr, targets_ptr, positions_ptr, weights_ptr, positions_x,
                tl.minimum(step + rows, steps - 1), j, there, h, w, H,
                logits_stride_y, logits_stride_x, targets_stride_y, targets_stride_x,
                MOST_Y, START_Y, EACH_Y, WHOLE, GRAB,
            )  # fmt: skip
            down = (slopes_between(weights_y, last_y, SPLIT_Y), weights_y, last_y)
            trace += not_finite(corners)
            targets, lives = ready_targets(
                raw, valid_ptr, positions_y, positions_x, there, valid_stride_y, valid_stride_x,
                ignore_index, WHOLE, PIXEL_VALID, HAS_IGNORE, GRAB, PTX,
            )  # fmt: skip
            corners = ready_corners(corners, 1.0, True)
            if GRAB > 1:
                for k in tl.static_range(len(raw)):
                    bits |= raw[k].to(tl.int32)
            xs = outputs_of(corners, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X)
            x = stacked(xs, NEUTRAL)
            t = stacked(targets, 0.0)
            live = stacked(lives, False)
            if MASKED:
                x = tl.where(live, x, NEUTRAL)
            sums, extremes = add_tile(
                sums,
                extremes,
                x,
                t,
                live,
                params,
                TERMS,
                MASKED,
                False,
                "checked" if GRAB > 1 else TARGETS,
                False,
                PTX,
            )

    record = columns_sum(sums, COLUMNS, zero)
    largest = tl.max(extremes[0])
    stray = tl.max(extremes[1])
    column = tl.arange(0, RECORD)
    seen = tl.sum(tl.where(column == (TARGET if NUM_POINT == 0 else FIRST_POINT), record, 0.0))
    seen += tl.sum(trace)
    nonfinite = tl.zeros((), tl.float32)
    bad_targets = tl.zeros((), tl.float32)
    # Only if something is wrong is each output looked at.
    odd = ((seen - seen) != 0.0) | (stray > (1.0 if TARGETS == "unsigned" else 0.501))
    if odd | (tl.max(tl.where((bits & ~0x01010101) != 0, 1, 0)) > 0):
        for piece_x in range(PIECES_X):
            positions_x, weights_x = places(
                positions_ptr + h * MOST_Y,
                weights_ptr + h * MOST_Y,
                j,
                piece_x,
                w,
                W,
                MOST_X,
                START_X,
                EACH_X,
            )
            across = (slopes_between(weights_x, last_x, SPLIT_X), weights_x, last_x)
            for step in range(s // blocks, steps, rows):
                i = step // PIECES_Y
                positions_y, weights_y = places(
                    positions_ptr, weights_ptr, i, step % PIECES_Y, h, H, MOST_Y, START_Y, EACH_Y
                )
                last_y = i == h - 1
                down = (slopes_between(weights_y, last_y, SPLIT_Y), weights_y, last_y)
                ptrs = corner_pointers(logits_ptr, i, j, h, w, logits_stride_y, logits_stride_x)
                strange = odd_corners(ptrs, 0, there)
                raw = fetch_targets(
                    targets_ptr, positions_y, positions_x, there,
                    targets_stride_y, targets_stride_x, WHOLE, GRAB,
                )  # fmt: skip
                targets, lives = ready_targets(
                    raw, valid_ptr, positions_y, positions_x, there, valid_stride_y,
                    valid_stride_x, ignore_index, WHOLE, PIXEL_VALID, HAS_IGNORE, GRAB, PTX,
                )  # fmt: skip
                strange = odd_outputs(strange, across, down, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X)
                for k in tl.static_range(EACH_Y * EACH_X):
                    nonfinite += tl.sum(tl.where(lives[k], strange[k], 0.0))
                    off = tl.abs(targets[k] - 0.5) <= 0.501
                    bad_targets += tl.sum(tl.where(off, 0.0, 1.0))
    if not MASKED:
        blocks_rows = tl.maximum(steps - s // blocks + rows - 1, 0) // rows
        count = blocks_rows * (EACH_Y * MOST_X * BLOCK_W)
        record = tl.where(column == VALID, count.to(tl.float32), record)
    if HARD:
        target = tl.sum(tl.where(column == TARGET, record, 0.0))
        record = tl.where(column == ACTUAL, target, record)
    record = complete_record(record, largest, nonfinite, bad_targets, NUM_POINT, True)
    finish_program(
        loss_ptr, stats_ptr, table_ptr, workspace_ptr + workspace_start, counters_ptr, alarm_ptr,
        record, class_weights_ptr, n, c, pid, N, C, S, point_weights, region_weights, region_params,
        NUM_POINT, LOGS, POWERS, REDUCTION, BATCH, ABSENT, False,
    )  # fmt: skip
