"""Multiclass mode where only a device shows it: launches, syncs, graphs, memory, large sizes."""

import pytest
import torch
from gpu_measures import kernels_of, peak_bytes
from losses_table import ALL_MULTICLASS, MULTICLASS, alphas, ids
from oracle import check_against_float64, rms_error, run

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, compat
from fastseg_losses.compat.monai import DiceFocalLoss
from fastseg_losses.kernels.multiclass_tile import MAX_COUNT
from fastseg_losses.kernels.tiles import class_tile

pytestmark = pytest.mark.gpu


def draw(shape, device, dtype=torch.float32, targets=torch.uint8):
    logits = (torch.randn(shape, device=device) * 3).to(dtype)
    classes = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    return logits, classes.to(targets)


def combined(**arguments):
    return CombinedSegmentationLoss(mode="multiclass", **arguments)


@pytest.mark.parametrize("targets", [torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", ALL_MULTICLASS, ids=ids(ALL_MULTICLASS))
def test_every_loss_at_full_size(row, dtype, targets, cuda, poisoned):
    logits, labels = draw((4, 19, 200, 333), cuda, dtype, targets)
    labels[:, :9] = 99
    valid = torch.tensor([True, True, False, True], device=cuda)
    build = alphas(row, 19).build
    ours = check_against_float64(lambda **k: build(ignore_index=99, **k), logits, labels, valid)
    assert (ours.dlogits[2] == 0).all() and (ours.dlogits[:, :, :9] == 0).all()


@pytest.mark.parametrize("C", [2, 3, 7, 20, 21, 33, 64, 118, 150, 256, 500, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_of_classes_at_size(C, dtype, cuda, poisoned):
    for shape in ((2, C, 128, 130), (3, C, 61, 53)):
        logits, labels = draw(shape, cuda, dtype, torch.int16)
        check_against_float64(combined, logits, labels)
        channels_last = logits.contiguous(memory_format=torch.channels_last)
        check_against_float64(combined, channels_last, labels)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("row", MULTICLASS, ids=ids(MULTICLASS))
def test_one_launch_each_way_with_statistics(row, reduction, activation, cuda):
    if activation == "sigmoid" and row.name == "ce":
        row = row._replace(name="bce")
    logits, labels = draw((2, 19, 128, 128), cuda)
    logits.requires_grad_()
    criterion = row.build(mode="multiclass", reduction=reduction, activation=activation)
    valid = torch.tensor([True, False], device=cuda)
    loss, _ = criterion(logits, labels, valid, return_stats=True)
    dloss = torch.ones_like(loss)
    torch.autograd.grad(loss, logits, dloss)
    kept = []
    forward = kernels_of(
        lambda: kept.append(criterion(logits, labels, valid, return_stats=True)[0])
    )
    backward = kernels_of(lambda: torch.autograd.grad(kept[0], logits, dloss))
    assert len(forward) == 1 and "_class_sums_kernel" in forward[0], forward
    assert len(backward) == 1 and "_class_gradient_kernel" in backward[0], backward


def test_two_activations_take_two_launches_each_way(cuda):
    """And no sum of two gradients: the second backward launch adds to the first's."""
    logits, labels = draw((2, 5, 64, 64), cuda)
    x, labels = logits.requires_grad_(), labels[:, None]
    criterion, kept = DiceFocalLoss(softmax=True, to_onehot_y=True), []
    dloss = torch.ones((), device=cuda)
    torch.autograd.grad(criterion(x, labels), x, dloss)
    forward = kernels_of(lambda: kept.append(criterion(x, labels)))
    backward = kernels_of(lambda: torch.autograd.grad(kept[0], x, dloss))
    large = [name for name in (*forward, *backward) if "_class_" in name]
    assert ["sums" in name for name in large] == [True, True, False, False], large
    assert len(backward) <= 4, backward  # two of them the losses' weights; a sum would be a fifth
    y = logits.detach().double().requires_grad_()
    with compat.backend("torch"):
        exact = torch.autograd.grad(criterion(y, labels), y)[0]
    found = torch.autograd.grad(criterion(x, labels), x)[0]
    assert rms_error(found, exact) < 2e-6


def test_no_sync(cuda):
    logits, labels = draw((2, 19, 128, 128), cuda, torch.float16)
    x = logits.requires_grad_()
    criterion = combined(class_weights=[1.0] * 19, ignore_index=255).to(cuda)
    ring = torch.zeros(3, criterion.stats_size(19), device=cuda)
    criterion(x, labels).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            loss, stats = criterion(x, labels, return_stats=True, stats_out=ring[step])
            loss.backward()
            _ = stats.class_iou, stats.class_pred * 2, stats.terms["ce"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ring[0], ring[2])


@pytest.mark.parametrize("C", [19, 150, 1024])
def test_peak_memory_is_the_gradient_and_little_more(C, cuda):
    logits, labels = draw((2, C, 256, 256), cuda, torch.bfloat16, torch.int16)
    x = logits.requires_grad_()
    criterion = combined()

    def step():
        loss, _ = criterion(x, labels, return_stats=True)
        return torch.autograd.grad(loss, x)[0]

    step()
    assert peak_bytes(step) <= x.nbytes + (2 << 20)


def test_captured_in_a_graph_and_replayed(cuda):
    logits, labels = draw((4, 19, 64, 64), cuda)
    x = logits.clone().requires_grad_()
    criterion = combined()
    dloss = torch.ones((), device=cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(criterion(x, labels), x, dloss)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, stats = criterion(x, labels, return_stats=True)
        (gradient,) = torch.autograd.grad(loss, x, dloss)
    assert len([name for name in kernels_of(graph.replay) if "Mem" not in name]) == 2
    for _ in range(3):
        new, other = draw((4, 19, 64, 64), cuda)
        with torch.no_grad():
            x.copy_(new)
            labels.copy_(other)
        graph.replay()
        eager = run(criterion, new, other, dloss=torch.ones(()))
        assert torch.equal(loss, eager.loss) and torch.equal(stats.tensor, eager.stats)
        assert torch.equal(gradient, eager.dlogits)


def test_the_bits_do_not_depend_on_the_run(cuda):
    for shape in ((8, 19, 512, 512), (4, 150, 256, 256)):
        logits, labels = draw(shape, cuda)
        first = run(combined(iou_weight=0.1), logits, labels, dloss=torch.ones(()))
        for _ in range(20):
            again = run(combined(iou_weight=0.1), logits, labels, dloss=torch.ones(()))
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_by_inductor(dynamic, cuda):
    torch._dynamo.reset()
    criterion = combined()

    @torch.compile(fullgraph=True, dynamic=dynamic)
    def step(x, t):
        loss, stats = criterion(x * 2, t, return_stats=True)
        return loss * 3, stats.class_pred

    for size in (64, 96) if dynamic else (64,):
        logits, labels = draw((2, 19, size, size), cuda)
        x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss, shares = step(x, labels)
        loss.backward()
        eager, stats = criterion(y * 2, labels, return_stats=True)
        (eager * 3).backward()
        torch.testing.assert_close(loss, eager * 3)
        torch.testing.assert_close(shares, stats.class_pred)
        torch.testing.assert_close(x.grad, y.grad)


def test_new_shapes_do_not_compile(cuda, monkeypatch):
    """Twenty shapes in a row: at most the aligned and the unaligned kernels are built."""
    from fastseg_losses.kernels.multiclass_gradient import _class_gradient_kernel
    from fastseg_losses.kernels.multiclass_sums import _class_sums_kernel

    criterion = combined(focal_gamma=1.7, tversky_weight=0.1, ignore_index=255)
    run(combined(), *draw((1, 5, 64, 64), cuda))  # so that the kernels know their compiler
    built = []
    for kernel in (_class_sums_kernel, _class_gradient_kernel):
        compile_ = kernel.compile
        monkeypatch.setattr(
            kernel, "compile", lambda *a, _c=compile_, **k: (built.append(1), _c(*a, **k))[1]
        )
    counts = []
    for k in range(20):
        height, width = (64 + 16 * k, 128) if k % 2 == 0 else (63 + 2 * k, 37 + 4 * k)
        logits, labels = draw((1 + k % 3, 5, height, width), cuda)
        x = logits.requires_grad_()
        torch.autograd.grad(criterion(x, labels), x)
        counts.append(len(built))
    assert counts[0] > 0, "the first kernels were not seen"
    assert counts[-1] == counts[1]


def test_counts_of_many_pixels(cuda):
    """One program a sample, and one more pixel a thread than it can count at a time."""
    tile = class_tile(2, unit=True, soft=False, forward=True)
    most = tile.rows * tile.width * (MAX_COUNT // tile.width)
    for pixels in (most, most + 1):
        logits, labels = draw((600, 2, pixels), cuda, torch.float16)
        _, stats = combined()(logits, labels, return_stats=True)
        first = (logits[:, 0] >= logits[:, 1]).sum()
        hits = ((logits[:, 0] < logits[:, 1]) == labels.bool()).sum()
        assert stats.tp == hits.float() and stats.bad_targets == 0
        shares = torch.stack([first, logits[:, 0].numel() - first]) / logits[:, 0].numel()
        torch.testing.assert_close(stats.class_pred, shares.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("C", [4, 19])
def test_no_valid_id_is_bad_beyond_what_float32_counts(C, cuda):
    for extra in (3, 5, 1001):
        logits, labels = draw((1, C, (1 << 24) + (1 << 22) + extra), cuda, torch.bfloat16)
        loss, stats = combined()(logits, labels, return_stats=True)
        assert torch.isfinite(loss) and stats.bad_targets == 0
        torch.cuda.synchronize()
    combined()(logits, labels)  # no alarm


@pytest.mark.large
def test_more_than_two_to_the_31_elements(cuda):
    """64-bit offsets, forward and backward: the last sample alone gives the same sums."""
    N, C, P = 3, 40, 18_000_016
    assert N * C * P > 2**31
    logits = torch.randn(N, C, P, device=cuda, dtype=torch.bfloat16).requires_grad_()
    labels = torch.randint(C, (1, P), device=cuda, dtype=torch.uint8).expand(N, P)
    criterion = DiceLoss(mode="multiclass", reduction="none")
    loss = criterion(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    last = logits.detach()[-1:].clone().requires_grad_()
    alone = criterion(last, labels[-1:])
    (expected,) = torch.autograd.grad(alone, last, torch.ones_like(alone))
    torch.testing.assert_close(loss[-1:], alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient[-1:], expected, rtol=2**-7, atol=0)
