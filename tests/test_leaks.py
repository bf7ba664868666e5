"""Nothing grows with the number of steps, nor without bound with the number of shapes."""

import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from faults import KINDS, living_tensors, single

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, ops_generalized, ops_masks, plans
from fastseg_losses.functional import predict_mask
from fastseg_losses.ops_generalized import Finish

STEPS = 10_000


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def train(criterion, logits, targets, steps):
    x = logits.clone().requires_grad_()
    for _ in range(steps):
        loss, stats = criterion(x, targets, return_stats=True)
        loss.backward()
        _ = stats.iou
        x.grad = None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*KINDS, "single"])
def test_memory_after_10_000_steps(kind, cuda):
    """Of the device to the byte; of the process within what allocators keep for themselves."""
    call = {**KINDS, "single": single}[kind](cuda)
    train(*call, 200)
    torch.cuda.synchronize()
    living = living_tensors()  # first: it collects what earlier tests have left in cycles
    allocated, resident = torch.cuda.memory_allocated(), resident_bytes()
    train(*call, STEPS)
    torch.cuda.synchronize()
    assert living_tensors() == living
    assert torch.cuda.memory_allocated() == allocated
    assert resident_bytes() - resident < 8 << 20, "800 bytes a step"
    if kind == "single" and torch.cuda.get_device_capability() == (9, 0):
        assert any(plan and plan.early for plan in plans.PLANS.values())


def test_a_step_keeps_no_tensor(device):
    logits = torch.randn(1, 1, 4, 4, device=device)
    call = DiceLoss(backend="triton"), logits, (logits > 1).to(torch.uint8)
    train(*call, 3)
    living = living_tensors()
    train(*call, 20)
    assert living_tensors() == living


def test_python_keeps_nothing_of_a_step(device):
    """With the kernels on a GPU; interpreted, Triton's own Python would be what is measured."""
    logits = torch.randn(2, 1, 4, 4, device=device)
    backend = "triton" if device.type == "cuda" else "torch"
    call = DiceLoss(backend=backend), logits, (logits > 1).to(torch.uint8)
    tracemalloc.start()
    try:
        train(*call, 500)  # fills Python's own lists of objects to use again
        living = living_tensors()  # collects, too
        before = tracemalloc.get_traced_memory()[0]
        train(*call, 1000)
        assert living_tensors() == living
        assert tracemalloc.get_traced_memory()[0] - before < 32_000, "32 bytes a step"
    finally:
        tracemalloc.stop()


def test_shapes_do_not_add_up(device, monkeypatch):
    """Each kind of plan is kept for a number of shapes, and all are dropped beyond it."""
    monkeypatch.setattr(plans, "MAX_PLANS", 3)
    monkeypatch.setattr(ops_masks, "MAX_PLANS", 3)
    monkeypatch.setattr(ops_generalized, "MAX_LAUNCHERS", 3)
    kept = (plans.PLANS, ops_masks._MASK_PLANS, ops_generalized._LAUNCHERS)
    for cache in kept:
        cache.clear()
    finish = Finish(0, "square", 0.0, 1e-5, "mean", batch=False)
    sizes = []
    for n in range(1, 9):
        logits = torch.randn(n, 1, 2, 2, device=device)
        predict_mask(logits, (4, 4), mode="binary", backend="triton")
        sums = torch.rand(4, n, 2, device=device)
        finish.of_sums(sums, "triton")
        low = CombinedSegmentationLoss(upsample="nearest", backend="triton")
        if n > 4:
            low(logits[:1], torch.zeros(1, 1, 2, n, device=device))  # its tables too
        sizes.append([len(cache) for cache in kept])
    assert sizes[2][1:] == [3, 3]  # as many as may be
    assert all(size <= 3 for row in sizes for size in row)
    for cache in kept:
        cache.clear()
