"""Tile sizes and program counts: pure functions of the problem, and what was measured."""

from typing import NamedTuple


class ForwardTile(NamedTuple):
    """Tile of the sums kernel: rows x width pixels, pipeline stages, programs a multiprocessor."""

    rows: int
    width: int
    num_warps: int
    stages: int
    programs: int
    registers: int  # at most, a thread; so that as many programs fit as are launched


class GradientTile(NamedTuple):
    """Tile of the gradient kernel: rows x width pixels."""

    rows: int
    width: int
    num_warps: int
    registers: int


def forward_tile(logits_bytes: int, targets_bytes: int, unit: bool) -> ForwardTile:
    """Tile of the forward kernel; `unit`: pixels lie next to each other."""
    if not unit:
        return ForwardTile(rows=256, width=1, num_warps=8, stages=1, programs=4, registers=64)
    if logits_bytes == 4:
        return ForwardTile(rows=256, width=4, num_warps=8, stages=3, programs=4, registers=64)
    return ForwardTile(rows=256, width=8, num_warps=8, stages=2, programs=4, registers=64)


def gradient_tile(logits_bytes: int, targets_bytes: int, unit: bool) -> GradientTile:
    """Tile of the backward kernel for the given element sizes."""
    if not unit:
        return GradientTile(rows=256, width=1, num_warps=8, registers=64)
    if logits_bytes == 4:
        return GradientTile(rows=512, width=4, num_warps=8, registers=64)
    return GradientTile(rows=256, width=8, num_warps=4, registers=128)


def programs_per_group(groups: int, pixels: int, tile: ForwardTile, multiprocessors: int) -> int:
    """How many programs share a group's pixels: the device filled once, none without a tile.

    Rounded down: one program more than fits at once runs alone at the end (17 for 16.5 of 32 groups
    took a quarter longer).
    """
    wanted = tile.programs * multiprocessors // groups
    tiles = -(-pixels // (tile.rows * tile.width))
    return max(1, min(wanted, tiles))
