"""Starts small trainings for the tests and reads what they leave."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training.index_files import png, write_index

from fastseg_losses.losses import get_loss_function
from fastseg_losses.training.class_monitor import ClassMonitor
from fastseg_losses.training.config import resolve
from fastseg_losses.training.distributed import World
from fastseg_losses.training.launch import launch
from fastseg_losses.training.model import LightweightUNet
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.trainer import Trainer

SIZE = 32
ROWS = 24


def squares(rows: int = ROWS) -> tuple[list[bytes], list[bytes]]:
    """Images with one bright square on noise, and their masks."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for _ in range(rows):
        y, x = rng.integers(2, SIZE - 12, 2)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y : y + 10, x : x + 10] = 255
        noise = rng.integers(0, 60, (SIZE, SIZE))
        images.append(png((noise + 0.7 * mask).astype(np.uint8)))
        masks.append(png(mask))
    return images, masks


def write_set(
    path: Path, *, undrawn: Sequence[int] = (), cell: bytes | None = None, marked: bool = False
) -> Path:
    """A set whose `undrawn` rows hold `cell` as mask, and are annotated only if `marked`."""
    images, masks = squares()
    drawn = [row not in undrawn for row in range(ROWS)]
    cells = [mask if ok else cell for mask, ok in zip(masks, drawn, strict=True)]
    annotated = [ok or marked for ok in drawn]
    split = ["val" if row % 6 == 5 else "train" for row in range(ROWS)]
    return write_index(path, images, cells, annotated, split=split)


def run(data: Path, folder: Path, **settings: Any) -> int:
    defaults: dict[str, Any] = {
        "data": str(data),
        "output_dir": str(folder),
        "image_size": SIZE,
        "batch_size": 4,
        "epochs": 1,
        "num_workers": 0,
        "device": "cpu",
        "lr": 5e-3,
    }
    return launch(resolve(defaults | settings))


def small_net(spec: str | None, classes: int, head_stride: int = 1) -> LightweightUNet:
    """In place of `build_model`: a net that trains in no time, with logits of full size."""
    return LightweightUNet(classes=classes, widths=(8, 16))


def make_trainer(
    folder: Path,
    device: torch.device,
    check_every: int = 50,
    world: World | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer without data, to be fed by hand."""
    config = resolve({"check_every": check_every} | settings)
    labels = config.labels
    return Trainer(
        config,
        small_net(None, config.channels),
        get_loss_function(config.loss, **config.loss_arguments()),
        [],  # type: ignore[arg-type]
        None,
        monitor=CollapseMonitor() if labels is None else ClassMonitor(labels.num_classes),
        folder=folder,
        device=device,
        world=world,
    )


def weights(folder: Path, name: str = "last.pt") -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / name, weights_only=True)["model"]
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path) -> str:
    return (folder / "logs" / "training.log").read_text()
