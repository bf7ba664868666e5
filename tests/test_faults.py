"""What a fault leaves behind: nothing, and the next call is right. Interpreted or on the device."""

import os
import random
import time

import pytest
import torch
from faults import KINDS, OutOfMemory, interrupted, living_tensors

from fastseg_losses import DiceLoss, plans


@pytest.fixture(params=KINDS)
def call(request, device):
    """A criterion and its inputs, of each kind of kernel."""
    return KINDS[request.param](device)


def step(criterion, logits, targets):
    x = logits.clone().requires_grad_()
    loss = criterion(x, targets)
    loss.backward()
    return loss.detach(), x.grad


def assert_right(call, expected):
    for ours, before in zip(step(*call), expected, strict=True):
        assert torch.equal(ours, before)


def counters():
    return [c for plan in plans.PLANS.values() if plan for c in plan.counters.values()]


def test_whichever_allocation_fails_nothing_is_left_and_the_next_call_is_right(call):
    """Of a first call too, whose counters are allocated; a backward that failed can be repeated."""
    criterion, logits, targets = call
    expected = step(*call)
    plans.PLANS.clear()
    living, failed_backward = living_tensors(), 0
    for refused in range(20):
        x, loss, memory = logits.clone().requires_grad_(), None, OutOfMemory(refused)
        try:
            with memory:
                loss = criterion(x, targets)
                loss.backward()
            break  # with none left to refuse
        except torch.OutOfMemoryError:
            assert x.grad is None
        if loss is not None:
            failed_backward += 1
            loss.backward()
            assert torch.equal(x.grad, expected[1])
        del x, loss, memory
        plans.PLANS.clear()
        assert living_tensors() == living
        assert torch.equal(criterion(logits, targets), expected[0])
        plans.PLANS.clear()
    assert refused >= 4, "loss, scratch, counters and gradient at the least"
    assert failed_backward >= 1


def test_an_interpreted_launch_that_is_cut_short_leaves_no_counts(call, device, monkeypatch):
    """Ctrl-C when one program of several has counted itself: without care, no later one is last."""
    if device.type == "cuda":
        pytest.skip("a launch on a device runs to its end, whatever happens in Python")
    from triton.runtime.interpreter import interpreter_builder

    expected = step(*call)
    first = interpreter_builder.set_grid_idx

    def interrupt(x, y, z):
        if x == 1:
            raise KeyboardInterrupt
        first(x, y, z)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(interpreter_builder, "set_grid_idx", interrupt)
        step(*call)
    assert_right(call, expected)
    assert counters() and all((c == 0).all() for c in counters())


@pytest.mark.slow
def test_ctrl_c_at_random_moments(device):
    times = 200 if device.type == "cuda" else int(os.environ.get("INTERRUPTS", "25"))
    logits = torch.randn(2, 1, 6, device=device)
    call = DiceLoss(backend="triton"), logits, (logits > 1).to(torch.uint8)
    expected = step(*call)
    start = time.perf_counter()
    for _ in range(3):
        step(*call)
    takes = (time.perf_counter() - start) / 3
    chance, came = random.Random(0), 0
    for _ in range(times):
        try:
            # squared: more often early, in the forward launch that counts its programs
            with interrupted(max(1e-6, 1.1 * takes * chance.random() ** 2)):
                ours = step(*call)
        except KeyboardInterrupt:
            came += 1
        else:
            assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
    assert came >= times // 2
    assert_right(call, expected)
    assert all((c == 0).all() for c in counters())


def test_forward_without_backward(call, device):
    """The gradient that never came is missed by nobody; what a call kept goes with its loss."""
    criterion, logits, targets = call
    expected = step(*call)
    living = living_tensors()
    for _ in range(2 if device.type == "cpu" else 1000):
        criterion(logits.clone().requires_grad_(), targets)
    assert living_tensors() == living
    assert_right(call, expected)


class Broken(Exception):
    pass


def broken(*_):
    raise Broken


def test_exceptions_between_forward_and_backward(call):
    criterion, logits, targets = call
    expected = step(*call)
    x = logits.clone().requires_grad_()
    with pytest.raises(Broken), torch.autograd.graph.saved_tensors_hooks(broken, lambda v: v):
        criterion(x, targets)
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v, broken):
        loss = criterion(x, targets)
    with pytest.raises(Broken):
        loss.backward()
    assert x.grad is None
    x.register_hook(broken)  # the gradient is there, and nobody takes it
    with pytest.raises(Broken):
        criterion(x, targets).backward()
    assert x.grad is None
    assert_right(call, expected)
    assert all((c == 0).all() for c in counters())


@pytest.mark.parametrize(
    ("upsample", "stray"), [(None, 1.5), (None, -0.5), (None, float("inf")), ("bilinear", 1.5)]
)
def test_soft_targets_outside_the_unit_interval(upsample, stray, device):
    logits = torch.randn(1, 1, 2, 2, device=device)
    targets = torch.rand(1, 1, 4, 4, device=device) if upsample else torch.rand_like(logits)
    wrong = targets.clone()
    wrong[0, 0, 1, 1] = stray
    plain = DiceLoss(backend="torch", upsample=upsample)
    with pytest.raises(ValueError, match=r"targets: expected values in \[0, 1\]"):
        plain(logits.cpu(), wrong.cpu())
    fused = DiceLoss(backend="triton", upsample=upsample)
    right = fused(logits, targets)
    _, stats = fused(logits, wrong, return_stats=True)
    assert stats.bad_targets == 1
    with pytest.raises(ValueError, match="targets: expected values in"):
        stats.cpu()
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="earlier call"):
        fused(logits, targets)
    assert torch.equal(fused(logits, targets), right)
