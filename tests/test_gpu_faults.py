"""Faults that only a device has: memory that really runs out, memory that is taken too early."""

import gc

import pytest
import torch
from faults import single
from oracle import run

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, ops_masks, plans
from fastseg_losses.functional import predict_mask

pytestmark = pytest.mark.gpu

ONE = torch.ones(())


def binary(cuda):
    logits = torch.randn(64, 1, 512, 512, device=cuda).half()  # of float32 one launch is both
    return CombinedSegmentationLoss(), logits, (logits > 1).to(torch.uint8)


def multiclass(cuda):
    logits = torch.randn(8, 19, 256, 512, device=cuda)
    return CombinedSegmentationLoss(mode="multiclass"), logits, logits.argmax(1).to(torch.uint8)


def upsampled(cuda):
    logits = torch.randn(64, 1, 512, 512, device=cuda)
    masks = torch.rand(64, 1, 1024, 1024, device=cuda) < 0.3
    return CombinedSegmentationLoss(upsample="bilinear"), logits, masks


KINDS = {"binary": binary, "multiclass": multiclass, "upsampled": upsampled, "single": single}


def drawn(kind, cuda):
    """A criterion and its inputs, in memory of their own: no free room beside them is left over.

    Neither that of earlier tests, into which they would go, nor that of what they are made from.
    """
    gc.collect()
    torch.cuda.empty_cache()
    made = KINDS[kind](cuda)
    torch.cuda.empty_cache()
    return made


@pytest.fixture
def limit():
    """Lets this process have so many bytes of the device more than it holds."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    def allow(more):
        gc.collect()
        torch.cuda.empty_cache()
        share = (torch.cuda.memory_reserved() + more) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))

    yield allow
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_runs_out_in_the_gradients_allocation(kind, cuda, limit):
    """Room for everything but the gradient; with room again the same backward goes through."""
    plans.PLANS.clear()
    criterion, logits, targets = drawn(kind, cuda)
    expected = run(criterion, logits, targets, dloss=ONE)
    criterion(logits, targets)  # without statistics: a place for those that nobody reads
    x = logits.clone().requires_grad_()
    (plan,) = plans.PLANS.values()
    one_launch = plan.early is not None  # which allocates the gradient before it has a loss
    for _ in range(3):
        loss = None
        limit(x.nbytes // 2)
        before = torch.cuda.memory_allocated()
        with pytest.raises(torch.OutOfMemoryError):
            loss = criterion(x, targets)
            loss.backward()
        assert (loss is None) == one_launch and x.grad is None
        if loss is not None:
            torch.cuda.set_per_process_memory_fraction(1.0)
            loss.backward()
            assert torch.equal(x.grad, expected.dlogits)
            x.grad = loss = None
        gc.collect()
        assert torch.cuda.memory_allocated() == before
    torch.cuda.set_per_process_memory_fraction(1.0)
    after = run(criterion, logits, targets, dloss=ONE)
    assert all(torch.equal(a, b) for a, b in zip(expected, after, strict=True))


def test_no_room_for_anything(cuda, limit):
    """Not even for the loss itself, when the device is full to the last block."""
    criterion, logits, targets = binary(cuda)
    expected = run(criterion, logits, targets, dloss=ONE)
    x = logits.clone().requires_grad_()
    limit(0)
    before, filler = torch.cuda.memory_allocated(), []
    for size in (1 << 20, 1 << 12, 1 << 9):  # what the allocator's own blocks still have
        with pytest.raises(torch.OutOfMemoryError):
            while True:
                filler.append(torch.empty(size, dtype=torch.uint8, device=cuda))
    with pytest.raises(torch.OutOfMemoryError):
        criterion(x, targets)
    filler.clear()
    assert torch.cuda.memory_allocated() == before
    torch.cuda.set_per_process_memory_fraction(1.0)
    after = run(criterion, logits, targets, dloss=ONE)
    assert all(torch.equal(a, b) for a, b in zip(expected, after, strict=True))


# ---- tables of low-resolution logits, which lie on the device as long as somebody reads them


def low_resolution(kind, cuda):
    """A call without a gradient, and what it gives."""
    logits = torch.randn(2, 5, 20, 24, device=cuda)
    labels = torch.randint(5, (2, 83, 97), device=cuda)  # no whole ratio: read from the tables
    if kind == "mask":
        return lambda: predict_mask(logits, (83, 97))
    mode = "multiclass" if kind == "multiclass" else "multilabel"
    targets = labels if kind == "multiclass" else torch.rand(2, 5, 83, 97, device=cuda) < 0.3
    criterion = DiceLoss(mode=mode, upsample="bilinear")
    return lambda: criterion(logits, targets)


def drop_plans_and_take_their_memory(cuda):
    """Every stream of PyTorch's pool writes to what the allocator gives it."""
    plans.PLANS.clear()
    ops_masks._MASK_PLANS.clear()
    gc.collect()
    taken = []
    for _ in range(64):
        with torch.cuda.stream(torch.cuda.Stream()):
            taken += [torch.full((n,), 0x7F, dtype=torch.uint8, device=cuda) for n in SIZES]
    torch.cuda.synchronize()
    return taken


SIZES = [512 * k for k in (1, 1, 2, 2, 3, 3, 4, 4, 8, 8)]
LOW = ["multilabel", "multiclass", "mask"]


@pytest.mark.parametrize("kind", LOW)
def test_a_graph_reads_its_tables_when_their_plan_is_gone(kind, cuda):
    call = low_resolution(kind, cuda)
    expected = call().clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    taken = drop_plans_and_take_their_memory(cuda)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, expected)
    del taken


@pytest.mark.parametrize("kind", LOW)
def test_a_launch_in_flight_reads_its_tables_when_their_plan_is_gone(kind, cuda):
    call = low_resolution(kind, cuda)
    expected = call().clone()
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    for stream in (torch.cuda.current_stream(), other):
        with torch.cuda.stream(stream):
            call()  # so that the next one has a plan and is queued at once
            torch.cuda._sleep(200_000_000)  # a tenth of a second
            result = call()
        taken = drop_plans_and_take_their_memory(cuda)
        assert torch.equal(result, expected)
        del taken
