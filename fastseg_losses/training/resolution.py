"""What it saves that the loss upsamples the net's logits itself, in words."""

from __future__ import annotations

import torch

from fastseg_losses.backends import takes_triton
from fastseg_losses.training.config import TrainConfig


def describe_logits(
    size: tuple[int, int], config: TrainConfig, device: torch.device, precision: torch.dtype | None
) -> str:
    """One line for the log and the report: the logits' size, and what full size would take.

    The bytes are computed and not measured: of the upsampled logits of one batch and of their
    gradient, which a loss that does not upsample has to be given.

    Args:
        size: height and width of the net's logits.
        config: the resolved settings.
        device: where the net is.
        precision: what the net computes in, None for float32.
    """
    side = config.image_size
    text = f"{size[0]}x{size[1]} for images of {side}x{side}"
    if size == (side, side):
        return text
    dtype = precision or torch.float32
    shape = (config.batch_size, config.channels, side, side)
    mib = 2 * torch.Size(shape).numel() * dtype.itemsize / 2**20
    name = str(dtype).removeprefix("torch.")
    shown = "x".join(map(str, shape))
    text += (
        f"; the loss upsamples them. Computed, not measured: as {shown} in {name}, logits and "
        f"gradient would take {mib:.3g} MiB a step"
    )
    if takes_triton("auto", torch.empty(1, device=device)):
        return f"{text}; the loss's kernels never make them"
    return f"{text}; without the kernels, as on this device, the loss makes them all the same"
