"""The forward kernel: every sum in one read, the loss finished in the same launch.

Of a loss without a region term it writes the gradient too: no pixel's slope waits for a sum.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.gradient import slope_of_points
from fastseg_losses.kernels.last_program import complete_record, finish_program
from fastseg_losses.kernels.pixels import pixel_base, read_pixels, store_tile, tile_offsets
from fastseg_losses.kernels.terms import pixel_of
from fastseg_losses.kernels.words import (
    BYTE_BITS,
    add_words,
    fetch_words,
    halves_of,
    ready_words,
)

RECORD = finalize.RECORD
TARGET = finalize.TARGET
ACTUAL = finalize.ACTUAL
FIRST_POINT = finalize.FIRST_POINT
MASS = finalize.MASS
VALID = finalize.VALID
NORMS = finalize.NORMS


@triton.jit
def add_tile(
    sums,
    extremes,
    x,
    t,
    live,
    params,
    TERMS: tl.constexpr,
    COUNT: tl.constexpr,
    LOWEST: tl.constexpr,
    TARGETS: tl.constexpr,
    IDENTITY: tl.constexpr,
    PTX: tl.constexpr,
    LARGEST: tl.constexpr = True,
):
    """Add one tile to the sums; widen the extremes: largest logit, stray target, -smallest logit.

    The first and the last where LARGEST and LOWEST say so, the target unless TARGETS is "checked".
    Each accumulator is [ROWS], one register a thread for all of WIDTH neighbours.
    """
    pixel = pixel_of(x, t, TARGETS != "soft", IDENTITY, PTX)
    new = ()
    for k in tl.static_range(len(TERMS)):
        total, _ = TERMS[k](pixel, params, PTX)
        new = new + (sums[k] + total,)
    if COUNT:
        new = new + (sums[len(TERMS)] + tl.sum(tl.where(live, 1.0, 0.0), 1),)
    largest, stray, lowest = extremes
    if TARGETS != "checked":
        # a target that does not count was set to 0
        stray = tl.maximum(stray, tl.max(t if TARGETS == "unsigned" else tl.abs(t - 0.5), 1))
    if LARGEST:
        largest = tl.maximum(largest, tl.max(x, 1))
    if LOWEST:
        lowest = tl.maximum(lowest, tl.max(-x, 1))
    return new, (largest, stray, lowest)


@triton.jit
def join_halves(values):
    """Join each value of the first half with its partner; what is joined first counts most."""
    joined = ()
    for k in tl.static_range(len(values) // 2):
        joined = joined + (tl.join(values[k], values[k + len(values) // 2]),)
    return joined


@triton.jit
def columns_sum(sums, COLUMNS: tl.constexpr, zero):
    """The block-wide sums as one record: stacked and reduced together, one exchange for all."""
    stacked = ()
    for column in tl.static_range(RECORD):
        value = zero
        for k in tl.static_range(len(COLUMNS)):
            if COLUMNS[k] == column:
                value = sums[k]
        stacked = stacked + (value,)
    stacked = join_halves(join_halves(join_halves(join_halves(stacked))))
    return tl.reshape(tl.sum(stacked[0], 0), [RECORD])


# Sizes and strides change from call to call, and small tensors sit at any address: neither may
# start a compilation.
NOT_SPECIALIZED = (
    *("loss_ptr", "stats_ptr", "counters_ptr", "alarm_ptr", "class_weights_ptr", "pos_weight_ptr"),
    *("assumed_ptr", "N", "C", "P", "S", "pos_weight_stride", "workspace_start"),
    *("dlogits_stride_n", "dlogits_stride_c", "dlogits_stride_p"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_p"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_p"),
    *("valid_stride_n", "valid_stride_p"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _sums_forward_kernel(
    # outputs
    loss_ptr,  # () or (G,) or (4, G)
    stats_ptr,  # (NUM_FIELDS + terms,)
    table_ptr,  # norms, coefs: see finalize.py
    workspace_ptr,  # groups, partials: see finalize.py
    counters_ptr,  # (1 + G,) int32, with BATCH N C more; all 0 before and after
    alarm_ptr,  # (1,) int32 on the host, or None
    dlogits_ptr,  # (N, C, P), of losses without a region term; or None: the backward launch's
    # inputs
    logits_ptr,  # (N, C, P)
    targets_ptr,  # (N, C, P)
    valid_ptr,  # (N, P) or (N,) or None
    class_weights_ptr,  # (C,) or None
    pos_weight_ptr,  # (C,) or None
    assumed_ptr,  # (1,) the upstream gradient to assume, with dlogits_ptr
    # sizes
    N,
    C,
    P,
    S,  # programs a (sample, class)
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
    pos_weight_stride,  # 0 for one value, 1 for one a class
    workspace_start,  # behind workspace_ptr: the table may come first in the same tensor
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    point_weights,
    region_weights,
    region_params,
    ignore_index,
    point_scale,  # 1 / pixels under "mean", 1 under "sum"
    # constexprs
    TERMS: tl.constexpr,
    # of the terms' sums in a record, and of the count of live pixels, or of targets in WORDS
    COLUMNS: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    VALID_KIND: tl.constexpr,  # "none", "sample", "pixel"
    HAS_IGNORE: tl.constexpr,
    IDENTITY: tl.constexpr,  # the logits are probabilities
    TARGETS: tl.constexpr,  # "soft" in [0, 1], or 0 and 1 of a "signed" or "unsigned" type
    UNIT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WORDS: tl.constexpr,  # several pixels are read in an integer: see words.py
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    PTX: tl.constexpr,
):
    HARD: tl.constexpr = TARGETS != "soft"
    NUM_POINT: tl.constexpr = len(TERMS) - (4 if WORDS else 5 if HARD else 6)
    TILE: tl.constexpr = ROWS * WIDTH
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    COUNT: tl.constexpr = PIXEL_VALID or HAS_IGNORE
    # -inf leaves no trace in the region sums, but it makes every pointwise sum inf or NaN
    LOWEST: tl.constexpr = NUM_POINT == 0
    pid = tl.program_id(0)
    s = pid % S
    n = pid // S // C
    c = pid // S % C

    logits_ptr += pixel_base(n, c, logits_stride_n, logits_stride_c, ALIGNED)
    targets_ptr += pixel_base(n, c, targets_stride_n, targets_stride_c, ALIGNED)
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, ALIGNED and PIXEL_VALID)
    size = P
    if VALID_KIND == "sample":
        if tl.load(valid_ptr) == 0:
            size = 0  # not annotated: nothing of the sample is read
    pos_weight = 1.0
    if pos_weight_ptr is not None:
        pos_weight = tl.load(pos_weight_ptr + c * pos_weight_stride)
    params = (term_params[0], term_params[1], term_params[2], pos_weight, term_params[3])
    if dlogits_ptr is not None:
        dlogits_ptr += pixel_base(n, c, dlogits_stride_n, dlogits_stride_c, ALIGNED)
        assumed = tl.load(assumed_ptr)
        scale = assumed * point_scale
        if class_weights_ptr is not None:
            scale *= tl.load(class_weights_ptr + c)
        coefs = ()
        for k in tl.static_range(NUM_POINT):
            coefs = coefs + (point_weights[k] * scale,)

    zero = tl.zeros([ROWS], tl.float32)
    sums = ()
    for k in tl.static_range(len(TERMS) + (1 if COUNT else 0)):
        sums = sums + (zero,)
    bottom = tl.full([ROWS], float("-inf"), tl.float32)
    extremes = (bottom, zero, bottom)
    if WORDS:
        ones = tl.zeros([ROWS], tl.int32)  # targets of 1
        bits = tl.zeros([ROWS], tl.int32)  # of all words of targets
        top = tl.full([ROWS], -8323200, tl.int32)  # two largest logits: 0xFF80 is -inf
        byte_bits = BYTE_BITS + (S >> 31)  # S is positive, which ptxas cannot know
    # Tiles are dealt out in turn, so that all programs move through their groups together and what
    # the last of them read is still in the L2 cache when the backward kernel starts there.
    full = size // TILE
    # The odd tile first: every result of the loop then has one use, as Triton 3.6's
    # thread-locality pass asserts.
    odd_tile = (full * TILE < size) & (full % S == s)
    if odd_tile:
        x, t, live = read_pixels(
            logits_ptr, targets_ptr, valid_ptr, full * TILE, size,
            logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
            ROWS, WIDTH, UNIT, PIXEL_VALID, HAS_IGNORE, True,
        )  # fmt: skip
        sums, extremes = add_tile(
            sums, extremes, x, t, live, params, TERMS, COUNT, LOWEST, TARGETS, IDENTITY, PTX
        )
        if dlogits_ptr is not None:
            dx = slope_of_points(x, t, coefs, params, TERMS, HARD, IDENTITY, PTX)
            dx = tl.where(live, dx, 0.0)
            inside = full * TILE + tile_offsets(ROWS, WIDTH) < size
            store_tile(
                dlogits_ptr, full * TILE, dlogits_stride_p, dx, inside, ROWS, WIDTH, UNIT, True
            )
        if WORDS:
            ones += tl.sum(t, 1).to(tl.int32)
    if WORDS:  # asked for one tile ahead, so that none waits
        there = s + tl.zeros([ROWS], tl.int32) < full
        ahead = fetch_words(logits_ptr, targets_ptr, s, there, ROWS, WIDTH, True)
    for tile in tl.range(s, full, S, num_stages=STAGES):
        if WORDS:
            live = True
            fetched = ahead
            soon = tl.where(tile + S < full, tile + S, tile)
            ahead = fetch_words(logits_ptr, targets_ptr, soon, True, ROWS, WIDTH, False)
            x, t = ready_words(fetched, byte_bits, PTX)
            ones, bits, top = add_words(ones, bits, top, fetched, PTX)
        else:
            x, t, live = read_pixels(
                logits_ptr, targets_ptr, valid_ptr, tile * TILE, size,
                logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
                ROWS, WIDTH, UNIT, PIXEL_VALID, HAS_IGNORE, False,
            )  # fmt: skip
        sums, extremes = add_tile(
            sums, extremes, x, t, live, params, TERMS, COUNT, LOWEST,
            "checked" if WORDS else TARGETS, IDENTITY, PTX, not WORDS,
        )  # fmt: skip
        if dlogits_ptr is not None:
            dx = slope_of_points(x, t, coefs, params, TERMS, HARD, IDENTITY, PTX)
            if COUNT:
                dx = tl.where(live, dx, 0.0)
            store_tile(
                dlogits_ptr, tile * TILE, dlogits_stride_p, dx, live, ROWS, WIDTH, UNIT, False
            )

    if WORDS:
        sums = sums + (ones.to(tl.float32),)
        stray = tl.where((bits & ~0x01010101) != 0, 2.0, 0.0)
        low, high = halves_of(top)
        largest = tl.maximum(extremes[0], tl.maximum(low, high))
        extremes = (largest, tl.maximum(extremes[1], stray), extremes[2])
    record = columns_sum(sums, COLUMNS, zero)
    peaks = tl.max(tl.join(tl.join(extremes[0], extremes[2]), tl.join(extremes[1], bottom)), 0)
    at = tl.arange(0, 2)[:, None] + 2 * tl.arange(0, 2)[None, :]  # of extremes[0], [1], [2]
    largest = tl.max(tl.where(at == 0, peaks, float("-inf")))
    stray = tl.max(tl.where(at == 2, peaks, float("-inf")))

    column = tl.arange(0, RECORD)
    # what shows a NaN or an inf, among the logits or the targets
    seen = tl.sum(tl.where(column == (TARGET if LOWEST else FIRST_POINT), record, 0.0))
    if LOWEST:
        seen += tl.sum(tl.where(column == MASS, record, 0.0))
    nonfinite = tl.zeros((), tl.float32)
    bad_targets = tl.zeros((), tl.float32)
    # max drops NaN, the sums do not. Only if something is wrong is each pixel looked at.
    odd = (largest == float("inf")) | ((seen - seen) != 0.0)
    if LOWEST:
        odd = odd | (tl.max(tl.where(at == 1, peaks, float("-inf"))) == float("inf"))
    if odd | (stray > (1.0 if TARGETS == "unsigned" else 0.501)):
        for tile in range(s, tl.cdiv(size, TILE), S):
            x, t, live = read_pixels(
                logits_ptr, targets_ptr, valid_ptr, tile * TILE, size,
                logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
                ROWS, WIDTH, UNIT, PIXEL_VALID, HAS_IGNORE, True,
            )  # fmt: skip
            nonfinite += tl.sum(tl.sum(tl.where(tl.abs(x) < float("inf"), 0.0, 1.0), 1))
            bad_targets += tl.sum(tl.sum(tl.where(tl.abs(t - 0.5) <= 0.501, 0.0, 1.0), 1))
    if not COUNT:
        tiles = tl.maximum(full - s + S - 1, 0) // S
        count = tiles * TILE + tl.where(odd_tile, size - full * TILE, 0)
        record = tl.where(column == VALID, count.to(tl.float32), record)
    if HARD:
        target = tl.sum(tl.where(column == TARGET, record, 0.0))
        record = tl.where(column == ACTUAL, target, record)
    if dlogits_ptr is not None:
        if pid == 0:
            G = N * C
            if BATCH:
                G = C
            tl.store(table_ptr + NORMS + (2 + NUM_POINT) * G, assumed)
    record = complete_record(record, largest, nonfinite, bad_targets, NUM_POINT, True)

    finish_program(
        loss_ptr, stats_ptr, table_ptr, workspace_ptr + workspace_start, counters_ptr, alarm_ptr,
        record, class_weights_ptr, n, c, pid, N, C, S, point_weights, region_weights, region_params,
        NUM_POINT, LOGS, POWERS, REDUCTION, BATCH, ABSENT, IDENTITY,
    )  # fmt: skip
