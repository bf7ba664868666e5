"""Launch plans: everything about a call that its shapes decide, worked out once and kept.

A plan holds the grid, the run-time scalars and the handle of the compiled kernel, so that a call
costs one launch and no look-up of specialisations.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import triton

from fastseg_losses.kernels import finalize, terms
from fastseg_losses.kernels.gradient import _gradient_kernel
from fastseg_losses.kernels.handles import direct_launcher, handle_of
from fastseg_losses.kernels.sums import _sums_forward_kernel
from fastseg_losses.kernels.tiles import (
    ForwardTile,
    GradientTile,
    forward_tile,
    gradient_tile,
    programs_per_group,
)

INTERPRETED = not isinstance(_sums_forward_kernel, triton.JITFunction)

# Where the sums of terms.SUMS and of terms.HARD_SUMS stand in a record; pointwise terms follow.
SUM_COLUMNS = (0, 1, 2, 3, 4, 5)
HARD_SUM_COLUMNS = (0, 1, 2, 3, 5)

MAX_GRID_Y = 65535  # CUDA's limit, of the third dimension too

Strides = tuple[int, int, int]
Launcher = Callable[[Sequence[Any], Strides | tuple[()], int | None], None]


class Layout(NamedTuple):
    """Where the elements of one call lie: sizes, and strides in elements (n, c, p)."""

    N: int
    C: int
    P: int
    logits: Strides
    targets: Strides
    dlogits: Strides
    valid: tuple[int, int]  # n, p
    logits_bytes: int
    targets_bytes: int
    targets_kind: str  # "soft" in [0, 1], 0 and 1 of a "signed" or "unsigned" type, class "ids"
    valid_kind: str  # "none", "sample", "pixel"
    pos_weight_stride: int
    aligned: bool = False  # logits and targets at addresses that 16 divides
    packed: bool = False  # aligned bfloat16 logits and uint8 masks


class Formula(NamedTuple):
    """What to compute, in the kernels' terms: names of terms.POINTWISE and plain numbers."""

    points: tuple[str, ...]
    point_weights: tuple[float, ...]
    region_weights: tuple[float, ...]
    region_params: tuple[tuple[float, ...], ...]  # spec.RegionTerm.numbers
    logs: tuple[bool, ...]
    powers: tuple[bool, ...]  # whether gamma is not 1
    term_params: tuple[float, float, float, float]  # alpha_neg, alpha_pos, gamma, smoothing
    reduction: str
    batch: bool
    absent: str
    ignore_index: float | None
    class_weighted: bool = False
    identity: bool = False  # the logits are probabilities
    minimum: bool = False  # I is the sum of min(p, t)
    squared: bool = False  # P and T are sums of squares
    # multiclass; balanced: which terms alpha multiplies, smoothed: which have smoothed targets
    softmax: bool = False
    first_class: int = 0  # of the region terms
    balanced: tuple[bool, ...] = ()
    smoothed: tuple[bool, ...] = ()


class Device(NamedTuple):
    """What a plan must know of the device."""

    multiprocessors: int
    ptx: bool
    hopper: bool = False
    index: int | None = None  # among the machine's GPUs


def sloped_sums(formula: Formula) -> tuple[Any, Any]:
    """The device functions of I and P."""
    overlap = terms.least if formula.minimum else terms.overlap
    return overlap, terms.squared_mass if formula.squared else terms.mass


def columns_of(layout: Layout, formula: Formula) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """The sums that a forward launch takes beside the pointwise terms, and all their columns."""
    sums, columns = terms.SUMS, SUM_COLUMNS
    if layout.targets_kind != "soft":
        sums, columns = terms.HARD_SUMS, HARD_SUM_COLUMNS
    target = terms.squared_target if formula.squared else terms.target
    sums = (*sloped_sums(formula), target, *sums[3:])
    first = finalize.FIRST_POINT.value
    return sums, (*columns, *(first + k for k in range(len(formula.points))))


