"""The kernels of low-resolution logits against the reference in float64."""

import itertools

import pytest
import torch

from fastseg_losses import (
    CombinedSegmentationLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
)
from fastseg_losses.functional import region_sums
from fastseg_losses.upsampling import interpolate

BILINEAR = {"upsample": "bilinear"}
ALIGNED = {"upsample": "bilinear", "align_corners": True}
NEAREST = {"upsample": "nearest"}


def combined(**arguments):
    return CombinedSegmentationLoss(iou_weight=0.3, tversky_weight=0.2, **arguments)


def make_inputs(mode, shape, high, *, soft=False, ignore=None, valid=None, dtype=torch.float32):
    N, C = shape[:2]
    logits = (3 * torch.randn(shape)).to(dtype)
    if mode == "multiclass":
        targets = torch.randint(0, C, (N, *high), dtype=torch.uint8)
        targets = torch.randn(N, C, *high).softmax(1) if soft else targets
    else:
        targets = torch.randint(0, 2, (N, C, *high), dtype=torch.uint8)
        targets = torch.rand(N, C, *high) if soft else targets
    if ignore is not None:
        targets[torch.rand(targets.shape) < 0.3] = ignore
    mask = None
    if valid == "sample":
        mask = torch.arange(N) % 2 == 0
    elif valid == "pixel":
        mask = torch.rand(N, *high) < 0.6
    return logits, targets, mask


def compare(device, build, logits, targets, valid, *, tolerance=2e-6):
    """Loss, statistics and gradient for a random upstream gradient; RMS-relative."""
    ours = logits.to(device, copy=True).requires_grad_()
    exact = logits.double().requires_grad_()
    mask = None if valid is None else valid.to(device)
    criterion = build(backend="triton").to(device)
    loss, stats = criterion(ours, targets.to(device), mask, return_stats=True)
    expected, theirs = build(backend="torch")(exact, targets, valid, return_stats=True)
    dloss = torch.rand_like(loss) if loss.dim() else torch.full_like(loss, 0.7)
    (loss * dloss).sum().backward()
    (expected * dloss.cpu().double()).sum().backward()
    difference = (loss.cpu().double() - expected).norm()
    assert difference <= 3e-6 * expected.norm()
    torch.testing.assert_close(
        stats.tensor.cpu().double(), theirs.tensor.double(), rtol=1e-5, atol=1e-5
    )
    slopes = ours.grad.cpu().double()
    assert (slopes - exact.grad).norm() <= tolerance * exact.grad.norm()
    return slopes


BINARY = [
    ("binary", (2, 1, 3, 4), (12, 16), BILINEAR, {}),
    ("binary", (1, 1, 2, 32), (8, 128), BILINEAR, {}),  # a cell for every thread: no mask
    ("binary", (2, 1, 3, 4), (7, 9), ALIGNED, {"soft": True}),
    ("binary", (2, 1, 3, 4), (8, 9), NEAREST, {"valid": "pixel"}),
    ("binary", (3, 1, 3, 4), (9, 16), BILINEAR, {"valid": "sample", "ignore": 255}),
    ("binary", (1, 1, 1, 3), (8, 24), BILINEAR, {}),  # bytes read in fours
    ("binary", (1, 1, 1, 2), (20, 37), BILINEAR, {}),  # several pieces a cell, of two sizes
    ("multilabel", (2, 3, 3, 4), (12, 4), BILINEAR, {}),
    ("multilabel", (1, 1, 2, 300), (2, 301), BILINEAR, {}),  # several blocks a row
]


@pytest.mark.parametrize(("mode", "shape", "high", "how", "options"), BINARY)
def test_sigmoid_losses(device, mode, shape, high, how, options):
    inputs = make_inputs(mode, shape, high, **options)
    ignore = options.get("ignore")
    compare(device, lambda **k: combined(mode=mode, ignore_index=ignore, **how, **k), *inputs)


@pytest.mark.parametrize("targets", [torch.bool, torch.int64, torch.float32])
def test_target_dtypes(device, targets):
    logits, mask, _ = make_inputs("binary", (2, 1, 2, 3), (4, 6))
    compare(device, lambda **k: combined(**BILINEAR, **k), logits, mask.to(targets), None)


def test_targets_at_an_odd_address(device):
    logits, mask, _ = make_inputs("binary", (1, 1, 2, 3), (8, 12))
    odd = torch.zeros(mask.numel() + 1, dtype=torch.uint8)[1:].view(mask.shape).copy_(mask)
    compare(device, lambda **k: combined(**BILINEAR, **k), logits, odd, None)


