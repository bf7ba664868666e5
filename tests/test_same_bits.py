"""Same inputs, same bits: the guarantee of docs/reliability.md, 100 runs of everything.

Forward, statistics and backward, after other work, on several streams, and under
`torch.use_deterministic_algorithms(True)`, which raises at PyTorch operations that have no
deterministic form. Where a run adds its sums in another order or leaves a counter behind, bits
change.
"""

import pytest
import torch
from losses_table import ALL, ALL_MULTICLASS, Row, alphas

from fastseg_losses import CombinedSegmentationLoss

RUNS = 100


@pytest.fixture(params=[True, False], ids=["deterministic", "as it is"])
def deterministic(request):
    """Both: the mode also fills new memory with NaN, which would hide what reads old memory."""
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


def cases() -> list[tuple[str, Row, dict]]:
    """(mode, row, shared arguments): each loss in each mode."""
    found = []
    for row in ALL:
        found += [("binary", row, {}), ("multilabel", row, {"batch": True, "absent": "skip"})]
    for row in ALL_MULTICLASS:
        found.append(("multiclass", alphas(row, 5), {"ignore_index": 255}))
    for mode in ("binary", "multiclass"):
        found.append((mode, Row("combined", {}, "upsampled"), {"upsample": "bilinear"}))
    return found


def named(case) -> str:
    return f"{case[0]}-{case[1].label}"


def inputs(mode: str, shared: dict, high: int, device: torch.device):
    """Logits, targets, valid: 4 samples of one or five classes."""
    low = high // 4 if "upsample" in shared else high
    C = 1 if mode == "binary" else 5
    logits = 3 * torch.randn(4, C, low, low, device=device)
    if mode == "multiclass":
        targets = torch.randint(C, (4, high, high), device=device, dtype=torch.uint8)
        if "ignore_index" in shared:
            targets[:, : high // 5] = shared["ignore_index"]
    else:
        targets = (torch.rand(4, C, high, high, device=device) < 0.3).to(torch.uint8)
    valid = torch.rand(4, high, high, device=device) < 0.8
    return logits.requires_grad_(), targets, valid


def step(criterion, logits, targets, valid) -> tuple[torch.Tensor, ...]:
    loss, stats = criterion(logits, targets, valid, return_stats=True)
    (slopes,) = torch.autograd.grad(loss, logits, torch.full_like(loss, 0.7))
    return loss.detach(), slopes, stats.tensor.clone()


def differs(first, again) -> torch.Tensor:
    """How many of a run's results differ; NaN and NaN are the same bits. No wait for a device."""
    return sum(
        ~((a == b) | (a.isnan() & b.isnan())).all() for a, b in zip(first, again, strict=True)
    )


def build(mode: str, row: Row, shared: dict, backend: str):
    return row.build(**{"mode": mode, **shared}, backend=backend)


COMBINED = [case for case in cases() if case[1].name == "combined"]  # has the terms of all others


@pytest.mark.parametrize("case", COMBINED, ids=named)
def test_the_torch_backend(case, deterministic):
    """With as many threads as before: PyTorch divides its sums among them."""
    mode, row, shared = case
    criterion = build(mode, row, shared, "torch")
    data = inputs(mode, shared, 24, torch.device("cpu"))
    first = step(criterion, *data)
    for run in range(RUNS):
        if run % 10 == 0:
            other_work(data[0], run)
        assert differs(first, step(criterion, *data)) == 0


def other_work(logits: torch.Tensor, run: int) -> None:
    """Another loss, another size, and memory that comes back with other values in it."""
    small = logits.detach()[:1, :1, : 5 + run % 7, :9].clone().requires_grad_()
    CombinedSegmentationLoss()(small, torch.ones_like(small)).backward()
    junk = [torch.full_like(logits, float("nan")) for _ in range(1 + run % 3)]
    junk[0].exp_().amax()


# ---- the kernels


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases(), ids=named)
def test_the_kernels(case, cuda, deterministic):
    mode, row, shared = case
    check_on_streams(
        build(mode, row, shared, "triton").to(cuda), inputs(mode, shared, 240, cuda), cuda
    )


def check_on_streams(criterion, data, device) -> None:
    """100 runs, each on one of four streams and beside whatever the other three still do."""
    first = step(criterion, *data)
    streams = [torch.cuda.Stream(device) for _ in range(4)]
    wrong = [torch.zeros((), dtype=torch.int64, device=device) for _ in streams]
    torch.cuda.synchronize()
    for run in range(RUNS):
        k = run % len(streams)
        with torch.cuda.stream(streams[k]):
            if run % 3 == 0:
                other_work(data[0], run)
            wrong[k] += differs(first, step(criterion, *data))
    torch.cuda.synchronize()
    assert [int(count) for count in wrong] == [0, 0, 0, 0]


LARGE = {
    # one launch for both ways on Hopper, see kernels/single.py
    "single": ((32, 1, 1024, 1024), torch.float32, torch.float32),
    "two": ((32, 1, 1024, 1024), torch.bfloat16, torch.uint8),
    "multiclass": ((8, 19, 512, 512), torch.bfloat16, torch.uint8),
    "many classes": ((2, 150, 256, 256), torch.float32, torch.int64),
}


@pytest.mark.gpu
@pytest.mark.parametrize("size", LARGE)
def test_the_kernels_at_full_size(size, cuda, deterministic):
    """Every multiprocessor at work, so that programs end in another order each time."""
    shape, dtype, kind = LARGE[size]
    mode = "binary" if shape[1] == 1 else "multiclass"
    logits = torch.randn(shape, device=cuda).to(dtype).requires_grad_()
    space = shape if mode == "binary" else (shape[0], *shape[2:])
    targets = torch.randint(2, space, device=cuda).to(kind)
    criterion = CombinedSegmentationLoss(mode=mode, iou_weight=0.2, backend="triton")
    check_on_streams(criterion, (logits, targets, None), cuda)


# ---- the comparison itself


def test_a_changed_bit_is_found():
    criterion = CombinedSegmentationLoss(backend="torch")
    first = step(criterion, *inputs("binary", {}, 8, torch.device("cpu")))
    for k in range(3):
        again = [value.clone() for value in first]
        again[k].view(-1)[0] = torch.nextafter(again[k].view(-1)[0], torch.tensor(9.0))
        assert differs(first, again) == 1
    assert differs(first, first) == 0


def test_sums_in_another_order_are_found():
    """The same pixels in another order: not the same bits, which is why the order is kept."""
    criterion = CombinedSegmentationLoss(backend="torch")
    logits, targets, valid = inputs("binary", {}, 64, torch.device("cpu"))
    found = 0
    for _ in range(5):
        order = torch.randperm(64)
        other = logits[..., order].detach().requires_grad_()
        mixed = step(criterion, other, targets[..., order], valid[..., order])
        found += int(differs(step(criterion, logits, targets, valid)[::2], mixed[::2]))
    assert found > 0
