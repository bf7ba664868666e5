"""The files of a run: metrics.csv, last.pt and best.pt after each epoch, and its pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastseg_losses.functional import predict_mask
from fastseg_losses.training import report
from fastseg_losses.training.checkpoint import save_checkpoint
from fastseg_losses.training.clock import Sparing
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.net import Net
from fastseg_losses.training.run_folder import writing
from fastseg_losses.training.samples import normalised
from fastseg_losses.upsampling import interpolate

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Validation samples in samples.png, spread evenly over the validation rows.
PICTURED = 4


class Outputs:
    """Writes a run's files, each in one step.

    Args:
        folder: the run's folder.
        config: the resolved settings.
        writes: whether this process is the one that writes.

    Attributes:
        folder: the run's folder.
        rows: the rows of metrics.csv so far.
        score: the column that decides which epoch is the best, and its name for people.
        stale: epochs since the best.
        saved_step: the step of last.pt; None before it is written.
    """

    def __init__(self, folder: Path, config: TrainConfig, *, writes: bool = True) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        self.score = ("val_dice", "Dice") if config.labels is None else ("val_miou", "mean IoU")
        self.stale = 0
        self.saved_step: int | None = None
        self._sparing = Sparing()
        self._config = config
        self._writes = writes
        self._best = (-math.inf, -math.inf)
        self._board: SummaryWriter | None = None
        if config.tensorboard and writes:
            # Imported only if asked for: it takes seconds.
            from torch.utils.tensorboard import SummaryWriter

            with writing(folder / "tensorboard"):
                self._board = SummaryWriter(str(folder / "tensorboard"))

    def add_epoch(self, row: dict[str, float]) -> bool:
        """Take in a complete epoch's metrics; whether it is the best so far."""
        if self.rows and self.rows[-1]["epoch"] == row["epoch"]:
            self.rows.pop()  # --max-steps ended in that epoch, and the run was resumed
        self.rows.append(row)
        score = rank(row, self.score[0])
        best = len(self.rows) == 1 or score > self._best
        self.stale = 0 if best else self.stale + 1
        if best:
            self._best = score
        return best

    def save_epoch(self, state: dict[str, Any], *, best: bool) -> None:
        """Write the metrics and the checkpoints."""
        if not self._writes:
            self.saved_step = state["step"]
            return
        row = self.rows[-1]
        clipped = self._config.clip_grad is not None
        columns = report.columns(self._config.labels, clipped=clipped)
        report.write_metrics(self.folder / "metrics.csv", self.rows, columns)
        if best:  # first: a run that is killed in between does the epoch again
            save_checkpoint(self.folder / "best.pt", state)
        self.save_last(state)
        if self._board is not None:
            with writing(self.folder / "tensorboard"):
                for name, value in row.items():
                    if name != "epoch" and not math.isnan(value):
                        self._board.add_scalar(name, value, int(row["epoch"]))
                self._board.flush()

    def save_last(self, state: dict[str, Any]) -> None:
        """Write last.pt, also in the middle of an epoch."""
        if self._writes:
            save_checkpoint(self.folder / "last.pt", state)
        self.saved_step = state["step"]

    def what_is_saved(self) -> str:
        """What last.pt is, in words."""
        if self.saved_step is None:
            return "no checkpoint is written"
        return f"{self.folder / 'last.pt'} is that of step {self.saved_step}"

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, as plain values."""
        return {"rows": self.rows, "stale": self.stale, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.rows, self.stale = list(state["rows"]), state["stale"]
        first, second = state["best"]
        self._best = (first, second)

    def draw(self, net: Net, data: Any, device: torch.device, *, last: bool) -> None:
        """Write curves.png and samples.png, unless that would slow the training down.

        Args:
            net: the net; left in evaluation mode.
            data: the validation set, a sequence of `Sample`; None if there is none.
            device: where the net is.
            last: whether it was the last epoch, whose pictures are written in any case.
        """
        if not self._writes or not (last or self._sparing.is_due):
            return
        with self._sparing.timed():
            self.draw_curves()
            if data is not None:
                self._draw_samples(net, data, device)

    def draw_curves(self) -> None:
        """Write curves.png, if there is an epoch to show."""
        if self._writes and self.rows:
            report.plot_curves(self.folder / "curves.png", self.rows, self._config.labels)

    @torch.no_grad()
    def _draw_samples(self, net: Net, data: Any, device: torch.device) -> None:
        """Write samples.png: the same validation samples each time."""
        row = self.rows[-1]
        last = len(data) - 1
        spread = torch.linspace(0, last, min(PICTURED, last + 1)).tolist()
        samples = [data[place] for place in sorted({round(place) for place in spread})]
        images = normalised(torch.stack([sample["image"] for sample in samples]))
        masks = torch.stack([sample["mask"] for sample in samples])
        net.evaluate()
        logits: Tensor = net.predict(images.to(device))
        column, name = self.score
        title = f"epoch {row['epoch']:.0f}, validation {name} {row[column]:.3f}"
        path, labels = self.folder / "samples.png", self._config.labels
        if labels is None:
            probabilities = interpolate(logits, tuple(images.shape[2:]), "bilinear").sigmoid()
            report.plot_samples(path, images, masks, probabilities.cpu(), title=title)
        else:
            predicted = predict_mask(logits, tuple(images.shape[2:]))[:, None].cpu()
            report.plot_class_samples(path, images, masks, predicted, labels, title=title)


def rank(row: dict[str, float], column: str) -> tuple[float, float]:
    """What "best" means, larger is better: a validation score, then the lower loss.

    Without any score (no validation foreground) the validation loss decides, and without
    validation rows the training loss.
    """
    loss = row["train_loss"] if math.isnan(row["val_loss"]) else row["val_loss"]
    score = row[column]
    return (
        -math.inf if math.isnan(score) else score,
        -math.inf if math.isnan(loss) else -loss,
    )
