"""What all kernels of low-resolution logits do with a cell: its places, its corners, its outputs.

A thread holds one cell at a time, or a piece of EACH_Y x EACH_X of its outputs: a tuple of tensors
[BLOCK_W], one for each output, row by row. cells.py says how outputs are dealt out to cells.
"""

import triton
import triton.language as tl

# An infinite logit is read as this, so that a weight of 0 leaves nothing of it; NaN stays.
HUGE = tl.constexpr(1e30)


@triton.jit
def places(
    positions_ptr,  # (size, MOST)
    weights_ptr,  # (size, MOST)
    j,
    piece,
    size,
    out,
    MOST: tl.constexpr,
    START: tl.constexpr,
    EACH: tl.constexpr,
):
    """A piece of the outputs of cells j along one axis: where they lie (-1: nowhere), weights.

    START: where the first cell's first output lies, if the others follow at even steps: then all
    is worked out, and no load waits for another one. -1: the tables say it.
    """
    positions = ()
    weights = ()
    for k in tl.static_range(EACH):
        if START < 0:
            at = j * MOST + piece * EACH + k
            position = tl.load(positions_ptr + at, mask=j < size, other=-1)
            weight = tl.load(weights_ptr + at, mask=j < size, other=0.0)
        else:
            place = piece * EACH + k
            position = j * MOST + (START + place)
            clamped = tl.where(position < out, 0.0, 1.0)  # of the last cell
            position = tl.where(position < out, position, position - out)
            between = ((START + place) + 0.5) * (1.0 / MOST) - 0.5
            weight = tl.where(j == size - 1, clamped, between)
        positions = positions + (position,)
        weights = weights + (weight,)
    return positions, weights


@triton.jit
def slopes_between(weights, last, SPLIT: tl.constexpr):
    """What `mix` takes of the difference of two inputs: in the last cell nothing."""
    slopes = ()
    for k in tl.static_range(len(weights)):
        slope = weights[k]
        if SPLIT < 0:
            slope -= tl.where(slope > 0.5, 1.0, 0.0)
        elif k >= SPLIT:
            slope -= 1.0
        slopes = slopes + (tl.where(last, 0.0, slope),)
    return slopes


@triton.jit
def locate(
    positions_ptr, weights_ptr, i, j, piece_y, piece_x, h, w, H, W,
    MOST_Y: tl.constexpr, MOST_X: tl.constexpr, START_Y: tl.constexpr, START_X: tl.constexpr,
    SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr, EACH_Y: tl.constexpr, EACH_X: tl.constexpr,
):  # fmt: skip
    """Where a piece of cells (i, j) has its outputs, along y and x, and how they are mixed."""
    positions_x, weights_x = places(
        positions_ptr + h * MOST_Y, weights_ptr + h * MOST_Y,
        j, piece_x, w, W, MOST_X, START_X, EACH_X,
    )  # fmt: skip
    positions_y, weights_y = places(
        positions_ptr, weights_ptr, i, piece_y, h, H, MOST_Y, START_Y, EACH_Y
    )
    across = (slopes_between(weights_x, j == w - 1, SPLIT_X), weights_x, j == w - 1)
    down = (slopes_between(weights_y, i == h - 1, SPLIT_Y), weights_y, i == h - 1)
    return positions_y, positions_x, across, down


