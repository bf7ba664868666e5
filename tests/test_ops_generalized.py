"""Generalised Dice's finish: one launch, equal to the formula in float64."""

import gc
import weakref

import pytest
import torch
from gpu_measures import kernels_of

from fastseg_losses import compat
from fastseg_losses.compat.monai import GeneralizedDiceLoss
from fastseg_losses.ops_generalized import Finish

CASES = [
    (N, C, first, weights, reduction, batch)
    for N, C, first in ((1, 1, 0), (3, 5, 1), (37, 19, 0), (2, 256, 1), (300, 17, 3))
    for weights in ("square", "simple", "uniform")
    for reduction in ("mean", "sum", "none")
    for batch in (False, True)
]


def drawn_sums(N, C, device):
    """I, P, T, V of 1000 pixels, with channels and a sample that have no target."""
    P, T = torch.rand(2, N, C, dtype=torch.float64, device=device) * 1000
    T = torch.where(torch.rand_like(T) < 0.3, 0.0, T)
    T[0] = 0.0
    sums = torch.stack((torch.rand_like(T) * torch.minimum(P, T), P, T, torch.full_like(T, 1000)))
    return sums.float()


@pytest.mark.parametrize(("N", "C", "first", "weights", "reduction", "batch"), CASES)
def test_equal_to_the_formula(device, N, C, first, weights, reduction, batch):
    sums = drawn_sums(N, C, device)
    finish = Finish(first, weights, 1e-2, 1e-1, reduction, batch)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        leaf = sums.to(dtype).requires_grad_()
        loss = finish.of_sums(leaf, backend)
        upstream = torch.linspace(0.5, 2.0, loss.numel(), dtype=dtype, device=device)
        (slopes,) = torch.autograd.grad(loss, leaf, upstream.reshape(loss.shape))
        results.append((loss.detach(), slopes))
    (loss, slopes), (expected, expected_slopes) = results
    torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=2e-6)
    # a slope of the smallest weights may be 1e-9 beside others of 1e-3
    scale = expected_slopes.abs().amax()
    assert ((slopes.double() - expected_slopes).abs() <= 1e-5 * scale + 1e-12).all()
    assert not slopes[2:].any()


def test_refuses_a_second_derivative(device):
    sums = drawn_sums(2, 3, device).requires_grad_()
    loss = Finish(0, "square", 1e-5, 1e-5, "mean", batch=False).of_sums(sums, "triton")
    (slopes,) = torch.autograd.grad(loss, sums, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice|does not require grad"):
        torch.autograd.grad(slopes.sum(), sums)


@pytest.fixture
def kernels(device):
    with compat.backend("triton"):
        yield device


def drawn_step(device, C=3, **arguments):
    logits = torch.randn(2, C, 9, 7, device=device, requires_grad=True)
    targets = (torch.rand_like(logits) < 0.3).float()
    return GeneralizedDiceLoss(sigmoid=True, **arguments)(logits, targets), logits, targets


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("upstream", [1.0, 0.3, -7.0])
def test_one_step_of_logits(kernels, reduction, upstream):
    """Twice, the second time with another upstream gradient."""
    loss, logits, targets = drawn_step(kernels, reduction=reduction)
    with compat.backend("torch"):
        x = logits.detach().double().requires_grad_()
        exact = GeneralizedDiceLoss(sigmoid=True, reduction=reduction)(x, targets.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
    for factor in (upstream, 2.5 * upstream):
        dloss = torch.full_like(loss, factor)
        (ours,) = torch.autograd.grad(loss, logits, dloss, retain_graph=True)
        (theirs,) = torch.autograd.grad(exact, x, dloss.double(), retain_graph=True)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * abs(factor))


def test_upstream_gradients_at_once(kernels):
    loss, logits, _ = drawn_step(kernels)
    dlosses = torch.tensor([1.0, -2.0, 0.5], device=kernels)
    together = torch.autograd.grad(loss, logits, dlosses, is_grads_batched=True, retain_graph=True)
    for dloss, dlogits in zip(dlosses, together[0], strict=True):
        (alone,) = torch.autograd.grad(loss, logits, dloss, retain_graph=True)
        torch.testing.assert_close(dlogits, alone, rtol=1e-6, atol=1e-9)


def test_an_upstream_gradient_from_the_loss_itself_is_not_kept(kernels):
    """A cycle through autograd's nodes, which no collection sees."""
    loss, logits, _ = drawn_step(kernels)
    torch.autograd.grad(loss, logits, loss * 1.0)
    gone = weakref.ref(logits)
    del loss, logits
    gc.collect()
    assert gone() is None


def test_a_step_refuses_a_second_derivative(kernels):
    loss, logits, _ = drawn_step(kernels)
    (dlogits,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(dlogits.sum(), logits)


@pytest.mark.gpu
def test_two_launches_each_way(cuda):
    """And none that multiplies the slopes by the upstream gradient."""
    loss, logits, targets = drawn_step(cuda)
    dloss = torch.ones_like(loss)
    torch.autograd.grad(loss, logits, dloss)
    kept = []
    criterion = GeneralizedDiceLoss(sigmoid=True)
    forward = kernels_of(lambda: kept.append(criterion(logits, targets)))
    backward = kernels_of(lambda: torch.autograd.grad(kept[0], logits, dloss))
    assert len(forward) == 2 and "_generalized_finish_kernel" in forward[1], forward
    assert len(backward) == 1 and "_gradient_kernel" in backward[0], backward
