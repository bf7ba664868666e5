"""Generalised Dice's finish: one launch, equal to the formula in float64."""

import pytest
import torch

from fastseg_losses.ops_generalized import generalized_loss

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
    arguments = {
        "first": first,
        "weights": weights,
        "smooth_nr": 1e-2,
        "smooth_dr": 1e-1,
        "reduction": reduction,
        "batch": batch,
    }
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        leaf = sums.to(dtype).requires_grad_()
        loss = generalized_loss(leaf, **arguments, backend=backend)
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
    loss = generalized_loss(
        sums,
        first=0,
        weights="square",
        smooth_nr=1e-5,
        smooth_dr=1e-5,
        reduction="mean",
        batch=False,
        backend="triton",
    )
    (slopes,) = torch.autograd.grad(loss, sums, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice|does not require grad"):
        torch.autograd.grad(slopes.sum(), sums)
