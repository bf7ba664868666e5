"""How kernels read and write pixels: tiles of [ROWS, WIDTH] at any one stride."""

import triton
import triton.language as tl

from fastseg_losses.kernels.terms import NEUTRAL


@triton.jit
def pixel_base(n, c, stride_n, stride_c, ALIGNED: tl.constexpr):
    """Where a (sample, class) starts, in 64 bits: N*C*P may pass 2^31."""
    stride_n = tl.cast(stride_n, tl.int64)
    stride_c = tl.cast(stride_c, tl.int64)
    if ALIGNED:
        # said of the strides: of the sum it would be lost where c is 0, and the sum folded away
        stride_n = tl.multiple_of(stride_n, 16)
        stride_c = tl.multiple_of(stride_c, 16)
    return n * stride_n + c * stride_c


@triton.jit
def tile_offsets(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Pixels of a tile as [ROWS, WIDTH]: WIDTH neighbours a thread, summed without an exchange."""
    return tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def tile_pointers(
    base_ptr, start, stride_p, ROWS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr
):
    """Pointers to one tile of a group's pixels from `start`."""
    i = tile_offsets(ROWS, WIDTH)
    if UNIT:
        return base_ptr + start + i
    else:
        return base_ptr + start * tl.cast(stride_p, tl.int64) + i * tl.cast(stride_p, tl.int64)


@triton.jit
def load_tile(
    base_ptr,
    start,
    stride_p,
    inside,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CHECK: tl.constexpr,
):
    """One tile from `start`; CHECK: only where `inside`."""
    ptrs = tile_pointers(base_ptr, start, stride_p, ROWS, WIDTH, UNIT)
    if CHECK:
        return tl.load(ptrs, mask=inside, other=0)
    else:
        return tl.load(ptrs)


@triton.jit
def store_tile(
    base_ptr,
    start,
    stride_p,
    value,
    inside,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Write one tile, streaming: nothing of this launch reads it again."""
    ptrs = tile_pointers(base_ptr, start, stride_p, ROWS, WIDTH, UNIT)
    value = value.to(base_ptr.dtype.element_ty)
    if CHECK:
        tl.store(ptrs, value, mask=inside, cache_modifier=".cs")
    else:
        tl.store(ptrs, value, cache_modifier=".cs")


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
    """Logits and targets as float32 (NEUTRAL and 0 where they do not count), and where they do."""
    inside = start + tile_offsets(ROWS, WIDTH) < end
    x = load_tile(logits_ptr, start, logits_stride_p, inside, ROWS, WIDTH, UNIT, CHECK)
    t = load_tile(targets_ptr, start, targets_stride_p, inside, ROWS, WIDTH, UNIT, CHECK)
    x = x.to(tl.float32)
    t = t.to(tl.float32)
    live = inside
    if PIXEL_VALID:
        flag = load_tile(valid_ptr, start, valid_stride_p, inside, ROWS, WIDTH, UNIT, CHECK)
        live = live & (flag != 0)
    if HAS_IGNORE:
        live = live & (t != ignore_index)
    if CHECK or PIXEL_VALID or HAS_IGNORE:
        x = tl.where(live, x, NEUTRAL)
        t = tl.where(live, t, 0.0)
    return x, t, live
