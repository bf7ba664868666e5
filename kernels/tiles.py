"""Tile sizes and program counts: pure functions of the problem, and what was measured."""

from typing import NamedTuple

REGISTERS = 1 << 16  # of a multiprocessor


class ForwardTile(NamedTuple):
    """Tile of the sums kernel: rows x width pixels, pipeline stages, programs a multiprocessor."""

    rows: int
    width: int
    num_warps: int
    stages: int
    programs: int
    registers: int  # at most, a thread; so that as many programs fit as are launched


class GradientTile(NamedTuple):
    """Tile of the gradient kernel: rows x width pixels, and how many tiles a program takes."""

    rows: int
    width: int
    num_warps: int
    tiles: int
    registers: int

    def tiles_each(self, pairs: int, tiles: int, multiprocessors: int) -> int:
        """How many of the (sample, class) pairs' tiles a program takes: one if all fit at once.

        Then none waits for memory twice: 4x1x128x128 in 1.7 us in place of 2.1.
        """
        resident = REGISTERS // (self.registers * 32 * self.num_warps) * multiprocessors
        return 1 if pairs * tiles <= resident else self.tiles


def forward_tile(logits_bytes: int, targets_bytes: int, unit: bool) -> ForwardTile:
    """Tile of the forward kernel; `unit`: pixels lie next to each other."""
    if not unit:
        return ForwardTile(rows=128, width=1, num_warps=4, stages=1, programs=8, registers=64)
    if logits_bytes == 4 and targets_bytes == 1:
        return ForwardTile(rows=256, width=8, num_warps=8, stages=1, programs=4, registers=64)
    if logits_bytes == 4:
        return ForwardTile(rows=256, width=4, num_warps=4, stages=2, programs=6, registers=80)
    if targets_bytes == 1:
        return ForwardTile(rows=64, width=16, num_warps=2, stages=1, programs=10, registers=96)
    return ForwardTile(rows=128, width=8, num_warps=4, stages=3, programs=8, registers=64)


def points_tile(targets_bytes: int, unit: bool) -> ForwardTile:
    """Tile of a forward launch of 4-byte logits that writes the gradient too.

    H100, BCE alone, us; beside it the same loss in two launches:

        32x1x1024x1024  fp32   256x4 4 warps, 1 stage, 128 registers: 148;  2, 80: 151     225
                        uint8  256x4 4 warps, 2 stages, 80 registers: 115;  256x8 8, 64: 117 174
        8x1x512x512     fp32   11.1, 11.8                                                   20
                        uint8  11.9, 12.3
    """
    if not unit:
        return forward_tile(4, targets_bytes, unit)
    if targets_bytes == 1:
        return ForwardTile(rows=256, width=4, num_warps=4, stages=2, programs=6, registers=80)
    return ForwardTile(rows=256, width=4, num_warps=4, stages=1, programs=4, registers=128)


def gradient_tile(logits_bytes: int, targets_bytes: int, unit: bool, words: bool) -> GradientTile:
    """Tile of the backward kernel for the given element sizes; `words`: see words.py."""
    if not unit:
        return GradientTile(rows=256, width=1, num_warps=8, tiles=2, registers=64)
    if logits_bytes == 4 and targets_bytes > 1:
        return GradientTile(rows=512, width=4, num_warps=8, tiles=2, registers=64)
    if words:  # both launches 106.9 us; with 256 x 8 and 4 tiles 107.2 (h100-tiles-words.json)
        return GradientTile(rows=128, width=8, num_warps=4, tiles=8, registers=64)
    tiles = 2 if logits_bytes == 4 else 4
    return GradientTile(rows=256, width=8, num_warps=4, tiles=tiles, registers=64)


class SingleTile(NamedTuple):
    """Teams of the single launch; a program's slice of a group, in tiles of 4 pixels a thread."""

    team: int
    teams: int
    tiles: int
    num_warps: int
    slots: int  # slices in shared memory
    lag: int  # groups between the sums and the gradient
    programs: int  # a multiprocessor

    @property
    def slice_pixels(self) -> int:
        """What a program has of a group."""
        return self.tiles * 4 * 32 * self.num_warps


SHARED_BYTES = 220 << 10  # of 227 KiB a multiprocessor has on Hopper; reductions need a little
# Below, the inputs are still in the cache when they are read a second time: 37 us and 32 at half of
# it, before the 2 us of the launch that settles the gradient.
SINGLE_BYTES = 60 << 20
LARGEST_SMALL_TEAM = 200
LEAST_SHARE = 0.6  # of the device that has to be at work


