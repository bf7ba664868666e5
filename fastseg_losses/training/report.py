"""What a run leaves to look at: metrics.csv, the curves, pictures of validation samples."""

from __future__ import annotations

import colorsys
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

from fastseg_losses.training.clock import duration
from fastseg_losses.training.labels import Labels
from fastseg_losses.training.run_folder import write_atomically
from fastseg_losses.training.samples import MEAN, STD
from fastseg_losses.training.tally import Tally

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
    "data_share",
    "peak_gb",
)

Row = Mapping[str, float]
# Pixels, and how `imshow` has to show them.
_Picture = tuple[npt.NDArray[Any], dict[str, Any]]

# Curves of single classes and entries of a legend, beyond which nobody can tell them apart.
MAX_CURVES = 20

# Colours that stay apart for colour-blind readers: found, wrongly predicted, missed.
TRUE_POSITIVE = (0.85, 0.85, 0.85)
FALSE_POSITIVE = (0.90, 0.62, 0.00)
FALSE_NEGATIVE = (0.00, 0.45, 0.70)
IGNORED = (0.50, 0.50, 0.50)


def columns(labels: Labels | None, *, clipped: bool = False) -> tuple[str, ...]:
    """The columns of ``metrics.csv``; in multiclass mode those of the classes stand at the end."""
    names = (*COLUMNS, "grad_norm") if clipped else COLUMNS
    if labels is None:
        return names
    ids = range(labels.num_classes)
    each = (f"val_{score}_{k}" for score in ("iou", "dice") for k in ids)
    return (*names, "val_miou", "val_mdice", *each)


def metrics(train: Tally, val: Tally) -> dict[str, float]:
    """An epoch's numbers by column, as far as they come from statistics.

    In multiclass mode ``val_dice`` and ``val_iou`` are the means over the classes that occur.
    Where the validation masks show no foreground there is no score: it could only be 0, and would
    rank a net that predicts nothing there, which is right, below one that predicts something.
    """
    scored = val.num_classes > 0 or val.tp + val.fn > 0
    row = {
        "train_loss": train.loss,
        "val_loss": val.loss,
        "pred_mean": train.pred_mean,
        "target_mean": train.target_mean,
        "pred_positive": train.pred_positive,
        "pred_max": train.pred_max,
        "val_dice": val.dice if scored else math.nan,
        "val_iou": val.iou if scored else math.nan,
    }
    if val.num_classes:
        row |= {"val_dice": val.mean_dice, "val_iou": val.mean_iou}
        row |= {"val_miou": val.mean_iou, "val_mdice": val.mean_dice}
        row |= {f"val_iou_{k}": score for k, score in enumerate(val.class_iou)}
        row |= {f"val_dice_{k}": score for k, score in enumerate(val.class_dice)}
    return row


def epoch_line(row: Row, epochs: int, step: int, seconds_left: float) -> str:
    """An epoch's numbers for a log."""
    scores = ", ".join(
        f"{name} {row[name]:.4f}"
        for name in ("train_loss", "val_loss", "val_dice", "val_iou")
        + ("pred_mean", "target_mean", "pred_positive")
    )
    parts = [
        f"epoch {row['epoch']:.0f}/{epochs}, step {step}: {scores}, pred_max {row['pred_max']:.3f}",
        f"{row['images_per_s']:.1f} images/s",
        f"waited for data {row['data_share']:.0%} of the time",
    ]
    if not math.isnan(row["peak_gb"]):
        parts.append(f"peak memory {row['peak_gb']:.2f} GiB")
    if not math.isnan(seconds_left):
        parts.append(f"{duration(seconds_left)} left")
    return ", ".join(parts)


def class_scores(scores: Sequence[float]) -> str:
    """The classes' scores for a log: all of them, or the lowest where there are many."""
    known = [k for k, score in enumerate(scores) if not math.isnan(score)]
    what = "each class"
    if len(known) > MAX_CURVES:
        known = sorted(known, key=scores.__getitem__)[:MAX_CURVES]
        what = f"the {MAX_CURVES} lowest classes"
    return f"{what}: " + ", ".join(f"{k}: {scores[k]:.3f}" for k in known)


