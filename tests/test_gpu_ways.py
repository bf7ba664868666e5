"""Ways to run that only GPUs have: graphs, streams, threads, forks, devices that are not current.

The plain cases (capture and replay, one stream each, inductor) are in test_gpu.py and
test_gpu_multiclass.py; what also runs on a CPU in test_ways_*.py.
"""

import os
import subprocess
import sys
import threading

import pytest
import torch
from oracle import run
from torch._dynamo.testing import CompileCounterWithBackend

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, plans, region_sums
from fastseg_losses.compat.monai import GeneralizedDiceLoss
from fastseg_losses.functional import predict_mask

pytestmark = pytest.mark.gpu

KINDS = {
    "binary": {},
    "multiclass": {"mode": "multiclass"},
    "low resolution": {"mode": "multiclass", "upsample": "bilinear"},
}


def draw(kind, device, size=64):
    """Logits and targets; of low resolution, a quarter of the targets' sides."""
    classes = 1 if kind == "binary" else 5
    low = size // 4 if kind == "low resolution" else size
    logits = torch.randn(4, classes, low, low, device=device) * 3
    if kind == "binary":
        return logits, (torch.rand(4, 1, size, size, device=device) < 0.3).float()
    return logits, torch.randint(classes, (4, size, size), device=device)


def step(criterion, logits, targets, dloss=None):
    """The loss and the gradient."""
    leaf = logits.detach().requires_grad_()
    loss = criterion(leaf, targets)
    return loss.detach(), torch.autograd.grad(loss, leaf, dloss)[0]


def assert_close(found, expected):
    """Within what another order of the sums may change."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


# ---- compilers and graphs


def test_twenty_shapes_under_inductor(cuda, monkeypatch):
    """Torch compiles once for the first shape and once for any, the fused kernels for alignment."""
    from fastseg_losses.kernels.gradient import _gradient_kernel
    from fastseg_losses.kernels.sums import _sums_forward_kernel

    torch._dynamo.reset()
    run(CombinedSegmentationLoss(), *draw("binary", cuda))  # so that kernels know their compiler
    built, counts = [], []
    for kernel in (_sums_forward_kernel, _gradient_kernel):
        compile_ = kernel.compile
        monkeypatch.setattr(
            kernel, "compile", lambda *a, _c=compile_, **k: (built.append(1), _c(*a, **k))[1]
        )
    # a sum of terms that no other test has, so that its kernels are not there yet
    criterion = CombinedSegmentationLoss(
        focal_gamma=1.9, iou_weight=0.1, tversky_weight=0.2, tversky_gamma=1.5
    )
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda x, t: 3 * criterion(2 * x, t), fullgraph=True, backend=counter)
    for k in range(20):
        height, width = (64 + 16 * k, 128) if k % 2 == 0 else (62 + k, 36 + 3 * k)
        logits = torch.randn(2 + k % 3, 1, height, width, device=cuda)
        masks = (torch.rand_like(logits) < 0.3).to(torch.uint8)
        found = step(compiled, logits, masks)
        assert_close(found, step(lambda x, t: 3 * criterion(2 * x, t), logits, masks))
        counts.append((counter.frame_count, len(built)))
    assert 0 < counts[0][0] < counts[1][0] and counts[0][1] > 0, counts
    assert counts[1] == counts[-1], counts


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_into_graphs(kind, cuda):
    """mode="reduce-overhead": inductor captures both launches, and replays them on new inputs."""
    torch._dynamo.reset()
    criterion = CombinedSegmentationLoss(**KINDS[kind])
    compiled = torch.compile(criterion, fullgraph=True, mode="reduce-overhead")
    for _ in range(5):  # runs, records, replays
        logits, targets = draw(kind, cuda)
        torch.compiler.cudagraph_mark_step_begin()
        loss, gradient = (v.clone() for v in step(compiled, logits, targets))
        assert_close((loss, gradient), step(criterion, logits, targets))


@pytest.mark.parametrize("kind", KINDS)
def test_graphed_callables(kind, cuda):
    """`make_graphed_callables` captures the backward pass in a graph of its own."""
    criterion = CombinedSegmentationLoss(**KINDS[kind])
    logits, targets = draw(kind, cuda)
    graphed = torch.cuda.make_graphed_callables(
        CombinedSegmentationLoss(**KINDS[kind]), (logits.requires_grad_(), targets)
    )
    for scale in (1.0, 1.0, 512.0):
        logits, targets = draw(kind, cuda)
        dloss = torch.tensor(scale, device=cuda)
        loss, gradient = (v.clone() for v in step(graphed, logits, targets, dloss))
        assert_close((loss, gradient), step(criterion, logits, targets, dloss))


def test_graphs_replayed_side_by_side(cuda):
    """Two captures of one plan and the plan itself, all at once: each has counters of its own."""
    criterion, inputs = DiceLoss(), [draw("binary", cuda, 256) for _ in range(3)]
    expected = [criterion(*pair) for pair in inputs]
    torch.cuda.synchronize()
    graphs, losses = [torch.cuda.CUDAGraph() for _ in range(2)], []
    for graph, pair in zip(graphs, inputs, strict=False):
        with torch.cuda.graph(graph):
            losses.append(criterion(*pair))
    streams = [torch.cuda.Stream() for _ in range(2)]
    eager = []
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        eager.append(criterion(*inputs[2]))
    torch.cuda.synchronize()
    assert all(torch.equal(loss, value) for loss, value in zip(losses, expected, strict=False))
    assert all(torch.equal(loss, expected[2]) for loss in eager)


# ---- streams and threads


@pytest.mark.parametrize("own", [True, False], ids=["a stream each", "one stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind, own, cuda):
    """Eight at once, forward and backward, from plans that they make at the same time."""
    criterion = CombinedSegmentationLoss(**KINDS[kind])
    inputs = [draw(kind, cuda, 96) for _ in range(8)]
    expected = [step(criterion, *pair) for pair in inputs]
    torch.cuda.synchronize()
    plans.PLANS.clear()
    start, found, errors = threading.Barrier(8), [[] for _ in inputs], []

    def work(k):
        try:
            stream = torch.cuda.Stream() if own else torch.cuda.default_stream()
            start.wait(timeout=60)
            with torch.cuda.stream(stream):
                for _ in range(20):
                    found[k].append(step(criterion, *inputs[k]))
        except Exception as error:  # the main thread raises it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    torch.cuda.synchronize()
    assert not errors, errors
    for results, value in zip(found, expected, strict=True):
        assert len(results) == 20
        for result in results:
            assert all(map(torch.equal, result, value))


def test_forward_on_one_stream_and_backward_on_another(cuda):
    logits, masks = draw("binary", cuda, 256)
    criterion, side = CombinedSegmentationLoss(), torch.cuda.Stream()
    expected = step(criterion, logits, masks)
    leaf = logits.clone().requires_grad_()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loss = criterion(leaf, masks)
    torch.cuda.current_stream().wait_stream(side)
    loss.backward()
    torch.cuda.synchronize()
    assert torch.equal(loss, expected[0]) and torch.equal(leaf.grad, expected[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dloss", [float("inf"), float("nan"), 2.0**30])
def test_an_overflow_leaves_nothing_behind(dloss, kind, cuda):
    """The step after the one that GradScaler skips; one launch may assume an upstream gradient."""
    criterion = CombinedSegmentationLoss(**KINDS[kind])
    logits, targets = draw(kind, cuda, 512)
    expected = step(criterion, logits, targets)
    _, gradient = step(criterion, logits, targets, torch.tensor(dloss, device=cuda))
    assert gradient.isfinite().all() == (dloss == 2.0**30)
    for found in (step(criterion, logits, targets), step(criterion, logits, targets)):
        assert all(map(torch.equal, found, expected))


# ---- processes and devices

FORKS = """
import os
import torch
from fastseg_losses import DiceLoss
x = torch.randn(2, 1, 64, 64, device="cuda", requires_grad=True)
t = torch.ones(2, 1, 64, 64, device="cuda")
fewer = x[:1], t[:1]
on_cpu = torch.zeros(1, 1, 4, 4)
loss = DiceLoss()(x, t)
torch.cuda.synchronize()
for known in (True, False):  # a plan that is there, and one that is to be made
    child = os.fork()
    if child == 0:
        try:
            DiceLoss()(x, t) if known else DiceLoss()(*fewer)
        except RuntimeError as error:
            print(error, flush=True)
            DiceLoss()(on_cpu, on_cpu)  # has nothing to do with CUDA
            os._exit(0 if "spawn" in str(error) else 1)
        os._exit(2)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child ended with status {status}"
