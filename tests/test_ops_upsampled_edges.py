"""Low-resolution logits where the kernels' strips, blocks and number ranges end."""

import pytest
import torch
from test_ops_upsampled import BILINEAR, combined, compare, make_inputs

from fastseg_losses import CrossEntropyLoss, DiceLoss, plans
from fastseg_losses.kernels import cell_class_plan
from fastseg_losses.kernels.cell_tiles import CellTile


def test_strips_that_share_a_row(device, monkeypatch):
    """Many strips of two rows, and several blocks a row; flags are down again after each launch."""
    monkeypatch.setattr(cell_class_plan, "class_gradient_tile", lambda w: CellTile(32, 1, 16, 128))
    monkeypatch.setattr(plans, "PLANS", {})
    for dtype in (torch.float32, torch.float16):
        logits, targets, _ = make_inputs("multiclass", (2, 3, 7, 33), (14, 66), dtype=dtype)

        def build(**backend):
            return combined(mode="multiclass", **BILINEAR, **backend)

        compare(
            device, build, logits, targets, None, tolerance=2e-6 if dtype.itemsize == 4 else 1e-3
        )
        (plan,) = (plan for plan in plans.PLANS.values() if plan is not None)
        assert plan.strips == 4 and plan.columns == 2
        x = logits.to(device).requires_grad_()
        loss = build(backend="triton")(x, targets.to(device))
        first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)
        plans.PLANS.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [1e30, 1e38])
def test_finite_logits_of_any_size(device, value, dtype):
    """Rows that do not fill their block: threads without a cell must add nothing."""
    logits = torch.randn(1, 3, 2, 2).to(dtype)
    logits[0, 1] = value
    targets = torch.ones(1, 4, 4, dtype=torch.long)
    for criterion in (CrossEntropyLoss, DiceLoss):
        x = logits.to(device).requires_grad_()
        arguments = {} if criterion is CrossEntropyLoss else {"mode": "multiclass"}
        loss = criterion(**arguments, **BILINEAR, backend="triton")(x, targets.to(device))
        loss.backward()
        assert float(loss) < 1e-6 and x.grad.abs().max() < 1e-6


def test_nan_is_no_infinite_loss(device):
    logits = torch.randn(1, 3, 2, 2)
    logits[0, 0, 0, 0] = float("nan")
    targets = torch.ones(1, 4, 4, dtype=torch.long, device=device)
    assert CrossEntropyLoss(**BILINEAR, backend="triton")(logits.to(device), targets).isnan()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_masks_with_negative_numbers(device, dtype):
    """A byte of -1 that is to be ignored is no 255."""
    logits, targets, _ = make_inputs("binary", (2, 1, 3, 4), (6, 8))
    targets = targets.to(dtype)
    targets[torch.rand(targets.shape) < 0.3] = -1

    def build(**backend):
        return combined(ignore_index=-1, **BILINEAR, **backend)

    compare(device, build, logits, targets, None)
