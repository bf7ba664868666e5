"""How the programs of a multiclass forward launch end: in teams, then samples, then the loss."""

import triton
import triton.language as tl

from fastseg_losses.kernels.multiclass_finalize import finish_classes, finish_sample
from fastseg_losses.kernels.multiclass_rows import add_rows


@triton.jit
def finish_class_program(
    # outputs
    loss_ptr,  # see _class_sums_kernel
    stats_ptr,
    table_ptr,
    samples_ptr,  # (N, ROW), and behind it the programs' rows, stored before
    counters_ptr,  # (1 + N + N teams,) int32, all 0 before and after
    alarm_ptr,
    # inputs
    class_weights_ptr,
    vector_ptr,
    # sizes
    n,
    s,  # which of the sample's programs this is
    N,
    S,  # programs a sample
    TEAM,  # programs a team
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
    SOFTMAX: tl.constexpr,
    FIRST: tl.constexpr,
    BATCH: tl.constexpr,
    ABSENT: tl.constexpr,
    IDS: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """The last program of a team adds its rows up, the last team of a sample finishes it."""
    tl.debug_barrier()  # every thread's stores come before the one thread's release
    partials_ptr = samples_ptr + N * ROW
    teams = tl.cdiv(S, TEAM)
    first = s // TEAM * TEAM
    members = tl.minimum(TEAM, S - first)
    sample_ptr = samples_ptr + n.to(tl.int64) * ROW
    rows_ptr = partials_ptr + n.to(tl.int64) * S * ROW
    team_ptr = counters_ptr + 1 + N + n * teams + s // TEAM
    if tl.atomic_add(team_ptr, 1, sem="acq_rel") == members - 1:
        tl.debug_barrier()
        tl.store(team_ptr, 0)
        missing = teams - 1
        if missing > 0:
            first_ptr = rows_ptr + first * ROW
            add_rows(first_ptr, first_ptr, members, ROW, ROW, BLOCK_ROW, BLOCK_ROWS)
            missing -= tl.atomic_add(counters_ptr + 1 + n, 1, sem="acq_rel")
        if missing == 0:
            tl.debug_barrier()
            tl.store(counters_ptr + 1 + n, 0)
            # the teams' sums, or if there is one team, its rows
            stride = TEAM * ROW if teams > 1 else ROW
            add_rows(
                sample_ptr, rows_ptr, teams if teams > 1 else S, stride, ROW, BLOCK_ROW, BLOCK_ROWS
            )
            finish_sample(
                loss_ptr, table_ptr, sample_ptr, class_weights_ptr,
                n, N, point_weights, region_weights, region_params,
                C, NUM_POINT, LOGS, POWERS, REDUCTION, SOFTMAX, FIRST, BATCH, ABSENT, IDS, BLOCK_C,
            )  # fmt: skip
            tl.debug_barrier()
            if tl.atomic_add(counters_ptr, 1, sem="acq_rel") == N - 1:
                tl.debug_barrier()
                tl.store(counters_ptr, 0)
                finish_classes(
                    loss_ptr, stats_ptr, table_ptr, alarm_ptr,
                    samples_ptr, class_weights_ptr, vector_ptr,
                    N, point_weights, region_weights, region_params,
                    C, NUM_POINT, BALANCED, LOGS, POWERS, REDUCTION, FIRST, BATCH, ABSENT, IDS,
                    BLOCK_C, BLOCK_ROW, BLOCK_ROWS,
                )  # fmt: skip