@pytest.mark.parametrize(
    "shared",
    [
        {"reduction": "none"},
        {"reduction": "sum", "class_weights": [0.5, 2.0]},
        {"batch": True},
        {"absent": "skip", "bce_pos_weight": 2.0},
    ],
)
def test_reductions_of_several_classes(device, shared):
    inputs = make_inputs("multilabel", (2, 2, 2, 3), (5, 6))
    compare(device, lambda **k: combined(mode="multilabel", **BILINEAR, **shared, **k), *inputs)


MULTICLASS = [
    ((2, 3, 2, 3), (8, 12), BILINEAR, {}, {}),
    ((2, 4, 2, 3), (7, 8), ALIGNED, {"valid": "pixel", "ignore": 255}, {"ignore_index": 255}),
    ((1, 3, 2, 2), (3, 5), BILINEAR, {"soft": True}, {}),
    ((2, 3, 2, 2), (5, 4), NEAREST, {"valid": "sample"}, {}),
    ((2, 3, 2, 2), (5, 4), BILINEAR, {"valid": "sample"}, {"activation": "sigmoid"}),
    ((1, 3, 2, 2), (5, 4), BILINEAR, {"soft": True}, {"activation": "sigmoid"}),
    ((2, 3, 2, 2), (4, 4), BILINEAR, {}, {"batch": True, "include_background": False}),
    ((1, 35, 2, 2), (4, 4), BILINEAR, {}, {"class_weights": [0.5 + c % 3 for c in range(35)]}),
    ((1, 3, 1, 2), (9, 18), BILINEAR, {}, {"reduction": "none"}),  # several pieces a cell
    ((1, 2, 1, 140), (2, 141), BILINEAR, {}, {}),
]


@pytest.mark.parametrize(("shape", "high", "how", "options", "shared"), MULTICLASS)
def test_multiclass_losses(device, shape, high, how, options, shared):
    inputs = make_inputs("multiclass", shape, high, **options)
    compare(device, lambda **k: combined(mode="multiclass", **how, **shared, **k), *inputs)