assert torch.equal(DiceLoss()(x, t), loss)
"""


def test_a_fork_after_cuda_says_so():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    end = subprocess.run(
        [sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, timeout=300
    )
    assert end.returncode == 0, end.stdout + end.stderr


def compiled(x, t, backend):
    criterion = DiceLoss(backend=backend)
    return torch.compile(criterion, fullgraph=True, backend="aot_eager")(x, t)


ELSEWHERE = {
    "binary": lambda x, t, b: CombinedSegmentationLoss(backend=b)(x, t),
    "bytes": lambda x, t, b: CombinedSegmentationLoss(backend=b)(x, t.to(torch.uint8)),
    "multiclass": lambda x, t, b: DiceLoss(mode="multiclass", backend=b)(
        x.repeat(1, 3, 1, 1), t.long()
    ),
    "low resolution": lambda x, t, b: DiceLoss(upsample="bilinear", backend=b)(x[..., ::4, ::4], t),
    "sums": lambda x, t, b: region_sums(x, t, backend=b).I.sum(),
    "statistics": lambda x, t, b: DiceLoss(backend=b)(x, t, return_stats=True)[1].tensor.sum(),
    "mask": lambda x, t, b: predict_mask(x, (99, 99), mode="binary", backend=b).sum(),
    "compiled": compiled,
}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", ELSEWHERE)
def test_tensors_on_a_device_that_is_not_the_current_one(name):
    """Launches go where the tensors are, and leave the current device as it was."""
    torch._dynamo.reset()
    assert torch.cuda.current_device() == 0
    logits, masks = draw("binary", torch.device("cuda", 1), 128)
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        value = ELSEWHERE[name](leaf, masks, backend)
        slope = torch.zeros_like(leaf)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value, leaf)
        results.append((value.detach().double(), slope.double()))
        assert value.device.index == 1 and torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-9)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_generalised_dice_and_two_devices_in_turn():
    """A launcher is kept for each device; so are counters and what nobody reads."""
    assert torch.cuda.current_device() == 0
    logits, masks = draw("binary", torch.device("cuda", 0))
    for criterion in (GeneralizedDiceLoss(sigmoid=True), CombinedSegmentationLoss()):
        expected = step(criterion, logits, masks)
        for k in (1, 0, 1, 0):
            found = step(criterion, logits.to(f"cuda:{k}"), masks.to(f"cuda:{k}"))
            assert found[0].device.index == k and torch.cuda.current_device() == 0
            assert all(torch.equal(a.cuda(0), b) for a, b in zip(found, expected, strict=True))
