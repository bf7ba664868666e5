"""Tiles of the kernels of low-resolution logits: pure functions of the problem."""

from typing import NamedTuple


class CellTile(NamedTuple):
    """The cells of a program, one a thread, and how many programs a multiprocessor holds."""

    block_w: int
    num_warps: int
    programs: int
    registers: int  # at most, a thread


MOST_OUTPUTS = 16  # that a thread holds at a time


def piece_of(most_y: int, most_x: int) -> tuple[int, int]:
    """How many outputs along y and x a thread takes of a cell at a time.

    The division that wastes least: of places in the last piece, and up to a power of two.
    """

    def cost(each: tuple[int, int]) -> tuple[int, int]:
        pieces = -(-most_y // each[0]) * -(-most_x // each[1])
        return pieces * (1 << (each[0] * each[1] - 1).bit_length()), pieces

    sizes = range(1, MOST_OUTPUTS + 1)
    each = [(y, x) for y in sizes for x in sizes if y * x <= MOST_OUTPUTS]
    return min((e for e in each if e[0] <= most_y and e[1] <= most_x), key=cost)


def block_of(w: int, most: int) -> int:
    """Cells of a row that a program takes."""
    return max(32, min(most, 1 << (w - 1).bit_length()))


def sums_tile(w: int) -> CellTile:
    """Tile of the forward kernel of one class at a time."""
    block_w = block_of(w, 128)
    return CellTile(block_w, block_w // 32, 640 // block_w, 96)


def gradient_tile(w: int) -> CellTile:
    """Tile of its backward kernel."""
    block_w = block_of(w, 256)
    return CellTile(block_w, block_w // 32, 640 // block_w, 96)


def class_sums_tile() -> CellTile:
    """Tile of the multiclass forward kernel: one warp, which counts in bits of one integer."""
    return CellTile(32, 1, 16, 128)


def mask_tile() -> CellTile:
    """Tile of the kernel of class maps: more programs than fit, so that none is alone at the end.

    16x150, 128x128 to 512x512 on one H100: 229 us; with 128 registers 248, with 64 252.
    """
    return CellTile(32, 1, 80, 96)


def class_gradient_tile(w: int) -> CellTile:
    """Tile of its backward kernel."""
    block_w = block_of(w, 256)
    return CellTile(block_w, block_w // 32, max(1, 512 // block_w), 128)
