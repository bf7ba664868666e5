"""What sums over drawn pixels hide: values on a bound, and pixels whose part is small."""

import pytest
import torch

from fastseg_losses import CombinedSegmentationLoss, FocalLoss
from fastseg_losses.ops import segmentation_loss
from fastseg_losses.spec import LossSpec, PointTerm


def test_a_half_is_neither_predicted_nor_drawn(device):
    logits = torch.tensor([0.0, 0.0, 1.0, 1.0, -1.0, 0.0], device=device).reshape(1, 1, 6)
    targets = torch.tensor([0.5, 1.0, 0.5, 1.0, 0.5, 0.0], device=device).reshape(1, 1, 6)
    rows = []
    for backend in ("triton", "torch"):
        criterion = CombinedSegmentationLoss(backend=backend)
        _, stats = criterion(logits, targets, return_stats=True)
        rows.append(stats.tensor)
        counts = (stats.tp, stats.fp, stats.fn, stats.pred_positive * 6, stats.target_positive * 6)
        torch.testing.assert_close(torch.stack(counts).cpu(), torch.tensor([1.0, 1, 1, 2, 2]))
    torch.testing.assert_close(*rows)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
@pytest.mark.parametrize("miss", ["likelihood", "margin"])
def test_each_pixel_of_a_focal_loss(miss, gamma, device):
    """Also a confident one, whose 1 - p_t is a series: beside others its loss is nothing.

    The tolerance is that of a cross-entropy of 0.01 (float32 rounds 1 + e) to the power of 3.
    """
    term = PointTerm("focal", 1.0, 0.3, gamma=gamma, miss=miss)
    spec = LossSpec(mode="binary", points=(term,), regions=(), reduction="none")
    values = [4.62, 4.7, -4.62, 0.3, -2.0]  # of the first three the cross-entropy is below 0.01
    logits = torch.tensor(values, device=device).reshape(5, 1, 1)
    targets = (logits > 0).float()
    targets[3:] = 0.75
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        inputs = (leaf, targets.to(dtype), None, None, None)
        loss, _ = segmentation_loss(spec, inputs, backend=backend)
        loss.sum().backward()
        results += [loss.detach().double(), leaf.grad.double()]
    loss, slopes, exact, exact_slopes = results
    torch.testing.assert_close(loss, exact, rtol=2e-5, atol=0)
    torch.testing.assert_close(slopes, exact_slopes, rtol=2e-5, atol=0)


def test_the_slope_of_a_softmax_focal_loss_where_p_rounds_to_1(device):
    """There -log p is rounding; its ratio to 1 - p is 1, and the slope right to a sixth."""
    logits = torch.tensor([[0.0], [-14.5]], device=device)[None]
    right = torch.zeros(1, 1, dtype=torch.int64, device=device)
    slopes = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        FocalLoss(mode="multiclass", reduction="sum", backend=backend)(leaf, right).backward()
        slopes.append(leaf.grad.double())
    torch.testing.assert_close(*slopes, rtol=0.3, atol=0)
