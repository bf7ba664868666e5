"""Which calls the single launch serves, and its launch plan."""

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from fastseg_losses.kernels import terms
from fastseg_losses.kernels.early_plan import EarlyPlan
from fastseg_losses.kernels.launch import (
    Device,
    Formula,
    Launch,
    Layout,
    columns_of,
    sloped_sums,
)
from fastseg_losses.kernels.tiles import REGISTERS, SingleTile, divided_alike, single_tile

# By loss, size and sign of the masks' numbers, and device. Beside that bool and uint8 have kernels
# of their own, and a pos_weight, and addresses that 16 does not divide.
_COMPILED: dict[Any, "Compiled"] = {}


class Compiled(NamedTuple):
    """What of a division among programs is compiled in."""

    tile: SingleTile  # but for its team and teams
    block: int  # places for a team's words
    tails: bool  # whether slices may reach beyond a group's pixels


def compiled_for(tile: SingleTile, pixels: int) -> Compiled:
    """The kernel that is best for groups of so many pixels."""
    tails = tile.team * tile.slice_pixels != pixels
    return Compiled(tile._replace(team=0, teams=0), block_of_team(tile), tails)


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
    """The plan, or one that divides its groups otherwise; None where two launches serve better.

    A kernel takes seconds to compile, and whoever trains at sizes that change from batch to batch
    would wait for many. So the first large shape of a loss and its dtypes has the kernel that is
    best for it, and others that one too, where it leaves few programs idle.
    """
    f, at = plan.formula, plan.layout
    kind = (f.points, f.logs, f.powers, _floors(f), f.reduction, at.targets_kind, at.targets_bytes)
    first = _COMPILED.setdefault((kind, plan.device.index), plan.compiled)
    admitted = plan if plan.compiled == first else plan.divided_like(first)
    if admitted is not None:
        admitted.admitted = True
    return admitted


def _floors(f: Formula) -> tuple[bool, ...]:
    """Which region terms have a floor under their denominator: see spec.RegionTerm.numbers."""
    return tuple(floor > 0 for *_, floor, _ in f.region_params)


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
    if f.reduction not in ("mean", "sum") or not f.region_weights:
        return None
    # Half precision: as much to compute, and half as much to read again: 147 us against 111 at
    # 32x1x1024x1024. Bytes are copied four at a time.
    if at.logits_bytes != 4 or at.targets_bytes not in (1, 4):
        return None
    if at.targets_bytes == 1 and not at.aligned:
        return None
    return single_tile(at.N * at.C, at.P, at.targets_bytes, device.multiprocessors)


class SinglePlan(EarlyPlan):
    """One formula at one layout on one device, for the single launch."""

    numbered = True

    def __init__(
        self,
        layout: Layout,
        formula: Formula,
        device: Device,
        tile: SingleTile,
        compiled: Compiled | None = None,
    ) -> None:
        programs = tile.team * tile.teams
        super().__init__(layout, formula, device, layout.N * layout.C, programs)
        self.tile = tile
        self.compiled = compiled_for(tile, layout.P) if compiled is None else compiled
        # 4 counters, then 8 bytes for each of the 3 sums that a program posts: single_exchange.py
        self.num_counters = 4 + 2 * 3 * (2 * tile.lag + 2) * programs
        self.admitted = False  # see admit

    def divided_like(self, compiled: Compiled) -> "SinglePlan | None":
        """The same by a kernel that is there; None where it does not fit or idles too much."""
        at, device = self.layout, self.device
        tile = divided_alike(compiled.tile, self.groups, at.P, device.multiprocessors)
        if tile is None or tile.team > compiled.block:
            return None
        if compiled_for(tile, at.P).tails and not compiled.tails:
            return None
        return SinglePlan(at, self.formula, device, tile, compiled)

    def forward(self, tensors: Sequence[Any], stream: int | None) -> None:
        """Launch on loss to dlogits, logits to assumed; valid and class_weights are None here."""
        logits, targets, _, _, pos_weight, assumed = tensors[7:]
        tensors = (*tensors[:7], logits, targets, pos_weight, assumed)
        if self._forward is None:
            self._forward = self.forward_launch().bind(tensors)
        self._forward(tensors, (), stream)

    def forward_launch(self) -> Launch:
        """The launch that sums up and writes the gradient, without its tensors."""
        at, f, tile = self.layout, self.formula, self.tile
        sums, columns = columns_of(at, f)
        means = f.reduction == "mean"
        scalars = (
            *(at.C, self.groups, at.P // 16, tile.team, tile.teams),
            *(at.pos_weight_stride, self.workspace_start),
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
            "FLOORS": _floors(f),
            "REDUCTION": f.reduction,
            "TARGETS": at.targets_kind,
            "BLOCK_TEAM": self.compiled.block,
            "TILES": tile.tiles,
            "ROWS": 32 * tile.num_warps,
            "WIDTH": 4,
            "SLOTS": tile.slots,
            "LAG": tile.lag,
            "CHECK": self.compiled.tails,
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
