"""The runs of the collapse study: which there are, and one of them from start to end.

The loss, its statistics, the net, the optimizer and the monitor are those of train.py, set up from
its settings. The images stay on the device, so that a run is bound by the net alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from collapse_data import Packed, load, undrawn_rows
from torch import Tensor

from fastseg_losses.losses import get_loss_function
from fastseg_losses.stats import decode
from fastseg_losses.training.config import TrainConfig, resolve
from fastseg_losses.training.findings import Finding
from fastseg_losses.training.model import WIDTHS, LightweightUNet
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.ring import StatsRing
from fastseg_losses.training.tally import Tally
from fastseg_losses.training.updates import Updates

# As settings of train.py; focal is its default, gamma 2 and alpha 0.25, combined is 0.4, 0.4, 0.2.
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"loss": "bce"},
    "dice": {"loss": "dice"},
    "focal": {"loss": "focal"},
    "dice+bce": {"loss": "combined", "bce_weight": 1.0, "dice_weight": 1.0, "focal_weight": 0.0},
    "combined": {"loss": "combined"},
}
SHARES = (0.0, 0.3, 0.6, 1.0)
READINGS = ("empty", "ignored")


class Cell(NamedTuple):
    """What one run trains on, with which loss."""

    data: str  # "nuclei" or "sparse"
    share: float  # of the training rows, not annotated
    reading: str  # what those are taken for: "empty" or "ignored"; "drawn" where there are none
    loss: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all runs have in common."""

    size: int
    steps: int = 500
    batch_size: int = 8
    lr: float = 3e-3
    warmup_steps: int = 50
    check_every: int = 50
    widths: tuple[int, ...] = WIDTHS

    def config(self, loss: str, seed: int) -> TrainConfig:
        """The settings of train.py for one run."""
        common = {k: v for k, v in asdict(self).items() if k not in ("size", "steps", "widths")}
        given = {"image_size": self.size, "epochs": self.steps, "schedule": "cosine", "seed": seed}
        return resolve(LOSSES[loss] | common | given)


def all_cells(seeds: int) -> list[Cell]:
    """Every run, seed by seed, so that a study that is cut off has complete seeds."""
    cells = []
    for seed in range(seeds):
        for loss in LOSSES:
            cells += [
                Cell("nuclei", 0.0, "drawn", loss, seed),
                Cell("sparse", 0.0, "drawn", loss, seed),
            ]
            cells += [Cell("nuclei", s, r, loss, seed) for s in SHARES[1:] for r in READINGS]
    return cells


class Resident:
    """A set on the device, normalised, each image in its four flips.

    Args:
        packed: the pixels.
        name: which set.
        device: where.
    """

    def __init__(self, packed: Packed, name: str, device: torch.device) -> None:
        pixels = packed.sets[name]
        mean, std = (torch.from_numpy(v)[:, None, None] for v in (packed.mean, packed.std))
        images = (torch.from_numpy(pixels.images).float() / 255 - mean) / std
        masks = torch.from_numpy(pixels.masks)
        train = torch.from_numpy(~pixels.is_val)
        self.rows = int(train.sum())
        self.empty = [not mask.any() for mask in masks[train]]
        self.images, self.masks = (_flips(t[train]).to(device) for t in (images, masks))
        self.val_images, self.val_masks = (t[~train].to(device) for t in (images, masks))


def _flips(batch: Tensor) -> Tensor:
    """(N, C, S, S) to (4, N, C, S, S)."""
    return torch.stack([batch, batch.flip(-1), batch.flip(-2), batch.flip(-1, -2)])


def batches(rows: np.ndarray, settings: Settings, seed: int) -> Iterator[tuple[Any, Any]]:
    """The rows and flips (0 to 3) of each step's batch: a shuffle anew in each pass."""
    rng = np.random.default_rng((seed, 1))
    done = 0
    while True:
        order = rng.permutation(rows)
        for start in range(0, len(order), settings.batch_size):
            if done == settings.steps:
                return
            batch = order[start : start + settings.batch_size]
            yield batch, rng.integers(4, size=len(batch))
            done += 1


