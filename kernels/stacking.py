"""A thread's values as one tensor, for the terms that add up neighbours, and back again."""

import triton
import triton.language as tl

from fastseg_losses.kernels.sums import join_halves


@triton.jit
def stacked(values, fill):
    """A tuple of [BLOCK_W] as [BLOCK_W, WIDTH], a power of two wide; `fill` behind the last."""
    padded = values
    for _ in tl.static_range(triton.next_power_of_2(len(values)) - len(values)):
        padded = padded + (tl.zeros_like(values[0]) + fill,)
    width: tl.constexpr = len(padded)
    for _ in tl.static_range(6):
        if len(padded) > 1:
            padded = join_halves(padded)
    return tl.reshape(padded[0], [padded[0].shape[0], width])


@triton.jit
def halves(value):
    """The even and the odd columns."""
    return tl.split(tl.reshape(value, [value.shape[0], value.shape[1] // 2, 2]))


@triton.jit
def unstacked(values, COUNT: tl.constexpr):
    """The first COUNT columns of [BLOCK_W, WIDTH] as a tuple of [BLOCK_W]."""
    BLOCK_W: tl.constexpr = values.shape[0]
    WIDTH: tl.constexpr = values.shape[1]
    parts = (values,)
    for _ in tl.static_range(6):
        if len(parts) < WIDTH:
            evens = ()
            odds = ()
            for k in tl.static_range(len(parts)):
                even, odd = halves(parts[k])
                evens = evens + (even,)
                odds = odds + (odd,)
            parts = evens + odds
    columns = ()
    for k in tl.static_range(COUNT):
        columns = columns + (tl.reshape(parts[k], [BLOCK_W]),)
    return columns
