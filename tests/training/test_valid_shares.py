import pytest
import torch
from torch import Tensor

from fastseg_losses import CombinedSegmentationLoss, get_loss_function
from fastseg_losses.training.distributed import World
from fastseg_losses.training.valid_shares import ValidShares

CPU = torch.device("cpu")


def batch(valid: list[bool], *, padded: bool = False) -> dict[str, Tensor]:
    mask = (torch.rand(len(valid), 1, 8, 8) > 0.5).to(torch.uint8)
    if padded:
        mask[:, :, :3] = 255
    return {"mask": mask, "valid": torch.tensor(valid), "logits": torch.randn(len(valid), 1, 8, 8)}


def joined_and_apart(loss, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The gradient of the loss of all batches joined, and that of the weighted parts."""
    whole = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    logits = whole["logits"].requires_grad_()
    (expected,) = torch.autograd.grad(loss(logits, whole["mask"], whole["valid"]), logits)
    parts = []
    for b, share in zip(batches, ValidShares(255, World(), CPU).of(batches), strict=True):
        x = b["logits"].detach().requires_grad_()
        parts.append(torch.autograd.grad(loss(x, b["mask"], b["valid"]) * share, x)[0])
    return expected, torch.cat(parts)


@pytest.mark.parametrize("name", ["combined", "bce", "dice", "iou", "tversky", "focal"])
def test_parts_add_up_to_the_loss_of_all_batches(name: str) -> None:
    loss = get_loss_function(name, ignore_index=255)
    batches = [batch([True, False, True]), batch([False, False]), batch([True])]
    expected, found = joined_and_apart(loss, batches)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert expected.any()


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_pointwise_losses_also_with_padded_pixels(name: str) -> None:
    loss = get_loss_function(name, ignore_index=255)
    expected, found = joined_and_apart(loss, [batch([True, True], padded=True), batch([True])])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_nothing_annotated_anywhere() -> None:
    loss = CombinedSegmentationLoss(ignore_index=255)
    expected, found = joined_and_apart(loss, [batch([False]), batch([False])])
    assert not expected.any() and not found.any()


def test_one_batch_needs_no_factor() -> None:
    assert ValidShares(255, World(), CPU).of([batch([True])]) == [None]
