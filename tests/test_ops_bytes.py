"""bfloat16 logits with masks of a byte, of which the binary kernels read several in an integer."""

import pytest
import torch
from losses_table import ALL, ids
from oracle import check_against_float64

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, plans

BUILD = CombinedSegmentationLoss
P = 3 * 1024 + 48  # three whole tiles and an odd one
MASKS = {"uint8": torch.uint8, "bool": torch.bool}


def drawn(device, dtype, mask, shift=(0, 0), C=1):
    """Logits and targets, each this many elements behind an address that is a multiple of 16."""
    logits = torch.randn(2 * C * P + shift[0], device=device).mul(4).to(dtype)[shift[0] :]
    targets = (torch.rand(2 * C * P + shift[1], device=device) < 0.3).to(MASKS[mask])[shift[1] :]
    return logits.view(2, C, P), targets.view(2, C, P)


def reads_words(logits, targets, **options):
    """Whether both launches of a call read several pixels in an integer."""
    plans.PLANS.clear()
    BUILD(mode="multilabel", backend="triton", **options)(logits, targets)
    (plan,) = plans.PLANS.values()
    launches = (plan.forward_launch(), plan.backward_launch())
    forward, backward = (launch.constexprs["WORDS"] for launch in launches)
    assert forward == backward
    return forward


def check(logits, targets, **options):
    check_against_float64(lambda **k: BUILD(mode="multilabel", **options, **k), logits, targets)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equal_to_the_formula(device, dtype, mask):
    logits, targets = drawn(device, dtype, mask, C=2)
    check(logits, targets)
    assert reads_words(logits, targets) == (dtype == torch.bfloat16 and mask == "uint8")


@pytest.mark.parametrize("pixels", [1, 16, 1008, 1024, 1040, 2048, 2064, 9216])
def test_any_number_of_tiles(device, pixels):
    logits = torch.randn(2, 1, pixels, device=device).mul(4).bfloat16()
    targets = (torch.rand(2, 1, pixels, device=device) < 0.3).to(torch.uint8)
    check(logits, targets)
    assert reads_words(logits, targets) == (pixels > 1)


@pytest.mark.parametrize("upsample", [None, "bilinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bool_mask_of_other_bytes_than_0_and_1(device, dtype, upsample):
    """Such as a mask of 0 and 255 that is viewed as bool."""
    logits = torch.randn(2, 1, 32, 64, device=device).mul(4).to(dtype)
    size = (64, 128) if upsample else (32, 64)
    plain = torch.rand(2, 1, *size, device=device) < 0.3
    viewed = (plain * 255).to(torch.uint8).view(torch.bool)
    criterion = BUILD(backend="triton", upsample=upsample)
    loss, stats = criterion(logits, viewed, return_stats=True)
    assert torch.equal(loss, criterion(logits, plain)) and stats.bad_targets == 0


@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
def test_every_loss(device, row):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    check_against_float64(row.build, logits.view(2, 1, -1, 16), targets.view(2, 1, -1, 16))


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, 5)], ids=str)
def test_no_word_is_read_at_an_odd_address(device, shift):
    logits, targets = drawn(device, torch.bfloat16, "uint8", shift)
    check(logits, targets)
    assert not reads_words(logits, targets)


def test_rows_that_do_not_start_at_whole_words(device):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    logits, targets = logits[:, :, :2049].contiguous(), targets[:, :, :2049].contiguous()
    check(logits, targets)
    assert not reads_words(logits, targets)


def test_ignored_pixels_are_read_one_by_one(device):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    targets[torch.rand_like(targets, dtype=torch.float32) < 0.2] = 255
    check(logits, targets, ignore_index=255)
    assert not reads_words(logits, targets, ignore_index=255)


def test_samples_that_are_not_annotated(device):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    logits[0] = float("nan")
    targets[0] = 77
    valid = torch.tensor([False, True], device=device)
    criterion = BUILD(mode="multilabel", backend="triton")
    leaf = logits.clone().requires_grad_()
    loss, stats = criterion(leaf, targets, valid, return_stats=True)
    loss.backward()
    expected = BUILD(mode="multilabel", backend="torch")(logits[1:].float(), targets[1:])
    torch.testing.assert_close(loss.detach(), expected, rtol=2e-6, atol=0.0)
    assert stats.bad_targets == 0 and stats.nonfinite == 0
    assert (leaf.grad[0] == 0).all() and torch.isfinite(leaf.grad[1]).all()


@pytest.mark.parametrize("build", ["dice", "combined"])
@pytest.mark.parametrize("value", [2, 3, 128, 255])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 1030, P - 1])
def test_one_byte_that_is_no_target_is_counted(device, place, value, build):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    targets[1, 0, place] = value
    criterion = {"dice": DiceLoss, "combined": BUILD}[build](mode="multilabel", backend="triton")
    _, stats = criterion(logits, targets, return_stats=True)
    assert stats.bad_targets == 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="earlier call"):
        criterion(logits, targets)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_not_finite_is_counted(device, value):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    logits[0, 0, 17] = value
    _, stats = BUILD(mode="multilabel", backend="triton")(logits, targets, return_stats=True)
    assert stats.nonfinite == 1 and stats.bad_targets == 0


@pytest.mark.parametrize("fill", [0, 1])
def test_counts_are_exact(device, fill):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    targets.fill_(fill)
    _, stats = BUILD(mode="multilabel", backend="triton")(logits, targets, return_stats=True)
    assert stats.target_mean == fill and stats.target_positive == fill
