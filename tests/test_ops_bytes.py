"""Masks of a byte an element, which the binary forward kernel reads four at a time."""

import pytest
import torch
from oracle import check_against_float64

from fastseg_losses import CombinedSegmentationLoss, plans

BUILD = CombinedSegmentationLoss
P = 2 * 2048 + 48  # two whole tiles and an odd one
MASKS = {"uint8": torch.uint8, "bool": torch.bool}


def drawn(device, dtype, mask, shift=(0, 0), C=1):
    """Logits and targets, each this many elements behind an address that is a multiple of 16."""
    logits = torch.randn(2 * C * P + shift[0], device=device).mul(4).to(dtype)[shift[0] :]
    targets = (torch.rand(2 * C * P + shift[1], device=device) < 0.3).to(MASKS[mask])[shift[1] :]
    return logits.view(2, C, P), targets.view(2, C, P)


def plan_of(logits, targets, **options):
    """The plan that the last call took."""
    criterion = BUILD(mode="multilabel", backend="triton", **options)
    plans.PLANS.clear()
    criterion(logits, targets)
    (plan,) = plans.PLANS.values()
    return plan


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equal_to_the_formula(device, dtype, mask):
    logits, targets = drawn(device, dtype, mask, C=2)
    check_against_float64(lambda **k: BUILD(mode="multilabel", **k), logits, targets)
    assert plan_of(logits, targets).forward_launch().constexprs["WORDS"]


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_word_is_read_at_an_odd_address(device, dtype, shift):
    logits, targets = drawn(device, dtype, "uint8", shift)
    check_against_float64(lambda **k: BUILD(mode="multilabel", **k), logits, targets)
    assert not plan_of(logits, targets).forward_launch().constexprs["WORDS"]


def test_rows_that_do_not_start_at_whole_words(device):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    logits, targets = logits[:, :, :4097].contiguous(), targets[:, :, :4097].contiguous()
    check_against_float64(lambda **k: BUILD(mode="multilabel", **k), logits, targets)
    assert not plan_of(logits, targets).forward_launch().constexprs["WORDS"]


def test_ignored_pixels_are_read_one_by_one(device):
    logits, targets = drawn(device, torch.bfloat16, "uint8")
    targets[torch.rand_like(targets, dtype=torch.float32) < 0.2] = 255
    check_against_float64(
        lambda **k: BUILD(mode="multilabel", ignore_index=255, **k), logits, targets
    )
    assert not plan_of(logits, targets, ignore_index=255).forward_launch().constexprs["WORDS"]


@pytest.mark.parametrize("build", ["dice", "combined"])
@pytest.mark.parametrize("value", [2, 3, 128, 255])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 2050, P - 1])
def test_one_byte_that_is_no_target_is_counted(device, place, value, build):
    from fastseg_losses import DiceLoss

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
