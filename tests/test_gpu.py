"""What only a device shows: launches, syncs, graphs, streams, memory, large sizes, compilation."""

import pytest
import torch
from gpu_measures import kernels_of, peak_bytes
from losses_table import ALL, DEFAULTS, ids
from oracle import check_against_float64, run

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, region_sums

pytestmark = pytest.mark.gpu


def draw(shape, device, dtype=torch.float32, targets=torch.uint8):
    logits = (torch.randn(shape, device=device) * 4).to(dtype)
    return logits, (torch.rand(shape, device=device) < 0.3).to(targets)


@pytest.mark.parametrize("targets", [torch.float32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
def test_every_loss_at_full_size(row, dtype, targets, cuda, poisoned):
    logits, masks = draw((4, 2, 200, 333), cuda, dtype, targets)
    valid = torch.tensor([True, True, False, True], device=cuda)
    ours = check_against_float64(
        lambda **k: row.build(mode="multilabel", **k), logits, masks, valid
    )
    assert (ours.dlogits[2] == 0).all()


def test_a_sum_over_many_programs_and_tiles(cuda, poisoned):
    for shape in ((1, 1, 3001, 2003), (33, 1, 256, 256), (700, 3, 17, 19)):
        logits, masks = draw(shape, cuda, targets=torch.float32)
        check_against_float64(
            lambda **k: CombinedSegmentationLoss(mode="multilabel", **k), logits, masks
        )


# ---- launches, syncs, memory


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
def test_one_launch_each_way_with_statistics(row, reduction, cuda):
    logits, masks = draw((2, 1, 128, 128), cuda)
    logits.requires_grad_()
    criterion = row.build(reduction=reduction).to(cuda)
    valid = torch.tensor([True, False], device=cuda)
    loss, _ = criterion(logits, masks, valid, return_stats=True)
    dloss = torch.ones_like(loss)
    torch.autograd.grad(loss, logits, dloss)
    kept = []
    forward = kernels_of(lambda: kept.append(criterion(logits, masks, valid, return_stats=True)[0]))
    backward = kernels_of(lambda: torch.autograd.grad(kept[0], logits, dloss))
    assert len(forward) == 1 and "_sums_forward_kernel" in forward[0], forward
    assert len(backward) == 1 and "_gradient_kernel" in backward[0], backward


def test_no_sync_forward_backward_scaled_and_accumulated(cuda):
    logits, masks = draw((2, 1, 128, 128), cuda, torch.float16)
    x = logits.requires_grad_()
    criterion = CombinedSegmentationLoss().to(cuda)
    scaler = torch.amp.GradScaler("cuda")
    ring = torch.zeros(3, criterion.stats_size(), device=cuda)
    scaler.scale(criterion(x, masks)).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            loss, stats = criterion(x, masks, return_stats=True, stats_out=ring[step])
            scaler.scale(loss / 3).backward(retain_graph=True)
            loss.backward()
            _ = stats.pred_mean * 2, stats.iou, stats.terms["dice"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ring[0], ring[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_is_the_gradient_and_little_more(dtype, cuda):
    logits, masks = draw((8, 1, 512, 512), cuda, dtype)
    x = logits.requires_grad_()
    criterion = CombinedSegmentationLoss()

    def step():
        loss, _ = criterion(x, masks, return_stats=True)
        (gradient,) = torch.autograd.grad(loss, x)
        return gradient

    step()
    assert peak_bytes(step) <= x.nbytes + (1 << 20)


# ---- graphs, streams, compilation


def test_captured_in_a_graph_and_replayed(cuda):
    logits, masks = draw((4, 1, 128, 128), cuda)
    x = logits.clone().requires_grad_()
    criterion = CombinedSegmentationLoss()
    dloss = torch.ones((), device=cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(criterion(x, masks), x, dloss)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, stats = criterion(x, masks, return_stats=True)
        (gradient,) = torch.autograd.grad(loss, x, dloss)
    assert len([name for name in kernels_of(graph.replay) if "Mem" not in name]) == 2
    for _ in range(3):
        new, other = draw((4, 1, 128, 128), cuda)
        with torch.no_grad():
            x.copy_(new)
            masks.copy_(other)
        graph.replay()
        eager = run(criterion, new, other, dloss=torch.ones(()))
        assert torch.equal(loss, eager.loss)
        assert torch.equal(gradient, eager.dlogits)
        assert torch.equal(stats.tensor, eager.stats)


def test_streams_do_not_share_counters(cuda):
    criterion = CombinedSegmentationLoss(mode="multilabel")
    inputs = [draw((4, 3, 256, 256), cuda) for _ in range(4)]
    expected = [criterion(*pair) for pair in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for pair, stream in zip(inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(criterion(*pair))
    torch.cuda.synchronize()
    assert all(torch.equal(loss, expected[i % 4]) for i, loss in enumerate(results))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_by_inductor(dynamic, cuda):
    torch._dynamo.reset()
    criterion = CombinedSegmentationLoss()

    @torch.compile(fullgraph=True, dynamic=dynamic)
    def step(x, t):
        loss, stats = criterion(x * 2, t, return_stats=True)
        return loss * 3, stats.pred_mean

    for size in (64, 96) if dynamic else (64,):
        logits, masks = draw((2, 1, size, size), cuda)
        x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss, mean = step(x, masks)
        loss.backward()
        eager, stats = criterion(y * 2, masks, return_stats=True)
        (eager * 3).backward()
        torch.testing.assert_close(loss, eager * 3)
        torch.testing.assert_close(mean, stats.pred_mean)
        torch.testing.assert_close(x.grad, y.grad)


def test_new_shapes_do_not_compile(cuda, monkeypatch):
    """Twenty shapes in a row: at most the aligned and the unaligned kernels are built."""
    from fastseg_losses.kernels.gradient import _gradient_kernel
    from fastseg_losses.kernels.sums import _sums_forward_kernel

    logits, masks = draw((1, 1, 64, 64), cuda)
    run(CombinedSegmentationLoss(), logits, masks)  # so that the kernels know their compiler
    built = []
    for kernel in (_sums_forward_kernel, _gradient_kernel):
        compile_ = kernel.compile
        monkeypatch.setattr(
            kernel, "compile", lambda *a, _c=compile_, **k: (built.append(1), _c(*a, **k))[1]
        )
    criterion = CombinedSegmentationLoss(focal_alpha=None, focal_gamma=1.7, tversky_weight=0.1)
    counts = []
    for k in range(20):
        # the second one has rows that do not start at 16 bytes: another kernel, once
        height, width = (64 + 16 * k, 128) if k % 2 == 0 else (62 + k, 36 + 3 * k)
        logits, masks = draw((1 + k % 3, 1, height, width), cuda)
        x = logits.requires_grad_()
        torch.autograd.grad(criterion(x, masks), x)
        counts.append(len(built))
    assert counts[0] > 0, "the first kernels were not seen"
    assert counts[-1] == counts[1]


# ---- the rest of the ways in which it is run


def test_the_bits_do_not_depend_on_the_run(cuda):
    criterion = CombinedSegmentationLoss(iou_weight=0.1, tversky_weight=0.1)
    logits, masks = draw((8, 1, 512, 512), cuda)
    first = run(criterion, logits, masks, dloss=torch.ones(()))
    for _ in range(20):
        again = run(criterion, logits, masks, dloss=torch.ones(()))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_auto_takes_the_kernels_and_the_reference_for_float64(cuda):
    logits, masks = draw((2, 1, 64, 64), cuda)
    criterion = DiceLoss()
    assert any(
        "_sums_forward_kernel" in name for name in kernels_of(lambda: criterion(logits, masks))
    )
    names = kernels_of(lambda: criterion(logits.double(), masks))
    assert not any("_sums_forward_kernel" in name for name in names)


@pytest.mark.parametrize("row", DEFAULTS, ids=ids(DEFAULTS))
def test_the_torch_backend_on_the_device(row, cuda):
    logits, masks = draw((2, 1, 33, 65), cuda)
    on_device = run(row.build(backend="torch"), logits, masks, dloss=torch.ones(()))
    on_cpu = run(row.build(backend="torch"), logits.cpu(), masks.cpu(), dloss=torch.ones(()))
    torch.testing.assert_close(on_device.loss.cpu(), on_cpu.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_device.dlogits.cpu(), on_cpu.dlogits, rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one():
    assert torch.cuda.current_device() == 0
    other = torch.device("cuda", 1)
    logits, masks = draw((2, 1, 64, 64), other)
    check_against_float64(CombinedSegmentationLoss, logits, masks)
    assert torch.cuda.current_device() == 0


@pytest.mark.large
def test_more_than_two_to_the_31_elements(cuda):
    """64-bit offsets, forward and backward: the last sample alone gives the same sums."""
    N, C, P = 5, 3, 150_000_017
    assert N * C * P > 2**31
    logits = torch.randn(N, C, P, device=cuda, dtype=torch.bfloat16).requires_grad_()
    masks = torch.rand(1, 1, P, device=cuda).lt_(0.3).to(torch.uint8).expand(N, C, P)
    criterion = DiceLoss(mode="multilabel", reduction="none")
    loss = criterion(logits, masks)
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    last = logits.detach()[-1:].clone().requires_grad_()
    alone = criterion(last, masks[-1:])
    (expected,) = torch.autograd.grad(alone, last, torch.ones_like(alone))
    torch.testing.assert_close(loss[-1:], alone, rtol=1e-6, atol=0)
    # one rounding apart at most: the sums are split over another number of programs
    torch.testing.assert_close(gradient[-1:], expected, rtol=2**-7, atol=0)


def test_region_sums_on_the_device(cuda):
    logits, masks = draw((3, 2, 100, 77), cuda, torch.bfloat16)
    fused = region_sums(logits, masks, mode="multilabel")
    plain = region_sums(logits.double(), masks, mode="multilabel", backend="torch")
    for ours, exact in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)
