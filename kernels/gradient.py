"""The backward kernel: one more read of the inputs, the gradient of every term written once."""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.pixels import pixel_base, read_pixels, store_tile, tile_offsets
from fastseg_losses.kernels.terms import pixel_of
from fastseg_losses.kernels.words import BYTE_BITS, fetch_words, ready_words

NORMS = finalize.NORMS


@triton.jit
def load_coefs(
    dloss_ptr, table_ptr, g, G, dloss_stride_k, NUM_TERMS: tl.constexpr, SUMS: tl.constexpr
):
    """What each term's slope is multiplied by; called once the pixels are on their way.

    SUMS: the upstream gradient of I, P, ... is that factor itself, up to what stands first in the
    table, 1 unless a later step's upstream gradient stands there (ops_generalized.py).
    """
    coefs = ()
    for k in tl.static_range(NUM_TERMS):
        if SUMS:
            coef = tl.load(dloss_ptr + k * dloss_stride_k).to(tl.float32)
            coefs = coefs + (coef * tl.load(table_ptr),)
        else:
            norm = tl.load(table_ptr + (0 if k < 2 else 1))
            coef = tl.load(table_ptr + NORMS + k * G + g)
            coefs = coefs + (coef * norm * tl.load(dloss_ptr).to(tl.float32),)
    return coefs


@triton.jit
def slope_of_terms(
    x,
    t,
    coefs,
    params,
    TERMS: tl.constexpr,
    HARD: tl.constexpr,
    IDENTITY: tl.constexpr,
    PTX: tl.constexpr,
):
    """Sum over the terms of coefficient * slope, at every pixel.

    The first two, overlap and mass, have their slopes with respect to p, the others to x.
    """
    pixel = pixel_of(x, t, HARD, IDENTITY, PTX)
    _, d_overlap = TERMS[0](pixel, params, PTX)
    _, d_mass = TERMS[1](pixel, params, PTX)
    slope = (coefs[0] * d_overlap + coefs[1] * d_mass) * pixel[6]
    for k in tl.static_range(2, len(TERMS)):
        _, d = TERMS[k](pixel, params, PTX)
        slope += coefs[k] * d
    return slope


@triton.jit
def slope_of_points(
    x,
    t,
    coefs,
    params,
    TERMS: tl.constexpr,
    HARD: tl.constexpr,
    IDENTITY: tl.constexpr,
    PTX: tl.constexpr,
):
    """Sum over the pointwise terms, the last of TERMS, of coefficient * slope, at every pixel."""
    pixel = pixel_of(x, t, HARD, IDENTITY, PTX)
    slope = 0.0
    for k in tl.static_range(len(coefs)):
        _, d = TERMS[len(TERMS) - len(coefs) + k](pixel, params, PTX)
        slope += coefs[k] * d
    return slope