@triton.jit
def fetch_corners(ptrs, offset, there):
    """The cells' four logits as they are stored; `there` None: of all cells.

    The offset first: the rest of the address is then the same for all classes.
    """
    corners = ()
    for k in tl.static_range(4):
        corner_ptrs = ptrs[k // 2] + offset + ptrs[2 + k % 2]
        if there is None:
            corners = corners + (tl.load(corner_ptrs),)
        else:
            corners = corners + (tl.load(corner_ptrs, mask=there, other=0.0),)
    return corners


@triton.jit
def ready_corners(corners, SCALE: tl.constexpr, BOTH: tl.constexpr):
    """The logits as float32, times SCALE; -inf becomes finite, with BOTH also inf."""
    ready = ()
    for k in tl.static_range(4):
        x = corners[k].to(tl.float32)
        if SCALE != 1.0:
            x *= SCALE
        x = tl.maximum(x, -HUGE, propagate_nan=tl.PropagateNan.ALL)
        if BOTH:
            x = tl.minimum(x, HUGE, propagate_nan=tl.PropagateNan.ALL)
        ready = ready + (x,)
    return ready


@triton.jit
def not_finite(corners):
    """NaN where a corner is NaN or infinite, else 0: whoever holds a piece of its cells sees it."""
    total = corners[0].to(tl.float32)
    for k in tl.static_range(1, 4):
        total += corners[k].to(tl.float32)
    return total - total


@triton.jit
def corner_pointers(base_ptr, i, j, h, w, stride_y, stride_x):
    """Of cells (i, j) where their upper and lower rows of logits start, and offsets in a row.

    The ring closes; threads without a cell have the last one.
    """
    stride_y = tl.cast(stride_y, tl.int64)
    stride_x = tl.cast(stride_x, tl.int64)
    j = tl.minimum(j, w - 1)
    below = tl.where(i + 1 < h, i + 1, 0)
    right = tl.where(j + 1 < w, j + 1, 0) * stride_x
    left = j * stride_x
    return base_ptr + i * stride_y, base_ptr + below * stride_y, left, right


@triton.jit
def mix(a, b, slopes, weights, SPLIT: tl.constexpr):
    """The outputs between a and b along one axis: a or b, the nearer, and a slope times b - a.

    Always the same instructions, so that a logit computed twice is the same to the bit. SPLIT: from
    which output on b is nearer; -1: their weight says so.
    """
    change = b - a
    values = ()
    for k in tl.static_range(len(slopes)):
        values = values + (mix_one(a, b, change, slopes, weights, k, SPLIT),)
    return values


@triton.jit
def mix_one(a, b, change, slopes, weights, k: tl.constexpr, SPLIT: tl.constexpr):
    """Output k between a and b."""
    if SPLIT < 0:
        start = tl.where(weights[k] > 0.5, b, a)
    elif k < SPLIT:
        start = a
    else:
        start = b
    return tl.fma(change, slopes[k], start)


@triton.jit
def outputs_of(
    corners, across, down, EACH_Y: tl.constexpr, EACH_X: tl.constexpr,
    SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
):  # fmt: skip
    """A piece's outputs from its corners; across, down: (slopes, weights, last) along x and y."""
    top = mix(corners[0], corners[1], across[0], across[1], SPLIT_X)
    bottom = mix(corners[2], corners[3], across[0], across[1], SPLIT_X)
    columns = ()
    for b in tl.static_range(EACH_X):
        columns = columns + (mix(top[b], bottom[b], down[0], down[1], SPLIT_Y),)
    values = ()
    for a in tl.static_range(EACH_Y):
        for b in tl.static_range(EACH_X):
            values = values + (columns[b][a],)
    return values


@triton.jit
def output_of(
    corners, across, down, a: tl.constexpr, b: tl.constexpr,
    SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
):  # fmt: skip
    """The output in row a, column b of a piece alone, the same to the bit."""
    change = corners[1] - corners[0]
    top = mix_one(corners[0], corners[1], change, across[0], across[1], b, SPLIT_X)
    change = corners[3] - corners[2]
    bottom = mix_one(corners[2], corners[3], change, across[0], across[1], b, SPLIT_X)
    return mix_one(top, bottom, bottom - top, down[0], down[1], a, SPLIT_Y)


@triton.jit
def odd_corners(ptrs, offset, there):
    """1 for a corner that is NaN or infinite, else 0."""
    fetched = fetch_corners(ptrs, offset, there)
    corners = ()
    for k in tl.static_range(4):
        x = fetched[k].to(tl.float32)
        corners = corners + (tl.where(tl.abs(x) < float("inf"), 0.0, 1.0),)
    return corners


@triton.jit
def odd_outputs(
    corners, across, down, EACH_Y: tl.constexpr, EACH_X: tl.constexpr,
    SPLIT_Y: tl.constexpr, SPLIT_X: tl.constexpr,
):  # fmt: skip
    """1 for an output that an odd corner reaches, else 0; also by a weight of 0, as in PyTorch."""
    top = either(corners[0], corners[1], across, SPLIT_X)
    bottom = either(corners[2], corners[3], across, SPLIT_X)
    values = ()
    for a in tl.static_range(EACH_Y):
        for b in tl.static_range(EACH_X):
            values = values + (either(top[b], bottom[b], down, SPLIT_Y)[a],)
    return values


@triton.jit
def either(a, b, along, SPLIT: tl.constexpr):
    """What reaches each output between a and b: both, in the last cell the one that it is."""
    none = ()
    for _k in tl.static_range(len(along[0])):
        none = none + (0.0,)
    alone = mix(a, b, none, along[1], SPLIT)
    values = ()
    for k in tl.static_range(len(along[0])):
        values = values + (tl.where(along[2], alone[k], tl.maximum(a, b)),)
    return values


@triton.jit
def shares_of(slopes, across, down, EACH_Y: tl.constexpr, EACH_X: tl.constexpr):
    """What a piece's slopes are at the corners: top left, top right, bottom left, bottom right."""
    weights_x = across[1]
    weights_y = down[1]
    top = tl.zeros_like(slopes[0])
    top_right = top
    bottom = top
    bottom_right = top
    for a in tl.static_range(EACH_Y):
        row = slopes[a * EACH_X]
        right = weights_x[0] * row
        for b in tl.static_range(1, EACH_X):
            slope = slopes[a * EACH_X + b]
            row += slope
            right += weights_x[b] * slope
        top += row
        top_right += right
        bottom += weights_y[a] * row
        bottom_right += weights_y[a] * right
    top -= bottom
    top_right -= bottom_right
    return top - top_right, top_right, bottom - bottom_right, bottom_right


@triton.jit
def from_left(exchange_ptr, turn, value, before, BLOCK_W: tl.constexpr):
    """Each cell's value at the cell that has it `before`, by way of memory (2, BLOCK_W).

    tl.gather keeps an axis within each warp: 64 shuffles for 256 cells. Two buffers in turn, so
    that one barrier is enough: who writes the next but one has passed that of the next.
    """
    buffer_ptr = exchange_ptr + (turn & 1) * BLOCK_W
    tl.store(buffer_ptr + tl.arange(0, BLOCK_W), value)
    tl.debug_barrier()
    return tl.load(buffer_ptr + before)


@triton.jit
def both_from_left(exchange_ptr, turn, top, bottom, before, BLOCK_W: tl.constexpr):
    """The same of two values, by way of (2, 2, BLOCK_W)."""
    buffer_ptr = exchange_ptr + (turn & 1) * (2 * BLOCK_W)
    lane = tl.arange(0, BLOCK_W)
    tl.store(buffer_ptr + lane, top)
    tl.store(buffer_ptr + BLOCK_W + lane, bottom)
    tl.debug_barrier()
    return tl.load(buffer_ptr + before), tl.load(buffer_ptr + BLOCK_W + before)


@triton.jit
def output_pointers(base_ptr, positions_y, positions_x, stride_y, stride_x):
    """Pointers to a piece's outputs in a plane; a place without an output has the first one's.

    The row first: it is the same for all threads.
    """
    stride_y = tl.cast(stride_y, tl.int64)
    stride_x = tl.cast(stride_x, tl.int64)
    ptrs = ()
    for a in tl.static_range(len(positions_y)):
        row_ptr = base_ptr + tl.maximum(positions_y[a], 0) * stride_y
        for b in tl.static_range(len(positions_x)):
            ptrs = ptrs + (row_ptr + tl.maximum(positions_x[b], 0) * stride_x,)
    return ptrs
