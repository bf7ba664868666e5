"""How the programs of a forward launch end: who comes last adds up what all have stored."""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.finalize import (
    finish_groups,
    finish_loss,
    finish_sums,
    reduce_records,
)

RECORD = finalize.RECORD
FIRST_POINT = finalize.FIRST_POINT
LARGEST = finalize.LARGEST
NONFINITE = finalize.NONFINITE
BAD_TARGETS = finalize.BAD_TARGETS
NORMS = finalize.NORMS
BLOCK_G = finalize.BLOCK_G
BLOCK_ROWS = finalize.BLOCK_ROWS
# (sample, class) pairs, and programs of each, whose records one program reads all at once
FEW_PAIRS = tl.constexpr(8)
FEW_PROGRAMS = tl.constexpr(16)


@triton.jit
def complete_record(
    record, largest, nonfinite, bad_targets, NUM_POINT: tl.constexpr, POISON: tl.constexpr
):
    """A program's record with what is no sum of terms.

    POISON: as in PyTorch an infinite logit makes the cross-entropy NaN (inf - inf), whatever its
    target; a softmax does so by itself.
    """
    column = tl.arange(0, RECORD)
    record = tl.where(column == LARGEST, largest, record)
    record = tl.where(column == NONFINITE, nonfinite, record)
    record = tl.where(column == BAD_TARGETS, bad_targets, record)
    if POISON:
        pointwise = (column >= FIRST_POINT) & (column < FIRST_POINT + NUM_POINT)
        poison = tl.where(nonfinite > 0.0, float("nan"), 0.0)
        record = tl.where(pointwise, record + poison, record)
    return record


@triton.jit
def class_weights_of(class_weights_ptr, g, G, C):
    """The weights of groups' classes: 1 where there are none."""
    weight = g.to(tl.float32) * 0.0 + 1.0
    if class_weights_ptr is not None:
        weight = tl.load(class_weights_ptr + g % C, mask=g < G, other=0.0)
    return weight


@triton.jit
def finish_few(
    # outputs
    loss_ptr,
    stats_ptr,
    table_ptr,
    alarm_ptr,
    # inputs
    partials_ptr,  # (N C S, RECORD)
    class_weights_ptr,
    # sizes
    N,
    C,
    S,
    # scalars
    point_weights,
    region_weights,
    region_params,
    # constexprs
    NUM_POINT: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    IDENTITY: tl.constexpr,
):
    """All groups and the loss from few records: a thread adds up a column of a pair's."""
    column = tl.arange(0, RECORD)
    pair = tl.arange(0, FEW_PAIRS)
    nothing = tl.where(column == LARGEST, float("-inf"), 0.0)[None, :]
    records = nothing + pair[:, None].to(tl.float32) * 0.0
    for s in tl.static_range(FEW_PROGRAMS):
        at = (pair * S + s)[:, None] * RECORD + column[None, :]
        here = (at < N * C * S * RECORD) & (pair[:, None] * 0 + s < S)
        record = tl.load(partials_ptr + at, mask=here, other=nothing, cache_modifier=".cg")
        peak = tl.maximum(records, record)
        records = tl.where(column[None, :] == LARGEST, peak, records + record)
    largest = tl.max(tl.where(column[None, :] == LARGEST, records, float("-inf")))
    G = N * C
    g = pair
    if BATCH:  # of one class
        G = C
        g = tl.arange(0, 1)
        records = tl.sum(records, 0)[None, :]
    weight = class_weights_of(class_weights_ptr, g, G, C)
    records = finish_groups(
        loss_ptr, table_ptr + NORMS, records, weight, g, G,
        point_weights, region_weights, region_params, NUM_POINT, LOGS, POWERS, REDUCTION, ABSENT,
    )  # fmt: skip
    total = tl.sum(records, 0)
    weighted = total
    if class_weights_ptr is not None:
        # A product of its own: where a lane fuses it with what its partner gives, and that one the
        # other way round, they hold sums that differ in the last bit.
        each = tl.broadcast_to(weight[:, None], records.shape)
        weighted = tl.sum(tl.fma(each, records, tl.zeros_like(records)), 0)
    finish_sums(
        loss_ptr, stats_ptr, table_ptr, alarm_ptr, total, weighted, largest, column,
        point_weights, region_weights, NUM_POINT, len(LOGS), REDUCTION, ABSENT, IDENTITY,
    )  # fmt: skip


