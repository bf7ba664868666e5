"""What holds of every forward launch that writes the gradient, whichever kernel it is."""

import pytest
import torch
from gpu_measures import kernels_of, peak_bytes
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
    x, kept = logits.requires_grad_(), []
    dloss = torch.ones((), device=x.device)
    torch.autograd.grad(criterion(x, masks), x, dloss)

    def step():
        torch.cuda.set_sync_debug_mode("error")
        try:
            return torch.autograd.grad(criterion(x, masks, return_stats=True)[0], x, dloss)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    assert peak_bytes(step) <= x.nbytes + (1 << 20)
    forward = kernels_of(lambda: kept.append(criterion(x, masks, return_stats=True)[0]))
    backward = kernels_of(lambda: torch.autograd.grad(kept[0], x, dloss))
    assert len(forward) == 1 and kernel in forward[0], forward
    assert len(backward) == 1 and "_settle_kernel" in backward[0], backward


def check_a_capture_takes_two_launches(criterion, draw, monkeypatch):
    """A replay must not share the assumed upstream gradient with the launches around it.

    The warm-up before it takes one launch, and compiles the two; `draw` gives logits and masks.
    """

    from fastseg_losses.kernels import launch

    logits, masks = draw()
    x, dloss = logits.clone().requires_grad_(), torch.ones((), device=logits.device)
    side, graph, bound = torch.cuda.Stream(), torch.cuda.CUDAGraph(), []
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.autograd.grad(criterion(x, masks), x, dloss)
    torch.cuda.current_stream().wait_stream(side)
    bind = launch.Launch.bind
    monkeypatch.setattr(launch.Launch, "bind", lambda *a: (bound.append(1), bind(*a))[1])
    with torch.cuda.graph(graph):
        loss = criterion(x, masks)
        (gradient,) = torch.autograd.grad(loss, x, dloss)
    assert not bound
    names = [name for name in kernels_of(graph.replay) if "Mem" not in name]
    assert ["_sums_forward_kernel" in names[0], "_gradient_kernel" in names[1]] == [True, True]
    for _ in range(3):
        new, other = draw()
        with torch.no_grad():
            x.copy_(new)
            masks.copy_(other)
        graph.replay()
        eager = run(criterion, new, other, dloss=torch.ones(()))
        torch.testing.assert_close(loss, eager.loss, rtol=2e-6, atol=0)
        assert rms_error(gradient, eager.dlogits) < 1e-6


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
