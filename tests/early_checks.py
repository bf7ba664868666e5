"""What holds of every forward launch that writes the gradient, whichever kernel it is."""

import pytest
import torch
from oracle import rms_error, run


def check_any_upstream_gradient(criterion, logits, masks):
    """Powers of two are assumed the next time, others multiplied in; the bits are the same."""
    one = run(criterion, logits, masks, dloss=torch.ones(()))
    for value in (1.0, 0.25, 0.25, 3.7, 0.25, 3.7, 1.0, 0.0, 65536.0, -1.0, 1.0):
        again = run(criterion, logits, masks, dloss=torch.tensor(value))
        assert torch.equal(again.dlogits, one.dlogits * value), value
        assert torch.equal(again.loss, one.loss) and torch.equal(again.stats, one.stats)


def check_backward_twice(criterion, logits, masks):
    x = logits.requires_grad_()
    loss = criterion(x, masks)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss * 3.0, x, retain_graph=True)
    torch.testing.assert_close(second, 3.0 * kept, rtol=1e-5, atol=1e-12)
    assert torch.equal(first, kept), "the second backward wrote into the first one's gradient"
    (third,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(third, kept, rtol=1e-5, atol=1e-12)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        third.sum().backward()


def check_one_launch_each_way(criterion, logits, masks, kernel):
    """Without a wait for the device, in the gradient's memory and 1 MB; backward only settles."""
    from test_gpu import kernels_of

    x, kept = logits.requires_grad_(), []
    dloss = torch.ones((), device=x.device)
    torch.autograd.grad(criterion(x, masks), x, dloss)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(criterion(x, masks, return_stats=True)[0], x, dloss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before <= x.nbytes + (1 << 20)
    forward = kernels_of(lambda: kept.append(criterion(x, masks, return_stats=True)[0]))
    backward = kernels_of(lambda: torch.autograd.grad(kept[0], x, dloss))
    assert len(forward) == 1 and kernel in forward[0], forward
    assert len(backward) == 1 and "_settle_kernel" in backward[0], backward


def check_two_launches_agree(criterion, logits, masks, taken, dloss=1.0):
    """taken: whether all calls so far took the one launch."""
    dloss = torch.tensor(dloss)
    single = run(criterion, logits, masks, dloss=dloss)
    assert taken()
    everything = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    double = run(criterion, logits, masks, everything, dloss=dloss)  # masks take two launches
    torch.testing.assert_close(single.loss, double.loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(single.stats, double.stats, rtol=2e-6, atol=1e-7)
    assert rms_error(single.dlogits, double.dlogits) < 1e-6
