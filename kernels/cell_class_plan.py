"""Launch plans of low-resolution logits in multiclass mode."""

from typing import Any

from fastseg_losses.kernels import finalize, multiclass_rows
from fastseg_losses.kernels.cell_class_gradient import _cell_class_gradient_kernel
from fastseg_losses.kernels.cell_class_sums import _cell_class_sums_kernel
from fastseg_losses.kernels.cell_plan import CellLayout, CellPlan, cell_constants
from fastseg_losses.kernels.cell_tiles import CellTile, class_gradient_tile, class_sums_tile
from fastseg_losses.kernels.cells import flag_places
from fastseg_losses.kernels.class_formula import (
    backward_constants,
    class_dloss_strides,
    class_loss_shape,
    forward_constants,
)
from fastseg_losses.kernels.launch import Device, Formula, Launch
from fastseg_losses.kernels.multiclass_plan import team_of
from fastseg_losses.kernels.tiles import CLASS_WORKSPACE_BYTES

CLASSES_AT_A_TIME = 2  # in the first walk over the classes


class CellClassPlan(CellPlan):
    """One multiclass formula of low-resolution logits at one layout on one device."""

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
        self.ids = at.targets_kind == "ids"
        self.tile = forward or class_sums_tile()
        self.gradient = gradient or class_gradient_tile(at.x.size)
        planes = multiclass_rows.ID_PLANES if self.ids else multiclass_rows.SOFT_PLANES
        row = finalize.RECORD.value + planes.value * at.C
        self.blocks = -(-at.x.size // self.tile.block_w)
        steps = at.y.size * (at.y.most // at.each[0])
        most = self.tile.programs * device.multiprocessors
        most = min(most, CLASS_WORKSPACE_BYTES // row)  # four times as much as at full size
        self.splits = self.blocks * max(1, min(most // (at.N * self.blocks), steps))
        self.programs = at.N * self.splits
        self.groups = at.C if f.batch else at.N * at.C
        table = finalize.NORMS.value + 2 * self.groups + len(f.points) * at.C + at.N
        self.flags_start = table
        self.table_size = table + flag_places(at.N, at.y.size, at.x.size)
        self.kept_start = self.table_size + -self.table_size % 16
        if f.softmax:
            self.table_size = self.kept_start + (1 + self.ids) * at.N * at.y.out * at.x.out
        self.workspace_start = self.table_size + -self.table_size % 16
        self.scratch_size = self.workspace_start + row * (at.N + self.programs)
        self.loss_shape = class_loss_shape(at.N, at.C, f)
        self._shared = {
            "C": at.C,
            "SMOOTHED": f.smoothed,
            "SPREAD": f.softmax and bool(f.points) and (not self.ids or any(f.smoothed)),
            "SOFTMAX": f.softmax,
            "FIRST": f.first_class,
            "BATCH": f.batch,
            "VALID_KIND": at.valid_kind,
            "HAS_IGNORE": f.ignore_index is not None,
            "IDS": self.ids,
            "PTX": device.ptx,
        }
        self.block_row = min(1024, 1 << (row - 1).bit_length())
        self.block_rows = multiclass_rows.ENTRIES_IN_FLIGHT * self.tile.num_warps // self.block_row
        self.team = team_of(self.splits, self.block_rows)
        self.num_counters = 1 + at.N + at.N * -(-self.splits // self.team)
        self.counters = {}
        self.early = None
        self.tables = ()
        self.in_place = at.logits_bytes == 4
        self._walk(at.N)
        self._forward = self._backward = None

    def _walk(self, walks: int) -> None:
        """Strips and columns of the backward launch.

        Two rows a strip at the least: one that begins and ends with the same row would wait for the
        strip below to end. Only the last one, which waits for none, may have one.
        """
        super()._walk(walks)
        cells = self.layout.y.size + 1  # the last ones of the ring come first, too
        most = self.gradient.programs * self.device.multiprocessors // (walks * self.columns)
        self.rows = max(2, -(-cells // max(1, most)))
        self.strips = -(-cells // self.rows)
        self.flags = walks * self.strips * self.columns
        assert self.flags <= flag_places(walks, self.layout.y.size, self.layout.x.size)
        rows = 4 if self.in_place else 4 + 3 * self.layout.C
        self.exchange_size = rows * self.gradient.block_w * self.flags

    def dloss_strides(self, strides: Any) -> tuple[int, int, int]:
        """Strides (k, n, c) of an upstream gradient that has these: (N,) is one a sample."""
        return class_dloss_strides(self.formula, strides) or super().dloss_strides(strides)

    def forward_launch(self) -> Launch:
        """The forward launch, without its tensors."""
        at, f = self.layout, self.formula
        scalars = (
            *(at.N, at.y.size, at.x.size, at.y.out, at.x.out, self.splits, self.team, self.blocks),
            self.flags,
            *(*at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            *(self.workspace_start, self.flags_start, self.kept_start),
            *(f.term_params, f.point_weights, f.region_weights, f.region_params),
            0 if f.ignore_index is None else int(f.ignore_index),
        )
        constexprs = {
            **forward_constants(f, at.C, ids=self.ids),
            "COUNT": CLASSES_AT_A_TIME,
            "BLOCK_ROW": self.block_row,
            "BLOCK_ROWS": self.block_rows,
            **self._shared,
            **cell_constants(at, self.tile),
        }
        options = self._options(self.tile)
        return Launch(_cell_class_sums_kernel, (self.programs, 1, 1), scalars, constexprs, options)

    def backward_launch(self) -> Launch:
        """The backward launch, without its tensors and the upstream gradient's strides."""
        at, f, tile = self.layout, self.formula, self.gradient
        scalars = (
            *(at.N, at.y.size, at.x.size, at.y.out, at.x.out),
            *(self.rows, self.strips, self.columns),
            *(*at.dlogits, *at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            *(self.flags_start, self.kept_start),
            f.term_params,
            0 if f.ignore_index is None else int(f.ignore_index),
        )
        constexprs = {
            **backward_constants(f),
            "IN_PLACE": self.in_place,
            "RING": self.ring,
            **self._shared,
            **cell_constants(at, tile),
        }
        grid = (at.N * self.strips * self.columns, 1, 1)
        return Launch(_cell_class_gradient_kernel, grid, scalars, constexprs, self._options(tile))
