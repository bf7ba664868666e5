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
# Entries that a warp adds up at a time: their loads wait for memory, not for each other. As many as
# registers hold.
ENTRIES_IN_FLIGHT = 2048
ID_PLANES = tl.constexpr(5)
SOFT_PLANES = tl.constexpr(6)


@triton.jit
def add_rows(
    sum_ptr, rows_ptr, rows, stride,
    ROW: tl.constexpr, BLOCK_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Store the sum of rows that lie `stride` apart (LARGEST: the maximum), in a fixed order.

    sum_ptr may be the first of them. The program's threads see the sum afterwards.
    """
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    for first in range(0, ROW, BLOCK_ROW):
        entry = first + tl.arange(0, BLOCK_ROW)
        at = entry[None, :]
        total = (row + at).to(tl.float32) * 0.0
        for start in range(0, rows, BLOCK_ROWS):
            r = start + row
            ptrs = rows_ptr + r.to(tl.int64) * stride + at
            here = (r < rows) & (at < ROW)
            value = tl.load(ptrs, mask=here, other=0.0, cache_modifier=".cg")
            # the largest probability is at least the 0 that masked loads give
            total = tl.where(at == LARGEST, tl.maximum(total, value), total + value)
        summed = tl.where(entry == LARGEST, tl.max(total, 0), tl.sum(total, 0))
        tl.store(sum_ptr + entry, summed, mask=entry < ROW)
    tl.debug_barrier()


@triton.jit
def load_plane(row_ptr, plane, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """One plane of a row, (BLOCK_C,)."""
    c = tl.arange(0, BLOCK_C)
    ptrs = row_ptr + RECORD + plane * C + c
    return tl.load(ptrs, mask=c < C, other=0.0, cache_modifier=".cg")


@triton.jit
def load_record(row_ptr):
    """A row's record."""
    return tl.load(row_ptr + tl.arange(0, RECORD), cache_modifier=".cg")