class Plan:
    """One formula at one layout on one device; tiles.py chooses the tiles that are not given."""

    numbered = False  # see early_plan.py
    # What its forward kernel takes for a gradient, behind the outputs, and for what to assume of
    # it, behind the inputs: None, as the backward launch writes it.
    no_gradient: tuple[None, ...] = (None,)

    def __init__(
        self,
        layout: Layout,
        formula: Formula,
        device: Device,
        forward: ForwardTile | None = None,
        gradient: GradientTile | None = None,
    ) -> None:
        self.layout, self.formula, self.device = layout, formula, device
        pairs = layout.N * layout.C
        self.groups = layout.C if formula.batch else pairs
        strides = (layout.logits, layout.targets, layout.dlogits)
        unit = all(at[2] == 1 for at in strides)
        rows = [stride for at in strides for stride in at[:2]]
        if layout.valid_kind == "pixel":
            unit = unit and layout.valid[1] == 1
            rows.append(layout.valid[0])
        aligned = all(stride % 16 == 0 for stride in rows)
        self._masked = layout.valid_kind == "pixel" or formula.ignore_index is not None
        words = layout.packed and unit and aligned and not self._masked
        kinds = (layout.logits_bytes, layout.targets_bytes, unit)
        self._forward_tile = forward or forward_tile(*kinds)
        self._gradient_tile = gradient or gradient_tile(*kinds, words)
        tile, multiprocessors = self._forward_tile, device.multiprocessors
        self.splits = programs_per_group(pairs, layout.P, tile, multiprocessors)
        self.programs = pairs * self.splits
        self.wave = max(1, min(pairs, tile.programs * multiprocessors // self.splits))
        self.table_size = finalize.NORMS.value + (2 + len(formula.points)) * self.groups
        self.workspace_start = self.table_size + -self.table_size % 16  # records by cache line
        records = self.groups + self.programs
        self.scratch_size = self.workspace_start + finalize.RECORD.value * records
        per_group = (layout.C,) if formula.batch else (layout.N, layout.C)
        shapes = {"none": per_group, "sums": (4, *per_group)}
        self.loss_shape: tuple[int, ...] = shapes.get(formula.reduction, ())
        self._shared = {
            "BATCH": formula.batch,
            "VALID_KIND": layout.valid_kind,
            "HAS_IGNORE": formula.ignore_index is not None,
            "IDENTITY": formula.identity,
            "TARGETS": layout.targets_kind,
            "UNIT": unit,
            "ALIGNED": unit and aligned,
            "WORDS": words,
            "PTX": device.ptx,
        }
        self.num_counters = 1 + self.groups + (pairs if formula.batch else 0)
        self.counters: dict[int, Any] = {}  # by stream
        self.early: Any = None  # see early_plan.py
        self.tables: tuple[Any, ...] = ()  # tensors that kernels take behind a call's inputs
        self.exchange_size = 0  # float32 that the backward launch takes for itself
        self.blanks: Any = None  # what a call's small tensors look like: plans.Blanks
        self._forward: Launcher | None = None
        self._backward: Launcher | None = None

    def forward(self, tensors: Sequence[Any], stream: int | None) -> None:
        """Launch on the kernel's tensors, in its order: loss to assumed."""
        if self._forward is None:
            self._forward = self.forward_launch().bind(tensors)
        self._forward(tensors, (), stream)

    def backward(self, tensors: Sequence[Any], dloss_strides: Strides, stream: int | None) -> None:
        """Launch on the kernel's tensors, in its order: dlogits to pos_weight."""
        if self._backward is None:
            self._backward = self.backward_launch().bind((*tensors, *dloss_strides))
        self._backward(tensors, dloss_strides, stream)

    def compile(self, forward: Sequence[Any], backward: Sequence[Any]) -> None:
        """Compile both launches for these tensors, and launch neither."""
        if self._forward is None:
            self._forward = self.forward_launch().bind(forward)
        if self._backward is None:
            self._backward = self.backward_launch().bind((*backward, 0, 0, 0))

    def dloss_strides(self, strides: Sequence[int]) -> Strides:
        """Strides (k, n, c) of an upstream gradient that has these; 0 where all share it."""
        k, n, c = (0,) * (3 - len(strides)) + tuple(strides)
        return k, n, c

    def forward_launch(self) -> "Launch":
        """The forward launch, without its tensors."""
        at, f, tile = self.layout, self.formula, self._forward_tile
        sums, columns = columns_of(at, f)
        scalars = (
            *(at.N, at.C, at.P, self.splits),
            *(*at.dlogits, *at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            self.workspace_start,
            *(f.term_params, f.point_weights, f.region_weights, f.region_params),
            0.0 if f.ignore_index is None else f.ignore_index,
            1.0 / (at.N * at.C * at.P) if f.reduction == "mean" else 1.0,
        )
        if self._masked:
            columns += (finalize.VALID.value,)
        if self._shared["WORDS"]:  # bytes of 0 and 1 are counted apart from the terms
            place = columns.index(finalize.TARGET.value)
            sums = (*sums[:place], *sums[place + 1 :])
            columns = (*columns[:place], *columns[place + 1 :], finalize.TARGET.value)
        constexprs = {
            "TERMS": (*sums, *(terms.POINTWISE[name] for name in f.points)),
            "COLUMNS": columns,
            "LOGS": f.logs,
            "POWERS": f.powers,
            "REDUCTION": f.reduction,
            "ABSENT": f.absent,
            "ROWS": tile.rows,
            "WIDTH": tile.width,
            "STAGES": tile.stages,
            **self._shared,
        }
        grid = (self.programs, 1, 1)
        return Launch(_sums_forward_kernel, grid, scalars, constexprs, self._options(tile))

    def backward_launch(self) -> "Launch":
        """The backward launch, without its tensors and the upstream gradient's strides."""
        at, f, tile = self.layout, self.formula, self._gradient_tile
        tiles = -(-at.P // (tile.rows * tile.width))
        pairs = at.N * at.C
        wanted = tile.tiles_each(pairs, tiles, self.device.multiprocessors)
        each = max(wanted, -(-tiles // MAX_GRID_Y))
        # pairs that the forward launch walks at a time, tiles, waves of pairs
        wave = max(self.wave, -(-pairs // MAX_GRID_Y))
        grid = (wave, -(-tiles // each), -(-pairs // wave))
        scalars = (
            *(at.N, at.C, at.P, each),
            *(*at.dlogits, *at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            f.term_params,
            0.0 if f.ignore_index is None else f.ignore_index,
        )
        constexprs = {
            "TERMS": (*sloped_sums(f), *(terms.POINTWISE[name] for name in f.points)),
            "SUMS": f.reduction == "sums",
            "ROWS": tile.rows,
            "WIDTH": tile.width,
            **self._shared,
        }
        return Launch(_gradient_kernel, grid, scalars, constexprs, self._options(tile))

    def _options(self, tile: Any) -> dict[str, Any]:
        # FP fusion explicitly: its default changes in Triton 3.10.
        options: dict[str, Any] = {"num_warps": tile.num_warps, "enable_fp_fusion": True}
        if self.device.ptx:  # AMD's backend has no such option
            options["maxnreg"] = tile.registers
        return options


class Launch(NamedTuple):
    """A kernel with everything but its tensors."""

    kernel: Any
    grid: tuple[int, int, int]
    scalars: tuple[Any, ...]
    constexprs: dict[str, Any]
    options: dict[str, Any]

    def bind(self, variables: Sequence[Any]) -> Launcher:
        """Compile for these variables (tensors, then per-call numbers) and keep the handle.

        Launching through the handle skips the look-up that `kernel[grid](...)` does at every call,
        10 us of 20. It takes addresses: for a tensor Triton asks the driver whether the device can
        reach it, at every launch.
        """
        kernel, grid = self.kernel, self.grid
        if INTERPRETED:
            return lambda tensors, numbers, stream: kernel[grid](
                *tensors, *numbers, *self.scalars, **self.constexprs
            )
        named = {**self.constexprs, **self.options}  # Gluon kernels take num_warps in both roles
        compiled = handle_of(kernel, (*variables, *self.scalars), named, grid)
        run = compiled[grid]
        names = kernel.arg_names[len(variables) + len(self.scalars) :]
        tail = (*self.scalars, *(self.constexprs[name] for name in names))

        def launch(tensors: Sequence[Any], numbers: tuple[int, ...], stream: int | None) -> None:
            addresses = [None if t is None else t.data_ptr() for t in tensors]
            run(*addresses, *numbers, *tail, stream=stream)

        direct = direct_launcher(compiled)
        if direct is None:
            return launch
        start, rest = direct
        hooks = triton.knobs.runtime

        def launch_directly(
            tensors: Sequence[Any], numbers: tuple[int, ...], stream: int | None
        ) -> None:
            if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler's
                return launch(tensors, numbers, stream)
            addresses = [None if t is None else t.data_ptr() for t in tensors]
            start(*grid, stream, *rest, *addresses, *numbers, *tail)

        return launch_directly
