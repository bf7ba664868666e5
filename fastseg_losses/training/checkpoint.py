"""``last.pt`` and ``best.pt``: plain tensors and numbers, written in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastseg_losses.training.run_folder import write_atomically

# Raised when an entry changes its meaning, so that a later reader can tell.
FORMAT = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run; ``torch.load(path, weights_only=True)`` reads it.

    Args:
        path: the file, replaced in one step.
        state: plain values and tensors: ``model`` and ``config``, ``epoch`` and ``step`` done, the
            last epoch's ``metrics``, ``average`` with ``--ema``, and what only resuming needs.
    """
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        ValueError: the file cannot be read, is no checkpoint of the trainer, or one of another
            format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch and pickle raise a dozen types on other files
        raise ValueError(f"{path}: expected a checkpoint of train.py") from error
    if found != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of format {FORMAT}, got {found!r}")
    checkpoint: dict[str, Any] = state
    return checkpoint


def result_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The weights to predict with: the moving average where there is one."""
    average = state.get("average")
    weights: dict[str, Any] = state["model"] if average is None else average["model"]
    return weights


def first_nonfinite(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer that holds NaN or Inf; None if all are finite."""
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            finite = bool(torch.isfinite(tensor).all())
            if not finite:
                return name
    return None
