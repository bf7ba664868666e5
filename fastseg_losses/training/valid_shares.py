"""What part of a step's valid pixels each micro-batch of each process holds.

A loss is a mean over what is valid in its batch. The mean of such means counts a batch with few
annotated samples too much; weighted by valid pixels they give the loss of all batches joined. For
BCE, cross-entropy and focal that is exact; for Dice, IoU and Tversky, means over samples, where
samples are valid as a whole, and within the share of padded pixels otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg_losses.training.distributed import World


class ValidShares:
    """Counts valid pixels on the host, where the batches still are.

    Args:
        ignore_index: mask value of the pixels that count for nothing.
        world: the processes; each calls `of` once a step.
        device: where the factors are needed.
    """

    def __init__(self, ignore_index: int, world: World, device: torch.device) -> None:
        self._ignore_index = ignore_index
        self.world = world
        self._device = device

    def of(self, batches: Sequence[dict[str, Any]], rows: str = "valid") -> Sequence[Tensor | None]:
        """Factors of the losses of a step's micro-batches; None for 1.

        Their gradients are added over the batches and averaged over the processes.

        Args:
            batches: the micro-batches.
            rows: which samples the losses are about: "valid" or "pseudo".
        """
        size = self.world.size
        if size == 1 and len(batches) == 1:
            return [None]
        counts = torch.tensor([self._count(batch, rows) for batch in batches], dtype=torch.float32)
        if self._device.type == "cuda":
            counts = counts.pin_memory()
        counts = counts.to(self._device, non_blocking=True)
        total = self.world.add_up(counts.sum())
        return (counts * (size / total.clamp_min(1.0))).unbind(0)

    def _count(self, batch: dict[str, Any], rows: str) -> int:
        live = (batch["mask"] != self._ignore_index).flatten(1).sum(1)
        return int(live[batch[rows]].sum())
