"""From every class's sums to a loss, inside the multiclass forward launch.

The programs of a sample form teams. Who stores a team's last partial row adds its rows up, who
does so for a sample's last team finishes that sample, who finishes the last sample finishes the
loss. Rows are added in a fixed order: same inputs, same bits.

The rows are described in multiclass_rows.py. All is float32; G groups: N*C, or C with batch. The
table, kept for backward:

    norms      (2,)            1 / normaliser of the region terms, of the pointwise terms
    coefs      (2, G)          dL/dI and dL/dP of each group before that and the upstream gradient
    points     (NUM_POINT, C)  weight of each pointwise term for a target of that class
    shares     (N,)            further factor of a sample's pointwise terms: 1, with reduction none
                               1 / its divisor; with sums 1, or NaN where a label is no class

The workspace, gone after the launch:

    samples    (N, ROW)        the samples' rows
    partials   (N S, ROW)      the programs' rows
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize, multiclass_rows
from fastseg_losses.kernels.finalize import counted_groups, finish_terms, pick, store_statistics
from fastseg_losses.kernels.multiclass_rows import add_rows, load_plane, load_record
from fastseg_losses.kernels.region import region_term

RECORD = finalize.RECORD
OVERLAP = finalize.OVERLAP
TARGET = finalize.TARGET
ACTUAL = finalize.ACTUAL
HIT = finalize.HIT
FIRST_POINT = finalize.FIRST_POINT
VALID = finalize.VALID
LARGEST = finalize.LARGEST
BAD_TARGETS = finalize.BAD_TARGETS
COUNTED = finalize.COUNTED
FIRST_REGION = finalize.FIRST_REGION
NORMS = finalize.NORMS
NUM_FIELDS = finalize.NUM_FIELDS

OVERLAP_PLANE = multiclass_rows.OVERLAP_PLANE
MASS_PLANE = multiclass_rows.MASS_PLANE
TARGET_PLANE = multiclass_rows.TARGET_PLANE
PREDICTED_PLANE = multiclass_rows.PREDICTED_PLANE
HIT_PLANE = multiclass_rows.HIT_PLANE
ACTUAL_PLANE = multiclass_rows.ACTUAL_PLANE
ID_PLANES = multiclass_rows.ID_PLANES
SOFT_PLANES = multiclass_rows.SOFT_PLANES


@triton.jit
def region_terms(
    record,
    overlap,
    mass,
    target,
    valid,
    weight,
    region_weights,
    region_params,
    C: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    FIRST: tl.constexpr,
    ABSENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Every class's region loss and its derivatives to I and P, weighted; the record with them."""
    column = tl.arange(0, RECORD)
    c = tl.arange(0, BLOCK_C)
    there = (c >= FIRST) & (c < C)
    counts, loses = counted_groups(tl.where(there, valid, -1.0), target, ABSENT)
    loses = loses & there
    counted = tl.sum(tl.where(counts, 1.0 if ABSENT == "all" else weight, 0.0), 0)
    record = tl.where(column == COUNTED, counted, record)
    loss = tl.zeros([BLOCK_C], tl.float32)
    d_overlap = loss
    d_mass = loss
    for r in tl.static_range(len(LOGS)):
        value, di, dp = region_term(overlap, mass, target, region_params[r], LOGS[r], POWERS[r])
        # where, not a product: a group that does not count may hold inf or NaN.
        value = tl.where(loses, weight * value, 0.0)
        record = tl.where(column == FIRST_REGION + r, tl.sum(value, 0), record)
        loss += region_weights[r] * value
        d_overlap += tl.where(loses, region_weights[r] * weight * di, 0.0)
        d_mass += tl.where(loses, region_weights[r] * weight * dp, 0.0)
    return record, loss, d_overlap, d_mass, counted


