"""A SegFormer whose loss comes straight from its low-resolution logits.

It needs ``pip install transformers``. The net is small and starts from random weights, so nothing
is downloaded. Run it with ``python examples/segformer.py``; it takes some seconds on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from fastseg_losses import CombinedSegmentationLoss
from fastseg_losses.functional import predict_mask
from fastseg_losses.integrations import use_fused_loss

CLASSES, SIZE, IGNORED, BATCH = 3, 64, 255, 8


def make_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images whose colour tells the class of each block, and their label maps."""
    ids = torch.randint(0, CLASSES, (BATCH, 2, 2), generator=generator)
    ids = ids.repeat_interleave(SIZE // 2, 1).repeat_interleave(SIZE // 2, 2)
    noise = 0.2 * torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    images = noise + nn.functional.one_hot(ids, 3).movedim(-1, 1)
    ids[:, :4] = IGNORED  # not annotated
    return images, ids.to(torch.uint8)


def make_net() -> SegformerForSemanticSegmentation:
    """A SegFormer of a few thousand parameters with random weights."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=CLASSES,
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 16, 24, 32],
            num_attention_heads=[1, 2, 2, 4],
            decoder_hidden_size=32,
            semantic_loss_ignore_index=IGNORED,
        )
    )


def main(steps: int = 30) -> float:
    """Train for some steps, and return the share of right pixels in a batch that is new."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = make_net().to(device)
    # use_fused_loss(net) alone keeps cross-entropy, with the value that the net's own code gives.
    use_fused_loss(
        net, CombinedSegmentationLoss(mode="multiclass", ignore_index=IGNORED, upsample="bilinear")
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        images, labels = (part.to(device) for part in make_batch(generator))
        # The logits have a quarter of the labels' height and width, and stay so.
        loss = net(pixel_values=images, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    images, labels = (part.to(device) for part in make_batch(generator))
    with torch.no_grad():
        masks = predict_mask(net.eval()(pixel_values=images).logits, (SIZE, SIZE))
    right = (masks == labels)[labels != IGNORED].float().mean().item()
    print(f"right pixels {right:.3f}")
    return right


if __name__ == "__main__":
    main()
