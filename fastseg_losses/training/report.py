"""What a run leaves to look at: metrics.csv, the curves, pictures of validation samples."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastseg_losses.training.run_folder import write_atomically
from fastseg_losses.training.samples import MEAN, STD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What has no "val_" in its name is of the training batches, as they were when each was drawn.
COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "pred_mean",
    "target_mean",
    "pred_positive",
    "pred_max",
    "val_dice",
    "val_iou",
    "lr",
    "images_per_s",
)

Row = Mapping[str, float]

# Colours that stay apart for colour-blind readers: found, wrongly predicted, missed.
TRUE_POSITIVE = (0.85, 0.85, 0.85)
FALSE_POSITIVE = (0.90, 0.62, 0.00)
FALSE_NEGATIVE = (0.00, 0.45, 0.70)


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write ``metrics.csv``, one line an epoch; a number that does not exist is left empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in COLUMNS])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"


def plot_curves(path: Path, rows: Sequence[Row]) -> None:
    """Draw loss, validation scores and prediction against target, over the epochs, as one PNG."""
    figure = _figure(12, 3.6)
    epochs = [row["epoch"] for row in rows]
    panels = (
        ("loss", {"train_loss": "train", "val_loss": "validation"}),
        ("validation score", {"val_dice": "Dice", "val_iou": "IoU"}),
        (
            "prediction and target (training)",
            {
                "pred_mean": "pred_mean",
                "target_mean": "target_mean",
                "pred_positive": "pred_positive (share > 0.5)",
            },
        ),
    )
    for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for column, label in curves.items():
            values = [row[column] for row in rows]
            if any(math.isfinite(value) for value in values):
                axes.plot(epochs, values, label=label, marker="o", markersize=3)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        if title == "validation score":
            axes.set_ylim(0, 1.02)
    _save(figure, path)


def plot_samples(
    path: Path, images: Tensor, masks: Tensor, probabilities: Tensor, *, title: str
) -> None:
    """Draw validation samples as one PNG: image, target, probability, error.

    Args:
        path: the PNG, replaced in one step.
        images: normalised, float32 (N, 3, H, W) on the CPU.
        masks: 0 or 1, (N, 1, H, W).
        probabilities: in [0, 1], (N, 1, H, W).
        title: one line above.
    """
    count = images.shape[0]
    figure = _figure(8.4, 2.15 * count + 0.8)
    grid = figure.subplots(count, 4, squeeze=False)
    rgb = (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).clamp(0, 1)
    for row in range(count):
        target = masks[row, 0].numpy() > 0
        probability = probabilities[row, 0].numpy()
        pictures: tuple[tuple[str, npt.NDArray[Any], dict[str, Any]], ...] = (
            ("image", rgb[row].permute(1, 2, 0).numpy(), {}),
            ("target", target, {"cmap": "gray", "vmin": 0, "vmax": 1}),
            ("probability", probability, {"cmap": "viridis", "vmin": 0, "vmax": 1}),
            ("error", _error_picture(target, probability > 0.5), {}),
        )
        for axes, (name, picture, how) in zip(grid[row], pictures, strict=True):
            axes.imshow(picture, interpolation="nearest", **how)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name)
    figure.suptitle(
        f"{title}\nerror: grey found, orange predicted wrongly, blue missed", fontsize=9
    )
    _save(figure, path)


def _error_picture(target: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> npt.NDArray[Any]:
    picture = np.zeros((*target.shape, 3), dtype=np.float32)
    picture[target & predicted] = TRUE_POSITIVE
    picture[~target & predicted] = FALSE_POSITIVE
    picture[target & ~predicted] = FALSE_NEGATIVE
    return picture


def _figure(width: float, height: float) -> Figure:
    # matplotlib takes half a second to import, and pyplot would keep figures and pick a window
    # system; a bare Figure draws with Agg.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
