"""From sums to a loss, inside the forward launch: formulas, coefficients, statistics.

Which program does it, last_program.py says. All walk records in a fixed order, so the same inputs
give the same bits whichever program comes last.

A record is RECORD float32 in a row, one cache sector pair, so that a table of them is read in one
coalesced load and summed by one reduction. Its columns:

    0 OVERLAP  1 MASS  2 TARGET  3 PREDICTED  4 ACTUAL  5 HIT        what terms.SUMS add up
    6, 7                                                            the pointwise terms
    8 VALID    9 LARGEST  10 NONFINITE  11 BAD_TARGETS              pixels, logit, logits, targets
    12 COUNTED  13 and on      of groups only: 1 if it has a region score, the region losses

All float32 (G groups: N*C, or C with batch; D differentiable terms). The table, kept for backward:

    norms      (2,)           1 / normaliser of the region terms, of the pointwise terms
    coefs      (D, G)         dL/d(sum) of each group before that factor and the upstream gradient

The workspace, gone after the launch:

    groups     (G, RECORD)    the groups' records
    partials   (rows, RECORD) the programs' records
"""

import triton
import triton.language as tl

from fastseg_losses.kernels.region import region_term
from fastseg_losses.kernels.special import LOG2E

RECORD = tl.constexpr(16)
OVERLAP = tl.constexpr(0)
MASS = tl.constexpr(1)
TARGET = tl.constexpr(2)
PREDICTED = tl.constexpr(3)
ACTUAL = tl.constexpr(4)
HIT = tl.constexpr(5)
FIRST_POINT = tl.constexpr(6)
VALID = tl.constexpr(8)
LARGEST = tl.constexpr(9)
NONFINITE = tl.constexpr(10)
BAD_TARGETS = tl.constexpr(11)
COUNTED = tl.constexpr(12)
FIRST_REGION = tl.constexpr(13)

NORMS = tl.constexpr(2)
NUM_FIELDS = tl.constexpr(12)  # of a statistics row before the terms: stats.FIELDS
BLOCK_ROWS = tl.constexpr(128)  # partial records read at once
BLOCK_G = tl.constexpr(64)  # groups read at once


@triton.jit
def counted_groups(valid, target, ABSENT: tl.constexpr):
    """Which groups count in a mean, and which of them lose something."""
    counts = valid > 0.0
    if ABSENT == "zero" or ABSENT == "all":
        counts = valid >= 0.0
    present = target > 0.0
    if ABSENT == "skip":
        counts = counts & present
    loses = counts
    if ABSENT == "zero":
        loses = present
    return counts, loses


@triton.jit
def pick(record, column, k: tl.constexpr):
    """Entry k of a record; where, not a product: another entry may be inf or NaN."""
    return tl.sum(tl.where(column == k, record, 0.0), 0)


@triton.jit
def pick_each(records, column, k: tl.constexpr):
    """Entry k of each record."""
    return tl.sum(tl.where(column[None, :] == k, records, 0.0), 1)


