"""Losses without a region term write their gradient in the forward launch."""

import pytest
import torch
from early_checks import (
    check_a_capture_takes_two_launches,
    check_any_upstream_gradient,
    check_backward_twice,
    check_one_launch_each_way,
    check_two_launches_agree,
)
from losses_table import ALL, ids
from oracle import check_against_float64, run

from fastseg_losses import BCELoss, CombinedSegmentationLoss, DiceLoss, FocalLoss, plans
from fastseg_losses.kernels.early_plan import PointsPlan

POINTWISE = [row for row in ALL if row.name in ("bce", "focal")]


@pytest.fixture(autouse=True)
def no_plans():
    plans.PLANS.clear()


def draw(shape, device, targets=torch.float32):
    logits = torch.randn(shape, device=device) * 4
    return logits, (torch.rand(shape, device=device) < 0.3).to(targets)


def early() -> bool:
    """Whether all calls since the test began had a plan of one launch."""
    return bool(plans.PLANS) and all(type(p.early) is PointsPlan for p in plans.PLANS.values())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("row", POINTWISE, ids=ids(POINTWISE))
def test_every_pointwise_loss_against_float64(row, reduction, device):
    logits, masks = draw((3, 1, 37, 41), device)
    masks = torch.where(masks > 0, torch.rand_like(masks), masks)
    check_against_float64(lambda **k: row.build(reduction=reduction, **k), logits, masks)
    assert early()


@pytest.mark.parametrize("targets", [torch.float32, torch.uint8, torch.bool, torch.int64], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 1, 48, 80), (1, 3, 5, 7, 11), (70, 2, 3)], ids=str
)
def test_shapes_and_targets(shape, targets, device):
    logits, masks = draw(shape, device, targets)
    check_against_float64(
        lambda **k: BCELoss(mode="multilabel", pos_weight=[2.0] * shape[1], **k), logits, masks
    )
    assert early()


@pytest.mark.parametrize("channels_last", [False, True])
def test_both_terms_at_any_strides(channels_last, device):
    logits, masks = draw((2, 3, 20, 24), device)
    if channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    else:
        masks = torch.stack([masks, masks], -1)[..., 0]
    weights = {"dice_weight": 0.0, "mode": "multilabel"}
    ours = check_against_float64(
        lambda **k: CombinedSegmentationLoss(**weights, **k), logits, masks
    )
    assert ours.dlogits.stride() == logits.stride() and early()


@pytest.mark.parametrize("targets", [torch.float32, torch.uint8], ids=str)
def test_a_sum_with_ignored_pixels_and_class_weights(targets, device):
    """A sum has no divisor that had to be counted first."""
    logits, masks = draw((3, 2, 31, 33), device, targets)
    masks[torch.rand(masks.shape, device=device) < 0.2] = 255
    options = {"reduction": "sum", "ignore_index": 255, "mode": "multilabel"}
    ours = check_against_float64(
        lambda **k: FocalLoss(class_weights=[0.5, 3.0], **options, **k), logits, masks
    )
    assert early() and not ours.dlogits[masks == 255].any()


@pytest.mark.parametrize(
    ("loss", "options", "dtype", "valid"),
    [
        (BCELoss, {"ignore_index": 255}, torch.float32, None),
        (BCELoss, {"mode": "multilabel", "class_weights": [1.0, 2.0]}, torch.float32, None),
        (BCELoss, {"reduction": "none"}, torch.float32, None),
        (BCELoss, {}, torch.float32, "sample"),
        (BCELoss, {"reduction": "sum"}, torch.float32, "pixel"),
        (BCELoss, {}, torch.float16, None),
        (BCELoss, {}, torch.bfloat16, None),
        (DiceLoss, {}, torch.float32, None),
        (CombinedSegmentationLoss, {}, torch.float32, None),
    ],
)
def test_what_has_to_count_first_takes_two_launches(loss, options, dtype, valid, device):
    logits, masks = draw((2, 2 if "mode" in options else 1, 16, 16), device)
    given = {"sample": torch.tensor([True, False], device=device)}
    given["pixel"] = torch.rand(2, 16, 16, device=device) < 0.5
    criterion = loss(backend="triton", **options).to(device)
    run(criterion, logits.to(dtype), masks, given.get(valid))
    assert plans.PLANS and all(p.early is None for p in plans.PLANS.values())


