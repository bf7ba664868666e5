"""From sums to a loss, inside the forward launch: region formulas, gradient coefficients, terms and statistics.

The program that stores a group's last partial row finishes that group; the one that finishes the last group finishes the
loss. Both walk rows in a fixed order, so the same inputs give the same bits whichever program comes last.

All float32 (G groups: N*C, or C with batch; K sums a group; D differentiable terms; R region terms). The table, kept for
backward:

    norms      (2,)           1 / normaliser of the region terms, of the pointwise terms
    coefs      (D, G)         dL/d(sum) of each group before that factor and before the upstream gradient

The workspace, gone after the launch:

    groups     (K + 5 + R, G) the group's sums, then valid count, largest logit, non-finite logits, bad targets, counted or not;
                              then its region losses
    partials   (K + 4, rows)  the same sums by program, without the last entries
"""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
SCORE_FLOOR = tl.constexpr(1e-7)

# Rows of a group table: the six sums that every launch takes (the order of terms.SUMS), the pointwise ones behind them.
OVERLAP = tl.constexpr(0)
MASS = tl.constexpr(1)
TARGET = tl.constexpr(2)
PREDICTED = tl.constexpr(3)
ACTUAL = tl.constexpr(4)
HIT = tl.constexpr(5)
FIRST_POINT = tl.constexpr(6)
# Behind the K sums:
VALID = tl.constexpr(0)
LARGEST = tl.constexpr(1)
NONFINITE = tl.constexpr(2)
BAD_TARGETS = tl.constexpr(3)
COUNTED = tl.constexpr(4)

NORMS = tl.constexpr(2)
NUM_FIELDS = tl.constexpr(12)  # of a statistics row before the terms: stats.FIELDS
BLOCK_ROWS = tl.constexpr(256)  # partial rows read at once
BLOCK_G = tl.constexpr(128)  # groups read at once


@triton.jit
def region_term(overlap, mass, target, term, LOG: tl.constexpr):
    """A region term of one group, and its derivatives with respect to I and P.

    ((1 - score) or -log(score)) ** gamma with score = (I + s) / ((1 - alpha - beta) I + alpha P + beta T + s).
    """
    alpha, beta, smooth, gamma = term
    top = overlap + smooth
    whole = (1.0 - alpha - beta) * overlap + alpha * mass + beta * target + smooth
    empty = whole <= 0.0
    whole = tl.where(empty, 1.0, whole)
    score = tl.where(empty, 1.0, top / whole)
    d_overlap = tl.where(empty, 0.0, (1.0 - score * (1.0 - alpha - beta)) / whole)
    d_mass = tl.where(empty, 0.0, -score * alpha / whole)
    if LOG:
        base = -tl.log2(tl.maximum(score, SCORE_FLOOR)) * LN2
        d_base = tl.where(score >= SCORE_FLOOR, -1.0 / tl.maximum(score, SCORE_FLOOR), 0.0)
    else:
        base = 1.0 - score
        d_base = -1.0
    # base ** gamma, a straight line below the floor, where gamma < 1 has no finite slope.
    power = tl.exp2((gamma - 1.0) * tl.log2(tl.maximum(base, SCORE_FLOOR)))
    slope = d_base * power * tl.where(base >= SCORE_FLOOR, gamma, 1.0)
    return base * power, slope * d_overlap, slope * d_mass