@triton.jit
def reduce_records(records_ptr, rows, first, inner, jump, row, column):
    """The sum (LARGEST: the maximum) of `rows` records in runs of `inner`, one run every `jump`."""
    total = (row[:, None] + column[None, :]).to(tl.float32) * 0.0
    peak = total + float("-inf")
    for start in range(0, rows, BLOCK_ROWS):
        r = start + row[:, None]
        here = (r < rows) & (column[None, :] >= 0)
        at = (first + (r // inner) * jump + r % inner) * RECORD + column[None, :]
        record = tl.load(records_ptr + at, mask=here, other=0.0, cache_modifier=".cg")
        total += record
        peak = tl.maximum(peak, tl.where(here, record, float("-inf")))
    return tl.where(column == LARGEST, tl.max(peak, 0), tl.sum(total, 0))


@triton.jit
def finish_groups(
    # outputs
    loss_ptr,  # (G,) with reduction none, (4, G) with sums
    coefs_ptr,  # (D, G)
    # inputs
    records,  # (B, RECORD) of groups
    weight,  # (B,) of their classes
    # sizes
    g,  # (B,) their numbers
    G,
    # scalars
    point_weights,
    region_weights,
    region_params,
    # constexprs
    NUM_POINT: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    ABSENT: tl.constexpr,
):
    """Store groups' gradient coefficients; their records, with what only groups have."""
    column = tl.arange(0, RECORD)
    here = g < G
    overlap = pick_each(records, column, OVERLAP)
    mass = pick_each(records, column, MASS)
    target = pick_each(records, column, TARGET)
    valid = pick_each(records, column, VALID)
    if REDUCTION == "sums":
        tl.store(loss_ptr + g, overlap, mask=here)
        tl.store(loss_ptr + G + g, mass, mask=here)
        tl.store(loss_ptr + 2 * G + g, target, mask=here)
        tl.store(loss_ptr + 3 * G + g, valid, mask=here)
    counts, loses = counted_groups(valid, target, ABSENT)
    counted = tl.where(here & counts, 1.0, 0.0)
    records = tl.where(column[None, :] == COUNTED, counted[:, None], records)
    loss = valid * 0.0
    d_overlap = loss
    d_mass = loss
    for r in tl.static_range(len(LOGS)):
        value, di, dp = region_term(overlap, mass, target, region_params[r], LOGS[r], POWERS[r])
        # where, not a product: a group that does not count may hold inf or NaN.
        value = tl.where(here & loses, value, 0.0)
        records = tl.where(column[None, :] == FIRST_REGION + r, value[:, None], records)
        loss += region_weights[r] * weight * value
        d_overlap += tl.where(loses, region_weights[r] * weight * di, 0.0)
        d_mass += tl.where(loses, region_weights[r] * weight * dp, 0.0)
    tl.store(coefs_ptr + g, d_overlap, mask=here)
    tl.store(coefs_ptr + G + g, d_mass, mask=here)
    share = weight
    if REDUCTION == "none":
        share = tl.where(valid > 0.0, weight / tl.maximum(valid, 1.0), 0.0)
    for k in tl.static_range(NUM_POINT):
        tl.store(coefs_ptr + (2 + k) * G + g, point_weights[k] * share, mask=here)
        value = point_weights[k] * share * pick_each(records, column, FIRST_POINT + k)
        loss += tl.where(valid > 0.0, value, 0.0)
    if REDUCTION == "none":
        tl.store(loss_ptr + g, loss, mask=here)
    return records


@triton.jit
def finish_terms(
    loss_ptr,
    stats_ptr,
    norms_ptr,
    record,
    column,
    divisor,
    poison,
    point_weights,
    region_weights,
    NUM_POINT: tl.constexpr,
    NUM_REGION: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    """From the weighted sum of all records: the loss, the terms' mean values, the normalisers.

    The divisor is that of the pointwise terms' mean; the poison is 1, or NaN to spoil the loss and
    its gradient. Returns the mean loss.
    """
    region_norm = pick(record, column, COUNTED)
    point_norm = tl.where(divisor > 0.0, 1.0 / divisor, 0.0)
    region_norm = tl.where(region_norm > 0.0, 1.0 / region_norm, 0.0)
    mean_loss = 0.0
    sum_loss = 0.0
    for k in tl.static_range(NUM_POINT):
        term = pick(record, column, FIRST_POINT + k)
        # where: nothing valid is 0, whatever the sum holds
        value = tl.where(point_norm > 0.0, term * point_norm, 0.0)
        tl.store(stats_ptr + NUM_FIELDS + k, value)
        mean_loss += point_weights[k] * value
        sum_loss += point_weights[k] * term
    for r in tl.static_range(NUM_REGION):
        term = pick(record, column, FIRST_REGION + r)
        value = tl.where(region_norm > 0.0, term * region_norm, 0.0)
        tl.store(stats_ptr + NUM_FIELDS + NUM_POINT + r, value)
        mean_loss += region_weights[r] * value
        sum_loss += region_weights[r] * term
    if REDUCTION == "mean":
        tl.store(loss_ptr, mean_loss * poison)
        tl.store(norms_ptr, region_norm * poison)
        tl.store(norms_ptr + 1, point_norm * poison)
    else:
        if REDUCTION == "sum":
            tl.store(loss_ptr, sum_loss * poison)
        tl.store(norms_ptr, poison)
        tl.store(norms_ptr + 1, poison)
    return mean_loss


@triton.jit
def store_statistics(stats_ptr, alarm_ptr, record, column, loss, largest, fp, fn, alarm):
    """The statistics from the sum of all records, in the order of stats.FIELDS; the alarm."""
    valid = pick(record, column, VALID)
    share = tl.where(valid > 0.0, 1.0 / valid, 0.0)
    bad = pick(record, column, BAD_TARGETS)
    tl.store(stats_ptr, loss)
    tl.store(stats_ptr + 1, pick(record, column, MASS) * share)
    tl.store(stats_ptr + 2, pick(record, column, TARGET) * share)
    tl.store(stats_ptr + 3, largest)
    tl.store(stats_ptr + 4, pick(record, column, PREDICTED) * share)
    tl.store(stats_ptr + 5, pick(record, column, ACTUAL) * share)
    tl.store(stats_ptr + 6, pick(record, column, HIT))
    tl.store(stats_ptr + 7, fp)
    tl.store(stats_ptr + 8, fn)
    tl.store(stats_ptr + 9, valid)
    tl.store(stats_ptr + 10, pick(record, column, NONFINITE))
    tl.store(stats_ptr + 11, bad)
    if alarm_ptr is not None:
        if bad > 0.0:
            tl.store(alarm_ptr, alarm)


@triton.jit
def finish_sums(
    # outputs
    loss_ptr,  # ()
    stats_ptr,  # (NUM_FIELDS + terms,)
    norms_ptr,  # (2,)
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    total,  # (RECORD,) sum of the groups' records
    weighted,  # the same with the weights of their classes
    largest,  # logit
    column,
    # scalars
    point_weights,
    region_weights,
    # constexprs
    NUM_POINT: tl.constexpr,
    NUM_REGION: tl.constexpr,
    REDUCTION: tl.constexpr,
    ABSENT: tl.constexpr,
    IDENTITY: tl.constexpr,  # the logits are probabilities
):
    """From the sums of all groups: the loss, the terms' means, the normalisers, statistics."""
    if ABSENT == "all":  # a mean is not divided by the weights
        weighted = tl.where((column == COUNTED) | (column == VALID), total, weighted)
    mean_loss = finish_terms(
        loss_ptr, stats_ptr, norms_ptr, weighted, column, pick(weighted, column, VALID), 1.0,
        point_weights, region_weights, NUM_POINT, NUM_REGION, REDUCTION,
    )  # fmt: skip
    if not IDENTITY:
        largest = 1.0 / (1.0 + tl.exp2(-largest * LOG2E))
    hit = pick(total, column, HIT)
    store_statistics(
        stats_ptr, alarm_ptr, total, column, mean_loss, largest,
        pick(total, column, PREDICTED) - hit, pick(total, column, ACTUAL) - hit, 1,
    )  # fmt: skip


@triton.jit
def finish_loss(
    # outputs
    loss_ptr,  # ()
    stats_ptr,  # (NUM_FIELDS + terms,)
    norms_ptr,  # (2,)
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    groups_ptr,  # (G, RECORD)
    class_weights_ptr,  # (C,) or None
    # sizes
    C,
    G,
    row,  # 0 to BLOCK_G - 1
    column,  # 0 to RECORD - 1
    # scalars
    point_weights,
    region_weights,
    # constexprs
    NUM_POINT: tl.constexpr,
    NUM_REGION: tl.constexpr,
    REDUCTION: tl.constexpr,
    ABSENT: tl.constexpr,
    IDENTITY: tl.constexpr,  # the logits are probabilities
):
    """Add up the groups' records and finish the loss."""
    total = (row[:, None] + column[None, :]).to(tl.float32) * 0.0
    weighted = total
    peak = total + float("-inf")
    for start in range(0, G, BLOCK_G):
        g = start + row[:, None]
        here = (g < G) & (column[None, :] >= 0)
        at = g * RECORD + column[None, :]
        record = tl.load(groups_ptr + at, mask=here, other=0.0, cache_modifier=".cg")
        total += record
        peak = tl.maximum(peak, tl.where(here, record, float("-inf")))
        if class_weights_ptr is not None:
            weighted += tl.load(class_weights_ptr + g % C, mask=g < G, other=0.0) * record
    total = tl.sum(total, 0)
    if class_weights_ptr is not None:
        weighted = tl.sum(weighted, 0)
    else:
        weighted = total

    finish_sums(
        loss_ptr, stats_ptr, norms_ptr, alarm_ptr, total, weighted,
        pick(tl.max(peak, 0), column, LARGEST), column,
        point_weights, region_weights, NUM_POINT, NUM_REGION, REDUCTION, ABSENT, IDENTITY,
    )  # fmt: skip
