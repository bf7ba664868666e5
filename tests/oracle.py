"""How a fused result is judged: against float64, and against PyTorch on the same inputs."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastseg_losses.base import SegmentationLoss


class Result(NamedTuple):
    loss: Tensor
    dlogits: Tensor
    stats: Tensor


def run(criterion: SegmentationLoss, logits, targets, valid=None, dloss=None) -> Result:
    """Forward and backward, with the upstream gradient `dloss` (drawn when None)."""
    x = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if x.stride() != logits.stride():  # clone drops the gaps of a slice; the test wants them
        x = logits.detach().requires_grad_()
        x.grad = None
    before = (x.detach().clone(), targets.clone())
    loss, stats = criterion(x, targets, valid, return_stats=True)
    loss.backward(torch.ones_like(loss) if dloss is None else dloss.to(loss))
    same = torch.equal(before[0].nan_to_num(), x.detach().nan_to_num()) and torch.equal(
        before[1].float().nan_to_num(), targets.float().nan_to_num()
    )
    assert same, "an input was written to"
    return Result(loss.detach(), x.grad, stats.tensor.detach().clone())


def rms_error(value: Tensor, exact: Tensor) -> float:
    """Error relative to the root mean square of the exact values."""
    value, exact = value.double().cpu(), exact.double().cpu()
    scale = exact.square().mean().sqrt().clamp_min(1e-30)
    return float((value - exact).square().mean().sqrt() / scale)


def assert_no_worse(ours: Tensor, peer: Tensor, exact: Tensor, tolerance: float, what: str) -> None:
    """Our error is at most that of PyTorch in the same dtype plus a small tolerance."""
    assert ours.shape == exact.shape, (
        f"{what}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    )
    assert torch.isfinite(ours).all() or not torch.isfinite(exact).all(), f"{what}: not finite"
    mine, theirs = rms_error(ours, exact), rms_error(peer, exact)
    assert mine <= theirs + tolerance, (
        f"{what}: error {mine:.2e}, PyTorch's {theirs:.2e} + {tolerance:.0e}"
    )


# Accumulation order and 2-ulp exponentials; one rounding of the stored gradient for the half types.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def check_against_float64(build, logits, targets, valid=None) -> Result:
    """Compare the fused loss, gradient and statistics with the reference in float64 and in the same
    dtype.

    Args:
        build: called as build(backend=...), gives the criterion.
    """
    fused = build(backend="triton").to(logits.device)
    plain = build(backend="torch").to(logits.device)
    shape = plain(logits, targets, valid).shape  # interpreted kernels take seconds
    dloss = torch.randn(shape, dtype=torch.float64, device=logits.device)
    ours = run(fused, logits, targets, valid, dloss)
    peer = run(plain, logits, targets, valid, dloss)
    exact = run(plain, logits.double(), targets, valid, dloss)
    assert_no_worse(ours.loss, peer.loss, exact.loss, 2e-6, "loss")
    assert_no_worse(ours.dlogits, peer.dlogits, exact.dlogits, TOLERANCE[logits.dtype], "gradient")
    assert ours.dlogits.dtype == logits.dtype
    torch.testing.assert_close(ours.stats, exact.stats, rtol=2e-5, atol=2e-6, equal_nan=True)
    return ours
