"""How the kernels of low-resolution logits that take a class for itself read a piece of a cell."""

import triton
import triton.language as tl

from fastseg_losses.kernels.interpolation import (
    corner_pointers,
    fetch_corners,
    output_pointers,
    places,
)
from fastseg_losses.kernels.words import BYTE_BITS, byte_of


@triton.jit
def fetch_targets(
    targets_ptr, positions_y, positions_x, there, stride_y, stride_x,
    WHOLE: tl.constexpr, GRAB: tl.constexpr,
):  # fmt: skip
    """A piece's targets as they are stored; GRAB bytes that lie together in one integer."""
    spots = output_pointers(targets_ptr, positions_y, positions_x, stride_y, stride_x)
    targets = ()
    for k in tl.static_range(0, len(spots), GRAB):
        inside = has_output(k, positions_y, positions_x, there, WHOLE)
        ptrs = spots[k]
        if GRAB == 2:
            ptrs = ptrs.to(tl.pointer_type(tl.uint16), bitcast=True)
        if GRAB == 4:
            ptrs = ptrs.to(tl.pointer_type(tl.uint32), bitcast=True)
        targets = targets + (tl.load(ptrs, mask=inside, other=0),)
    return targets


@triton.jit
def has_output(k: tl.constexpr, positions_y, positions_x, there, WHOLE: tl.constexpr):
    """In which cells a piece's place k has an output."""
    if WHOLE:
        return there
    else:
        position_x = positions_x[k % len(positions_x)]
        return there & (tl.minimum(positions_y[k // len(positions_x)], position_x) >= 0)


@triton.jit
def ready_targets(
    raw,
    valid_ptr,
    positions_y,
    positions_x,
    there,
    valid_stride_y,
    valid_stride_x,
    ignore_index,
    WHOLE: tl.constexpr,
    PIXEL_VALID: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    GRAB: tl.constexpr,
    PTX: tl.constexpr,
):
    """A piece's targets as float32 (0 where they do not count), and where they count."""
    valids = raw
    if PIXEL_VALID:
        valids = output_pointers(
            valid_ptr, positions_y, positions_x, valid_stride_y, valid_stride_x
        )
    targets = ()
    lives = ()
    for k in tl.static_range(len(raw) * GRAB):
        live = has_output(k, positions_y, positions_x, there, WHOLE)
        t = number_of(raw[k // GRAB], k % GRAB, GRAB, PTX)
        if PIXEL_VALID:
            live = live & (tl.load(valids[k], mask=live, other=0) != 0)
        if HAS_IGNORE:
            live = live & (t != ignore_index)
        if PIXEL_VALID or HAS_IGNORE:
            t = tl.where(live, t, 0.0)
        targets = targets + (t,)
        lives = lives + (live,)
    return targets, lives


@triton.jit
def number_of(value, byte: tl.constexpr, GRAB: tl.constexpr, PTX: tl.constexpr):
    """A target as float32, of several bytes one."""
    SIGNED: tl.constexpr = value.dtype.is_int_signed()
    if value.dtype.is_floating() or (GRAB == 1 and (value.dtype.primitive_bitwidth > 8 or SIGNED)):
        return value.to(tl.float32)
    else:
        return byte_of(value.to(tl.int32), tl.full((), BYTE_BITS, tl.int32), byte, PTX)


@triton.jit
def fetch_piece(
    logits_ptr, targets_ptr, positions_ptr, weights_ptr, positions_x,
    step, j, there, h, w, H, logits_stride_y, logits_stride_x, targets_stride_y, targets_stride_x,
    MOST_Y: tl.constexpr, START_Y: tl.constexpr, EACH_Y: tl.constexpr, WHOLE: tl.constexpr,
    GRAB: tl.constexpr,
):  # fmt: skip
    """Corners and targets of a step's piece as they are stored, and its places along y."""
    PIECES_Y: tl.constexpr = MOST_Y // EACH_Y
    i = tl.cast(step, tl.int32) // PIECES_Y
    positions_y, weights_y = places(
        positions_ptr, weights_ptr, i, step % PIECES_Y, h, H, MOST_Y, START_Y, EACH_Y
    )
    ptrs = corner_pointers(logits_ptr, i, j, h, w, logits_stride_y, logits_stride_x)
    raw = fetch_targets(
        targets_ptr, positions_y, positions_x, there, targets_stride_y, targets_stride_x,
        WHOLE, GRAB,
    )  # fmt: skip
    return fetch_corners(ptrs, 0, there), raw, positions_y, weights_y, i == h - 1
