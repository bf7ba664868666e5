"""Launch plans: everything about a call that its shapes decide, worked out once and kept.

A plan holds the grid, the run-time scalars and the handle of the compiled kernel, so that a call costs one launch and no
look-up of specialisations.
"""

from collections.abc import Callable
from typing import NamedTuple

import triton
from fastseg_losses.kernels import terms
from fastseg_losses.kernels.finalize import NORMS
from fastseg_losses.kernels.gradient import _gradient_kernel
from fastseg_losses.kernels.sums import _sums_forward_kernel
from fastseg_losses.kernels.tiles import forward_tile, gradient_tile, programs_per_group

INTERPRETED = not isinstance(_sums_forward_kernel, triton.JITFunction)

Strides = tuple[int, int, int]
Launcher = Callable[[tuple, tuple, int | None], None]  # tensors, per-call numbers, stream


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
    binary_targets: bool
    valid_kind: str  # "none", "sample", "pixel"
    pos_weight_stride: int


class Formula(NamedTuple):
    """What to compute, in the kernels' terms: names of terms.POINTWISE and plain numbers."""

    points: tuple[str, ...]
    point_weights: tuple[float, ...]
    region_weights: tuple[float, ...]
    region_params: tuple[tuple[float, float, float, float], ...]  # alpha, beta, smooth, gamma
    logs: tuple[bool, ...]
    term_params: tuple[float, float, float, float]  # alpha_neg, alpha_pos, gamma, label_smoothing
    reduction: str
    batch: bool
    skip_absent: bool
    ignore_index: float | None


class Device(NamedTuple):
    """What a plan must know of the device."""

    multiprocessors: int
    ptx: bool


class Plan:
    """One formula at one layout on one device."""

    def __init__(self, layout: Layout, formula: Formula, device: Device) -> None:
        self.layout, self.formula, self.device = layout, formula, device
        groups = layout.C if formula.batch else layout.N * layout.C
        self.groups = groups
        unit = layout.logits[2] == layout.targets[2] == layout.dlogits[2] == 1 and (
            layout.valid_kind != "pixel" or layout.valid[1] == 1
        )
        rows = [*layout.logits[:2], *layout.targets[:2], *layout.dlogits[:2]]
        if layout.valid_kind == "pixel":
            rows.append(layout.valid[0])
        aligned = all(stride % 16 == 0 for stride in rows)
        self._forward_tile = forward_tile(layout.logits_bytes, layout.targets_bytes, unit)
        self._gradient_tile = gradient_tile(layout.logits_bytes, layout.targets_bytes, unit)
        self.splits = programs_per_group(
            layout.N * layout.C, layout.P, self._forward_tile, device.multiprocessors
        )
        self.programs = layout.N * layout.C * self.splits
        sums = len(terms.SUMS) + len(formula.points)
        coefs = 2 + len(formula.points)
        self.table_size = NORMS.value + coefs * groups
        self.workspace_size = (sums + 5 + len(formula.logs)) * groups + (sums + 4) * self.programs
        per_group = (layout.C,) if formula.batch else (layout.N, layout.C)
        self.loss_shape = {"none": per_group, "sums": (4, *per_group)}.get(formula.reduction, ())
        self._shared = {
            "BATCH": formula.batch,
            "VALID": layout.valid_kind,
            "HAS_IGNORE": formula.ignore_index is not None,
            "UNIT": unit,
            "ALIGNED": unit and aligned,
            "PTX": device.ptx,
        }
        self._forward: Launcher | None = None
        self._backward: Launcher | None = None

    def forward(self, tensors: tuple, stream: int | None) -> None:
        """Launch on (loss, stats, table, workspace, counters, alarm, logits, targets, valid, class and pos weights)."""
        if self._forward is None:
            self._forward = self.forward_launch().bind(tensors)
        self._forward(tensors, (), stream)

    def backward(self, tensors: tuple, dloss_strides: Strides, stream: int | None) -> None:
        """Launch on (dlogits, dloss, table, logits, targets, valid, pos weights)."""
        if self._backward is None:
            self._backward = self.backward_launch().bind((*tensors, *dloss_strides))
        self._backward(tensors, dloss_strides, stream)

    def forward_launch(self) -> "Launch":
        """The forward launch, without its tensors."""
        at, f, tile = self.layout, self.formula, self._forward_tile
        scalars = (
            *(at.N, at.C, at.P, self.splits),
            *(*at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            *(f.term_params, f.point_weights, f.region_weights, f.region_params),
            0.0 if f.ignore_index is None else f.ignore_index,
        )
        constexprs = {
            "TERMS": (*terms.SUMS, *(terms.POINTWISE[name] for name in f.points)),
            "LOGS": f.logs,
            "REDUCTION": f.reduction,
            "SKIP_ABSENT": f.skip_absent,
            "BINARY_TARGETS": at.binary_targets,
            "ROWS": tile.rows,
            "WIDTH": tile.width,
            "STAGES": tile.stages,
            **self._shared,
        }
        return Launch(_sums_forward_kernel, self.programs, scalars, constexprs, tile.num_warps)

    def backward_launch(self) -> "Launch":
        """The backward launch, without its tensors and the upstream gradient's strides."""
        at, f, tile = self.layout, self.formula, self._gradient_tile
        scalars = (
            *(at.N, at.C, at.P, *at.dlogits),
            *(*at.logits, *at.targets, *at.valid, at.pos_weight_stride),
            f.term_params,
            0.0 if f.ignore_index is None else f.ignore_index,
        )
        constexprs = {
            "TERMS": (*terms.SUMS[:2], *(terms.POINTWISE[name] for name in f.points)),
            "SUMS": f.reduction == "sums",
            "ROWS": tile.rows,
            "WIDTH": tile.width,
            **self._shared,
        }
        programs = at.N * at.C * -(-at.P // (tile.rows * tile.width))
        return Launch(_gradient_kernel, programs, scalars, constexprs, tile.num_warps)


class Launch(NamedTuple):
    """A kernel with everything but its tensors."""

    kernel: triton.JITFunction
    programs: int
    scalars: tuple
    constexprs: dict
    num_warps: int

    def bind(self, variables: tuple) -> Launcher:
        """Compile for these variables (tensors, then per-call numbers) and keep the handle.

        Launching through the handle skips the look-up that `kernel[grid](...)` does at every call, 10 us of 20.
        """
        kernel, grid = self.kernel, (self.programs, 1, 1)
        if INTERPRETED:
            return lambda tensors, numbers, stream: kernel[grid](
                *tensors, *numbers, *self.scalars, **self.constexprs
            )
        # FP fusion explicitly: its default changes in Triton 3.10.
        compiled = kernel.warmup(
            *variables, *self.scalars, **self.constexprs, grid=grid, num_warps=self.num_warps, enable_fp_fusion=True
        )
        run = compiled[grid]
        names = kernel.arg_names[len(variables) + len(self.scalars) :]
        tail = (*self.scalars, *(self.constexprs[name] for name in names))
        return lambda tensors, numbers, stream: run(*tensors, *numbers, *tail, stream=stream)
