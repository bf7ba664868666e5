"""The finish of generalised Dice: from the sums of all groups to the loss and its slopes, at once.

The weights of the channels depend on each other, so no group can be finished on its own as
finalize.py does it. One program: the sums of 64 samples of 19 classes are 19 KB.
"""

import triton
import triton.language as tl

from fastseg_losses.kernels.launch import Launch

ELEMENTS = 2048  # of a tile of samples and channels: 16 a thread, three tiles live


@triton.jit
def _weights(T, channel, WEIGHTS: tl.constexpr):
    """1 / T**2, 1 / T or 1 of each channel; where T is 0, the largest of the others."""
    if WEIGHTS == "uniform":
        return tl.where(channel, 1.0, 0.0)
    else:
        w = 1.0 / (T * T if WEIGHTS == "square" else T)
        infinite = w == float("inf")  # also where T * T underflows
        w = tl.where(channel & (infinite == 0), w, 0.0)
        return tl.where(channel & infinite, tl.max(w, 1)[:, None], w)


@triton.jit
def _generalized_finish_kernel(
    # outputs
    loss_ptr,  # (N,), batch: (1,); under a mean or a sum ()
    dsums_ptr,  # (4, N, C): slopes of the loss in I and P, zeros for T and V
    # inputs
    sums_ptr,  # (4, N, C): I, P, T, V
    # sizes
    N,
    C,
    first,  # channels left out at the start
    # scalars
    smooth_nr,
    smooth_dr,
    scale,  # of the loss of each group, and of the slopes
    # constexprs
    WEIGHTS: tl.constexpr,
    BATCH: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.arange(0, BLOCK_C)[None, :]
    channel = (c >= first) & (c < C)
    plane = N * C
    total = tl.zeros((BLOCK_N,), tl.float32)
    I = tl.zeros((1, BLOCK_C), tl.float32)  # noqa: E741
    P = tl.zeros((1, BLOCK_C), tl.float32)
    T = tl.zeros((1, BLOCK_C), tl.float32)
    if BATCH:
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)[:, None]
            at, there = sums_ptr + n * C + c, channel & (n < N)
            I += tl.sum(tl.load(at, there, 0.0), 0)[None, :]  # noqa: E741
            P += tl.sum(tl.load(at + plane, there, 0.0), 0)[None, :]
            T += tl.sum(tl.load(at + 2 * plane, there, 0.0), 0)[None, :]
    for start in range(0, N, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        n = row[:, None]
        at, inside = n * C + c, (n < N) & (c < C)
        if BATCH:
            i, p, t = I, P, T
        else:
            there = inside & channel
            i = tl.load(sums_ptr + at, there, 0.0)
            p = tl.load(sums_ptr + at + plane, there, 0.0)
            t = tl.load(sums_ptr + at + 2 * plane, there, 0.0)
        w = _weights(t, channel, WEIGHTS)
        over = 2.0 * tl.sum(w * i, 1) + smooth_nr
        under = tl.sum(w * (p + t), 1) + smooth_dr
        loss = (1.0 - over / under) * scale
        zeros = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        dI = zeros - w * (2.0 * scale / under)[:, None]
        dP = zeros + w * (over / (under * under) * scale)[:, None]
        tl.store(dsums_ptr + at, dI, inside)
        tl.store(dsums_ptr + at + plane, dP, inside)
        tl.store(dsums_ptr + at + 2 * plane, zeros, inside)
        tl.store(dsums_ptr + at + 3 * plane, zeros, inside)
        if BATCH:
            tl.store(loss_ptr + tl.arange(0, 1), loss)
        elif REDUCED:
            total += tl.where(row < N, loss, 0.0)
        else:
            tl.store(loss_ptr + row, loss, row < N)
    if REDUCED and not BATCH:
        tl.store(loss_ptr, tl.sum(total))


def generalized_launch(
    N: int,
    C: int,
    first: int,
    numbers: tuple[float, float],
    scale: float,
    weights: str,
    batch: bool,
    reduced: bool,
) -> Launch:
    """The launch without its tensors: the kernel's sizes, smooth_nr and smooth_dr, the rest."""
    block_c = triton.next_power_of_2(C)
    constexprs = {
        "WEIGHTS": weights,
        "BATCH": batch,
        "REDUCED": reduced,
        "BLOCK_N": min(triton.next_power_of_2(N), max(1, ELEMENTS // block_c)),
        "BLOCK_C": block_c,
    }
    scalars = (N, C, first, *numbers, scale)
    # Without fused multiply-add. A row is added up by a warp's lanes, which then all hold the sum.
    # Where one lane fuses a product of its own and its partner the other, their last bits differ,
    # and all of them write to the same place in shared memory (racecheck reports it).
    options = {"num_warps": 4, "enable_fp_fusion": False}
    return Launch(_generalized_finish_kernel, (1, 1, 1), scalars, constexprs, options)
