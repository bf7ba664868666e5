"""Which calls the single launch serves, and its launch plan."""

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from fastseg_losses.kernels import finalize, terms
from fastseg_losses.kernels.gradient import _settle_kernel
from fastseg_losses.kernels.launch import (
    Device,
    Formula,
    Launch,
    Launcher,
    Layout,
    columns_of,
    sloped_sums,
)
from fastseg_losses.kernels.tiles import SingleTile, single_tile

SETTLE_BLOCK = 4096
REGISTERS = 1 << 16  # of a multiprocessor
# Of a loss and its dtypes. How a shape is divided among programs is compiled in, which takes
# seconds: whoever trains at sizes that change from batch to batch would wait for each.
MOST_DIVISIONS = 1

_DIVISIONS: dict[Any, set[Any]] = {}


@cache
def gluon_kernels() -> Any:
    """The module of the single launch, or None where this Triton's Gluon is not one we know."""
    try:
        return importlib.import_module("fastseg_losses.kernels.single")
    except (ImportError, AttributeError):
        return None


def plan_single(layout: Layout, formula: Formula, device: Device) -> "SinglePlan | None":
    """The plan for one launch that reads each input once, or None where two serve better."""
    tile = _tile_for(layout, formula, device)
    if tile is None or gluon_kernels() is None:
        return None
    return SinglePlan(layout, formula, device, tile)


def block_of_team(tile: SingleTile) -> int:
    """How many places the team's words are read into: a member's by one thread, or by each warp.

    Words change while they are read. Where two warps hold the same members and their sums then meet
    in shared memory, one that read too early may overwrite the other's (Triton 3.9).
    """
    return 32 if tile.team <= 32 else max(32 * tile.num_warps, 1 << (tile.team - 1).bit_length())


def admit(plan: "SinglePlan") -> "SinglePlan | None":
    """The plan, or None where its shape is divided in another way than those that are compiled.

    The first shape is admitted, and all that are divided in the same way; for others the two
    launches serve, which are compiled for any shape.
    """
    f, at = plan.formula, plan.layout
    kind = (f.points, f.logs, f.powers, f.reduction, at.targets_kind, at.targets_bytes)
    compiled = _DIVISIONS.setdefault((kind, plan.device.index), set())
    division = (plan.tile, plan.tails)
    if division not in compiled and len(compiled) >= MOST_DIVISIONS:
        return None
    compiled.add(division)
    plan.admitted = True
    return plan


def _tile_for(at: Layout, f: Formula, device: Device) -> SingleTile | None:
    everything_counts = at.valid_kind == "none" and f.ignore_index is None
    usual = f.absent == "keep" and not (f.identity or f.minimum or f.squared)
    equally = not f.class_weighted and not f.batch
    expected = (at.C * at.P, at.P if at.C > 1 else None, 1)  # one class: its stride says nothing
    packed = at.P % 16 == 0
    for n, c, p in (at.logits, at.targets, at.dlogits):
        packed = packed and (n, c if at.C > 1 else None, p) == expected
    if not (everything_counts and usual and equally and packed and device.hopper):
        return None
    if f.reduction not in ("mean", "sum"):
        return None
    # Half precision: as much to compute, and half as much to read again: 147 us against 111 at
    # 32x1x1024x1024. Bytes are copied four at a time.
    if at.logits_bytes != 4 or at.targets_bytes not in (1, 4):
        return None
    if at.targets_bytes == 1 and not at.aligned:
        return None
    return single_tile(at.N * at.C, at.P, at.targets_bytes, device.multiprocessors)


class SinglePlan:
    """One formula at one layout on one device, for the single launch and what settles it."""

    def __init__(self, layout: Layout, formula: Formula, device: Device, tile: SingleTile) -> None:
        self.layout, self.formula, self.device, self.tile = layout, formula, device, tile
        self.groups = layout.N * layout.C
        programs = tile.team * tile.teams
        # norms and coefs as in the two-launch table, then the upstream gradient that was assumed
        self.used = finalize.NORMS.value + (2 + len(formula.points)) * self.groups
        self.groups_start = self.used + 1 + -(self.used + 1) % 16
        records = self.groups + programs
        self.scratch_size = self.groups_start + finalize.RECORD.value * records
        # 4 counters, then 8 bytes for each of the 3 sums that a program posts: single_exchange.py
        self.num_counters = 4 + 2 * 3 * (2 * tile.lag + 2) * programs
        self.counters: dict[int, Any] = {}  # by stream
        self.tables: tuple[Any, ...] = ()
        self.admitted = False  # see admit
        self.tails = tile.team * tile.tiles * 128 * tile.num_warps != layout.P
        self._forward: Launcher | None = None
        self._settle: Launcher | None = None

    def forward(self, tensors: Sequence[Any], stream: int | None) -> None:
        """Launch on the kernel's tensors, in its order: loss to assumed."""
        if self._forward is None:
            self._forward = self.forward_launch().bind(tensors)
        self._forward(tensors, (), stream)

    def settle(self, tensors: Sequence[Any], stream: int | None) -> None:
        """Launch on (dlogits, assumed, dloss, the used upstream gradient)."""
        if self._settle is None:
            self._settle = self.settle_launch().bind(tensors)
        self._settle(tensors, (), stream)

    def forward_launch(self) -> Launch:
        """The launch that sums up and writes the gradient, without its tensors."""
        at, f, tile = self.layout, self.formula, self.tile
        sums, columns = columns_of(at, f)
        means = f.reduction == "mean"
        scalars = (
            *(
                at.C,
                self.groups,
                at.P // 16,
                at.pos_weight_stride,
                self.groups_start,
            ),
            *(f.term_params, f.point_weights, f.region_weights, f.region_params),
            1.0 / (self.groups * at.P) if means else 1.0,
            1.0 / self.groups if means else 1.0,
        )
        points = tuple(terms.POINTWISE[name] for name in f.points)
        constexprs = {
            "TERMS": (*sums, *points),
            "COLUMNS": columns,
            "SLOPED": (*sloped_sums(f), *points),
            "LOGS": f.logs,
            "POWERS": f.powers,
            "REDUCTION": f.reduction,
            "TARGETS": at.targets_kind,
            "TEAM": tile.team,
            "TEAMS": tile.teams,
            "BLOCK_TEAM": block_of_team(tile),
            "TILES": tile.tiles,
            "ROWS": 32 * tile.num_warps,
            "WIDTH": 4,
            "SLOTS": tile.slots,
            "LAG": tile.lag,
            "CHECK": self.tails,
            "num_warps": tile.num_warps,
        }
        # Cooperative: programs wait for each other, so all must be resident at once.
        options = {
            "num_warps": tile.num_warps,
            # given out in eights
            "maxnreg": min(255, REGISTERS // (tile.programs * 32 * tile.num_warps) // 8 * 8),
            "enable_fp_fusion": True,
            "launch_cooperative_grid": True,
        }
        kernel = gluon_kernels()._single_kernel
        return Launch(kernel, (tile.team * tile.teams, 1, 1), scalars, constexprs, options)

    def settle_launch(self) -> Launch:
        """The launch that multiplies the gradient if it has to, without its tensors."""
        size = self.groups * self.layout.P
        programs = min(-(-size // SETTLE_BLOCK), 2 * self.device.multiprocessors)
        options = {"num_warps": 8, "enable_fp_fusion": True}
        constexprs = {"BLOCK": SETTLE_BLOCK}
        return Launch(_settle_kernel, (programs, 1, 1), (size,), constexprs, options)
