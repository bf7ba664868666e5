"""Launch plans of multiclass mode."""

from collections.abc import Sequence
from typing import Any

from fastseg_losses.kernels import finalize, multiclass_rows
from fastseg_losses.kernels.class_formula import (
    backward_constants,
    class_dloss_strides,
    class_loss_shape,
    forward_constants,
)
from fastseg_losses.kernels.launch import (
    Device,
    Formula,
    Launch,
    Layout,
    Plan,
    Strides,
)
from fastseg_losses.kernels.multiclass_gradient import _class_gradient_kernel
from fastseg_losses.kernels.multiclass_sums import _class_sums_kernel
from fastseg_losses.kernels.multiclass_tile import MAX_COUNT
from fastseg_losses.kernels.tiles import CLASS_WORKSPACE_BYTES, ClassTile, class_tile

EXACT = 1 << 24  # float32 counts no further


def team_of(splits: int, at_once: int) -> int:
    """How many of a sample's programs add up their rows before the teams' rows are added.

    `at_once` rows are read as fast as one; a second round with its atomic costs about two of those.
    """

    def rounds(team: int) -> int:
        teams = -(-splits // team)
        return -(-team // at_once) + (2 + -(-teams // at_once) if teams > 1 else 0)

    return min(range(1, splits + 1), key=lambda team: (rounds(team), -team))


class ClassPlan(Plan):
    """One multiclass formula at one layout on one device."""

    no_gradient = ()

    def __init__(
        self,
        layout: Layout,
        formula: Formula,
        device: Device,
        tile: ClassTile | None = None,
        gradient_tile: ClassTile | None = None,
    ) -> None:
        self.layout, self.formula, self.device = layout, formula, device
        at, f = layout, formula
        self.ids = at.targets_kind == "ids"
        strides = (at.logits, at.targets, at.dlogits)
        unit = all(stride[2] == 1 for stride in strides)
        rows = [stride for each in strides for stride in each[:2]]
        if at.valid_kind == "pixel":
            unit = unit and at.valid[1] == 1
            rows.append(at.valid[0])
        aligned = at.P % 16 == 0 and all(stride % 16 == 0 for stride in rows)
        self.tile = tile or class_tile(at.C, unit, not self.ids, forward=True)
        self.gradient_tile = gradient_tile or class_tile(at.C, unit, not self.ids, forward=False)
        planes = multiclass_rows.ID_PLANES if self.ids else multiclass_rows.SOFT_PLANES
        row = finalize.RECORD.value + planes.value * at.C
        self.splits = self._programs_per_sample(row)
        self.programs = at.N * self.splits
        self.wave = max(1, min(at.N, self.tile.programs * device.multiprocessors // self.splits))
        self.groups = at.C if f.batch else at.N * at.C
        self.table_size = finalize.NORMS.value + 2 * self.groups + len(f.points) * at.C + at.N
        self.workspace_start = self.table_size + -self.table_size % 16
        self.scratch_size = self.workspace_start + row * (at.N + self.programs)
        self.loss_shape = class_loss_shape(at.N, at.C, f)
        self._shared = {
            "C": at.C,
            "SMOOTHED": f.smoothed,
            "SOFTMAX": f.softmax,
            "IDENTITY": f.identity,
            "MINIMUM": f.minimum and not (self.ids and f.softmax),  # min(p, 1) is p
            "SQUARED": f.squared,
            "FIRST": f.first_class,
            "BATCH": f.batch,
            "VALID_KIND": at.valid_kind,
            "HAS_IGNORE": f.ignore_index is not None,
            "IDS": self.ids,
            "UNIT": unit,
            "ALIGNED": unit and aligned,
            "PTX": device.ptx,
        }
        self.block_row = min(1024, 1 << (row - 1).bit_length())
        entries = multiclass_rows.ENTRIES_IN_FLIGHT * self.tile.num_warps
        self.block_rows = entries // self.block_row
        self.team = team_of(self.splits, self.block_rows)
        self.num_counters = 1 + at.N + at.N * -(-self.splits // self.team)
        self.counters = {}
        self.early = None
        self.tables = ()
        self.exchange_size = 0
        self._forward = self._backward = self._add_backward = None

    def _programs_per_sample(self, row: int) -> int:
        """The device filled once, as far as the workspace goes; counts exact in float32.

        What belongs to a pixel is counted in every lane: 2**24 pixels and lanes a program.
        """
        at, tile = self.layout, self.tile
        tiles = -(-at.P // (tile.rows * tile.width))
        most = min(tile.programs * self.device.multiprocessors, CLASS_WORKSPACE_BYTES // (4 * row))
        least = -(-tiles // (EXACT // (tile.rows * tile.lanes * tile.width)))
        return max(1, least, min(most // at.N, tiles))

    def dloss_strides(self, strides: Sequence[int]) -> Strides:
        """Strides (k, n, c) of an upstream gradient that has these: (N,) is one a sample."""
        return class_dloss_strides(self.formula, strides) or super().dloss_strides(strides)

    def forward_launch(self) -> Launch:
        """The forward launch, without its tensors."""
        at, f = self.layout, self.formula
        scalars = (
            *(at.N, at.P, self.splits, self.team),
            *(*at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            self.workspace_start,
            *(f.term_params, f.point_weights, f.region_weights, f.region_params),
            0 if f.ignore_index is None else int(f.ignore_index),
        )
        shape = self._shape(self.tile)
        constexprs = {
            **forward_constants(f, at.C, ids=self.ids),
            "STAGES": self.tile.stages,
            "CHUNK": MAX_COUNT // self.tile.width,
            "BLOCK_STEPS": 1 << (shape["STEPS"] - 1).bit_length(),
            "BLOCK_ROW": self.block_row,
            "BLOCK_ROWS": self.block_rows,
            **self._shared,
            **shape,
        }
        options = self._options(self.tile)
        return Launch(_class_sums_kernel, (self.programs, 1, 1), scalars, constexprs, options)

    def add_backward(
        self, tensors: Sequence[Any], dloss_strides: Strides, stream: int | None
    ) -> None:
        """As `backward`, adding to what dlogits holds."""
        if self._add_backward is None:
            launch = self.backward_launch(add=True)
            self._add_backward = launch.bind((*tensors, *dloss_strides))
        self._add_backward(tensors, dloss_strides, stream)

    def backward_launch(self, *, add: bool = False) -> Launch:
        """The backward launch, without its tensors and the upstream gradient's strides."""
        at, f, tile = self.layout, self.formula, self.gradient_tile
        scalars = (
            *(at.N, at.P, self.wave),
            *(*at.dlogits, *at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            f.term_params,
            0 if f.ignore_index is None else int(f.ignore_index),
        )
        constexprs = {
            **backward_constants(f),
            "SPREAD": bool(f.points) and (not self.ids or any(f.smoothed)),
            "ADD": add,
            **self._shared,
            **self._shape(tile),
        }
        programs = at.N * -(-at.P // (tile.rows * tile.width))
        options = self._options(tile)
        return Launch(_class_gradient_kernel, (programs, 1, 1), scalars, constexprs, options)

    def _shape(self, tile: ClassTile) -> dict[str, int]:
        """A tile's constants."""
        steps = -(-self.layout.C // tile.lanes)
        return {"ROWS": tile.rows, "LANES": tile.lanes, "WIDTH": tile.width, "STEPS": steps}
