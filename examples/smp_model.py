"""A net of segmentation_models_pytorch with a loss of this package.

It needs ``pip install segmentation-models-pytorch``, which brings timm and torchvision. The
encoder starts from random weights (``encoder_weights=None``), so nothing is downloaded. Run it with
``python examples/smp_model.py``; it takes some seconds on a CPU.
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from fastseg_losses import CombinedSegmentationLoss

BATCH, SIZE = 4, 32


def make_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with one bright square, and their masks as a PNG would hold them after / 255."""
    masks = torch.zeros(BATCH, 1, SIZE, SIZE, dtype=torch.uint8)
    for mask in masks:
        y, x = torch.randint(4, SIZE - 16, (2,), generator=generator).tolist()
        mask[:, y : y + 12, x : x + 12] = 1
    return torch.randn(BATCH, 3, SIZE, SIZE, generator=generator) + 2 * masks, masks


def main(steps: int = 15) -> list[float]:
    """Train for some steps, and return each one's loss."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # activation=None is the default and is what the losses want: logits.
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    criterion = CombinedSegmentationLoss(bce_weight=0.5, dice_weight=0.5, focal_weight=0.0)
    # What stood here before: smp.losses.DiceLoss("binary") + SoftBCEWithLogitsLoss(). To keep their
    # exact values, fastseg_losses.compat.smp has both under their own names.

    losses = []
    for step in range(1, steps + 1):
        images, masks = (part.to(device) for part in make_batch(generator))
        loss, stats = criterion(net(images), masks, return_stats=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 5 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}, IoU {stats.iou.item():.3f}")
    return losses


if __name__ == "__main__":
    main()
