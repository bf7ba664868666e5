"""The files of a run: after each epoch metrics.csv, last.pt, best.pt, curves.png, samples.png."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastseg_losses.training import report
from fastseg_losses.training.checkpoint import save_checkpoint
from fastseg_losses.training.config import TrainConfig

# Validation samples in samples.png, spread evenly over the validation rows.
PICTURED = 4


class Outputs:
    """Writes a run's files, each in one step.

    Attributes:
        folder: the run's folder.
        rows: the rows of metrics.csv so far.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        self._config = config
        self._best = (-math.inf, -math.inf)

    def save_epoch(
        self,
        row: dict[str, float],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
    ) -> None:
        """An epoch is complete: its metrics, the checkpoints and the curves."""
        self.rows.append(row)
        report.write_metrics(self.folder / "metrics.csv", self.rows)
        self.save_last(model, optimizer, epoch=int(row["epoch"]), step=step)
        score = rank(row)
        if len(self.rows) == 1 or score > self._best:
            self._best = score
            self._save("best.pt", model, optimizer, epoch=int(row["epoch"]), step=step)
        report.plot_curves(self.folder / "curves.png", self.rows)

    def save_last(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, epoch: int, step: int
    ) -> None:
        """Write last.pt, also in the middle of an epoch."""
        self._save("last.pt", model, optimizer, epoch=epoch, step=step)

    @torch.no_grad()
    def save_samples(
        self, row: dict[str, float], model: nn.Module, data: Any, device: torch.device
    ) -> None:
        """Write samples.png: the same validation samples after every epoch.

        Args:
            row: the epoch's metrics.
            model: the net; left in evaluation mode.
            data: the validation set, a sequence of `Sample`.
            device: where the net is.
        """
        last = len(data) - 1
        spread = torch.linspace(0, last, min(PICTURED, last + 1)).tolist()
        samples = [data[place] for place in sorted({round(place) for place in spread})]
        images = torch.stack([sample["image"] for sample in samples])
        masks = torch.stack([sample["mask"] for sample in samples])
        model.eval()
        probabilities = model(images.to(device)).float().sigmoid().cpu()
        title = f"epoch {row['epoch']:.0f}, validation Dice {row['val_dice']:.3f}"
        report.plot_samples(self.folder / "samples.png", images, masks, probabilities, title=title)

    def _save(
        self,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        epoch: int,
        step: int,
    ) -> None:
        save_checkpoint(
            self.folder / name,
            model=model,
            optimizer=optimizer,
            config=self._config,
            epoch=epoch,
            step=step,
            metrics=dict(self.rows[-1]) if self.rows else {},
        )


def rank(row: dict[str, float]) -> tuple[float, float]:
    """What "best" means, larger is better: validation Dice, then the lower loss.

    Without any Dice (no validation foreground) the validation loss decides, and without
    validation rows the training loss.
    """
    loss = row["train_loss"] if math.isnan(row["val_loss"]) else row["val_loss"]
    dice = row["val_dice"]
    return (
        -math.inf if math.isnan(dice) else dice,
        -math.inf if math.isnan(loss) else -loss,
    )
