"""How kernels read and write pixels: tiles of [ROWS, WIDTH] at any one stride."""

import triton
import triton.language as tl

from fastseg_losses.kernels.terms import NEUTRAL

BYTE_BITS = tl.constexpr(0x4B000000)  # of 2**23: with a byte at its low end 2**23 + byte
PERMUTE = tl.constexpr(tuple(f"prmt.b32 $0, $1, $2, 0x744{k};" for k in range(4)))


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


# ---- several pixels in one integer


@triton.jit
def load_words(base_ptr, start, ROWS: tl.constexpr, WIDTH: tl.constexpr, BYTES: tl.constexpr):
    """A tile of elements of 1 or 2 bytes as integers of 4; of 2: the halves of each row."""
    at = tl.arange(0, ROWS)[:, None] * (WIDTH // 4 * BYTES) + tl.arange(0, WIDTH // 4)[None, :]
    ptrs = (base_ptr + start).to(tl.pointer_type(tl.int32), bitcast=True) + at
    if BYTES == 1:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs), tl.load(ptrs + WIDTH // 4)


@triton.jit
def in_turn(a, b):
    """[ROWS, K] of each as [ROWS, 2 K]: a's first, b's first, a's second."""
    return tl.reshape(tl.join(a, b), [a.shape[0], a.shape[1] * 2])


@triton.jit
def bfloat16_tile(words):
    """The two halves of each integer as float32: one instruction each, where ptxas takes three."""
    first, last = words
    first = in_turn(first << 16, first & -65536)
    last = in_turn(last << 16, last & -65536)
    bits = tl.permute(tl.join(first, last), 0, 2, 1)
    return tl.reshape(bits, [first.shape[0], first.shape[1] * 2]).to(tl.float32, bitcast=True)


@triton.jit
def byte_tile(words, byte_bits, PTX: tl.constexpr):
    """Each byte of [ROWS, WIDTH // 4] as float32; byte_bits: BYTE_BITS."""
    evens = in_turn(byte_of(words, byte_bits, 0, PTX), byte_of(words, byte_bits, 2, PTX))
    odds = in_turn(byte_of(words, byte_bits, 1, PTX), byte_of(words, byte_bits, 3, PTX))
    return in_turn(evens, odds)


@triton.jit
def byte_of(words, byte_bits, byte: tl.constexpr, PTX: tl.constexpr):
    """A byte of an integer as float32, by way of a mantissa: conversions are slow."""
    if PTX:
        bits = tl.inline_asm_elementwise(
            PERMUTE[byte], "=r,r,r", [words, byte_bits], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        bits = ((words >> (8 * byte)) & 255) | byte_bits
    return bits.to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def add_bytes(ones, bits, words):
    """Add bytes of 0 and 1 to the count of each row, and all bits to those that were seen."""
    total = tl.sum(words, 1)  # of up to four words: no byte overflows
    ones += ((total * 0x01010101) >> 24) & 255
    for _ in tl.static_range(2):
        if words.shape[1] > 1:
            a, b = tl.split(tl.reshape(words, [words.shape[0], words.shape[1] // 2, 2]))
            words = a | b
    return ones, bits | tl.reshape(words, [words.shape[0]])