NOT_SPECIALIZED = (
    *("dloss_ptr", "table_ptr", "pos_weight_ptr", "N", "C", "P", "each", "pos_weight_stride"),
    *("dlogits_stride_n", "dlogits_stride_c", "dlogits_stride_p"),
    *("dloss_stride_k", "dloss_stride_n", "dloss_stride_c"),
    *("logits_stride_n", "logits_stride_c", "logits_stride_p"),
    *("targets_stride_n", "targets_stride_c", "targets_stride_p"),
    *("valid_stride_n", "valid_stride_p"),
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _gradient_kernel(
    # outputs
    dlogits_ptr,  # (N, C, P)
    # inputs
    dloss_ptr,  # () or (N, C) or (C,), or (4, N, C) with sums
    table_ptr,  # norms, coefs: see finalize.py
    logits_ptr,  # (N, C, P)
    targets_ptr,  # (N, C, P)
    valid_ptr,  # (N, P) or (N,) or None
    pos_weight_ptr,  # (C,) or None
    dloss_stride_k,
    dloss_stride_n,
    dloss_stride_c,
    # sizes
    N,
    C,
    P,
    each,  # tiles a program
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
    pos_weight_stride,
    # scalars
    term_params,  # alpha_neg, alpha_pos, gamma, label_smoothing
    ignore_index,
    # constexprs
    TERMS: tl.constexpr,
    SUMS: tl.constexpr,
    IDENTITY: tl.constexpr,  # the logits are probabilities
    BATCH: tl.constexpr,
    VALID_KIND: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    TARGETS: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WORDS: tl.constexpr,  # several pixels are read in an integer: see words.py
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PTX: tl.constexpr,
):
    TILE: tl.constexpr = ROWS * WIDTH
    PIXEL_VALID: tl.constexpr = VALID_KIND == "pixel"
    # The forward launch's order backwards: what it read last is still in the L2 cache. A grid of
    # three dimensions, because a division takes 30 instructions, as much as a pixel.
    wave = tl.num_programs(2) - 1 - tl.program_id(2)
    pair = (wave + 1) * tl.num_programs(0) - 1 - tl.program_id(0)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * each
    if pair >= N * C:
        return  # the last wave has fewer
    n = pair
    c = pair * 0
    if C > 1:
        n = pair // C
        c = pair - n * C

    dlogits_ptr += pixel_base(n, c, dlogits_stride_n, dlogits_stride_c, ALIGNED)
    logits_ptr += pixel_base(n, c, logits_stride_n, logits_stride_c, ALIGNED)
    targets_ptr += pixel_base(n, c, targets_stride_n, targets_stride_c, ALIGNED)
    annotated = True
    if VALID_KIND != "none":
        valid_ptr += pixel_base(n, 0, valid_stride_n, 0, ALIGNED and PIXEL_VALID)
    if VALID_KIND == "sample":
        annotated = tl.load(valid_ptr) != 0

    pos_weight = 1.0
    if pos_weight_ptr is not None:
        pos_weight = tl.load(pos_weight_ptr + c * pos_weight_stride)
    params = (term_params[0], term_params[1], term_params[2], pos_weight, term_params[3])

    G = N * C
    g = pair
    if BATCH:
        G = C
        g = c
    dloss_ptr += n.to(tl.int64) * dloss_stride_n + c.to(tl.int64) * dloss_stride_c

    end = tl.minimum(first + each, tl.cdiv(P, TILE))
    if WORDS:
        byte_bits = BYTE_BITS + (each >> 31)  # `each` is positive, which ptxas cannot know
        whole = tl.minimum(end, P // TILE)
        if annotated & (first < whole):
            # asked for one tile ahead, so that none waits
            ahead = fetch_words(logits_ptr, targets_ptr, first, True, ROWS, WIDTH, False)
            coefs = load_coefs(dloss_ptr, table_ptr, g, G, dloss_stride_k, len(TERMS), SUMS)
            for tile in range(first, whole):
                fetched = ahead
                soon = tl.minimum(tile + 1, whole - 1)
                ahead = fetch_words(logits_ptr, targets_ptr, soon, True, ROWS, WIDTH, False)
                x, t = ready_words(fetched, byte_bits, PTX)
                dx = slope_of_terms(x, t, coefs, params, TERMS, True, IDENTITY, PTX)
                store_tile(dlogits_ptr, tile * TILE, 1, dx, True, ROWS, WIDTH, True, False)
            first = whole
    for tile in range(first, end):
        start = tile * TILE
        inside = start + tile_offsets(ROWS, WIDTH) < P
        if annotated:
            full = start + TILE <= P
            if WORDS:
                full = False
            if full:
                x, t, live = read_pixels(
                    logits_ptr, targets_ptr, valid_ptr, start, P,
                    logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
                    ROWS, WIDTH, UNIT, PIXEL_VALID, HAS_IGNORE, False,
                )  # fmt: skip
                coefs = load_coefs(dloss_ptr, table_ptr, g, G, dloss_stride_k, len(TERMS), SUMS)
                dx = slope_of_terms(x, t, coefs, params, TERMS, TARGETS != "soft", IDENTITY, PTX)
                if PIXEL_VALID or HAS_IGNORE:
                    dx = tl.where(live, dx, 0.0)
                store_tile(
                    dlogits_ptr, start, dlogits_stride_p, dx, inside, ROWS, WIDTH, UNIT, False
                )
            else:
                x, t, live = read_pixels(
                    logits_ptr, targets_ptr, valid_ptr, start, P,
                    logits_stride_p, targets_stride_p, valid_stride_p, ignore_index,
                    ROWS, WIDTH, UNIT, PIXEL_VALID, HAS_IGNORE, True,
                )  # fmt: skip
                coefs = load_coefs(dloss_ptr, table_ptr, g, G, dloss_stride_k, len(TERMS), SUMS)
                dx = slope_of_terms(x, t, coefs, params, TERMS, TARGETS != "soft", IDENTITY, PTX)
                dx = tl.where(live, dx, 0.0)
                store_tile(
                    dlogits_ptr, start, dlogits_stride_p, dx, inside, ROWS, WIDTH, UNIT, True
                )
        else:
            zero = tl.zeros([ROWS, WIDTH], tl.float32)
            store_tile(dlogits_ptr, start, dlogits_stride_p, zero, inside, ROWS, WIDTH, UNIT, True)


@triton.jit(do_not_specialize=("dloss_ptr", "used_ptr", "assumed_ptr", "SIZE"))
def _settle_kernel(
    # outputs
    dlogits_ptr,  # (SIZE,), the gradient for the upstream gradient that was assumed
    assumed_ptr,  # (1,) what to assume next time
    # inputs
    dloss_ptr,  # () the upstream gradient that came
    used_ptr,  # (1,) the one that was assumed
    # sizes
    SIZE,
    # constexprs
    BLOCK: tl.constexpr,
):
    """Multiply the gradient where the upstream gradient is not the assumed one.

    Only powers of two are assumed, and none so far from 1 that a slope could leave float32: to
    divide by one again is exact (of a gradient from 2^-126 on), so the gradient's bits do not
    depend on what was assumed.
    """
    pid = tl.program_id(0)
    dloss = tl.load(dloss_ptr).to(tl.float32)
    used = tl.load(used_ptr)
    if pid == 0:
        bits = dloss.to(tl.int32, bitcast=True)
        exponent = (bits >> 23) & 0xFF
        if ((bits & 0x7FFFFF) == 0) & (exponent >= 127 - 24) & (exponent <= 127 + 24):
            tl.store(assumed_ptr, dloss)
    if dloss != used:
        factor = dloss / used
        programs = tl.num_programs(0)
        lane = tl.arange(0, BLOCK)
        full = SIZE // BLOCK
        for block in range(pid, full, programs):
            at = tl.cast(block, tl.int64) * BLOCK + lane
            tl.store(dlogits_ptr + at, tl.load(dlogits_ptr + at) * factor)
        if pid == full % programs:  # apart, so that SIZE need not be one that 16 divides
            at = tl.cast(full, tl.int64) * BLOCK + lane
            here = at < SIZE
            tl.store(dlogits_ptr + at, tl.load(dlogits_ptr + at, mask=here) * factor, mask=here)
