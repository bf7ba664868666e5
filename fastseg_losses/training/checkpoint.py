"""``last.pt`` and ``best.pt``: plain tensors and numbers, written in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.run_folder import write_atomically

# Raised when an entry changes its meaning, so that a later reader can tell.
FORMAT = 1


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    step: int,
    metrics: dict[str, float],
) -> None:
    """Write the state of a run; ``torch.load(path, weights_only=True)`` reads it.

    Args:
        path: the file, replaced in one step.
        model: its ``state_dict`` is the entry ``model``.
        optimizer: its ``state_dict`` is the entry ``optimizer``.
        config: the resolved settings, as plain values.
        epoch: epochs completed.
        step: optimizer steps done.
        metrics: the last completed epoch's row of ``metrics.csv``.
    """
    state: dict[str, Any] = {
        "format": FORMAT,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": config.to_dict(),
        "epoch": epoch,
        "step": step,
        "metrics": metrics,
    }
    write_atomically(path, lambda file: torch.save(state, file))


def first_nonfinite(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer that holds NaN or Inf; None if all are finite."""
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            finite = bool(torch.isfinite(tensor).all())
            if not finite:
                return name
    return None
