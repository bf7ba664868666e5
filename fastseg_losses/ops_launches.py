"""The launches: a plan's kernels on a call's tensors, with the outputs that they need.

Both of eager calls and of the operators that compilers see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastseg_losses.inputs import Inputs
from fastseg_losses.state import (
    alarm_on,
    assumed_by,
    counters_for,
    guarded,
    is_foreign,
    stream_of,
)

if TYPE_CHECKING:
    from fastseg_losses.kernels.early_plan import EarlyPlan
    from fastseg_losses.kernels.launch import Plan


def launch_forward(
    plan: Plan, inputs: Inputs, row: Tensor | None, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss and the table that backward needs; the statistics go into `row`."""
    device = inputs[0].device
    if is_foreign(plan.device.index):
        with torch.cuda.device(device):
            return launch_forward(plan, inputs, row, table)
    loss, scratch = torch.empty_like(plan.blanks.loss), torch.empty_like(plan.blanks.scratch)
    table = scratch if table is None else table  # one allocation for both costs 4 us less
    row = plan.blanks.unread if row is None else row
    stream = stream_of(plan.device.index)
    counters = counters_for(plan, device, stream)
    outputs = (loss, row, table, scratch, counters, alarm_on(device), *plan.no_gradient)
    tensors = (*outputs, *inputs, *plan.no_gradient, *plan.tables)
    guarded(plan.forward, tensors, stream, plan=plan)
    return loss, table


def launch_early(
    plan: Plan, early: EarlyPlan, inputs: Inputs, row: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, table and the gradient for the assumed upstream gradient."""
    logits, targets, valid, _, pos_weight = inputs
    device = logits.device
    loss, scratch = torch.empty_like(plan.blanks.loss), torch.empty_like(early.blank)
    dlogits = torch.empty_like(logits)
    row = plan.blanks.unread if row is None else row
    stream = stream_of(plan.device.index)
    counters = counters_for(early, device, stream)
    outputs = (loss, row, scratch, scratch, counters, alarm_on(device))
    assumed = assumed_by(early, device, stream)
    guarded(early.forward, (*outputs, dlogits, *inputs, assumed), stream, plan=early)
    if stream and not early.warm:
        # A capture takes the two launches, and this may be its warm-up: they are compiled now.
        backward = (dlogits, loss, scratch, logits, targets, valid, pos_weight)
        forward = (*outputs, *plan.no_gradient, *inputs, *plan.no_gradient)
        guarded(plan.compile, forward, backward)
        early.warm = True
    return loss, scratch, dlogits


def settle(early: EarlyPlan, table: Tensor, dlogits: Tensor, dloss: Tensor) -> Tensor:
    """Make the gradient of `launch_early` that for the upstream gradient that came."""
    device = dlogits.device
    if is_foreign(early.device.index):
        with torch.cuda.device(device):
            return settle(early, table, dlogits, dloss)
    stream = stream_of(early.device.index)
    used = table[early.used]
    guarded(early.settle, (dlogits, assumed_by(early, device, stream), dloss, used), stream)
    return dlogits


def launch_backward(
    plan: Plan, inputs: Inputs, table: Tensor, dloss: Tensor, onto: Tensor | None = None
) -> Tensor:
    """The gradient; added to what `onto` holds where that is given, see ops_relay.py."""
    logits, targets, valid, _, pos_weight = inputs
    if is_foreign(plan.device.index):
        with torch.cuda.device(plan.device.index):
            return launch_backward(plan, inputs, table, dloss, onto)
    dlogits = torch.empty_like(logits) if onto is None else onto
    strides = plan.dloss_strides(dloss.stride()) if dloss.dim() else (0, 0, 0)
    outputs: tuple[Tensor, ...] = (dlogits,)
    if plan.exchange_size:
        # in what the forward launch has left behind the table, where that is large enough
        exchange = table[plan.workspace_start :]
        if exchange.numel() < plan.exchange_size:
            exchange = logits.new_empty((plan.exchange_size,), dtype=torch.float32)
        outputs = (dlogits, exchange)
    tensors = (*outputs, dloss, table, logits, targets, valid, pos_weight, *plan.tables)
    launch = plan.backward if onto is None else plan.add_backward
    guarded(launch, tensors, strides, stream_of(plan.device.index))
    return dlogits