@triton.jit
def column_sum(column_ptr, first, rows, inner, jump):
    """Sum of `rows` entries that lie in runs of `inner`, one run every `jump`."""
    total = 0.0
    for start in range(0, rows, BLOCK_ROWS):
        r = start + tl.arange(0, BLOCK_ROWS)
        at = first + (r // inner) * jump + r % inner
        total += tl.sum(tl.load(column_ptr + at, mask=r < rows, other=0.0, cache_modifier=".cg"))
    return total


@triton.jit
def column_max(column_ptr, first, rows, inner, jump):
    """Largest of the entries that `column_sum` adds."""
    largest = float("-inf")
    for start in range(0, rows, BLOCK_ROWS):
        r = start + tl.arange(0, BLOCK_ROWS)
        at = first + (r // inner) * jump + r % inner
        value = tl.load(column_ptr + at, mask=r < rows, other=float("-inf"), cache_modifier=".cg")
        largest = tl.maximum(largest, tl.max(value))
    return largest


@triton.jit
def finish_group(
    # outputs
    loss_ptr,  # (G,) with reduction none, (4, G) with sums
    coefs_ptr,  # (D, G)
    groups_ptr,  # (K + 5 + R, G)
    # inputs
    partials_ptr,  # (K + 4, total_rows)
    weight,  # of the group's class
    # sizes
    g,
    G,
    rows,
    inner,
    jump,
    first,
    total_rows,
    # scalars
    point_weights,
    region_weights,
    region_params,
    # constexprs
    NUM_POINT: tl.constexpr,
    LOGS: tl.constexpr,
    REDUCTION: tl.constexpr,
    SKIP_ABSENT: tl.constexpr,
):
    """Reduce one group's partial rows; store its sums, region losses and gradient coefficients."""
    K: tl.constexpr = FIRST_POINT + NUM_POINT
    sums = ()
    for k in tl.static_range(K + 4):
        if k == K + LARGEST:
            value = column_max(partials_ptr + k * total_rows, first, rows, inner, jump)
        else:
            value = column_sum(partials_ptr + k * total_rows, first, rows, inner, jump)
        tl.store(groups_ptr + k * G + g, value)
        sums = sums + (value,)
    valid = sums[K + VALID]
    if REDUCTION == "sums":
        tl.store(loss_ptr + g, sums[OVERLAP])
        tl.store(loss_ptr + G + g, sums[MASS])
        tl.store(loss_ptr + 2 * G + g, sums[TARGET])
        tl.store(loss_ptr + 3 * G + g, valid)
    counted = valid > 0.0
    if SKIP_ABSENT:
        counted = counted & (sums[TARGET] > 0.0)
    counted = tl.where(counted, 1.0, 0.0)
    tl.store(groups_ptr + (K + COUNTED) * G + g, counted)

    loss = 0.0
    d_overlap = 0.0
    d_mass = 0.0
    for r in tl.static_range(len(LOGS)):
        value, di, dp = region_term(
            sums[OVERLAP], sums[MASS], sums[TARGET], region_params[r], LOGS[r]
        )
        # where, not a product: a group that does not count may hold inf or NaN.
        value = tl.where(counted > 0.0, value, 0.0)
        tl.store(groups_ptr + (K + COUNTED + 1 + r) * G + g, value)
        loss += region_weights[r] * weight * value
        d_overlap += tl.where(counted > 0.0, region_weights[r] * weight * di, 0.0)
        d_mass += tl.where(counted > 0.0, region_weights[r] * weight * dp, 0.0)
    tl.store(coefs_ptr + g, d_overlap)
    tl.store(coefs_ptr + G + g, d_mass)
    share = weight
    if REDUCTION == "none":
        share = tl.where(valid > 0.0, weight / tl.maximum(valid, 1.0), 0.0)
    for k in tl.static_range(NUM_POINT):
        tl.store(coefs_ptr + (2 + k) * G + g, point_weights[k] * share)
        loss += tl.where(valid > 0.0, point_weights[k] * share * sums[FIRST_POINT + k], 0.0)
    if REDUCTION == "none":
        tl.store(loss_ptr + g, loss)


@triton.jit
def finish_loss(
    # outputs
    loss_ptr,  # ()
    stats_ptr,  # (NUM_FIELDS + terms,)
    norms_ptr,  # (2,)
    alarm_ptr,  # (1,) int32 on the host
    # inputs
    groups_ptr,  # (K + 5 + R, G)
    class_weights_ptr,  # (C,)
    # sizes
    C,
    G,
    # scalars
    point_weights,
    region_weights,
    # constexprs
    NUM_POINT: tl.constexpr,
    NUM_REGION: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    """Reduce the groups to the loss, every term's mean value, the normalisers and the statistics."""
    K: tl.constexpr = FIRST_POINT + NUM_POINT
    totals = ()
    for k in tl.static_range(K + 4):
        totals = totals + (tl.zeros([BLOCK_G], tl.float32) + (float("-inf") if k == K + LARGEST else 0.0),)
    weighted = ()
    for k in tl.static_range(NUM_POINT + NUM_REGION + 2):
        weighted = weighted + (tl.zeros([BLOCK_G], tl.float32),)
    for start in range(0, G, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        here = g < G
        weight = tl.zeros([BLOCK_G], tl.float32) + 1.0
        if class_weights_ptr is not None:
            weight = tl.load(class_weights_ptr + g % C, mask=here, other=0.0)
        new_totals = ()
        for k in tl.static_range(K + 4):
            if k == K + LARGEST:
                value = tl.load(groups_ptr + k * G + g, mask=here, other=float("-inf"), cache_modifier=".cg")
                new_totals = new_totals + (tl.maximum(totals[k], value),)
            else:
                value = tl.load(groups_ptr + k * G + g, mask=here, other=0.0, cache_modifier=".cg")
                new_totals = new_totals + (totals[k] + value,)
        new_weighted = ()
        for k in tl.static_range(NUM_POINT + NUM_REGION + 2):
            # pointwise values, region losses, then what divides each of the two
            if k < NUM_POINT:
                row = FIRST_POINT + k
            elif k < NUM_POINT + NUM_REGION:
                row = K + COUNTED + 1 + k - NUM_POINT
            elif k == NUM_POINT + NUM_REGION:
                row = K + VALID
            else:
                row = K + COUNTED
            value = tl.load(groups_ptr + row * G + g, mask=here, other=0.0, cache_modifier=".cg")
            new_weighted = new_weighted + (weighted[k] + weight * value,)
        totals = new_totals
        weighted = new_weighted

    point_norm = tl.sum(weighted[NUM_POINT + NUM_REGION])
    region_norm = tl.sum(weighted[NUM_POINT + NUM_REGION + 1])
    point_norm = tl.where(point_norm > 0.0, 1.0 / point_norm, 0.0)
    region_norm = tl.where(region_norm > 0.0, 1.0 / region_norm, 0.0)
    mean_loss = 0.0
    sum_loss = 0.0
    for k in tl.static_range(NUM_POINT):
        total = tl.sum(weighted[k])
        # where: nothing valid is 0, whatever the sum holds
        value = tl.where(point_norm > 0.0, total * point_norm, 0.0)
        tl.store(stats_ptr + NUM_FIELDS + k, value)
        mean_loss += point_weights[k] * value
        sum_loss += point_weights[k] * total
    for r in tl.static_range(NUM_REGION):
        total = tl.sum(weighted[NUM_POINT + r])
        value = tl.where(region_norm > 0.0, total * region_norm, 0.0)
        tl.store(stats_ptr + NUM_FIELDS + NUM_POINT + r, value)
        mean_loss += region_weights[r] * value
        sum_loss += region_weights[r] * total
    if REDUCTION == "mean":
        tl.store(loss_ptr, mean_loss)
        tl.store(norms_ptr, region_norm)
        tl.store(norms_ptr + 1, point_norm)
    else:
        if REDUCTION == "sum":
            tl.store(loss_ptr, sum_loss)
        tl.store(norms_ptr, 1.0)
        tl.store(norms_ptr + 1, 1.0)

    valid = tl.sum(totals[K + VALID])
    share = tl.where(valid > 0.0, 1.0 / valid, 0.0)
    largest = tl.max(totals[K + LARGEST])
    predicted = tl.sum(totals[PREDICTED])
    actual = tl.sum(totals[ACTUAL])
    hit = tl.sum(totals[HIT])
    bad = tl.sum(totals[K + BAD_TARGETS])
    # the order of stats.FIELDS
    tl.store(stats_ptr, mean_loss)
    tl.store(stats_ptr + 1, tl.sum(totals[MASS]) * share)
    tl.store(stats_ptr + 2, tl.sum(totals[TARGET]) * share)
    tl.store(stats_ptr + 3, 1.0 / (1.0 + tl.exp2(-largest * 1.4426950408889634)))
    tl.store(stats_ptr + 4, predicted * share)
    tl.store(stats_ptr + 5, actual * share)
    tl.store(stats_ptr + 6, hit)
    tl.store(stats_ptr + 7, predicted - hit)
    tl.store(stats_ptr + 8, actual - hit)
    tl.store(stats_ptr + 9, valid)
    tl.store(stats_ptr + 10, tl.sum(totals[K + NONFINITE]))
    tl.store(stats_ptr + 11, bad)
    if alarm_ptr is not None:
        if bad > 0.0:
            tl.store(alarm_ptr, 1)
