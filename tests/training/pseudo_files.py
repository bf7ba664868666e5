"""A predictor without a net, and indices with pseudo-masks, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from training.runs import ROWS, write_set

from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import Labels
from fastseg_losses.training.predictor import Prediction
from fastseg_losses.training.pseudo_writer import PseudoWriter


class Bright:
    """Foreground is what is bright; sure of the left half (1.0), and not of the right one (0.6)."""

    image_bits = 16

    def __init__(self, labels: Labels | None = None, *, takes_boxes: bool = False) -> None:
        self.source = "bright@0"
        self.labels = labels
        self.takes_boxes = takes_boxes
        self.boxes: list[Any] = []

    def predict(self, image: Image.Image, boxes: npt.NDArray[np.float32] | None) -> Prediction:
        self.boxes.append(boxes)
        bright = np.asarray(image.convert("L")) > 100
        confidence = np.full(bright.shape, 0.6, np.float32)
        confidence[:, : bright.shape[1] // 2] = 1.0
        if self.labels is None:
            return Prediction(bright.astype(np.uint8), confidence)
        last = self.labels.num_classes - 1
        return Prediction((bright * last).astype(self.labels.dtype), confidence)


def fill(source: Path, out: Path, predictor: Bright | None = None) -> Path:
    PseudoWriter(IndexTable(source), out).write(predictor or Bright())
    return out


def write_pseudo_set(path: Path, undrawn: Sequence[int] = range(0, ROWS, 2)) -> Path:
    """`write_set` with pseudo-masks in its undrawn rows, as far as they are training rows."""
    bare = write_set(path.with_name(f"bare-{path.name}"), undrawn=undrawn)
    return fill(bare, path)


def replaced(source: Path, out: Path, **columns: Any) -> Path:
    """A copy of an index with other columns; None as its value leaves one out."""
    table = pq.read_table(source)
    for name, values in columns.items():
        at = table.column_names.index(name)
        if values is None:
            table = table.remove_column(at)
        else:
            kind = table.schema.field(name).type
            table = table.set_column(at, name, pa.array(values, kind))
    pq.write_table(table, out, row_group_size=3)
    return out


def cells(path: Path, column: str) -> list[Any]:
    return list(pq.read_table(path)[column].to_pylist())
