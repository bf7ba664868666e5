"""Several pixels in one integer: bytes of targets four at a time, bfloat16 logits two at a time.

What is done to an integer is done to all its pixels, in one instruction: count, check, maximum.
"""

import triton
import triton.language as tl

BYTE_BITS = tl.constexpr(0x4B000000)  # of 2**23: with a byte at its low end 2**23 + byte
PERMUTE = tl.constexpr(tuple(f"prmt.b32 $0, $1, $2, 0x744{k};" for k in range(4)))


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
def halves_of(words):
    """The two numbers of bfloat16 in each integer, as float32."""
    return (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)


@triton.jit
def bfloat16_tile(words):
    """The two halves of each integer as float32: one instruction each, where ptxas takes three."""
    low, high = halves_of(words[0])
    first = in_turn(low, high)
    low, high = halves_of(words[1])
    last = in_turn(low, high)
    return tl.reshape(
        tl.permute(tl.join(first, last), 0, 2, 1), [first.shape[0], first.shape[1] * 2]
    )


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
def larger_pairs(a, b, PTX: tl.constexpr):
    """The larger ones of two times two numbers of bfloat16; NaN only where both are."""
    if PTX:
        return tl.inline_asm_elementwise(
            "max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        low_a, high_a = halves_of(a)
        low_b, high_b = halves_of(b)
        low = tl.maximum(low_a, low_b).to(tl.int32, bitcast=True)
        high = tl.maximum(high_a, high_b).to(tl.int32, bitcast=True)
        return (high & -65536) | ((low >> 16) & 65535)


@triton.jit
def add_pairs(top, words, PTX: tl.constexpr):
    """Widen the largest logits of each row, two in an integer, by those of a tile."""
    first, last = words
    words = larger_pairs(first, last, PTX)
    for _ in tl.static_range(2):
        if words.shape[1] > 1:
            a, b = tl.split(tl.reshape(words, [words.shape[0], words.shape[1] // 2, 2]))
            words = larger_pairs(a, b, PTX)
    return larger_pairs(top, tl.reshape(words, [words.shape[0]]), PTX)


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
