"""Several pixels in one integer: bytes of targets four at a time, bfloat16 logits two at a time.

What is done to an integer is done to all its pixels, in one instruction: count, check, maximum. And
what a thread has asked for ahead of time takes a third of the registers.
"""

import triton
import triton.language as tl

BYTE_BITS = tl.constexpr(0x4B000000)  # of 2**23: with a byte at its low end 2**23 + byte
PERMUTE = tl.constexpr(tuple(f"prmt.b32 $0, $1, $2, 0x744{k};" for k in range(4)))


# ---- from memory to float32


@triton.jit
def load_words(
    base_ptr, start, there,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BYTES: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """A tile of elements of 1 or 2 bytes as integers of 4, up to four of a row in a tensor.

    CHECK: only if `there`, a vector.
    """
    IN_ROW: tl.constexpr = WIDTH * BYTES // 4
    TAKEN: tl.constexpr = min(IN_ROW, 4)
    at = tl.arange(0, ROWS)[:, None] * IN_ROW + tl.arange(0, TAKEN)[None, :]
    ptrs = (base_ptr + start).to(tl.pointer_type(tl.int32), bitcast=True) + at
    words = ()
    for k in tl.static_range(IN_ROW // TAKEN):
        if CHECK:
            words = words + (tl.load(ptrs + k * TAKEN, mask=there[:, None], other=0),)
        else:
            words = words + (tl.load(ptrs + k * TAKEN),)
    return words


@triton.jit
def fetch_words(
    logits_ptr, targets_ptr, tile, there,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """A tile's logits and targets as they are stored."""
    tl.static_assert(WIDTH == 8 or WIDTH == 16, "what follows takes a row in one or two tensors")
    start = tile * (ROWS * WIDTH)
    logits = load_words(logits_ptr, start, there, ROWS, WIDTH, 2, CHECK)
    return logits, load_words(targets_ptr, start, there, ROWS, WIDTH, 1, CHECK)[0]


@triton.jit
def ready_words(fetched, byte_bits, PTX: tl.constexpr):
    """What `fetch_words` gave as float32: logits, targets; byte_bits: BYTE_BITS.

    ptxas must not know that it is a constant. It would take it as an immediate, of which an
    instruction has one, and load what selects the byte, at an instruction a pixel.
    """
    logits, words = fetched
    evens = in_turn(byte_of(words, byte_bits, 0, PTX), byte_of(words, byte_bits, 2, PTX))
    odds = in_turn(byte_of(words, byte_bits, 1, PTX), byte_of(words, byte_bits, 3, PTX))
    return bfloat16_tile(logits), in_turn(evens, odds)


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
    x = in_turn(low, high)
    if len(words) == 2:
        low, high = halves_of(words[1])
        x = tl.permute(tl.join(x, in_turn(low, high)), 0, 2, 1)
        x = tl.reshape(x, [x.shape[0], x.shape[1] * x.shape[2]])
    return x


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


# ---- what all pixels of an integer share


@triton.jit
def add_words(ones, bits, top, fetched, PTX: tl.constexpr):
    """Add a tile to what each row has seen: targets of 1, bits of all targets, largest logits.

    Where a target is neither 0 nor 1, which the bits show, their number means nothing.
    """
    logits, words = fetched
    total = tl.sum(words, 1)  # bytes of 0 and 1, up to four words: no byte overflows
    ones += ((total * 0x01010101) >> 24) & 255
    pairs = logits[0]
    if len(logits) == 2:
        pairs = larger_pairs(pairs, logits[1], PTX)
    for _ in tl.static_range(2):
        if pairs.shape[1] > 1:
            a, b = tl.split(tl.reshape(pairs, [pairs.shape[0], pairs.shape[1] // 2, 2]))
            pairs = larger_pairs(a, b, PTX)
        if words.shape[1] > 1:
            a, b = tl.split(tl.reshape(words, [words.shape[0], words.shape[1] // 2, 2]))
            words = a | b
    bits |= tl.reshape(words, [words.shape[0]])
    return ones, bits, larger_pairs(top, tl.reshape(pairs, [pairs.shape[0]]), PTX)


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
