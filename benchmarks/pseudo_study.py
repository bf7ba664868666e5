"""What pseudo-masks gain: python benchmarks/pseudo_study.py INDEX --out FILE.json.

For each seed, a share of the training rows (10 %) keeps its masks. Trained are

  few            those rows alone
  few, twice     the same with twice the steps, since pseudo-masks take two trainings
  pseudo W at T  those rows, and all others with masks predicted by the net of "few", at weight W;
                 pixels of a lower confidence than T are ignored
  all            all rows with their own masks

with equal steps, each through `train.py`'s own launch and `pseudo-label`. Every training passes
about as many images between two validations: where few rows are annotated, the index holds each
of them several times. The index needs a `split` column and its images as bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from fastseg_losses.training.config import resolve
from fastseg_losses.training.launch import launch
from fastseg_losses.training.model import LightweightUNet
from fastseg_losses.training.pseudo_label import main as pseudo_label

GROUP = 32


def small_net() -> LightweightUNet:
    """For `--net small`: trains on a CPU in minutes."""
    return LightweightUNet(widths=(8, 16, 24, 32))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.1, help="of the rows that are annotated")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--confidences", type=float, nargs="+", default=[0.9, 0.6])
    parser.add_argument(
        "--oversample",
        type=float,
        help="with pseudo-masks: least share of the draws that are annotated rows; without it a "
        "tenth of them is",
    )
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--net", choices=("small", "default"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


class Study:
    """The trainings of one seed, in a folder of its own."""

    def __init__(self, options: argparse.Namespace, seed: int, folder: Path) -> None:
        self.options = options
        self.seed = seed
        self.folder = folder
        self.table = pq.read_table(options.index)
        train = pc.equal(self.table["split"], "train").to_numpy()
        rows = np.flatnonzero(train)
        count = max(1, round(options.share * len(rows)))
        self.few = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
        self.train, self.val = rows, np.flatnonzero(~train)

    def results(self) -> Iterator[dict[str, Any]]:
        steps, options = self.options.steps, self.options
        repeated = np.tile(self.few, round(len(self.train) / len(self.few)))
        few = self.write("few", self.table.take(np.concatenate([repeated, self.val])))
        yield self.run("few", few, steps)
        yield self.run("few, twice", few, 2 * steps)
        hidden = ~np.isin(np.arange(len(self.table)), np.concatenate([self.few, self.val]))
        bare = self.write("bare", without_masks(self.table, hidden))
        labelled = self.folder / "labelled.parquet"
        checkpoint = self.folder / "few" / "best.pt"
        arguments = ["--data", str(bare), "--out", str(labelled), "--checkpoint", str(checkpoint)]
        if pseudo_label([*arguments, "--device", options.device]) != 0:
            sys.exit("pseudo-label failed")
        for weight, least in itertools.product(options.weights, options.confidences):
            settings = {
                "pseudo_weight": weight,
                "pseudo_confidence": least,
                "oversample_foreground": options.oversample,
            }
            result = self.run(f"pseudo {weight:g} at {least:g}", labelled, steps, **settings)
            yield result | {"masks": judge(self.table, labelled, hidden, least)}
        yield self.run("all", self.write("all", self.table), steps)

    def write(self, name: str, table: pa.Table) -> Path:
        path = self.folder / f"{name}.parquet"
        pq.write_table(table, path, row_group_size=GROUP)
        return path

    def run(self, arm: str, data: Path, steps: int, **settings: Any) -> dict[str, Any]:
        options = self.options
        folder = self.folder / arm
        start = time.perf_counter()
        config = resolve(
            {
                "data": str(data),
                "output_dir": str(folder),
                "model": "pseudo_study:small_net" if options.net == "small" else None,
                "max_steps": steps,
                "epochs": 1 + steps * options.batch_size // len(self.train),
                "schedule": "cosine",
                "image_size": options.image_size,
                "batch_size": options.batch_size,
                "lr": options.lr,
                "seed": self.seed,
                "device": options.device,
                "num_workers": options.num_workers,
            }
            | settings
        )
        code = launch(config)
        if code != 0:
            sys.exit(f"{arm}: the training ended with code {code}")
        with (folder / "metrics.csv").open(newline="") as file:
            scores = [float(row["val_dice"]) for row in csv.DictReader(file)]
        return {
            "arm": arm,
            "seed": self.seed,
            "steps": steps,
            "last": scores[-1],
            "best": max(scores),
            "epochs": len(scores),
            "seconds": time.perf_counter() - start,
        }


def without_masks(table: pa.Table, hidden: np.ndarray) -> pa.Table:
    """A table whose hidden rows are not annotated."""
    flags = pa.array(~hidden)
    masks = pc.if_else(flags, table["mask"], pa.scalar(None, table["mask"].type))
    table = table.set_column(table.column_names.index("mask"), "mask", masks)
    at = table.column_names.index("has_segmentation")
    return table.set_column(at, "has_segmentation", flags)


def judge(truth: pa.Table, path: Path, hidden: np.ndarray, least: float) -> dict[str, float]:
    """How good the pseudo-masks are, against the masks that were hidden.

    Pixels of all images are put together: Dice on all of them and on those that count in training,
    and which share of the predicted foreground and of the rest those are.
    """
    found = pq.read_table(path)
    hits = np.zeros((2, 3))
    pixels, sure_pixels = np.zeros(2), np.zeros(2)
    for row in np.flatnonzero(hidden).tolist():
        drawn = pixels_of(truth["mask"][row]) > 0
        said = pixels_of(found["mask"][row]) > 0
        sure = pixels_of(found["confidence"][row]) >= least * 255
        for k, mask in enumerate((np.ones_like(sure), sure)):
            hits[k] += (drawn & said & mask).sum(), (drawn & mask).sum(), (said & mask).sum()
        for k, mask in enumerate((said, ~said)):
            pixels[k] += mask.sum()
            sure_pixels[k] += (mask & sure).sum()
    dice, share = 2 * hits[:, 0] / hits[:, 1:].sum(1), sure_pixels / pixels
    return {
        "dice": float(dice[0]),
        "dice_sure": float(dice[1]),
        "sure_foreground": float(share[0]),
        "sure_ground": float(share[1]),
    }


def pixels_of(cell: pa.Scalar) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell.as_py())))


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """A markdown table: a line for each arm, the seeds apart and together."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"| trained on | {' | '.join(f'seed {s}' for s in seeds)} | mean | best epoch, mean |",
        f"| --- {'| --- ' * (len(seeds) + 2)}|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = {row["seed"]: row for row in rows if row["arm"] == arm}
        cells = [f"{own[seed]['last']:.3f}" if seed in own else "" for seed in seeds]
        means = [statistics.fmean(row[key] for row in own.values()) for key in ("last", "best")]
        lines.append(f"| {' | '.join([arm, *cells, *(f'{mean:.3f}' for mean in means)])} |")
    for row in rows:
        if "masks" in row:
            masks = row["masks"]
            lines.append(
                f"seed {row['seed']}, {row['arm']}: masks of Dice {masks['dice']:.3f}; sure of "
                f"{masks['sure_foreground']:.0%} of the foreground and "
                f"{masks['sure_ground']:.0%} of the rest, there Dice {masks['dice_sure']:.3f}"
            )
    return lines


def main() -> None:
    options = read_options()
    if options.out.exists():
        sys.exit(f"{options.out} exists already")
    if options.threads:
        torch.set_num_threads(options.threads)
    cuda = options.device.startswith("cuda")
    machine = torch.cuda.get_device_name(options.device) if cuda else platform.processor() or "CPU"
    settings = {k: v for k, v in vars(options).items() if k not in ("index", "out")}
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for row in Study(options, seed, Path(folder)).results():
                rows.append(row)
                # After each training: a run that is cut off leaves what it had.
                content = {"machine": machine, "settings": settings, "rows": rows}
                options.out.write_text(json.dumps(content, indent=1) + "\n")
                print(f"### {row}", flush=True)
    print("\n".join(table_of(rows)))


if __name__ == "__main__":
    main()