@triton.jit
def finish_many(
    # outputs
    loss_ptr,
    stats_ptr,
    table_ptr,
    groups_ptr,
    counters_ptr,
    alarm_ptr,
    # inputs
    class_weights_ptr,
    # sizes
    n,
    c,
    N,
    C,
    S,
    # scalars
    point_weights,
    region_weights,
    region_params,
    # constexprs
    NUM_POINT: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    IDENTITY: tl.constexpr,
):
    """The last program of a group finishes it, the last group the loss."""
    column = tl.arange(0, RECORD)
    G = N * C
    if BATCH:
        G = C
    partials_ptr = groups_ptr + G * RECORD
    pair = n * C + c
    g = pair
    rows = S
    first = pair * S
    inner = S
    missing = 0
    if BATCH:
        g = c
        first = c * S
        rows = N * S
        if rows > BLOCK_ROWS:
            # First each sample's records: to add up 1000 rows one block after another takes 8 us.
            missing = S - 1 - tl.atomic_add(counters_ptr + 1 + G + pair, 1, sem="acq_rel")
            if missing == 0:
                tl.debug_barrier()
                row = tl.arange(0, BLOCK_ROWS)
                sample = reduce_records(partials_ptr, S, pair * S, S, S, row, column)
                tl.debug_barrier()  # all have been read
                tl.store(partials_ptr + pair * S * RECORD + column, sample)
                tl.store(counters_ptr + 1 + G + pair, 0)
                tl.debug_barrier()
            rows = N
            inner = 1
    if missing == 0:
        missing = rows - 1 - tl.atomic_add(counters_ptr + 1 + g, 1, sem="acq_rel")
    if missing == 0:
        tl.debug_barrier()
        row = tl.arange(0, BLOCK_ROWS)
        jump = C * S if BATCH else S
        record = reduce_records(partials_ptr, rows, first, inner, jump, row, column)
        at = g + tl.arange(0, 1)
        weight = class_weights_of(class_weights_ptr, at, G, C)
        record = finish_groups(
            loss_ptr, table_ptr + NORMS, record[None, :], weight, at, G,
            point_weights, region_weights, region_params,
            NUM_POINT, LOGS, POWERS, REDUCTION, ABSENT,
        )  # fmt: skip
        tl.store(groups_ptr + at[:, None] * RECORD + column[None, :], record)
        tl.store(counters_ptr + 1 + g, 0)
        tl.debug_barrier()
        finished = 0
        if G > 1:  # a microsecond
            finished = tl.atomic_add(counters_ptr, 1, sem="acq_rel")
        if finished == G - 1:
            tl.debug_barrier()
            finish_loss(
                loss_ptr, stats_ptr, table_ptr, alarm_ptr, groups_ptr, class_weights_ptr,
                C, G, tl.arange(0, BLOCK_G), column,
                point_weights, region_weights, NUM_POINT, len(LOGS), REDUCTION, ABSENT, IDENTITY,
            )  # fmt: skip
            tl.store(counters_ptr, 0)


@triton.jit
def finish_program(
    # outputs
    loss_ptr,  # () or (G,) or (4, G)
    stats_ptr,  # (NUM_FIELDS + terms,)
    table_ptr,  # norms, coefs: see finalize.py
    groups_ptr,  # (G, RECORD), and behind it the partial records
    counters_ptr,  # (1 + G,) int32, with BATCH N C more; all 0 before and after
    alarm_ptr,  # (1,) int32 on the host, or None
    # inputs
    record,  # (RECORD,) of this program
    class_weights_ptr,  # (C,) or None
    # sizes
    n,
    c,
    pid,
    N,
    C,
    S,  # programs a (sample, class)
    # scalars
    point_weights,
    region_weights,
    region_params,
    # constexprs
    NUM_POINT: tl.constexpr,
    LOGS: tl.constexpr,
    POWERS: tl.constexpr,
    REDUCTION: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    IDENTITY: tl.constexpr,
):
    """Store the record; who comes last finishes the loss."""
    column = tl.arange(0, RECORD)
    G = N * C
    if BATCH:
        G = C
    partials_ptr = groups_ptr + G * RECORD
    tl.store(partials_ptr + pid * RECORD + column, record)
    tl.debug_barrier()  # every thread's stores come before the one thread's release
    few = (N * C <= FEW_PAIRS) & (S <= FEW_PROGRAMS)
    if BATCH:
        few = few & (C == 1)
    if few:  # 1.5 us less than group by group
        stored = tl.atomic_add(counters_ptr, 1, sem="acq_rel")
        if stored == N * C * S - 1:
            tl.debug_barrier()
            finish_few(
                loss_ptr, stats_ptr, table_ptr, alarm_ptr, partials_ptr, class_weights_ptr, N, C, S,
                point_weights, region_weights, region_params,
                NUM_POINT, LOGS, POWERS, REDUCTION, BATCH, ABSENT, IDENTITY,
            )  # fmt: skip
            tl.store(counters_ptr, 0)
    else:
        finish_many(
            loss_ptr, stats_ptr, table_ptr, groups_ptr, counters_ptr, alarm_ptr,
            class_weights_ptr, n, c, N, C, S, point_weights, region_weights, region_params,
            NUM_POINT, LOGS, POWERS, REDUCTION, BATCH, ABSENT, IDENTITY,
        )  # fmt: skip
