"""One row: our value and gradient against the formula in float64, and beside it in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastseg_losses.backends import takes_triton
from fastseg_losses.plans import plan_for
from fastseg_losses.selfcheck import formulas
from fastseg_losses.selfcheck.cases import Case, Inputs, Shapes, draw
from fastseg_losses.selfcheck.timing import milliseconds

# No 1: a kernel that forgot the upstream gradient would pass. As large as GradScaler's: at 1, much
# of the gradient of a mean over 65536 pixels is subnormal in float16 (4e-3 off, in PyTorch too).
UPSTREAM = 0.75 * 2**16
# Order of summation and exponentials good to 2 ulp; of the halves, one rounding of each element of
# the gradient. float64: rounding alone.
VALUE_TOLERANCE = {torch.float64: 1e-12}
GRADIENT_TOLERANCE = {torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 5e-3}
FLOAT32_TOLERANCE = 2e-6
STATISTICS_TOLERANCE = 2e-5


@dataclass
class Row:
    """What came of a case.

    Attributes:
        mode: the case's.
        loss: the case's.
        dtype: its name.
        backend: "triton" or "torch"; "triton/1" where one launch serves both ways, else
            "triton/2".
        value: error of the loss relative to float64, None if it was not reached.
        value_plain: that of the formula in float32.
        gradient: error of the gradient, over the root mean square of the exact one.
        gradient_plain: that of the formula's gradient, stored in the logits' dtype.
        ours_ms: time of forward and backward, None if not measured.
        plain_ms: that of the formula in eager PyTorch.
        troubles: what is wrong; nothing wrong: empty.
    """

    mode: str
    loss: str
    dtype: str
    backend: str = "?"
    value: float | None = None
    value_plain: float | None = None
    gradient: float | None = None
    gradient_plain: float | None = None
    ours_ms: float | None = None
    plain_ms: float | None = None
    troubles: list[str] = field(default_factory=list)


def check(
    case: Case, shapes: Shapes, device: torch.device, backend: str, *, timed: bool = True
) -> Row:
    """Run one case; whatever goes wrong is in the row's `troubles`."""
    row = Row(case.mode, case.loss, str(case.dtype).removeprefix("torch."))
    try:
        _fill(row, case, draw(case, shapes, device), backend, timed)
    except Exception as error:  # a row that cannot be computed is a finding, not the end
        row.troubles.append(f"{type(error).__name__}: {error}")
    return row


def _fill(row: Row, case: Case, inputs: Inputs, backend: str, timed: bool) -> None:
    ours = case.build(backend)
    row.backend = served_by(case, inputs, backend)
    value, gradient = both_ways(ours, inputs)
    exact, slope = both_ways(case.formula, _as(inputs, torch.float64, exact_device(inputs)))
    dtype = inputs.logits.dtype
    formula = case.formula if dtype == torch.float64 else _in_float32(case.formula)
    plain, plain_slope = both_ways(formula, inputs)
    row.value, row.value_plain = rms_error(value, exact), rms_error(plain, exact)
    row.gradient, row.gradient_plain = rms_error(gradient, slope), rms_error(plain_slope, slope)
    for what, error, plain_error, tolerance in (
        ("value", row.value, row.value_plain, VALUE_TOLERANCE.get(dtype, FLOAT32_TOLERANCE)),
        (
            "gradient",
            row.gradient,
            row.gradient_plain,
            GRADIENT_TOLERANCE.get(dtype, FLOAT32_TOLERANCE),
        ),
    ):
        # PyTorch's own error is allowed, but only up to the tolerance: it may be what is broken
        limit = tolerance + min(plain_error, tolerance)
        if not error <= limit:  # so that NaN is trouble
            row.troubles.append(f"{what} off by {error:.1e}, allowed {limit:.1e}")
    row.troubles += _exact_troubles(ours, inputs, value, gradient)
    if case.criterion is not None and dtype == torch.float32:  # the halves tie at the arg max
        row.troubles += _statistics_troubles(case, inputs, backend)
    if timed:
        device = inputs.logits.device
        row.ours_ms = milliseconds(lambda: both_ways(ours, inputs), device)
        row.plain_ms = milliseconds(lambda: both_ways(formula, inputs), device)


def served_by(case: Case, inputs: Inputs, backend: str) -> str:
    """What computes the case, see `Row.backend`."""
    if not takes_triton(backend, inputs.logits):
        return "torch"
    if case.criterion is None:
        return "triton"
    spec = case.criterion(backend).spec
    plan, _ = plan_for(spec, (inputs.logits, inputs.targets, inputs.valid, None, None))
    return "triton/1" if plan.early is not None else "triton/2"


def both_ways(loss: Callable[[Inputs], Tensor], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, with an upstream gradient of `UPSTREAM`."""
    x = inputs.logits.detach().requires_grad_()
    value = loss(replace(inputs, logits=x))
    [gradient] = torch.autograd.grad(value, x, torch.full_like(value, UPSTREAM))
    return value.detach(), gradient


def rms_error(value: Tensor, exact: Tensor) -> float:
    """Root mean square error over the root mean square of the exact values; NaN if shapes differ.

    Example:
        >>> rms_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        0.0
    """
    if value.shape != exact.shape:
        return float("nan")
    difference = value.to(exact) - exact
    scale = exact.square().mean().sqrt().clamp_min(1e-30)
    return float(difference.square().mean().sqrt() / scale)


def exact_device(inputs: Inputs) -> torch.device:
    """Where float64 is: the device itself, or the CPU for those that have none (Apple's)."""
    device = inputs.logits.device
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def _as(inputs: Inputs, dtype: torch.dtype, device: torch.device) -> Inputs:
    valid = None if inputs.valid is None else inputs.valid.to(device)
    return Inputs(inputs.logits.to(device, dtype), inputs.targets.to(device), valid)


def _in_float32(formula: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
    def loss(inputs: Inputs) -> Tensor:
        return formula(replace(inputs, logits=inputs.logits.float()))

    return loss


def _exact_troubles(
    ours: Callable[[Inputs], Tensor], inputs: Inputs, value: Tensor, gradient: Tensor
) -> list[str]:
    """What must hold to the bit."""
    troubles = []
    expected = torch.float64 if inputs.logits.dtype == torch.float64 else torch.float32
    if value.dtype != expected:
        troubles.append(f"loss is {value.dtype}, expected {expected}")
    if gradient.dtype != inputs.logits.dtype:
        troubles.append(f"gradient is {gradient.dtype}, expected {inputs.logits.dtype}")
    again = both_ways(ours, inputs)
    if not (torch.equal(value, again[0]) and torch.equal(gradient, again[1])):
        troubles.append("a second call has other bits")
    if inputs.valid is not None and bool(gradient[~inputs.valid].count_nonzero()):
        troubles.append("gradient of what is not valid is not 0")
    return troubles


def _statistics_troubles(case: Case, inputs: Inputs, backend: str) -> list[str]:
    """Statistics that are not those of the formula, computed in float64."""
    assert case.criterion is not None
    _, stats = case.criterion(backend)(
        inputs.logits, inputs.targets, inputs.valid, return_stats=True
    )
    found = stats.cpu()
    exact = _as(inputs, torch.float64, exact_device(inputs))
    wanted = formulas.plain_statistics(case.mode, exact.logits, exact.targets, exact.valid)
    return [
        f"{name} is {getattr(found, name):.7g}, expected {value:.7g}"
        for name, value in wanted.items()
        if not abs(getattr(found, name) - value) <= STATISTICS_TOLERANCE * abs(value)
    ]