def single_tile(
    groups: int, pixels: int, targets_bytes: int, multiprocessors: int
) -> SingleTile | None:
    """Teams for the single launch of 4-byte logits; None where two launches serve better.

    Several programs a multiprocessor, so that one computes while another waits. As many teams as
    possible work on a group each, as long as the group's slices fit into shared memory; of these
    the division that leaves least idle. All read what each member of their team has posted, so a
    large team has fewer and larger programs. H100, us, team x teams of tiles x warps
    (h100-tiles-single.json has more):

                                     2 launches   1 program a mp.   2 programs      4 programs
        fp32/fp32  32x1x1024x1024    236          128x1 8x8: 177    256x1 4x8: 160  512x1 4x4: 201
                   64x1x512x1024     237                            128x2 4x8: 155  256x2 4x4: 159
                   64x1x640x640      188                            100x2 4x8: 157  200x2 4x4: 149
                   128x1x512x512     237          32x4  8x8: 168    64x4  4x8: 159  128x4 4x4: 152
                   512x1x256x256     253          8x16  8x8: 167    16x16 4x8: 157  32x16 4x4: 159
                   8x1x1024x1024      66                            256x1 4x8: 52
        fp32/uint8 32x1x1024x1024    174          128x1 8x8: 159    256x1 4x8: 150  512x1 4x4: 152
                   128x1x512x512     176          (74x7 7x4, which is taken: 142)  128x4 4x4: 135
                   16x1x800x1024      75                            115x2 7x8: 69
    """
    pixel_bytes = 4 + targets_bytes
    if groups * pixels * pixel_bytes < SINGLE_BYTES:
        return None
    slots, lag = 3, 1
    best, best_share = None, 0.0
    for programs, num_warps in ((4, 4), (2, 8), (1, 8)):
        if programs == 1 and best_share > LEAST_SHARE:
            break  # for planes that fit no other way
        tile, available = 4 * 32 * num_warps, programs * multiprocessors
        most = SHARED_BYTES // (programs * slots * tile * pixel_bytes)
        for teams in range(1, min(groups, available) + 1):
            tiles = -(-pixels // (available // teams * tile))
            if tiles > most:
                break  # more teams are smaller
            team = -(-pixels // (tiles * tile))
            found = SingleTile(team, teams, tiles, num_warps, slots, lag, programs)
            share = _share_at_work(found, groups, pixels, multiprocessors)
            if share > best_share and (num_warps > 4 or team <= LARGEST_SMALL_TEAM):
                best, best_share = found, share
    return best if best_share > LEAST_SHARE else None


def divided_alike(
    tile: SingleTile, groups: int, pixels: int, multiprocessors: int
) -> SingleTile | None:
    """Other groups by the programs of `tile`; None where too many of them would be idle."""
    team = -(-pixels // tile.slice_pixels)
    teams = min(groups, tile.programs * multiprocessors // team)
    if teams == 0:
        return None
    found = tile._replace(team=team, teams=teams)
    share = _share_at_work(found, groups, pixels, multiprocessors)
    return found if share > LEAST_SHARE else None


def _share_at_work(tile: SingleTile, groups: int, pixels: int, multiprocessors: int) -> float:
    programs, steps = tile.programs * multiprocessors, -(-groups // tile.teams)
    # Small slices pay for the exchange between programs, once a step.
    return groups * pixels / (steps * programs * tile.slice_pixels) * tile.tiles / (tile.tiles + 1)


def programs_per_group(groups: int, pixels: int, tile: ForwardTile, multiprocessors: int) -> int:
    """How many programs share a group's pixels: the device filled once, none without a tile.

    Rounded down: one program more than fits at once runs alone at the end (17 for 16.5 of 32 groups
    took a quarter longer).
    """
    wanted = tile.programs * multiprocessors // groups
    tiles = -(-pixels // (tile.rows * tile.width))
    return max(1, min(wanted, tiles))


class ClassTile(NamedTuple):
    """Tile of the multiclass kernels: rows x lanes x width (multiclass.py), steps of lanes."""

    rows: int
    lanes: int
    width: int
    num_warps: int
    stages: int  # of the forward kernel's pipeline
    programs: int  # a multiprocessor
    registers: int


# A tile's workspace: what a launch's partial rows may take.
CLASS_WORKSPACE_BYTES = 3 << 19


def class_tile(C: int, unit: bool, soft: bool, forward: bool) -> ClassTile:
    """Tile of a multiclass kernel; `unit`: a class's pixels lie next to each other.

    From what was measured on an H100 (us; 128 threads; lanes x width, registers), and between:

        logits, ids                        forward                      gradient
        8x5x512x1024      bf16, uint8      1x4 128: 46,  1x2 96: 56     1x4 128: 36,   1x2 96: 38
        8x19x512x1024     fp32, int64      1x2 168: 134, 2x4 168: 140   1x2 96: 241,   1x4 168: 242
                          bf16, uint8      1x2 168: 98,  1x1 128: 105   1x4 168: 117,  1x2 96: 119
        8x40x512x512      bf16, uint8      4x2 128: 127, 1x1 255: 134   4x4 128: 133,  1x1 255: 134
                          fp32, uint8      4x2 128: 148, 1x1 255: 307   4x2 128: 241,  4x4 128: 246
        2x118x128x128x128 fp32, uint8      4x2 255: 849, 8x4 168: 976   4x4 255: 1433, 8x4 128: 1507
        4x150x512x512     bf16, uint8      8x2 168: 261, 4x2 255: 284   4x4 255: 252,  8x4 128: 263

    32 lanes take twice as long. Pipelining gains nothing, but where a thread has little to do. Soft
    targets, and classes next to each other (channels_last: lanes along them), were not measured.
    """
    width = (4 if C <= 8 or not forward else 2) if unit else 1
    if soft:
        width = max(1, width // 2)
    most = 30 if forward else 38  # steps that fit into registers
    lanes = 1 if C <= 24 else 4
    while lanes < 32 and lanes * most < C:
        lanes *= 2
    if not unit:
        lanes = max(lanes, min(8, 1 << (C - 1).bit_length()))
    steps = -(-C // lanes)
    # of each class a thread keeps the logits (and targets), and three or four sums
    needed = steps * width * (1 + soft) + (steps * (3 + soft) if forward else 0) + 40
    registers, programs = (128, 4) if needed <= 110 else (168, 3) if needed <= 155 else (255, 2)
    stages = 2 if forward and C <= 8 else 1
    return ClassTile(128 // lanes, lanes, width, 4, stages, programs, registers)
