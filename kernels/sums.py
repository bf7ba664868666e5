"""The forward kernel: every sum in one read, the loss finished in the same launch."""

import triton
import triton.language as tl

from fastseg_losses.kernels.finalize import FIRST_POINT, MASS, NORMS, finish_group, finish_loss
from fastseg_losses.kernels.terms import sigmoid_pixel


@triton.jit
def tile_offsets(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Pixels of a tile as [ROWS, WIDTH]: WIDTH neighbours a thread, so that a sum over them costs one register."""
    return tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_tile(
    base_ptr, start, stride_p, inside, ROWS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, CHECK: tl.constexpr
):
    """One tile of a group's pixels from `start`; CHECK: only where `inside`."""
    i = tile_offsets(ROWS, WIDTH)
    if UNIT:
        ptrs = base_ptr + start + i
    else:
        ptrs = base_ptr + start * stride_p.to(tl.int64) + i * stride_p
    if CHECK:
        return tl.load(ptrs, mask=inside, other=0)
    else:
        return tl.load(ptrs)


@triton.jit
def read_pixels(
    logits_ptr,
    targets_ptr,
    valid_ptr,
    start,
    end,
    logits_stride_p,
    targets_stride_p,
    valid_stride_p,
    ignore_index,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    PIXEL_VALID: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Logits and targets of a tile as float32 (0 where they do not count), and where they count."""
    inside = start + tile_offsets(ROWS, WIDTH) < end
    x = load_tile(logits_ptr, start, logits_stride_p, inside, ROWS, WIDTH, UNIT, CHECK).to(tl.float32)
    t = load_tile(targets_ptr, start, targets_stride_p, inside, ROWS, WIDTH, UNIT, CHECK).to(tl.float32)
    live = inside
    if PIXEL_VALID:
        flag = load_tile(valid_ptr, start, valid_stride_p, inside, ROWS, WIDTH, UNIT, CHECK)
        live = live & (flag != 0)
    if HAS_IGNORE:
        live = live & (t != ignore_index)
    if CHECK or PIXEL_VALID or HAS_IGNORE:
        # where, not a product: an invalid pixel may hold NaN
        x = tl.where(live, x, 0.0)
        t = tl.where(live, t, 0.0)
    return x, t, live


@triton.jit
def add_tile(
    sums,
    extremes,
    x,
    t,
    live,
    params,
    TERMS: tl.constexpr,
    MASKED: tl.constexpr,
    COUNT: tl.constexpr,
    BINARY_TARGETS: tl.constexpr,
    PTX: tl.constexpr,
):
    """Add one tile to the sums, and widen the extremes (largest logit, smallest logit, target farthest from 0.5)."""
    pixel = sigmoid_pixel(x, t, PTX)
    new = ()
    for k in tl.static_range(len(TERMS)):
        value, _ = TERMS[k](pixel, params, PTX)
        if MASKED:
            value = tl.where(live, value, 0.0)
        new = new + (sums[k] + tl.sum(value, 1),)
    if COUNT:
        new = new + (sums[len(TERMS)] + tl.sum(tl.where(live, 1.0, 0.0), 1),)
    largest, smallest, stray = extremes
    if MASKED:
        largest = tl.maximum(largest, tl.max(tl.where(live, x, float("-inf")), 1))
        smallest = tl.minimum(smallest, tl.min(tl.where(live, x, float("inf")), 1))
    else:
        largest = tl.maximum(largest, tl.max(x, 1))
        smallest = tl.minimum(smallest, tl.min(x, 1))
    if not BINARY_TARGETS:
        # an invalid target was set to 0, which is as far from 0.5 as a good one may be
        stray = tl.maximum(stray, tl.max(tl.abs(t - 0.5), 1))
    return new, (largest, smallest, stray)


# Sizes and strides change from call to call, and small tensors sit at any address: neither may start a compilation.
NOT_SPECIALIZED = (
    *("loss_ptr", "stats_ptr", "counters_ptr", "alarm_ptr", "class_weights_ptr", "pos_weight_ptr"),
    *("N", "C", "P", "S", "pos_weight_stride"),
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
    counters_ptr,  # (1 + G,) int32, all 0 before and after
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    logits_ptr,  # (N, C, P)
    targets_ptr,  # (N, C, P)
    valid_ptr,  # (N, P) or (N,) or None
    class_weights_ptr,  # (C,) or None
    pos_weight_ptr,  # (C,) or None
    # sizes
    N,
    C,
    P,
    S,  # programs a (sample, class)
    # strides
    logits_stride_n,
    logits_stride_c,
    logits_stride_p,
    targets_stride_n,
    targets_stride_c,
    targets_stride_p,
    valid_stride_n,
    valid_stride_p,
    pos_weight_stride,  # 0 for one value, 1 for one a class
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    point_weights,
    region_weights,
    region_params,
    ignore_index,
    # constexprs
    TERMS: tl.constexpr,
    LOGS: tl.constexpr,
    REDUCTION: tl.constexpr,
    BATCH: tl.constexpr,
    SKIP_ABSENT: tl.constexpr,
    VALID: tl.constexpr,  # "none", "sample", "pixel"
    HAS_IGNORE: tl.constexpr,
    BINARY_TARGETS: tl.constexpr,  # bool targets: nothing to check
    UNIT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    PTX: tl.constexpr,
):
    K: tl.constexpr = len(TERMS)
    NUM_POINT: tl.constexpr = len(TERMS) - FIRST_POINT
    NUM_REGION: tl.constexpr = len(LOGS)
    TILE: tl.constexpr = ROWS * WIDTH
    COUNT: tl.constexpr = (VALID == "pixel") or HAS_IGNORE
    pid = tl.program_id(0)
    s = pid % S
    n = pid // S // C
    c = pid // S % C

    logits_base = n.to(tl.int64) * logits_stride_n + c.to(tl.int64) * logits_stride_c
    targets_base = n.to(tl.int64) * targets_stride_n + c.to(tl.int64) * targets_stride_c
    valid_base = n.to(tl.int64) * valid_stride_n
    if ALIGNED:
        logits_base = tl.multiple_of(logits_base, 16)
        targets_base = tl.multiple_of(targets_base, 16)
        if VALID == "pixel":
            valid_base = tl.multiple_of(valid_base, 16)
    logits_ptr += logits_base
    targets_ptr += targets_base
    if VALID != "none":
        valid_ptr += valid_base

    chunk = tl.cdiv(tl.cdiv(P, S), TILE) * TILE
    begin = tl.multiple_of(s * chunk, 16)
    end = tl.minimum(begin + chunk, P)
    if VALID == "sample":
        if tl.load(valid_ptr) == 0:
            end = begin  # not annotated: nothing of the sample is read
    full = begin + tl.maximum(end - begin, 0) // TILE * TILE

    pos_weight = 1.0
    if pos_weight_ptr is not None:
        pos_weight = tl.load(pos_weight_ptr + c * pos_weight_stride)
    params = (term_params[0], term_params[1], term_params[2], pos_weight, term_params[3])

    sums = ()
    for k in tl.static_range(K + (1 if COUNT else 0)):
        sums = sums + (tl.zeros([ROWS], tl.float32),)
    extremes = (
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.full([ROWS], float("inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
    )
    # The odd tile first: every result of the loop then has one use, which Triton 3.6's thread-locality pass asserts.
    if full < end:
        x, t, live = read_pixels(
            logits_ptr, targets_ptr, valid_ptr, full, end,
            logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
            ROWS, WIDTH, UNIT, VALID == "pixel", HAS_IGNORE, True,
        )  # fmt: skip
        sums, extremes = add_tile(sums, extremes, x, t, live, params, TERMS, True, COUNT, BINARY_TARGETS, PTX)
    for start in tl.range(begin, full, TILE, num_stages=STAGES):
        x, t, live = read_pixels(
            logits_ptr, targets_ptr, valid_ptr, start, end,
            logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
            ROWS, WIDTH, UNIT, VALID == "pixel", HAS_IGNORE, False,
        )  # fmt: skip
        sums, extremes = add_tile(
            sums, extremes, x, t, live, params, TERMS, COUNT, COUNT, BINARY_TARGETS, PTX
        )

    largest = tl.max(extremes[0])
    smallest = tl.min(extremes[1])
    stray = tl.max(extremes[2])
    nonfinite = 0.0
    bad_targets = 0.0
    totals = ()
    for k in tl.static_range(K + (1 if COUNT else 0)):
        totals = totals + (tl.sum(sums[k]),)
    # fmax drops NaN; the sum of probabilities does not. Only then are the pixels looked at one by one.
    odd = (largest == float("inf")) | (smallest == float("-inf")) | (totals[MASS] != totals[MASS])
    if odd | (stray > 0.501):
        for start in range(begin, end, TILE):
            x, t, live = read_pixels(
                logits_ptr, targets_ptr, valid_ptr, start, end,
                logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
                ROWS, WIDTH, UNIT, VALID == "pixel", HAS_IGNORE, True,
            )  # fmt: skip
            nonfinite += tl.sum(tl.sum(tl.where(tl.abs(x) < float("inf"), 0.0, 1.0), 1))
            bad_targets += tl.sum(tl.sum(tl.where(tl.abs(t - 0.5) > 0.501, 1.0, 0.0), 1))

    total_rows = N * C * S
    G = N * C
    if BATCH:
        G = C
    coefs_ptr = table_ptr + NORMS
    groups_ptr = workspace_ptr
    partials_ptr = groups_ptr + (K + 5 + NUM_REGION) * G
    for k in tl.static_range(K):
        total = totals[k]
        if k >= FIRST_POINT:
            # as in PyTorch: an infinite logit makes the cross-entropy NaN (inf - inf), even where its target agrees
            total = tl.where(nonfinite > 0.0, float("nan"), total)
        tl.store(partials_ptr + k * total_rows + pid, total)
    if COUNT:
        valid_count = totals[K]
    else:
        valid_count = tl.maximum(end - begin, 0).to(tl.float32)
    tl.store(partials_ptr + K * total_rows + pid, valid_count)
    tl.store(partials_ptr + (K + 1) * total_rows + pid, largest)
    tl.store(partials_ptr + (K + 2) * total_rows + pid, nonfinite)
    tl.store(partials_ptr + (K + 3) * total_rows + pid, bad_targets)

    # ---- the last program of a group finishes it, the last group finishes the loss
    if BATCH:
        g = c
        rows = N * S
        first = c * S
        jump = C * S
    else:
        g = n * C + c
        rows = S
        first = g * S
        jump = S
    tl.debug_barrier()  # every thread's stores come before the one thread's release
    arrived = tl.atomic_add(counters_ptr + 1 + g, 1, sem="acq_rel")
    if arrived == rows - 1:
        tl.debug_barrier()
        weight = 1.0
        if class_weights_ptr is not None:
            weight = tl.load(class_weights_ptr + c)
        finish_group(
            loss_ptr, coefs_ptr, groups_ptr, partials_ptr, weight, g, G, rows, S, jump, first, total_rows,
            point_weights, region_weights, region_params, NUM_POINT, LOGS, REDUCTION, SKIP_ABSENT,
        )  # fmt: skip
        tl.store(counters_ptr + 1 + g, 0)
        tl.debug_barrier()
        finished = tl.atomic_add(counters_ptr, 1, sem="acq_rel")
        if finished == G - 1:
            tl.debug_barrier()
            finish_loss(
                loss_ptr, stats_ptr, table_ptr, alarm_ptr, groups_ptr, class_weights_ptr, C, G,
                point_weights, region_weights, NUM_POINT, NUM_REGION, REDUCTION,
            )  # fmt: skip
            tl.store(counters_ptr, 0)