def write_metrics(path: Path, rows: Sequence[Row], names: Sequence[str] = COLUMNS) -> None:
    """Write ``metrics.csv``, one line an epoch; a number that does not exist is left empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        # An epoch before a resumption may lack what an option since then adds.
        writer.writerow([_cell(row.get(name, math.nan)) for name in names])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"


def plot_curves(path: Path, rows: Sequence[Row], labels: Labels | None = None) -> None:
    """Draw loss, validation scores and prediction against target, over the epochs, as one PNG.

    In multiclass mode the last panel shows the IoU of each class instead.
    """
    figure = _figure(12, 3.6)
    epochs = [row["epoch"] for row in rows]
    mean = "" if labels is None else "mean "
    last: tuple[str, dict[str, str]] = (
        "prediction and target (training)",
        {
            "pred_mean": "pred_mean",
            "target_mean": "target_mean",
            "pred_positive": "pred_positive (share > 0.5)",
        },
    )
    if labels is not None:
        shown = range(min(labels.num_classes, MAX_CURVES))
        last = ("validation IoU of each class", {f"val_iou_{k}": f"class {k}" for k in shown})
    panels = (
        ("loss", {"train_loss": "train", "val_loss": "validation"}),
        ("validation score", {"val_dice": f"{mean}Dice", "val_iou": f"{mean}IoU"}),
        last,
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
            axes.legend(fontsize="small", ncols=1 + len(curves) // 8)
        if title.startswith("validation"):
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
    rows: list[dict[str, _Picture]] = []
    for image, mask, values in zip(_rgb(images), masks, probabilities, strict=True):
        target, probability = mask[0].numpy() > 0, values[0].numpy()
        rows.append(
            {
                "image": (image, {}),
                "target": (target, {"cmap": "gray", "vmin": 0, "vmax": 1}),
                "probability": (probability, {"cmap": "viridis", "vmin": 0, "vmax": 1}),
                "error": (_error_picture(target, probability > 0.5), {}),
            }
        )
    figure = _grid(rows)
    figure.suptitle(
        f"{title}\nerror: grey found, orange predicted wrongly, blue missed", fontsize=9
    )
    _save(figure, path)


def plot_class_samples(
    path: Path, images: Tensor, masks: Tensor, predicted: Tensor, labels: Labels, *, title: str
) -> None:
    """Draw validation samples of class ids as one PNG: image, target, prediction, error.

    Args:
        path: the PNG, replaced in one step.
        images: normalised, float32 (N, 3, H, W) on the CPU.
        masks: class ids, (N, 1, H, W).
        predicted: class ids, (N, 1, H, W).
        labels: what the ids mean.
        title: one line above.
    """
    from matplotlib.patches import Patch

    rows: list[dict[str, _Picture]] = []
    for image, mask, values in zip(_rgb(images), masks, predicted, strict=True):
        pictures = class_pictures(mask[0].numpy(), values[0].numpy(), labels)
        rows.append({"image": (image, {}), **{name: (p, {}) for name, p in pictures.items()}})
    figure = _grid(rows)
    if labels.num_classes <= MAX_CURVES:
        colours = class_colours(labels.num_classes).tolist()
        patches = [Patch(color=colour, label=f"class {k}") for k, colour in enumerate(colours)]
        patches.append(Patch(color=IGNORED, label="ignored"))
        figure.legend(handles=patches, loc="outside lower center", ncols=7, fontsize=8)
    figure.suptitle(f"{title}\nerror: light grey right, orange wrong; grey ignored", fontsize=9)
    _save(figure, path)


def class_pictures(
    target: npt.NDArray[Any], prediction: npt.NDArray[Any], labels: Labels
) -> dict[str, npt.NDArray[np.float64]]:
    """Target, prediction and error of one sample, each (H, W, 3); ignored pixels are grey.

    Args:
        target: class ids, (H, W).
        prediction: class ids, (H, W).
        labels: what the ids mean.
    """
    colours = class_colours(labels.num_classes)
    ignored = target == labels.ignore_index
    pictures = {
        "target": colours[np.where(ignored, 0, target)],
        "prediction": colours[prediction],
        "error": np.where((target == prediction)[..., None], TRUE_POSITIVE, FALSE_POSITIVE),
    }
    for picture in pictures.values():
        picture[ignored] = IGNORED
    return pictures


def class_colours(count: int) -> npt.NDArray[np.float64]:
    """A colour for each class, float (count, 3); none is grey, which means ignored."""
    # Steps of the golden ratio around the circle of hues keep neighbouring ids far apart.
    hues = [(k * 0.618034) % 1 for k in range(count)]
    colours = [colorsys.hsv_to_rgb(hue, 0.8, (0.95, 0.65)[k % 2]) for k, hue in enumerate(hues)]
    return np.array(colours)


def _rgb(images: Tensor) -> list[npt.NDArray[Any]]:
    """Normalised images as pictures in [0, 1], each (H, W, 3)."""
    rgb = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return [picture.permute(1, 2, 0).numpy() for picture in rgb.clamp(0, 1)]


def _grid(rows: Sequence[Mapping[str, _Picture]]) -> Figure:
    """A figure with a line of named pictures for each sample."""
    figure = _figure(8.4, 2.15 * len(rows) + 0.8)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for line, pictures in zip(grid, rows, strict=True):
        for axes, (name, (picture, how)) in zip(line, pictures.items(), strict=True):
            axes.imshow(picture, interpolation="nearest", **how)
            axes.set_axis_off()
            if pictures is rows[0]:
                axes.set_title(name)
    return figure


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