@triton.jit
def load_weights(weights_ptr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The classes' weights, 1 each for None, 0 past the last."""
    c = tl.arange(0, BLOCK_C)
    if weights_ptr is not None:
        return tl.load(weights_ptr + c, mask=c < C, other=0.0)
    else:
        return tl.where(c < C, 1.0, 0.0)


@triton.jit
def finish_sample(
    # outputs
    loss_ptr,  # with reduction none (N, C - FIRST), or (N,) with pointwise terms; (4, N, C): sums
    table_ptr,
    sample_ptr,  # (ROW,)
    # inputs
    class_weights_ptr,  # (C,) or None
    # sizes
    n,
    N,
    # scalars
    point_weights,
    region_weights,
    region_params,
    # constexprs
    C: tl.constexpr,
    NUM_POINT: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    SOFTMAX: tl.constexpr,
    FIRST: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    IDS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Complete one sample's row; unless BATCH store its coefficients."""
    column = tl.arange(0, RECORD)
    c = tl.arange(0, BLOCK_C)
    record = load_record(sample_ptr)
    weight = load_weights(class_weights_ptr, C, BLOCK_C)
    overlap = load_plane(sample_ptr, OVERLAP_PLANE, C, BLOCK_C)
    mass = load_plane(sample_ptr, MASS_PLANE, C, BLOCK_C)
    target = load_plane(sample_ptr, TARGET_PLANE, C, BLOCK_C)
    hit = load_plane(sample_ptr, HIT_PLANE, C, BLOCK_C)
    valid = pick(record, column, VALID)
    if IDS:
        divisor = tl.sum(weight * target, 0)
        record = tl.where((column == TARGET) | (column == ACTUAL), valid, record)
        bad = pick(record, column, BAD_TARGETS)
        poison = tl.where(bad > 0.0, float("nan"), 1.0)
    else:
        divisor = valid
        poison = 1.0
    if not SOFTMAX:  # "all": a mean is not divided by the weights
        divisor = valid * (C if ABSENT == "all" else tl.sum(weight, 0))
    record = tl.where(column == OVERLAP, divisor, record)
    record = tl.where(column == HIT, tl.sum(hit, 0), record)
    record = tl.where(column == COUNTED, 0.0, record)
    if REDUCTION == "sums":
        at = loss_ptr + n * C + c
        tl.store(at, overlap * poison, mask=c < C)
        tl.store(at + N * C, mass * poison, mask=c < C)
        tl.store(at + 2 * N * C, target * poison, mask=c < C)
        tl.store(at + 3 * N * C, valid * poison + tl.zeros_like(mass), mask=c < C)

    share = tl.where(divisor > 0.0, 1.0 / divisor, 0.0) * poison
    region_share = poison
    if not BATCH:
        record, loss, d_overlap, d_mass, counted = region_terms(
            record, overlap, mass, target, valid, weight, region_weights, region_params,
            C, LOGS, POWERS, FIRST, ABSENT, BLOCK_C,
        )  # fmt: skip
        if REDUCTION == "none":
            if NUM_POINT > 0:
                region_share = tl.where(counted > 0.0, 1.0 / counted, 0.0) * poison
                total = tl.sum(loss, 0) * region_share
                for k in tl.static_range(NUM_POINT):
                    value = point_weights[k] * share * pick(record, column, FIRST_POINT + k)
                    total += tl.where(divisor > 0.0, value, 0.0)
                tl.store(loss_ptr + n, total)
            else:
                at = loss_ptr + n * (C - FIRST) + c - FIRST
                tl.store(at, loss * poison, mask=(c >= FIRST) & (c < C))
            d_overlap *= region_share
            d_mass *= region_share
        coefs_ptr = table_ptr + NORMS + n * C + c
        tl.store(coefs_ptr, d_overlap, mask=c < C)
        tl.store(coefs_ptr + N * C, d_mass, mask=c < C)
    groups = C if BATCH else N * C
    shares_ptr = table_ptr + NORMS + 2 * groups + NUM_POINT * C
    if REDUCTION == "none":
        tl.store(shares_ptr + n, share)
    else:
        tl.store(shares_ptr + n, poison if REDUCTION == "sums" else 1.0)
    tl.debug_barrier()  # all of the row has been read
    tl.store(sample_ptr + column, record)


@triton.jit
def finish_classes(
    # outputs
    loss_ptr,  # () or with reduction none and BATCH (C - FIRST,)
    stats_ptr,  # (NUM_FIELDS + terms + 5 C,)
    table_ptr,
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    samples_ptr,  # (N, ROW); the first becomes their sum
    class_weights_ptr,  # (C,) or None
    vector_ptr,  # (C,) alpha or None
    # sizes
    N,
    # scalars
    point_weights,
    region_weights,
    region_params,
    # constexprs
    C: tl.constexpr,
    NUM_POINT: tl.constexpr,
    BALANCED: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    FIRST: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    IDS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Reduce the samples to the loss, the terms' mean values, the normalisers, the statistics."""
    ROW: tl.constexpr = RECORD + (ID_PLANES if IDS else SOFT_PLANES) * C
    column = tl.arange(0, RECORD)
    c = tl.arange(0, BLOCK_C)
    if N > 1:
        add_rows(samples_ptr, samples_ptr, N, ROW, ROW, BLOCK_ROW, BLOCK_ROWS)
    record = load_record(samples_ptr)
    weight = load_weights(class_weights_ptr, C, BLOCK_C)
    target = load_plane(samples_ptr, TARGET_PLANE, C, BLOCK_C)
    valid = pick(record, column, VALID)
    poison = 1.0
    if IDS:
        bad = pick(record, column, BAD_TARGETS)
        poison = tl.where(bad > 0.0, float("nan"), 1.0)
    groups = N * C
    if BATCH:
        groups = C
        overlap = load_plane(samples_ptr, OVERLAP_PLANE, C, BLOCK_C)
        mass = load_plane(samples_ptr, MASS_PLANE, C, BLOCK_C)
        record, loss, d_overlap, d_mass, counted = region_terms(
            record, overlap, mass, target, valid, weight, region_weights, region_params,
            C, LOGS, POWERS, FIRST, ABSENT, BLOCK_C,
        )  # fmt: skip
        tl.store(table_ptr + NORMS + c, d_overlap, mask=c < C)
        tl.store(table_ptr + NORMS + C + c, d_mass, mask=c < C)
        if REDUCTION == "none":
            tl.store(loss_ptr + c - FIRST, loss * poison, mask=(c >= FIRST) & (c < C))
    points_ptr = table_ptr + NORMS + 2 * groups + c
    for k in tl.static_range(NUM_POINT):
        factor = point_weights[k] * weight
        if BALANCED[k] and vector_ptr is not None:
            factor *= tl.load(vector_ptr + c, mask=c < C, other=0.0)
        tl.store(points_ptr + k * C, factor, mask=c < C)
    if REDUCTION == "none" and not BATCH:
        poison = 1.0  # each sample has its own
    divisor = pick(record, column, OVERLAP)
    mean_loss = finish_terms(
        loss_ptr, stats_ptr, table_ptr, record, column, divisor, poison,
        point_weights, region_weights, NUM_POINT, len(LOGS), REDUCTION,
    )  # fmt: skip
    missed = valid - pick(record, column, HIT)
    store_statistics(
        stats_ptr, alarm_ptr, record, column, mean_loss, pick(record, column, LARGEST),
        missed, missed, 2,
    )  # fmt: skip

    # ---- each class, in the order of stats.CLASS_FIELDS
    predicted = load_plane(samples_ptr, PREDICTED_PLANE, C, BLOCK_C)
    hit = load_plane(samples_ptr, HIT_PLANE, C, BLOCK_C)
    actual = target
    if not IDS:
        actual = load_plane(samples_ptr, ACTUAL_PLANE, C, BLOCK_C)
    share = tl.where(valid > 0.0, 1.0 / valid, 0.0)
    stats_ptr += NUM_FIELDS + NUM_POINT + len(LOGS) + c
    tl.store(stats_ptr, predicted * share, mask=c < C)
    tl.store(stats_ptr + C, actual * share, mask=c < C)
    tl.store(stats_ptr + 2 * C, hit, mask=c < C)
    tl.store(stats_ptr + 3 * C, predicted - hit, mask=c < C)
    tl.store(stats_ptr + 4 * C, actual - hit, mask=c < C)
