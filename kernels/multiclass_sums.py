"""The multiclass forward kernel: every class's sums in one read, the loss finished in it."""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize, multiclass_rows
from fastseg_losses.kernels.last_program import complete_record
from fastseg_losses.kernels.multiclass import lanes_of, read_tile
from fastseg_losses.kernels.multiclass_teams import finish_class_program
from fastseg_losses.kernels.multiclass_tile import add_tile, class_sums, counted
from fastseg_losses.kernels.pixels import pixel_base
from fastseg_losses.kernels.sums import columns_sum

RECORD = finalize.RECORD
VALID = finalize.VALID
FINITE = finalize.COUNTED  # of a program's record; of a sample's it is what its name says
TARGET_PLANE = multiclass_rows.TARGET_PLANE
SOFT_PLANES = multiclass_rows.SOFT_PLANES
ID_PLANES = multiclass_rows.ID_PLANES

# Sizes and strides change from call to call, and small tensors sit at any address: neither may
# start a compilation.
NOT_SPECIALIZED = (
    *("loss_ptr", "stats_ptr", "counters_ptr", "alarm_ptr", "class_weights_ptr", "vector_ptr"),
    *("N", "P", "S", "TEAM", "workspace_start", "ignore_index", "vector_stride"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_p"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_p"),
    *("valid_stride_n", "valid_stride_p"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _class_sums_kernel(
    # outputs
    loss_ptr,  # () or (N,), or (N, C), (C,) without the classes before FIRST, or (4, N, C)
    stats_ptr,  # (NUM_FIELDS + terms + 5 C,)
    table_ptr,  # see multiclass_finalize.py
    workspace_ptr,  # samples, partials: see multiclass_finalize.py
    counters_ptr,  # (1 + N + N teams,) int32, all 0 before and after
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    logits_ptr,  # (N, C, P)
    targets_ptr,  # class ids (N, P), or soft (N, C, P)
    valid_ptr,  # (N, P) or (N,) or None
    class_weights_ptr,  # (C,) or None
    vector_ptr,  # softmax: alpha (C,) or None; else pos_weight (C,) or (1,) or None
    # sizes
    N,
    P,
    S,  # programs a sample
    TEAM,  # programs a team
    # strides
    logits_stride_n,
    logits_stride_c,
    logits_stride_p,
    targets_stride_n,
    targets_stride_c,
    targets_stride_p,
    valid_stride_n,
    valid_stride_p,
    vector_stride,  # 0 for one value, 1 for one a class
    workspace_start,  # behind workspace_ptr: the table may come first in the same tensor
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
    COLUMNS: tl.constexpr,  # of add_tile's sums in a record
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    SOFTMAX: tl.constexpr,
    IDENTITY: tl.constexpr,  # the logits are probabilities
    MINIMUM: tl.constexpr,  # I is the sum of min(p, t)
    SQUARED: tl.constexpr,  # P and T are sums of squares
    FIRST: tl.constexpr,  # the first class of the region terms
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    VALID_KIND: tl.constexpr,  # "none", "sample", "pixel"
    HAS_IGNORE: tl.constexpr,
    IDS: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNK: tl.constexpr,  # tiles that a thread can count the pixels of
    BLOCK_STEPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PTX: tl.constexpr,
):
    TILE: tl.constexpr = ROWS * WIDTH
    NUM_POINT: tl.constexpr = len(TERMS)
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    NUM_PLANES: tl.constexpr = ID_PLANES if IDS else SOFT_PLANES
    ROW: tl.constexpr = RECORD + NUM_PLANES * C
    pid = tl.program_id(0)
    s = pid % S
    n = pid // S

    logits_ptr += pixel_base(n, 0, logits_stride_n, 0, ALIGNED)
    targets_ptr += pixel_base(n, 0, targets_stride_n, 0, ALIGNED)
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, ALIGNED and PIXEL_VALID)
    # so that the compiler knows, and to stop at the last pixel does not break up a wide load
    size = P // 16 * 16 if ALIGNED else P
    if VALID_KIND == "sample":
        if tl.load(valid_ptr) == 0:
            size = 0  # not annotated: nothing of the sample is read

    samples_ptr = workspace_ptr + workspace_start
    partials_ptr = samples_ptr + N * ROW
    row_ptr = partials_ptr + pid.to(tl.int64) * ROW
    step = tl.arange(0, LANES * BLOCK_STEPS)
    c = step % BLOCK_STEPS * LANES + step // BLOCK_STEPS
    zero = tl.zeros([LANES, ROWS], tl.float32)
    sums = ()
    for _k in tl.static_range(len(COLUMNS)):
        sums = sums + (zero,)
    extremes = (zero, zero)
    labelled = tl.zeros((), tl.float32)
    # Tiles are dealt out in turn, as in the binary kernel. One loop for whole and odd tiles: where
    # a tile ends costs a few instructions a pixel, not a class, and a second copy of the loop's
    # body takes seconds to compile. As many tiles at a time as a thread can count pixels.
    tiles = tl.cdiv(size, TILE)
    for chunk in range(tl.maximum(tl.cdiv(tiles, S * CHUNK), 1)):
        planes = ()
        for _k in tl.static_range((3 if IDS else 4) * STEPS):
            planes = planes + (zero,)
        begin = chunk * (S * CHUNK) + s
        for tile in tl.range(begin, tl.minimum(begin + S * CHUNK, tiles), S, num_stages=STAGES):
            xs, target, live, x_y = read_tile(
                logits_ptr, targets_ptr, valid_ptr, tile * TILE, size,
                logits_stride_c, logits_stride_p, targets_stride_c, targets_stride_p,
                valid_stride_p, ignore_index, C, STEPS, ROWS, LANES, WIDTH,
                SOFTMAX, IDS, UNIT, ALIGNED, PIXEL_VALID, HAS_IGNORE,
            )  # fmt: skip
            planes, sums, extremes = add_tile(
                planes, sums, extremes, xs, target, live, x_y,
                class_weights_ptr, vector_ptr, vector_stride, term_params,
                TERMS, BALANCED, SMOOTHED, SOFTMAX, IDENTITY, MINIMUM, SQUARED, IDS,
                C, STEPS, ROWS, LANES, WIDTH, PTX,
            )  # fmt: skip
        for plane in tl.static_range(NUM_PLANES):
            values = ()
            for j in tl.static_range(STEPS):
                if plane < 2:
                    value = planes[plane * STEPS + j]
                elif plane == TARGET_PLANE and not IDS:
                    value = planes[3 * STEPS + j]
                else:
                    value = counted(planes[2 * STEPS + j], plane)
                values = values + (value,)
            total = class_sums(values, ROWS, LANES, BLOCK_STEPS)
            ptrs = row_ptr + RECORD + plane * C + c
            before = tl.load(ptrs, mask=(c < C) & (chunk > 0), other=0.0)
            tl.store(ptrs, before + total, mask=c < C)
            if plane == TARGET_PLANE and IDS:
                labelled += tl.sum(total)
        tl.debug_barrier()  # the next chunk adds to what was stored here

    # ---- this program's partial sums
    flat = ()
    for k in tl.static_range(len(COLUMNS)):
        value = tl.reshape(sums[k], [LANES * ROWS])
        if SOFTMAX or k >= NUM_POINT:
            value *= 1.0 / LANES  # what belongs to a pixel was added up in every lane
        flat = flat + (value,)
    record = columns_sum(flat, COLUMNS, tl.zeros([LANES * ROWS], tl.float32))
    largest = tl.max(tl.max(extremes[0], 1))
    stray = tl.max(tl.max(extremes[1], 1))
    column = tl.arange(0, RECORD)
    seen = tl.sum(tl.where(column == FINITE, record, 0.0))
    nonfinite = tl.zeros((), tl.float32)
    bad_targets = tl.zeros((), tl.float32)
    # Only if something is wrong is each pixel looked at.
    if ((seen - seen) != 0.0) | (stray > 0.501) | (stray != stray):
        for tile in tl.range(s, tiles, S):
            xs, target, live, _ = read_tile(
                logits_ptr, targets_ptr, valid_ptr, tile * TILE, size,
                logits_stride_c, logits_stride_p, targets_stride_c, targets_stride_p,
                valid_stride_p, ignore_index, C, STEPS, ROWS, LANES, WIDTH,
                SOFTMAX, IDS, UNIT, ALIGNED, PIXEL_VALID, HAS_IGNORE,
            )  # fmt: skip
            for j in tl.static_range(STEPS):
                there = live & (j * LANES + lanes_of(LANES) < C)
                odd = there & ~(tl.abs(xs[j]) < float("inf"))
                nonfinite += tl.sum(tl.sum(tl.sum(tl.where(odd, 1.0, 0.0), 2), 1))
                if not IDS:
                    odd = there & ~(tl.abs(target[j] - 0.5) <= 0.501)
                    bad_targets += tl.sum(tl.sum(tl.sum(tl.where(odd, 1.0, 0.0), 2), 1))
    if IDS:  # labels that are no class; counted here, where a count is exact in float32
        bad_targets = tl.sum(tl.where(column == VALID, record, 0.0)) - labelled
    record = complete_record(record, largest, nonfinite, bad_targets, NUM_POINT, not SOFTMAX)
    tl.store(row_ptr + column, record)
    finish_class_program(
        loss_ptr, stats_ptr, table_ptr, samples_ptr, counters_ptr, alarm_ptr,
        class_weights_ptr, vector_ptr, n, s, N, S, TEAM,
        point_weights, region_weights, region_params,
        C, NUM_POINT, BALANCED, LOGS, POWERS, REDUCTION, SOFTMAX, FIRST, BATCH, ABSENT, IDS,
        ROW, BLOCK_C, BLOCK_ROW, BLOCK_ROWS,
    )  # fmt: skip
