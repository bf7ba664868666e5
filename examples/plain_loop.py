"""The losses in a plain PyTorch loop, with their statistics and the collapse monitor.

Run it with ``python examples/plain_loop.py``; it takes some seconds on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg_losses import CombinedSegmentationLoss
from fastseg_losses.training import CollapseMonitor, Finding

BATCH, SIZE = 8, 32


def make_batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images with one bright disc, their masks, and which of the masks somebody drew."""
    centre = torch.randint(8, SIZE - 8, (BATCH, 2, 1, 1), generator=generator)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    masks = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 36).unsqueeze(1)
    noise = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    annotated = torch.rand(BATCH, generator=generator) < 0.75
    return noise + 2 * masks, masks, annotated


def make_net() -> nn.Module:
    """Any net that puts out logits (N, 1, H, W): no sigmoid at its end."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )


def main(steps: int = 40, check_every: int = 10) -> tuple[float, list[Finding]]:
    """Train for some steps.

    Returns:
        The Dice score of the last batch, and what the monitor found.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = make_net().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    criterion = CombinedSegmentationLoss(bce_weight=0.4, dice_weight=0.4, focal_weight=0.2)
    monitor = CollapseMonitor(check_every=check_every)

    findings: list[Finding] = []
    for step in range(1, steps + 1):
        images, masks, annotated = (part.to(device) for part in make_batch(generator))
        # A sample that is not annotated enters no sum, no mean and no statistic; its mask here
        # could hold anything. Masks are read as they are, here bool: no .float().
        loss, stats = criterion(net(images), masks, annotated, return_stats=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

        # The numbers come out of the same launch as the loss. cpu() waits for the device: a loop
        # that must not wait writes them into a ring (fastseg_losses.training.ring).
        now = stats.cpu()
        for finding in monitor.observe(now, lr=1e-2):
            print(finding)
            findings.append(finding)
        if step % check_every == 0:
            print(
                f"step {step}: loss {now.loss:.3f}, Dice {now.dice:.3f}, "
                f"predicted {now.pred_positive:.3f}, drawn {now.target_positive:.3f}"
            )
    return now.dice, findings


if __name__ == "__main__":
    main()