def train(cell: Cell, data: Resident, settings: Settings) -> dict[str, Any]:
    """One run.

    Returns:
        The cell, its last numbers, a curve of one point for each check, and what the monitor said.
    """
    began = time.perf_counter()
    device = data.images.device
    config = settings.config(cell.loss, cell.seed)
    undrawn = undrawn_rows(data.rows, cell.share, cell.seed)
    ignored = undrawn if cell.reading == "ignored" else undrawn[:0]
    drawn = np.setdiff1d(np.arange(data.rows), ignored)
    masks = data.masks.clone()
    masks[:, torch.from_numpy(undrawn).to(device)] = 0

    torch.manual_seed(cell.seed)
    torch.backends.cudnn.deterministic = True
    net = LightweightUNet(widths=settings.widths).to(device)
    criterion = get_loss_function(config.loss, **config.loss_arguments()).to(device)
    updates = Updates(config, net, steps_per_epoch=1)
    ring = StatsRing(settings.check_every, criterion.stats_size(), device)
    emptied = set(undrawn.tolist())
    monitor = CollapseMonitor(
        check_every=settings.check_every,
        empty_rows=sum(data.empty[row] or row in emptied for row in drawn.tolist()),
        annotated_rows=len(drawn),
    )
    findings: list[Finding] = []
    curve: list[dict[str, Any]] = []
    window = Tally()
    for step, (rows, flips) in enumerate(batches(drawn, settings, cell.seed), 1):
        where, which = (torch.from_numpy(v).to(device) for v in (rows, flips))
        loss, _ = criterion(
            net(data.images[which, where]),
            masks[which, where],
            return_stats=True,
            stats_out=ring.next_row(),
        )
        loss.backward()
        updates.step()
        ring.commit()
        if step % settings.check_every and step != settings.steps:
            continue
        for row in ring.flush():
            snapshot = decode(row, criterion.term_names)
            window.add(snapshot)
            findings += monitor.observe(snapshot, lr=updates.lr)
        val = validate(net, criterion, data, settings)
        findings += monitor.observe_validation(val, lr=updates.lr)
        curve.append({"step": step} | figures(window, val))
        window = Tally()
    return (
        cell._asdict()
        | {"exit_code": 0, "last": curve[-1], "curve": curve}
        | {"findings": [said(finding) for finding in findings]}
        | {"seconds": time.perf_counter() - began}
    )


@torch.no_grad()
def validate(net: Any, criterion: Any, data: Resident, settings: Settings) -> Tally:
    """Counts over the validation rows, all of them drawn, with their true masks."""
    ring = StatsRing(settings.check_every, criterion.stats_size(), data.images.device)
    tally = Tally()
    net.eval()
    for images, masks in zip(data.val_images.split(32), data.val_masks.split(32), strict=True):
        criterion(net(images), masks, return_stats=True, stats_out=ring.next_row())
        ring.commit()
    for row in ring.flush():
        tally.add(decode(row, criterion.term_names))
    net.train()
    return tally


def figures(window: Tally, val: Tally) -> dict[str, float | None]:
    """What a check leaves: training as the monitor saw it, validation as it is."""
    names = ("loss", "pred_mean", "target_mean", "pred_positive", "pred_max")
    found = {name: getattr(window, name) for name in names}
    found |= {"val_dice": val.dice, "val_recall": val.recall, "val_positive": val.pred_positive}
    return {k: float(f"{v:.4g}") if math.isfinite(v) else None for k, v in found.items()}


def said(finding: Finding) -> dict[str, Any]:
    """A finding, its text cut at the first sentence."""
    return {
        "step": finding.step,
        "cause": finding.cause.value,
        "is_collapse": finding.is_collapse,
        "text": finding.message.split(". ")[0],
    }


class Worker:
    """What a process keeps between its runs."""

    packed: Packed
    device: torch.device
    resident: dict[str, Resident]


def start_worker(path: Path, device: str, threads: int) -> None:
    """Read the pixels, once for each process."""
    torch.set_num_threads(threads)
    Worker.packed, Worker.device, Worker.resident = load(path), torch.device(device), {}


def run_cell(cell: Cell, settings: Settings) -> dict[str, Any]:
    """One run in this process; what the trainer refuses is not trained."""
    if cell.share == 1.0 and cell.reading == "ignored":
        code = Worker.packed.refusals[cell.loss]
        return cell._asdict() | {"exit_code": code, "curve": [], "findings": [], "seconds": 0.0}
    if cell.data not in Worker.resident:
        Worker.resident[cell.data] = Resident(Worker.packed, cell.data, Worker.device)
    return train(cell, Worker.resident[cell.data], settings)
