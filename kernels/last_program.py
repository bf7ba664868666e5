"""How the programs of a forward launch end: who comes last adds up what all have stored."""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.finalize import finish_group, finish_loss, reduce_records

RECORD = finalize.RECORD
FIRST_POINT = finalize.FIRST_POINT
LARGEST = finalize.LARGEST
NONFINITE = finalize.NONFINITE
BAD_TARGETS = finalize.BAD_TARGETS
NORMS = finalize.NORMS
BLOCK_G = finalize.BLOCK_G
BLOCK_ROWS = finalize.BLOCK_ROWS


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
    """Store the record; the last program of a group finishes it, the last group the loss."""
    column = tl.arange(0, RECORD)
    G = N * C
    if BATCH:
        G = C
    partials_ptr = groups_ptr + G * RECORD
    tl.store(partials_ptr + pid * RECORD + column, record)

    pair = n * C + c
    g = pair
    rows = S
    first = pair * S
    inner = S
    missing = 0
    tl.debug_barrier()  # every thread's stores come before the one thread's release
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
        weight = 1.0
        if class_weights_ptr is not None:
            weight = tl.load(class_weights_ptr + c)
        finish_group(
            loss_ptr, table_ptr + NORMS, groups_ptr, partials_ptr, weight,
            g, G, rows, first, inner, C * S if BATCH else S,
            point_weights, region_weights, region_params,
            NUM_POINT, LOGS, POWERS, REDUCTION, ABSENT,
        )  # fmt: skip
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
