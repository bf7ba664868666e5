"""One launch that reads each input once: sums and gradient of a group from the same shared memory.

Teams of programs walk through the groups. A program keeps its slice of three groups in shared
memory: one on its way in, one that it sums up, one whose sums its whole team has posted and whose
gradient it writes. So the wait for the team hides behind a slice's work, and memory is read once
(two launches read it twice). Written in Gluon: Triton has no shared memory that outlives one turn
of a loop.

It must know what the means divide by before it has seen everything, so it serves calls without
masks and class weights, and it writes the gradient for an assumed upstream gradient;
`gradient._settle_kernel` multiplies when another one comes.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.finalize import finish_loss
from fastseg_losses.kernels.gradient import slope_of_terms
from fastseg_losses.kernels.region import region_term
from fastseg_losses.kernels.single_exchange import POSTED, add_four, add_up, ask, post, words_of
from fastseg_losses.kernels.sums import add_tile
from fastseg_losses.kernels.terms import NEUTRAL

RECORD = finalize.RECORD
OVERLAP = finalize.OVERLAP
MASS = finalize.MASS
TARGET = finalize.TARGET
VALID = finalize.VALID
LARGEST = finalize.LARGEST
NONFINITE = finalize.NONFINITE
BAD_TARGETS = finalize.BAD_TARGETS
COUNTED = finalize.COUNTED
FIRST_POINT = finalize.FIRST_POINT
FIRST_REGION = finalize.FIRST_REGION
ACTUAL = finalize.ACTUAL
NORMS = finalize.NORMS
BLOCK_G = finalize.BLOCK_G
# Gluon is young and renames: thread_barrier and async_copy_global_to_shared up to Triton 3.6.
barrier = getattr(gl, "barrier", None) or gl.thread_barrier
start_copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared


@gluon.jit
def fetch(x_slot, t_slot, logits_ptr, targets_ptr, pixel, size, CHECK: gl.constexpr):
    """Start copying one tile into shared memory; CHECK: only the pixels before `size`."""
    if CHECK:
        start_copy(x_slot, logits_ptr + pixel, mask=pixel < size)
        start_copy(t_slot, targets_ptr + pixel, mask=pixel < size)
    else:
        start_copy(x_slot, logits_ptr + pixel)
        start_copy(t_slot, targets_ptr + pixel)


@gluon.jit
def read_slot(
    x_slot, t_slot, pixel, size, LAYOUT: gl.constexpr, CHECK: gl.constexpr, BOOL: gl.constexpr
):
    """A tile from shared memory as float32, NEUTRAL background behind `size`.

    BOOL: any byte but 0 is True, as in a mask of 0 and 255 that is viewed as bool.
    """
    x = x_slot.load(LAYOUT).to(gl.float32)
    t = t_slot.load(LAYOUT)
    t = (t != 0 if BOOL else t).to(gl.float32)
    if CHECK:
        x = gl.where(pixel < size, x, NEUTRAL)
        t = gl.where(pixel < size, t, 0.0)
    return x, t


NOT_SPECIALIZED = (
    *("loss_ptr", "stats_ptr", "counters_ptr", "alarm_ptr", "pos_weight_ptr", "assumed_ptr"),
    *("C", "G", "SIXTEENTH_P", "TEAM", "TEAMS", "pos_weight_stride", "workspace_start"),
)


@gluon.jit(do_not_specialize=NOT_SPECIALIZED)
def _single_kernel(
    # outputs
    loss_ptr,  # ()
    stats_ptr,  # (NUM_FIELDS + terms,)
    table_ptr,  # norms, coefs: see finalize.py; then the upstream gradient that was assumed
    workspace_ptr,  # groups, then programs' records, (.., RECORD)
    counters_ptr,  # (4,) int32 and words (TEAMS, 2 LAG + 2, POSTED, TEAM): see single_exchange.py
    alarm_ptr,  # (1,) int32 on the host
    dlogits_ptr,  # (G, P)
    # inputs
    logits_ptr,  # (G, P)
    targets_ptr,  # (G, P)
    pos_weight_ptr,  # (C,) or None
    assumed_ptr,  # (1,) the upstream gradient to assume
    # sizes
    C,
    G,
    SIXTEENTH_P,  # a sixteenth of the pixels
    TEAM,  # programs that share a group
    TEAMS,
    # strides
    pos_weight_stride,
    workspace_start,  # behind workspace_ptr: the table may come first
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    point_weights,
    region_weights,
    region_params,
    point_scale,  # 1 / pixels under "mean", 1 under "sum"
    region_scale,  # 1 / groups, 1
    # constexprs
    TERMS: gl.constexpr,
    COLUMNS: gl.constexpr,
    SLOPED: gl.constexpr,
    LOGS: gl.constexpr,
    POWERS: gl.constexpr,
    FLOORS: gl.constexpr,
    REDUCTION: gl.constexpr,
    TARGETS: gl.constexpr,
    BLOCK_TEAM: gl.constexpr,  # at least TEAM, a power of two: see single_plan.block_of_team
    TILES: gl.constexpr,  # of a slice
    ROWS: gl.constexpr,
    WIDTH: gl.constexpr,
    SLOTS: gl.constexpr,
    LAG: gl.constexpr,  # groups between the sums and the gradient
    CHECK: gl.constexpr,  # whether a slice may reach beyond P
    num_warps: gl.constexpr,
):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, WIDTH], [32, 1], [num_warps, 1], [1, 0])
    FLAT: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])
    GRID: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [num_warps, 1], [1, 0])
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    HARD: gl.constexpr = TARGETS != "soft"
    NUM_REGION: gl.constexpr = len(LOGS)
    NUM_POINT: gl.constexpr = len(SLOPED) - 2
    LOWEST: gl.constexpr = NUM_POINT == 0
    TILE: gl.constexpr = ROWS * WIDTH
    BOOL: gl.constexpr = targets_ptr.dtype.element_ty == gl.int1
    if BOOL:
        targets_ptr = targets_ptr.to(gl.pointer_type(gl.uint8), bitcast=True)
    P = SIXTEENTH_P * 16  # so that a mask at P never cuts through what one thread copies
    pid = gl.program_id(0)
    team = pid // TEAM
    rank = pid % TEAM
    first = rank * (TILES * TILE)

    logits = gl.allocate_shared_memory(
        logits_ptr.dtype.element_ty, [SLOTS * TILES, ROWS, WIDTH], SHARED
    )
    targets = gl.allocate_shared_memory(
        targets_ptr.dtype.element_ty, [SLOTS * TILES, ROWS, WIDTH], SHARED
    )
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    neighbours = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    offsets = first + rows[:, None] * WIDTH + neighbours[None, :]
    member = gl.arange(0, BLOCK_TEAM, layout=FLAT)
    row = gl.arange(0, BLOCK_G, layout=gl.SliceLayout(1, GRID))
    column = gl.arange(0, RECORD, layout=gl.SliceLayout(0, GRID))
    first_number = gl.load(counters_ptr + 1) + 1
    groups_ptr = workspace_ptr + workspace_start
    coefs_ptr = table_ptr + NORMS
    assumed = gl.load(assumed_ptr)

    zero = gl.full([ROWS], 0.0, gl.float32, layout=gl.SliceLayout(1, LAYOUT))
    sums = ()
    for k in gl.static_range(len(TERMS)):
        sums = sums + (zero,)
    bottom = zero + float("-inf")
    extremes = (bottom, zero, bottom)
    nonfinite = 0.0
    bad_targets = 0.0

    steps = gl.cdiv(G - team, TEAMS)
    for s in gl.static_range(SLOTS - LAG):
        if s < steps:
            base = (team + s * TEAMS).to(gl.int64) * P
            for k in gl.static_range(TILES):
                fetch(
                    logits.index(s * TILES + k), targets.index(s * TILES + k),
                    logits_ptr + base, targets_ptr + base, offsets + k * TILE, P, CHECK,
                )  # fmt: skip
        async_copy.commit_group()
    for s in range(steps + LAG):
        async_copy.wait_group(SLOTS - LAG - 1)
        slot = s % SLOTS * TILES
        next_step = s + SLOTS - LAG  # comes to where group s - LAG is now, if there is one
        free = next_step % SLOTS * TILES
        next_base = (team + next_step * TEAMS).to(gl.int64) * P
        odd = zero != 0.0
        if s < steps:
            # ---- sum up group g
            g = team + s * TEAMS
            pos_weight = 1.0
            if pos_weight_ptr is not None:
                pos_weight = gl.load(pos_weight_ptr + g % C * pos_weight_stride)
            params = (term_params[0], term_params[1], term_params[2], pos_weight, term_params[3])
            sums = (zero, zero, zero) + sums[3:]
            for k in gl.static_range(TILES):
                x, t = read_slot(
                    logits.index(slot + k), targets.index(slot + k),
                    offsets + k * TILE, P, LAYOUT, CHECK, BOOL,
                )  # fmt: skip
                sums, extremes = add_tile(
                    sums, extremes, x, t, True, params, TERMS, False, LOWEST, TARGETS, False, True
                )
            # what shows a NaN or an inf, among the logits or the targets, or a stray target
            witness = sums[MASS] + sums[TARGET]
            odd = (extremes[0] == float("inf")) | ((witness - witness) != 0.0)
            odd = odd | (extremes[1] > (1.0 if TARGETS == "unsigned" else 0.501))
            if LOWEST:
                odd = odd | (extremes[2] == float("inf"))
            else:
                witness = sums[len(TERMS) - NUM_POINT]
                odd = odd | ((witness - witness) != 0.0)
        # asked for before this program's own sums are reduced, so that one wait hides the other
        h = team + (s - LAG) * TEAMS
        here = (member < TEAM) & (s >= LAG)
        team_words_ptr = words_of(counters_ptr, team, s - LAG, TEAM, LAG)
        words = ask(team_words_ptr, member, here, TEAM)
        if s < steps:
            overlap, mass, target, strange = gl.reduce(
                (sums[OVERLAP], sums[MASS], sums[TARGET], gl.where(odd, 1.0, 0.0)), 0, add_four
            )
            words_ptr = words_of(counters_ptr, team, s, TEAM, LAG)
            post(words_ptr, overlap, mass, target, first_number + s, rank, TEAM, FLAT)
            if strange > 0.0:
                for k in gl.static_range(TILES):
                    x, t = read_slot(
                        logits.index(slot + k), targets.index(slot + k),
                        offsets + k * TILE, P, LAYOUT, CHECK, BOOL,
                    )  # fmt: skip
                    off = gl.where(gl.abs(x) < float("inf"), 0.0, 1.0)
                    nonfinite += gl.sum(gl.sum(off, 1), 0)
                    off = gl.where(gl.abs(t - 0.5) <= 0.501, 0.0, 1.0)
                    bad_targets += gl.sum(gl.sum(off, 1), 0)
        if s >= LAG:
            # ---- the gradient of group h, once its team has posted
            overlap, mass, target, missing = 0.0, 0.0, 0.0, 1.0
            while missing > 0.0:
                overlap, mass, target, missing = add_up(words, here, first_number + s - LAG)
                if missing > 0.0:
                    words = ask(team_words_ptr, member, here, TEAM)
            record = gl.where(column == OVERLAP, overlap, column.to(gl.float32) * 0.0)
            record = gl.where(column == MASS, mass, record)
            record = gl.where(column == TARGET, target, record)
            record = gl.where(column == VALID, P.to(gl.float32), record)
            record = gl.where(column == COUNTED, 1.0, record)
            if HARD:
                record = gl.where(column == ACTUAL, target, record)
            record = gl.where(column == LARGEST, float("-inf"), record)
            d_overlap = 0.0
            d_mass = 0.0
            for r in gl.static_range(NUM_REGION):
                term = region_params[r]
                value, di, dp = region_term(
                    overlap, mass, target, term, LOGS[r], POWERS[r], FLOORS[r], True
                )
                record = gl.where(column == FIRST_REGION + r, value, record)
                d_overlap += region_weights[r] * di
                d_mass += region_weights[r] * dp
            coefs = (d_overlap * region_scale, d_mass * region_scale)
            for k in gl.static_range(NUM_POINT):
                coefs = coefs + (point_weights[k] * point_scale,)
            if rank == 0:
                gl.store(groups_ptr + h * RECORD + column, record)
                gl.store(coefs_ptr + h, d_overlap)
                gl.store(coefs_ptr + G + h, d_mass)
                for k in gl.static_range(NUM_POINT):
                    gl.store(coefs_ptr + (2 + k) * G + h, point_weights[k])
            pos_weight = 1.0
            if pos_weight_ptr is not None:
                pos_weight = gl.load(pos_weight_ptr + h % C * pos_weight_stride)
            params = (term_params[0], term_params[1], term_params[2], pos_weight, term_params[3])
            base = h.to(gl.int64) * P
            for k in gl.static_range(TILES):
                pixel = offsets + k * TILE
                # what lies behind P is not stored
                x, t = read_slot(
                    logits.index(free + k), targets.index(free + k), pixel, P, LAYOUT, False, BOOL
                )
                dx = assumed * slope_of_terms(x, t, coefs, params, SLOPED, HARD, False, True)
                dx = dx.to(dlogits_ptr.dtype.element_ty)
                if CHECK:
                    gl.store(dlogits_ptr + base + pixel, dx, mask=pixel < P, cache_modifier=".cs")
                else:
                    gl.store(dlogits_ptr + base + pixel, dx, cache_modifier=".cs")
        if next_step < steps:
            # into the slot of group s - LAG: each thread overwrites what it alone has read
            for k in gl.static_range(TILES):
                fetch(
                    logits.index(free + k), targets.index(free + k),
                    logits_ptr + next_base, targets_ptr + next_base, offsets + k * TILE, P, CHECK,
                )  # fmt: skip
        async_copy.commit_group()

    # ---- this program's share of everything that is not a region sum
    record = column.to(gl.float32) * 0.0
    for k in gl.static_range(POSTED, len(TERMS)):
        total = gl.sum(sums[k], 0)
        if COLUMNS[k] >= FIRST_POINT:
            total = gl.where(nonfinite > 0.0, float("nan"), total)
        record = gl.where(column == COLUMNS[k], total, record)
    record = gl.where(column == LARGEST, gl.max(extremes[0], 0), record)
    record = gl.where(column == NONFINITE, nonfinite, record)
    record = gl.where(column == BAD_TARGETS, bad_targets, record)
    gl.store(groups_ptr + (G + pid) * RECORD + column, record)
    barrier()
    finished = gl.atomic_add(counters_ptr, 1, sem="acq_rel")
    if finished == TEAM * TEAMS - 1:
        barrier()
        finish_loss(
            loss_ptr, stats_ptr, table_ptr, alarm_ptr, groups_ptr, None,
            C, G + TEAM * TEAMS, row, column,
            point_weights, region_weights, NUM_POINT, NUM_REGION, REDUCTION, "keep", False,
        )  # fmt: skip
        gl.store(coefs_ptr + (2 + NUM_POINT) * G, assumed)
        gl.store(counters_ptr, 0)
        gl.store(counters_ptr + 1, first_number + gl.cdiv(G, TEAMS) - 1)
