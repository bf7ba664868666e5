"""Launch plans of low-resolution logits, each class for itself."""

from typing import Any, NamedTuple

from fastseg_losses.kernels import finalize, terms
from fastseg_losses.kernels.cell_gradient import _cell_gradient_kernel
from fastseg_losses.kernels.cell_sums import _cell_sums_kernel
from fastseg_losses.kernels.cell_tiles import CellTile, gradient_tile, sums_tile
from fastseg_losses.kernels.cells import Axis
from fastseg_losses.kernels.launch import Device, Formula, Launch, Plan, columns_of, sloped_sums

PlaneStrides = tuple[int, int, int, int]


class CellLayout(NamedTuple):
    """Where the elements of one call lie: sizes and axes, and strides in elements (n, c, y, x)."""

    N: int
    C: int
    y: Axis  # padded to whole pieces
    x: Axis
    each: tuple[int, int]  # outputs of a piece along y and x
    logits: PlaneStrides
    targets: PlaneStrides
    dlogits: PlaneStrides
    valid: tuple[int, int, int]  # n, y, x
    logits_bytes: int
    targets_align: int  # bytes that their address is a multiple of; 1 if they are no bytes
    targets_kind: str  # see launch.Layout
    valid_kind: str
    pos_weight_stride: int


def cell_constants(at: CellLayout, tile: CellTile) -> dict[str, Any]:
    """What a kernel must know at compile time of the cells and of its piece of them."""
    whole = at.y.whole and at.x.whole
    each_y, each_x = at.each
    return {
        "WHOLE": whole,
        "FULL": whole and at.x.size % tile.block_w == 0,
        "MOST_Y": at.y.most,
        "MOST_X": at.x.most,
        "START_Y": at.y.start,
        "START_X": at.x.start,
        # in several pieces it is not known at compile time
        "SPLIT_Y": at.y.nearer if each_y == at.y.most else -1,
        "SPLIT_X": at.x.nearer if each_x == at.x.most else -1,
        "EACH_Y": each_y,
        "EACH_X": each_x,
        "BLOCK_W": tile.block_w,
    }


def grab_of(at: CellLayout) -> int:
    """How many targets of a byte each can be read together: neighbours in every cell."""
    if at.targets_kind != "unsigned" or at.x.start < 0 or at.targets[3] != 1:
        return 1
    inside = (at.x.start, at.x.most, at.each[1])
    multiples = (at.targets_align, *at.targets[:3], *inside)
    return next(grab for grab in (4, 2, 1) if all(n % grab == 0 for n in multiples))


class CellPlan(Plan):
    """One formula of low-resolution logits at one layout on one device."""

    no_gradient = ()

    def __init__(
        self,
        layout: CellLayout,
        formula: Formula,
        device: Device,
        forward: CellTile | None = None,
        gradient: CellTile | None = None,
    ) -> None:
        self.layout, self.formula, self.device = layout, formula, device  # type: ignore[assignment]
        at, f = layout, formula
        pairs = at.N * at.C
        self.groups = at.C if f.batch else pairs
        self.tile = forward or sums_tile(at.x.size)
        self.gradient = gradient or gradient_tile(at.x.size)
        self.blocks = -(-at.x.size // self.tile.block_w)
        steps = at.y.size * (at.y.most // at.each[0])
        wanted = self.tile.programs * device.multiprocessors // (pairs * self.blocks)
        self.splits = self.blocks * max(1, min(wanted, steps))
        self.programs = pairs * self.splits
        self.table_size = finalize.NORMS.value + (2 + len(f.points)) * self.groups
        self.workspace_start = self.table_size + -self.table_size % 16
        records = self.groups + self.programs
        self.scratch_size = self.workspace_start + finalize.RECORD.value * records
        per_group = (at.C,) if f.batch else (at.N, at.C)
        self.loss_shape = {"none": per_group, "sums": (4, *per_group)}.get(f.reduction, ())
        self._shared = {
            "BATCH": f.batch,
            "VALID_KIND": at.valid_kind,
            "HAS_IGNORE": f.ignore_index is not None,
            "TARGETS": at.targets_kind,
            "GRAB": grab_of(at),
            "PTX": device.ptx,
        }
        self._walk(pairs)
        self.num_counters = 1 + self.groups + (pairs if f.batch else 0)
        self.counters = {}
        self.early = None
        self.tables = ()
        self._forward = self._backward = None

    def _walk(self, walks: int) -> None:
        """Strips and columns of the backward launch, of each of so many planes."""
        at, tile = self.layout, self.gradient
        self.ring = at.x.size <= tile.block_w
        self.columns = 1 if self.ring else -(-at.x.size // (tile.block_w - 1))
        wanted = max(1, tile.programs * self.device.multiprocessors // (walks * self.columns))
        self.rows = -(-at.y.size // min(at.y.size, wanted))
        self.strips = -(-at.y.size // self.rows)
        self.exchange_size = 2 * tile.block_w * walks * self.strips * self.columns

    def forward_launch(self) -> Launch:
        """The forward launch, without its tensors."""
        at, f = self.layout, self.formula
        sums, columns = columns_of(at, f)  # type: ignore[arg-type]
        cells = cell_constants(at, self.tile)  # type: ignore[arg-type]
        if at.valid_kind == "pixel" or f.ignore_index is not None or not cells["FULL"]:
            columns += (finalize.VALID.value,)
        scalars = (
            *(at.N, at.C, at.y.size, at.x.size, at.y.out, at.x.out, self.splits, self.blocks),
            *(*at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            self.workspace_start,
            *(f.term_params, f.point_weights, f.region_weights, f.region_params),
            0.0 if f.ignore_index is None else f.ignore_index,
        )
        constexprs = {
            "TERMS": (*sums, *(terms.POINTWISE[name] for name in f.points)),
            "COLUMNS": columns,
            "LOGS": f.logs,
            "POWERS": f.powers,
            "REDUCTION": f.reduction,
            "ABSENT": f.absent,
            **self._shared,
            **cells,
        }
        options = self._options(self.tile)
        return Launch(_cell_sums_kernel, (self.programs, 1, 1), scalars, constexprs, options)

    def backward_launch(self) -> Launch:
        """The backward launch, without its tensors and the upstream gradient's strides."""
        at, f, tile = self.layout, self.formula, self.gradient
        scalars = (
            *(at.N, at.C, at.y.size, at.x.size, at.y.out, at.x.out),
            *(self.rows, self.strips, self.columns),
            *(*at.dlogits, *at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            f.term_params,
            0.0 if f.ignore_index is None else f.ignore_index,
        )
        cells = cell_constants(at, tile)  # type: ignore[arg-type]
        constexprs = {
            "TERMS": (*sloped_sums(f), *(terms.POINTWISE[name] for name in f.points)),
            "SUMS": f.reduction == "sums",
            "RING": self.ring,
            **self._shared,
            **cells,
            "FULL": cells["FULL"] and self.ring,
        }
        grid = (at.N * at.C * self.strips * self.columns, 1, 1)
        return Launch(_cell_gradient_kernel, grid, scalars, constexprs, self._options(tile))
