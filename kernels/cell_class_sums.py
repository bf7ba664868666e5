"""The multiclass forward kernel of low-resolution logits; no output is written.

Three walks over the classes for each piece of outputs: the largest logit and the sum of
exponentials, the label's own terms, every class's sums. Of each output that counts the logarithm of
that sum is kept for backward, with its label's -log p.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import cell_classes, finalize, multiclass_rows
from fastseg_losses.kernels.cell_class_points import (
    add_classes,
    count_odd,
    label_terms,
    soft_labels,
)
from fastseg_losses.kernels.cell_classes import any_of, read_labels, survey
from fastseg_losses.kernels.flags import clear_flags
from fastseg_losses.kernels.interpolation import corner_pointers, locate, output_pointers
from fastseg_losses.kernels.last_program import complete_record
from fastseg_losses.kernels.multiclass_teams import finish_class_program
from fastseg_losses.kernels.pixels import pixel_base
from fastseg_losses.kernels.special import LOG2E, exp2, log2, reciprocal
from fastseg_losses.kernels.sums import columns_sum

RECORD = finalize.RECORD
FINITE = finalize.COUNTED
SOFT_PLANES = multiclass_rows.SOFT_PLANES
ID_PLANES = multiclass_rows.ID_PLANES
SKIPPED = cell_classes.SKIPPED

NOT_SPECIALIZED = (
    *("loss_ptr", "stats_ptr", "counters_ptr", "alarm_ptr", "class_weights_ptr", "vector_ptr"),
    *("positions_ptr", "weights_ptr", "N", "h", "w", "H", "W", "S", "TEAM", "blocks"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_y", "logits_stride_x"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_y", "targets_stride_x"),
    *("valid_stride_n", "valid_stride_y", "valid_stride_x", "vector_stride"),
    *("workspace_start", "flags_start", "kept_start", "flags", "ignore_index"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _cell_class_sums_kernel(
    # outputs
    loss_ptr,  # see _class_sums_kernel
    stats_ptr,  # (NUM_FIELDS + terms + 5 C,)
    table_ptr,  # see multiclass_finalize.py; then for backward flags, 0, and (N, H, W, 2 or 1)
    workspace_ptr,  # samples, partials: see multiclass_finalize.py
    counters_ptr,  # (1 + N + N teams,) int32, all 0 before and after
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    logits_ptr,  # (N, C, h, w)
    targets_ptr,  # class ids (N, H, W), or soft (N, C, H, W)
    valid_ptr,  # (N, H, W) or (N,) or None
    class_weights_ptr,  # (C,) or None
    vector_ptr,  # softmax: alpha (C,) or None; else pos_weight (C,) or (1,) or None
    positions_ptr,  # (h MOST_Y + w MOST_X,) see cells.py
    weights_ptr,  # likewise
    # sizes
    N,
    h,
    w,
    H,
    W,
    S,  # programs a sample
    TEAM,  # programs a team
    blocks,  # of BLOCK_W cells in a row
    flags,
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
    vector_stride,  # 0 for one value, 1 for one a class
    workspace_start,  # behind workspace_ptr: the table may come first in the same tensor
    flags_start,  # behind table_ptr, as kept_start
    kept_start,
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    point_weights,
    region_weights,
    region_params,
    ignore_index,
    # constexprs
    C: tl.constexpr,
    TERMS: tl.constexpr,
    BALANCED: tl.constexpr,  # which of the terms alpha multiplies
    SMOOTHED: tl.constexpr,  # and which of them have smoothed targets
    SPREAD: tl.constexpr,  # a pointwise term has a target in every class
    COLUMNS: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    SOFTMAX: tl.constexpr,
    FIRST: tl.constexpr,  # the first class of the region terms
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    VALID_KIND: tl.constexpr,  # "none", "sample", "pixel"
    HAS_IGNORE: tl.constexpr,
    IDS: tl.constexpr,
    WHOLE: tl.constexpr,
    FULL: tl.constexpr,
    MOST_Y: tl.constexpr,
    MOST_X: tl.constexpr,
    START_Y: tl.constexpr,
    START_X: tl.constexpr,
    SPLIT_Y: tl.constexpr,
    SPLIT_X: tl.constexpr,
    EACH_Y: tl.constexpr,
    EACH_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
    COUNT: tl.constexpr,  # classes at a time in the first walk
    BLOCK_C: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PTX: tl.constexpr,
):
    NUM_POINT: tl.constexpr = len(TERMS)
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    ALL: tl.constexpr = WHOLE and not PIXEL_VALID and not HAS_IGNORE  # outputs count
    EACH: tl.constexpr = EACH_Y * EACH_X
    PIECES_Y: tl.constexpr = MOST_Y // EACH_Y
    PIECES_X: tl.constexpr = MOST_X // EACH_X
    NUM_PLANES: tl.constexpr = ID_PLANES if IDS else SOFT_PLANES
    ROW: tl.constexpr = RECORD + NUM_PLANES * C
    EXTRAS: tl.constexpr = 4 if IDS else 6  # columns behind the terms'
    pid = tl.program_id(0)
    s = pid % S
    n = pid // S
    rows = S // blocks

    logits_ptr += pixel_base(n, 0, logits_stride_n, 0, False)
    targets_ptr += pixel_base(n, 0, targets_stride_n, 0, False)
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, False)
    steps = h * PIECES_Y
    if VALID_KIND == "sample":
        if tl.load(valid_ptr) == 0:
            steps = 0  # not annotated: nothing of the sample is read
    stride_c = tl.cast(logits_stride_c, tl.int64)
    targets_stride_c = tl.cast(targets_stride_c, tl.int64)
    KEPT: tl.constexpr = 2 if IDS else 1  # of each output
    kept_ptr = table_ptr + kept_start + n * tl.cast(H, tl.int64) * W * KEPT

    clear_flags(table_ptr + flags_start, flags, pid, tl.num_programs(0), BLOCK_W)
    samples_ptr = workspace_ptr + workspace_start
    row_ptr = samples_ptr + N * ROW + pid.to(tl.int64) * ROW
    lane = tl.arange(0, BLOCK_W)
    zero = tl.zeros([BLOCK_W], tl.float32)
    for start in range(0, NUM_PLANES * C, BLOCK_W):
        tl.store(row_ptr + RECORD + start + lane, zero, mask=start + lane < NUM_PLANES * C)
    tl.debug_barrier()

    j = s % blocks * BLOCK_W + lane
    there = j < w
    sums = ()
    for _k in tl.static_range(NUM_POINT + EXTRAS):
        sums = sums + (zero,)
    largest_p = zero
    stray = zero
    bad = zero
    for piece_x in range(PIECES_X):
        for step in range(s // blocks, steps, rows):
            i = step // PIECES_Y
            positions_y, positions_x, across, down = locate(
                positions_ptr, weights_ptr, i, j, step % PIECES_Y, piece_x, h, w, H, W,
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
            state, trace = survey(
                ptrs, stride_c, needed, across, down, sums[NUM_POINT + EXTRAS - 1], C, COUNT,
                EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, SOFTMAX, True, PTX,
            )  # fmt: skip
            certains = lives
            if not IDS:
                labels, certains, worst = soft_labels(spots, targets_stride_c, lives, C)
                stray = tl.maximum(stray, worst, propagate_nan=tl.PropagateNan.ALL)
            points = ()
            for k in tl.static_range(NUM_POINT):
                points = points + (sums[k],)
            p_labels = lives
            nlls = lives
            if SOFTMAX and IDS:
                points, p_labels, nlls = label_terms(
                    points, ptrs, stride_c, labels, lives, state, across, down,
                    class_weights_ptr, vector_ptr, term_params,
                    TERMS, BALANCED, SMOOTHED, EACH_X, SPLIT_Y, SPLIT_X, PTX,
                )  # fmt: skip
            kept = output_pointers(kept_ptr, positions_y, positions_x, W * KEPT, KEPT)
            lses = ()
            first = ()
            classes = ()
            best = zero
            above = zero
            certain = zero
            sure = zero
            count = zero
            for k in tl.static_range(EACH):
                if SOFTMAX:
                    lse = tl.where(lives[k], state[0][k] + log2(state[2][k], PTX), SKIPPED)
                    p = tl.where(lives[k], reciprocal(state[2][k], PTX), 0.0)
                    tl.store(kept[k], lse, mask=lives[k])
                    if IDS:
                        tl.store(kept[k] + 1, nlls[k], mask=lives[k])
                else:
                    lse = zero
                    p = 1.0 / (1.0 + exp2(-state[0][k] * LOG2E, PTX))
                    p = tl.where(lives[k], p, 0.0)
                lses = lses + (lse,)
                first = first + (tl.where(lives[k], state[1][k], -2.0),)
                classes = classes + (labels[k].to(tl.float32),)
                best += p
                above += tl.where(p > 0.5, 1.0, 0.0)
                largest_p = tl.maximum(largest_p, p)
                count += tl.where(lives[k], 1.0, 0.0)
                if IDS:
                    bad += tl.where(lives[k] & (labels[k] < 0), 1.0, 0.0)
                else:
                    certain += certains[k]
                    sure += tl.where(certains[k] > 0.5, 1.0, 0.0)
            points = add_classes(
                row_ptr, points, ptrs, stride_c, spots, targets_stride_c,
                classes, lives, needed, lses, p_labels, first, across, down,
                class_weights_ptr, vector_ptr, vector_stride, term_params,
                TERMS, BALANCED, SMOOTHED, SPREAD, SOFTMAX, IDS, C,
                EACH_Y, EACH_X, SPLIT_Y, SPLIT_X, BLOCK_W, PTX,
            )  # fmt: skip
            more = (best, above)
            if not IDS:
                more = more + (certain, sure)
            more = more + (count,)
            new = ()
            for k in tl.static_range(NUM_POINT):
                new = new + (points[k],)
            for k in tl.static_range(len(more)):
                new = new + (sums[NUM_POINT + k] + more[k],)
            sums = new + (trace,)

    # ---- this program's record
    record = columns_sum(sums, COLUMNS, zero)
    column = tl.arange(0, RECORD)
    seen = tl.sum(tl.where(column == FINITE, record, 0.0))
    seen += tl.sum(stray - stray)
    nonfinite = tl.zeros((), tl.float32)
    bad_targets = tl.sum(bad)
    # Only if something is wrong is each output looked at.
    if ((seen - seen) != 0.0) | (tl.max(stray) > 0.501):
        for piece_x in range(PIECES_X):
            for step in range(s // blocks, steps, rows):
                i = step // PIECES_Y
                positions_y, positions_x, across, down = locate(
                    positions_ptr, weights_ptr, i, j, step % PIECES_Y, piece_x, h, w, H, W,
                    MOST_Y, MOST_X, START_Y, START_X, SPLIT_Y, SPLIT_X, EACH_Y, EACH_X,
                )  # fmt: skip
                spots = output_pointers(
                    targets_ptr, positions_y, positions_x, targets_stride_y, targets_stride_x
                )
                _, lives = read_labels(
                    spots, valid_ptr, positions_y, positions_x, there,
                    valid_stride_y, valid_stride_x, ignore_index, C, IDS, WHOLE, PIXEL_VALID,
                    HAS_IGNORE,
                )  # fmt: skip
                ptrs = corner_pointers(logits_ptr, i, j, h, w, logits_stride_y, logits_stride_x)
                strange, wrong = count_odd(
                    ptrs, stride_c, there, lives, across, down,
                    spots, targets_stride_c,
                    C, IDS, EACH_Y, EACH_X, SPLIT_Y, SPLIT_X,
                )  # fmt: skip
                nonfinite += strange
                bad_targets += wrong
    record = complete_record(
        record, tl.max(largest_p), nonfinite, bad_targets, NUM_POINT, not SOFTMAX
    )
    tl.store(row_ptr + column, record)
    finish_class_program(
        loss_ptr, stats_ptr, table_ptr, samples_ptr, counters_ptr, alarm_ptr,
        class_weights_ptr, vector_ptr, n, s, N, S, TEAM,
        point_weights, region_weights, region_params,
        C, NUM_POINT, BALANCED, LOGS, POWERS, REDUCTION, SOFTMAX, FIRST, BATCH, ABSENT, IDS,
        ROW, BLOCK_C, BLOCK_ROW, BLOCK_ROWS,
    )  # fmt: skip
