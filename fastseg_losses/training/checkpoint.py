"""``last.pt`` and ``best.pt``: plain tensors and numbers, written in one step."""

from __future__ import annotations

import re
from collections.abc import Sequence
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


def load_checkpoint(path: Path, needed: Sequence[str] = ("model",)) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU; nothing in the file is run.

    Args:
        path: the file.
        needed: what has to be in it.

    Raises:
        ValueError: the file cannot be read, is no checkpoint of the trainer, lacks something, is
            of another format, or holds what would run code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch and pickle raise a dozen types on other files
        text = f"{path}: expected a checkpoint of train.py"
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is not None:
            text += f", got a file that would call {code[1]} when it is loaded; nothing of it ran"
        raise ValueError(text) from error
    if found != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of format {FORMAT}, got {found!r}")
    checkpoint: dict[str, Any] = state
    for name in needed:
        if name not in checkpoint:
            raise ValueError(f"{path}: expected a checkpoint of train.py, got one without {name!r}")
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
