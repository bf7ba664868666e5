"""The rows that multiclass sums are kept in, and their sums over programs or samples.

A row is a record (finalize.py) and behind it planes of C float32, one entry a class:

    0 I    1 P    2 target pixels or sum of t    3 predicted pixels    4 hits    5 target pixels
                                                                         (of soft targets only)

In a record, what is a group's in binary mode is that of the likeliest class here: MASS the sum of
its probability, PREDICTED how often that is above 0.5; TARGET and ACTUAL the same of the target;
HIT how often both are one class. OVERLAP holds the divisor of the pointwise terms' mean. COUNTED
of a program's record shows whether all that it read is finite, of a sample's it is the weight of
the classes that have a region score.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels import finalize

RECORD = finalize.RECORD
LARGEST = finalize.LARGEST

OVERLAP_PLANE = tl.constexpr(0)
MASS_PLANE = tl.constexpr(1)
TARGET_PLANE = tl.constexpr(2)
PREDICTED_PLANE = tl.constexpr(3)
HIT_PLANE = tl.constexpr(4)
ACTUAL_PLANE = tl.constexpr(5)
ID_PLANES = tl.constexpr(5)
SOFT_PLANES = tl.constexpr(6)


@triton.jit
def sum_rows(rows_ptr, rows, at, there, ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """The sum and the maximum over rows of the entries `at`."""
    row = tl.arange(0, BLOCK_ROWS)
    total = (row[:, None] + at[None, :]).to(tl.float32) * 0.0
    peak = total + float("-inf")
    for start in range(0, rows, BLOCK_ROWS):
        r = start + row[:, None]
        here = (r < rows) & there[None, :]
        ptrs = rows_ptr + r.to(tl.int64) * ROW + at[None, :]
        value = tl.load(ptrs, mask=here, other=0.0, cache_modifier=".cg")
        total += value
        peak = tl.maximum(peak, tl.where(here, value, float("-inf")))
    return tl.sum(total, 0), tl.max(peak, 0)


@triton.jit
def sum_plane(rows_ptr, rows, plane, C: tl.constexpr, PLANES: tl.constexpr, BLOCK_C: tl.constexpr):
    """One plane's sum over rows, (BLOCK_C,)."""
    c = tl.arange(0, BLOCK_C)
    at = RECORD + plane * C + c
    total, _ = sum_rows(rows_ptr, rows, at, c < C, RECORD + PLANES * C, 2048 // BLOCK_C)
    return total


@triton.jit
def sum_records(rows_ptr, rows, C: tl.constexpr, PLANES: tl.constexpr):
    """The records' sum (LARGEST: the maximum) over rows."""
    column = tl.arange(0, RECORD)
    total, peak = sum_rows(rows_ptr, rows, column, column >= 0, RECORD + PLANES * C, 128)
    return tl.where(column == LARGEST, peak, total)