def test_any_upstream_gradient_and_the_same_bits(device):
    logits, masks = draw((3, 1, 24, 24), device)
    check_any_upstream_gradient(FocalLoss(backend="triton"), logits, masks)
    assert early()


def test_each_loss_has_an_assumption_of_its_own(device):
    """Two losses of one step come with different upstream gradients, the same in every step."""
    logits, masks = draw((2, 1, 16, 16), device)
    bce, focal = BCELoss(backend="triton"), FocalLoss(backend="triton")
    for _ in range(2):
        x = logits.clone().requires_grad_()
        (bce(x, masks) + 0.25 * focal(x, masks)).backward()
    found = [a.item() for p in plans.PLANS.values() for a in p.early.assumed.values()]
    assert found == [1.0, 0.25]


def test_backward_twice_through_a_retained_graph(device):
    check_backward_twice(BCELoss(backend="triton"), *draw((2, 1, 16, 24), device))


def test_every_element_of_every_output_is_written(device):
    """What the allocator hands out holds NaN here."""
    criterion = BCELoss(backend="triton")
    torch.use_deterministic_algorithms(True)
    try:
        for shape in [(2, 1, 61, 67), (3, 1, 64, 64)]:
            logits, masks = draw(shape, device, torch.uint8)
            found = run(criterion, logits, masks, dloss=torch.ones(()))
            assert not any(tensor.isnan().any() for tensor in found)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_logits_and_bad_targets_are_counted(bad, device):
    logits, masks = draw((2, 1, 32, 32), device)
    logits[0, 0, 3, 4], masks[1, 0, 5, 6] = bad, 7.0
    x = logits.requires_grad_()
    loss, stats = BCELoss(backend="triton")(x, masks, return_stats=True)
    loss.backward()
    assert stats.nonfinite == 1 and stats.bad_targets == 1 and loss.isnan() and early()
    others = torch.ones_like(masks, dtype=torch.bool)
    others[0, 0, 3, 4] = False
    assert x.grad[others].isfinite().all()
    with pytest.raises(ValueError, match="earlier call"):
        BCELoss(backend="triton")(x, masks)


@pytest.mark.gpu
@pytest.mark.parametrize("targets", [torch.float32, torch.uint8], ids=str)
def test_one_launch_each_way_in_the_gradients_memory(targets, cuda):
    logits, masks = draw((8, 1, 512, 512), cuda, targets)
    check_one_launch_each_way(FocalLoss(), logits, masks, "_sums_forward_kernel")
    assert early()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(32, 1, 1000, 1024), (3, 5, 1237, 991)], ids=str)
def test_large_inputs_and_the_two_launches_agree(shape, cuda):
    criterion = BCELoss(mode="multilabel")
    check_two_launches_agree(criterion, *draw(shape, cuda), early, dloss=0.5)


@pytest.mark.gpu
def test_a_captured_call_takes_two_launches(cuda, monkeypatch):
    check_a_capture_takes_two_launches(BCELoss(), lambda: draw((4, 1, 64, 128), cuda), monkeypatch)
    assert early()


@pytest.mark.gpu
def test_a_backward_that_is_captured_alone_settles_nothing(cuda):
    """Replayed twice for one forward, with another upstream gradient than was assumed."""
    logits, masks = draw((4, 1, 64, 128), cuda)
    x, dloss = logits.requires_grad_(), torch.full((), 0.7, device=cuda)
    criterion, side, graph = BCELoss(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    (expected,) = torch.autograd.grad(criterion(x, masks), x, dloss)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.autograd.grad(criterion(x, masks), x, dloss)
        loss = criterion(x, masks)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            (gradient,) = torch.autograd.grad(loss, x, dloss)
        for _ in range(2):
            graph.replay()
        side.synchronize()
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)
