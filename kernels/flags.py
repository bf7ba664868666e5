"""How one program of a launch waits for another: only ever for one that was started before it.

A flag has one program that raises it and one that waits for it. It is 0 before and after, so that
launches with the same flags may follow each other, but must not overlap. Programs start in the
order of their number: CUDA does not promise it, but all NVIDIA GPUs do, and scans in one pass rest
on the same.
"""

import triton
import triton.language as tl


@triton.jit
def raise_flag(flag_ptr):
    """Tell who waits for it that all that this program has stored so far is there."""
    tl.debug_barrier()  # every thread's stores come before the one thread's release
    tl.atomic_xchg(flag_ptr, 1, sem="release")


@triton.jit
def await_flag(flag_ptr):
    """Wait until the flag is raised, and take it down."""
    raised = tl.atomic_add(flag_ptr, 0, sem="acquire")
    while raised == 0:
        raised = tl.atomic_add(flag_ptr, 0, sem="acquire")
    tl.debug_barrier()
    tl.store(flag_ptr, 0)


@triton.jit
def clear_flags(flags_ptr, count, pid, programs, BLOCK: tl.constexpr):
    """Set flags to 0 before their launch, each program a part."""
    lane = tl.arange(0, BLOCK)
    for start in range(pid * BLOCK, count, programs * BLOCK):
        tl.store(flags_ptr + start + lane, 0, mask=start + lane < count)
