"""Losses of low-resolution logits are those of F.interpolate's output, on the torch backend."""

import pytest
import torch
import torch.nn.functional as F
from losses_table import ALL, ids

from fastseg_losses import CombinedSegmentationLoss, CrossEntropyLoss, DiceLoss
from fastseg_losses.functional import region_sums
from fastseg_losses.upsampling import interpolate

HOW = [
    {"upsample": "bilinear"},
    {"upsample": "bilinear", "align_corners": True},
    {"upsample": "nearest"},
]
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES = {1: ((5,), (13,)), 2: ((4, 5), (9, 20)), 3: ((2, 3, 4), (4, 6, 9))}


def by_pytorch(logits, size, how):
    if how["upsample"] == "nearest":
        return F.interpolate(logits, size=size, mode="nearest")
    align = how.get("align_corners", False)
    return F.interpolate(logits, size=size, mode=LINEAR[len(size)], align_corners=align)


@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("space", [1, 2, 3])
def test_value_gradient_and_statistics_are_those_after_interpolate(row, how, space):
    low, high = SIZES[space]
    multiclass = row.build().spec.mode == "multiclass"
    logits = torch.randn(2, 3 if multiclass else 1, *low, dtype=torch.float64)
    targets = torch.randint(0, 3 if multiclass else 2, (2, *high))
    valid = torch.rand(2, *high) < 0.7
    low_x, full_x = (logits.clone().requires_grad_() for _ in range(2))
    loss, stats = row.build(**how)(low_x, targets, valid, return_stats=True)
    expected, theirs = row.build()(by_pytorch(full_x, high, how), targets, valid, return_stats=True)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(low_x.grad, full_x.grad)
    torch.testing.assert_close(stats.tensor, theirs.tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upsampled_in_float32(dtype):
    logits = torch.randn(2, 1, 4, 4).to(dtype)
    full = interpolate(logits, (8, 8), "bilinear")
    assert full.dtype == torch.float32
    torch.testing.assert_close(full, by_pytorch(logits.float(), (8, 8), HOW[0]), rtol=0, atol=0)


def test_equal_sizes_are_the_plain_loss():
    logits, targets = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 6, 6))
    for how in HOW:
        loss = CombinedSegmentationLoss(mode="multiclass", **how)(logits, targets)
        assert loss == CombinedSegmentationLoss(mode="multiclass")(logits, targets)


def test_region_sums_take_low_logits():
    logits, targets = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 8, 8))
    found = region_sums(logits, targets, upsample="bilinear")
    expected = region_sums(by_pytorch(logits, (8, 8), HOW[0]), targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 3), "^targets: expected a spatial size of at least the logits' .4, 4."),
        ((2, 8, 3), "^targets: expected a spatial size of at least"),
        ((2, 1, 1, 8, 8), "^targets: expected 2-D space as the logits"),
        ((3, 8, 8), "^targets: expected the logits' shape"),
    ],
)
def test_sizes_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        DiceLoss(upsample="bilinear")(torch.zeros(2, 1, 4, 4), torch.zeros(shape))


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"^targets: expected a torch.Tensor, got list"):
        DiceLoss(upsample="bilinear")(torch.zeros(2, 1, 4, 4), [[0]])


def test_three_dimensions_are_for_the_torch_backend(device):
    logits, targets = torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 4, 4, 4, dtype=torch.long)
    criterion = CrossEntropyLoss(upsample="bilinear", backend="triton")
    with pytest.raises(ValueError, match="^logits: backend='triton' upsamples in 2-D"):
        criterion(logits.to(device), targets.to(device))
