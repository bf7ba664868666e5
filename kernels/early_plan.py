"""Plans of a forward launch that writes the gradient too, so that each input is read once.

The upstream gradient is not known then. One is assumed, and a second, small launch multiplies where
another one comes: gradient._settle_kernel.
"""

from collections.abc import Sequence
from typing import Any

from fastseg_losses.kernels import finalize
from fastseg_losses.kernels.gradient import _settle_kernel
from fastseg_losses.kernels.launch import Device, Formula, Launch, Launcher, Layout, Plan
from fastseg_losses.kernels.tiles import points_tile

SETTLE_BLOCK = 4096


class EarlyPlan:
    """What such plans share: where things lie behind the table, and the launch that settles."""

    numbered = False  # whether its counters rise from launch to launch

    def __init__(
        self, layout: Layout, formula: Formula, device: Device, groups: int, programs: int
    ) -> None:
        self.layout, self.formula, self.device, self.groups = layout, formula, device, groups
        # norms and coefs as in the two-launch table, then the upstream gradient that was assumed
        self.used = finalize.NORMS.value + (2 + len(formula.points)) * groups
        self.workspace_start = self.used + 1 + -(self.used + 1) % 16  # records by cache line
        self.scratch_size = self.workspace_start + finalize.RECORD.value * (groups + programs)
        self.counters: dict[int, Any] = {}  # by stream
        self.assumed: dict[int, Any] = {}  # likewise
        self.tables: tuple[Any, ...] = ()
        self.blank: Any = None  # scratch as a tensor without memory of its own
        self.admitted = True  # see single_plan.admit
        self.warm = False  # whether the two launches are compiled too
        self._forward: Launcher | None = None
        self._settle: Launcher | None = None

    def settle(self, tensors: Sequence[Any], stream: int | None) -> None:
        """Launch on (dlogits, assumed, dloss, the used upstream gradient)."""
        if self._settle is None:
            self._settle = self.settle_launch().bind(tensors)
        self._settle(tensors, (), stream)

    def settle_launch(self) -> Launch:
        """The launch that multiplies the gradient if it has to, without its tensors."""
        size = self.layout.N * self.layout.C * self.layout.P
        programs = min(-(-size // SETTLE_BLOCK), 2 * self.device.multiprocessors)
        options = {"num_warps": 8, "enable_fp_fusion": True}
        constexprs = {"BLOCK": SETTLE_BLOCK}
        return Launch(_settle_kernel, (programs, 1, 1), (size,), constexprs, options)


class PointsPlan(EarlyPlan):
    """Losses without a region term, whose slopes need no sum: the kernel of the two launches."""

    def __init__(self, layout: Layout, formula: Formula, device: Device) -> None:
        unit = all(at[2] == 1 for at in (layout.logits, layout.targets, layout.dlogits))
        plan = Plan(layout, formula, device, points_tile(layout.targets_bytes, unit))
        super().__init__(layout, formula, device, plan.groups, plan.programs)
        plan.workspace_start = self.workspace_start
        self.forward_launch = plan.forward_launch
        self.num_counters = plan.num_counters

    def forward(self, tensors: Sequence[Any], stream: int | None) -> None:
        """Launch on the kernel's tensors, in its order: loss to assumed."""
        if self._forward is None:
            self._forward = self.forward_launch().bind(tensors)
        self._forward(tensors, (), stream)


def plan_points(layout: Layout, formula: Formula, device: Device) -> PointsPlan | None:
    """One launch for a loss of pointwise terms alone; None where a mean's divisor is a sum too.

    Half precision takes two launches: a gradient that was rounded for another upstream gradient
    (1, where 65536 comes) may have lost all its digits.
    """
    f = formula
    if not f.points or f.region_weights or layout.logits_bytes != 4 or layout.valid_kind != "none":
        return None
    everything_counts = f.ignore_index is None and not f.class_weighted
    if f.reduction == "sum" or (f.reduction == "mean" and everything_counts):
        return PointsPlan(layout, formula, device)
    return None
