"""Target values that no formula is for: what the error on the CPU says."""

import pytest
import torch

from fastseg_losses import CombinedSegmentationLoss, CrossEntropyLoss, DiceLoss

LOGITS = torch.zeros(2, 1, 4, 4)
CLASSES = torch.zeros(2, 5, 4, 4)


def mask(*values: float) -> torch.Tensor:
    """A mask of zeros that starts with these values."""
    t = torch.zeros(2, 1, 4, 4)
    t.view(-1)[: len(values)] = torch.tensor(values)
    return t


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            mask(255, 255),
            r"values from 0 to 255, 2 of 32 valid ones outside; divide a mask of 0 and 255 by 255 "
            r"\(ignore_index leaves pixels out\)",
        ),
        (
            mask(255, 1).to(torch.uint8),
            r"values from 0 to 255, 1 of 32 valid ones outside; divide a mask .*",
        ),
        (
            mask(1, 2, 3),
            "values from 0 to 3, 2 of 32 valid ones outside; class ids are for mode='multiclass'",
        ),
        (mask(1.5, -0.25), "values from -0.25 to 1.5, 2 of 32 valid ones outside"),
        (
            torch.linspace(-3, 2.9, 32).view(2, 1, 4, 4),
            "values from -3 to 2.9, 26 of 32 valid ones outside; are logits and targets swapped[?]",
        ),
        (mask(float("nan"), 7), "NaN at 1 of 32 valid targets"),
    ],
)
def test_values_outside_the_unit_interval(targets, message):
    for criterion in (DiceLoss(), CombinedSegmentationLoss()):
        with pytest.raises(
            ValueError, match=rf"^targets: expected values in \[0, 1\], got {message}$"
        ):
            criterion(LOGITS, targets)


def test_pixels_that_do_not_count_may_hold_anything():
    targets = mask(255, float("nan"), -3)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0, 0, :3] = False
    assert torch.isfinite(DiceLoss()(LOGITS, targets, valid))
    with pytest.raises(ValueError, match="1 of 29 valid ones outside"):
        DiceLoss()(LOGITS, targets + mask(0, 0, 0, 2), valid)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([255, 255, 4], "id 255 at 2 valid pixels"),
        ([5, -1, 5], "ids -1, 5 at 3 valid pixels"),
        ([5, 6, 7, 8, 9], r"ids 5, 6, 7, 8, \.\.\. at 5 valid pixels"),
    ],
)
def test_class_ids_are_named(ids, message):
    targets = torch.zeros(2, 4, 4, dtype=torch.int64)
    targets.view(-1)[: len(ids)] = torch.tensor(ids)
    expected = (
        f"^targets: expected class ids from 0 to 4, got {message}; name the id of ignored pixels "
        "as ignore_index$"
    )
    for criterion in (CrossEntropyLoss(), DiceLoss(mode="multiclass")):
        with pytest.raises(ValueError, match=expected):
            criterion(CLASSES, targets)


def test_probabilities_of_classes():
    soft = torch.softmax(torch.randn(2, 5, 4, 4), 1)
    assert torch.isfinite(CrossEntropyLoss()(CLASSES, soft))
    expected = r"^targets: expected probabilities of the classes in \[0, 1\], got values from .*"
    with pytest.raises(ValueError, match=expected + "are logits and targets swapped[?]$"):
        CrossEntropyLoss()(soft, 10 * torch.randn(2, 5, 4, 4))


def test_nothing_to_look_at():
    empty = torch.zeros(0, 1, 4, 4, requires_grad=True)
    assert DiceLoss()(empty, torch.zeros(0, 1, 4, 4)) == 0
