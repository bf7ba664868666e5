"""What only a device shows of low-resolution logits: launches, syncs, memory, graphs, sizes."""

import pytest
import torch
from gpu_measures import kernels_of, peak_bytes

from fastseg_losses import CombinedSegmentationLoss
from fastseg_losses.functional import predict_mask
from fastseg_losses.upsampling import interpolate

pytestmark = pytest.mark.gpu

CASES = {
    "binary": ("binary", (4, 1, 64, 64), (256, 256)),
    "multiclass": ("multiclass", (2, 19, 32, 64), (128, 256)),
}


def draw(case, device, dtype=torch.float32, labels=torch.uint8):
    mode, shape, high = CASES[case] if isinstance(case, str) else case
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    N, C = shape[:2]
    size = (N, *high) if mode == "multiclass" else (N, 1, *high)
    targets = torch.randint(0, max(2, C), size, device=device).to(labels)
    criterion = CombinedSegmentationLoss(mode=mode, upsample="bilinear", backend="triton")
    return criterion, logits.requires_grad_(), targets


def step(criterion, logits, targets):
    loss, stats = criterion(logits, targets, return_stats=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss, gradient, stats.tensor


LARGE = [
    ("binary", (4, 1, 128, 160), (512, 640)),
    ("binary", (2, 1, 100, 300), (333, 777)),
    ("binary", (2, 1, 33, 40), (264, 320)),
    ("multiclass", (2, 19, 64, 128), (256, 512)),
    ("multiclass", (1, 150, 40, 50), (160, 200)),
    ("multiclass", (2, 21, 65, 300), (130, 600)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE)
def test_no_worse_than_interpolate_in_float32(case, dtype, cuda, poisoned):
    criterion, logits, targets = draw(case, cuda, dtype)
    loss, gradient, _ = step(criterion, logits, targets)
    plain = CombinedSegmentationLoss(mode=case[0], backend="torch")
    results = []
    for kind in (torch.float64, torch.float32):
        x = logits.detach().to(kind).requires_grad_()
        value = plain(interpolate(x, case[2], "bilinear"), targets)
        results.append((value.item(), torch.autograd.grad(value, x)[0].double()))
    (exact, slopes), (rounded, theirs) = results
    assert abs(loss.item() - exact) <= abs(rounded - exact) + 1e-6 * abs(exact)
    error, their_error = ((g.double() - slopes).norm() for g in (gradient, theirs))
    bound = 4e-3 if dtype == torch.bfloat16 else 2e-6
    assert error <= their_error + bound * slopes.norm()


@pytest.mark.parametrize("case", CASES)
def test_one_launch_each_way(case, cuda):
    criterion, logits, targets = draw(case, cuda)
    step(criterion, logits, targets)
    dloss = torch.ones((), device=cuda)
    kept = []
    forward = kernels_of(lambda: kept.append(criterion(logits, targets, return_stats=True)[0]))
    backward = kernels_of(lambda: torch.autograd.grad(kept[0], logits, dloss))
    assert len(forward) == 1 and "sums_kernel" in forward[0], forward
    assert len(backward) == 1 and "gradient_kernel" in backward[0], backward


@pytest.mark.parametrize("case", CASES)
def test_no_sync(case, cuda):
    criterion, logits, targets = draw(case, cuda)
    step(criterion, logits, targets)
    predict_mask(logits, targets.shape[-2:], mode=CASES[case][0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(criterion, logits, targets)
        predict_mask(logits, targets.shape[-2:], mode=CASES[case][0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_every_time(case, cuda):
    criterion, logits, targets = draw(case, cuda)
    first = step(criterion, logits, targets)
    for _ in range(100):
        again = step(criterion, logits, targets)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_memory_is_the_gradient_and_what_a_softmax_keeps(cuda):
    for case, extra in (
        (("binary", (8, 1, 256, 256), (1024, 1024)), 0),
        (("multiclass", (4, 64, 64, 64), (256, 256)), 8 * 4 * 256 * 256),
    ):
        criterion, logits, targets = draw(case, cuda)
        step(criterion, logits, targets)
        peak = peak_bytes(lambda call=(criterion, logits, targets): step(*call))
        allowed = (1 << 20) + (4 << 20 if extra else 0)  # exchange between threads; partial rows
        assert peak <= logits.numel() * 4 + extra + allowed


@pytest.mark.parametrize("case", CASES)
def test_captured_in_a_graph_and_replayed(case, cuda):
    criterion, logits, targets = draw(case, cuda)
    dloss = torch.ones((), device=cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(criterion(logits, targets), logits, dloss)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = criterion(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits, dloss)
    for _ in range(3):
        with torch.no_grad():
            logits.copy_(torch.randn_like(logits))
        graph.replay()
        expected, slopes, _ = step(criterion, logits, targets)
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, slopes)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_more_than_2_31_outputs(mode, cuda):
    torch.cuda.empty_cache()
    C = 1 if mode == "binary" else 2
    criterion, logits, targets = draw((mode, (3, C, 6800, 6800), (27200, 27200)), cuda)
    assert 3 * 27200 * 27200 > 2**31
    loss, gradient, _ = (each.detach() for each in step(criterion, logits, targets))
    # every sample has as many pixels, so the loss of all is the mean of theirs
    total = 0.0
    for n in range(3):
        one = logits[n : n + 1].detach().requires_grad_()
        part, slopes, _ = (each.detach() for each in step(criterion, one, targets[n : n + 1]))
        total += part
        torch.testing.assert_close(gradient[n : n + 1], slopes / 3, rtol=2e-3, atol=1e-12)
    torch.testing.assert_close(loss, total / 3, rtol=1e-5, atol=0)


def test_masks_are_those_of_interpolate(cuda):
    logits = torch.randn(2, 150, 32, 40, device=cuda)
    found = predict_mask(logits, (128, 160))
    expected = interpolate(logits, (128, 160), "bilinear").argmax(1)
    # two classes may tie within a rounding
    assert (found != expected).sum() <= 2
    assert peak_bytes(lambda: predict_mask(logits, (128, 160))) <= 2 * 128 * 160 + 512