@pytest.mark.parametrize(
    ("build", "soft"),
    [
        (lambda **k: CrossEntropyLoss(label_smoothing=0.2, class_weights=[1, 2, 3], **k), False),
        (lambda **k: CrossEntropyLoss(label_smoothing=0.2, **k), True),
        (lambda **k: FocalLoss(alpha=[0.2, 0.3, 0.4], gamma=1.5, mode="multiclass", **k), False),
        (lambda **k: FocalLoss(gamma=2.0, mode="multiclass", **k), True),
        (lambda **k: DiceLoss(reduction="none", mode="multiclass", **k), False),
    ],
)
def test_softmax_terms(device, build, soft):
    inputs = make_inputs("multiclass", (2, 3, 2, 2), (5, 4), soft=soft)
    compare(device, lambda **k: build(**BILINEAR, **k), *inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_half_precision(device, dtype, mode):
    inputs = make_inputs(mode, (2, 1 if mode == "binary" else 3, 3, 3), (6, 12), dtype=dtype)
    # the gradient is rounded once, to the logits' dtype
    bound = 4e-3 if dtype == torch.bfloat16 else 5e-4
    compare(device, lambda **k: combined(mode=mode, **BILINEAR, **k), *inputs, tolerance=bound)


def test_strides_of_every_kind(device):
    logits, targets, _ = make_inputs("multiclass", (2, 3, 3, 4), (6, 8))
    build = lambda **k: combined(mode="multiclass", **BILINEAR, **k)  # noqa: E731
    expected = compare(device, build, logits, targets, None)
    channels_last = logits.to(memory_format=torch.channels_last)
    across = logits.transpose(2, 3).contiguous().transpose(2, 3)
    crossed = targets.transpose(1, 2).contiguous().transpose(1, 2)
    for x, t in itertools.product((channels_last, across), (targets, crossed)):
        torch.testing.assert_close(compare(device, build, x, t, None), expected)


def test_ignored_pixels_hide_what_is_not_finite(device):
    for mode in ("binary", "multiclass"):
        logits, targets, _ = make_inputs(mode, (1, 1 if mode == "binary" else 3, 1, 6), (4, 24))
        valid = torch.ones(1, 4, 24, dtype=torch.bool)
        valid[..., 10:] = False
        logits[..., 5] = 0.0
        build = lambda **k: combined(mode=mode, **BILINEAR, **k)  # noqa: E731, B023
        expected = compare(device, build, logits, targets, valid)
        logits[..., 4] = float("nan")  # no pixel that counts lies in its cells
        criterion = build(backend="triton")
        x = logits.to(device).requires_grad_()
        loss, stats = criterion(x, targets.to(device), valid.to(device), return_stats=True)
        (0.7 * loss).backward()  # as compare does
        assert stats.cpu().nonfinite == 0
        kept = expected[..., :3]
        torch.testing.assert_close(x.grad.cpu().double()[..., :3], kept, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_logits_that_are_not_finite_are_counted(device, value, mode):
    logits, targets, _ = make_inputs(mode, (1, 1 if mode == "binary" else 3, 2, 3), (8, 12))
    logits[0, 0, 1, 1] = value
    reached = interpolate((~logits.isfinite()).float(), (8, 12), "bilinear") > 0
    criterion = combined(mode=mode, backend="triton", **BILINEAR)
    loss, stats = criterion(logits.to(device), targets.to(device), return_stats=True)
    assert stats.cpu().nonfinite == reached.sum()
    assert not torch.isfinite(loss) or (mode, value) == ("multiclass", float("-inf"))


@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_logits_are_certain_in_region_losses(device, sign):
    logits, targets, _ = make_inputs("binary", (1, 1, 2, 3), (8, 12))
    logits[0, 0, 1, 1] = sign * float("inf")
    loss = DiceLoss(backend="triton", **BILINEAR)(logits.to(device), targets.to(device))
    logits[0, 0, 1, 1] = sign * 1e6  # PyTorch has NaN where a weight of 0 meets infinity
    expected = DiceLoss(backend="torch", **BILINEAR)(logits, targets)
    torch.testing.assert_close(loss.cpu(), expected)


def test_a_class_that_is_ruled_out_costs_nothing(device):
    logits, targets, _ = make_inputs("multiclass", (1, 4, 2, 3), (8, 12))
    targets = targets.clamp(max=2)
    logits[:, 3] = float("-inf")
    ours = CombinedSegmentationLoss(mode="multiclass", backend="triton", **BILINEAR)
    without = CombinedSegmentationLoss(
        mode="multiclass", backend="torch", dice_weight=0.0, **BILINEAR
    )
    x = logits.to(device).requires_grad_()
    loss, stats = ours(x, targets.to(device), return_stats=True)
    loss.backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[:, 3] == 0).all()
    expected, _ = without(logits[:, :3], targets, return_stats=True)
    terms = stats.cpu().terms
    total = 0.4 * terms["ce"] + 0.2 * terms["focal"]
    assert total == pytest.approx(expected.item(), rel=1e-5)


def test_ids_out_of_range_raise_at_the_next_call(device):
    logits, targets, _ = make_inputs("multiclass", (1, 3, 2, 2), (4, 4))
    targets[0, 0, 0] = 3
    criterion = CrossEntropyLoss(backend="triton", **BILINEAR)
    loss = criterion(logits.to(device), targets.to(device))
    assert torch.isnan(loss)
    with pytest.raises(ValueError, match="^targets: "):
        criterion(logits.to(device), targets.to(device))


def test_masks_of_255_raise_at_the_next_call(device):
    logits, targets, _ = make_inputs("binary", (1, 1, 2, 32), (8, 128))
    criterion = DiceLoss(backend="triton", **BILINEAR)
    _, stats = criterion(logits.to(device), 255 * targets.to(device), return_stats=True)
    with pytest.raises(ValueError, match=f"^targets: .* got {targets.sum()} valid targets outside"):
        stats.cpu()
    with pytest.raises(ValueError, match="^targets: .* an earlier call"):
        criterion(logits.to(device), targets.to(device))


def test_nothing_valid_is_zero_with_a_zero_gradient(device):
    for mode in ("binary", "multiclass"):
        logits, targets, _ = make_inputs(mode, (2, 1 if mode == "binary" else 3, 2, 2), (4, 4))
        x = logits.to(device).requires_grad_()
        criterion = combined(mode=mode, backend="triton", **BILINEAR)
        loss = criterion(x, targets.to(device), torch.zeros(2, dtype=torch.bool, device=device))
        loss.backward()
        assert loss == 0
        assert (x.grad == 0).all()


def test_region_sums(device):
    logits, targets, _ = make_inputs("multiclass", (2, 3, 2, 3), (8, 6))
    found = region_sums(
        logits.to(device), targets.to(device), mode="multiclass", backend="triton", **BILINEAR
    )
    expected = region_sums(logits.double(), targets, mode="multiclass", **BILINEAR)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_compiled_as_one_operator_each_way(device, mode):
    logits, targets, _ = make_inputs(mode, (1, 1 if mode == "binary" else 3, 2, 2), (4, 6))
    criterion = combined(mode=mode, backend="triton", **BILINEAR)
    x, y = (logits.to(device).requires_grad_() for _ in range(2))
    step = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    step(x, targets.to(device)).backward()
    criterion(y, targets.to(device)).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)
