"""Copies an index row group by row group, with pseudo-masks in the rows that nobody annotated."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from fastseg_losses.training.checks import shown
from fastseg_losses.training.decode import DataError, image_pixels, open_picture
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.predictor import Prediction, Predictor
from fastseg_losses.training.progress import Progress
from fastseg_losses.training.pseudo_columns import (
    CONFIDENCE,
    FULL,
    ROW_CONFIDENCE,
    SOURCE,
    confidence_bytes,
)
from fastseg_losses.training.pseudo_schema import BOX, output_schema, plain, takes_paths
from fastseg_losses.training.pseudo_summary import Summary
from fastseg_losses.training.run_folder import write_atomically, writing


@dataclass
class _Filled:
    """The new cells of one row group; None where a row gets none."""

    mask: list[bytes | str | None] = field(default_factory=list)
    source: list[str | None] = field(default_factory=list)
    row_confidence: list[float | None] = field(default_factory=list)
    confidence: list[bytes | None] = field(default_factory=list)

    def append(self, mask: Any, source: Any, row_confidence: Any, confidence: Any) -> None:
        self.mask.append(mask)
        self.source.append(source)
        self.row_confidence.append(row_confidence)
        self.confidence.append(confidence)


class PseudoWriter:
    """Writes one index with pseudo-masks.

    Rows marked 'val' get none: such a row never trains, and a pseudo-mask never validates. A
    row whose image cannot be read gets none either. Where `mask` holds paths, the masks become
    files in a folder beside the output, named after it; else they are bytes in the index.
    """

    def __init__(self, index: IndexTable, out: Path) -> None:
        """Checks that the output can be written.

        Args:
            index: The index to copy.
            out: The file to write.

        Raises:
            ValueError: The output exists, has no folder, or is in another folder than an index with
                paths, which count from the index's folder; nothing is to be filled; or the index
                has columns of the new ones' names that hold something else.
        """
        self.index = index
        self.out = out
        self._source_file = pq.ParquetFile(index.path)
        self.schema = output_schema(index.path, self._source_file.schema_arrow)
        marked = np.zeros(len(index), bool)
        if index.split is not None:
            marked = np.array([name == "val" for name in index.split])
        self._to_fill = ~index.has_segmentation & ~marked
        if not self._to_fill.any():
            raise ValueError(
                f"data: expected rows to fill (has_segmentation false, and not marked 'val'), got "
                f"none in {index.path}"
            )
        self._masks = out.with_name(f"{out.stem}_masks") if self._has_paths("mask") else None
        for path in filter(None, (out, self._masks)):
            _check_free(path)
        if not out.parent.is_dir():
            raise ValueError(f"out: expected an existing folder, got {str(out.parent)!r}")
        paths = [name for name in ("image", "mask") if self._has_paths(name)]
        if paths and out.parent.resolve() != index.folder:
            raise ValueError(
                f"out: expected a file in {str(index.folder)!r}, since the paths in column "
                f"{paths[0]!r} count from the index's folder, got {str(out)!r}"
            )

    def write(self, predictor: Predictor) -> Summary:
        """Predicts and writes; the output appears in one step, or not at all.

        Args:
            predictor: Where the masks come from.

        Returns:
            What was filled.

        Raises:
            ValueError: The output has come into being meanwhile, or the input cannot be read.
            WriteError: It cannot be written; nothing is left of it.
        """
        summary = Summary(
            out=str(self.out),
            source=predictor.source,
            multiclass=predictor.labels is not None,
            unannotated=int((~self.index.has_segmentation).sum()),
            validation=int((~self.index.has_segmentation & ~self._to_fill).sum()),
        )
        if self._masks is not None:
            with writing(self._masks):
                self._masks.mkdir()
        try:
            write_atomically(self.out, lambda file: self._copy(file, predictor, summary))
        except BaseException:
            if self._masks is not None:
                shutil.rmtree(self._masks)
            raise
        return summary

    def _copy(self, file: IO[bytes], predictor: Predictor, summary: Summary) -> None:
        source = self._source_file
        groups = source.metadata.num_row_groups
        codec = source.metadata.row_group(0).column(0).compression.lower()
        compression = "none" if codec == "uncompressed" else codec
        total = int(self._to_fill.sum())
        first = 0
        with (
            Progress(total, "pseudo-masks") as progress,
            pq.ParquetWriter(file, self.schema, compression=compression) as writer,
        ):
            for group in range(groups):
                table = source.read_row_group(group, use_threads=False)
                boxes = predictor.takes_boxes and BOX in table.column_names
                filled = _Filled()
                for row in range(first, first + len(table)):
                    cells: tuple[Any, ...] = (None, None, None, None)
                    if self._to_fill[row]:
                        prompts = table[BOX][row - first].as_py() if boxes else None
                        cells = self._cells(predictor, row, summary, boxes, prompts)
                        progress.update(1)
                    filled.append(*cells)
                if len(table):
                    merged = self._merged(table, filled, first)
                    writer.write_table(merged, row_group_size=len(table))
                first += len(table)
        _check_free(self.out)  # once more: it may have taken hours

    def _cells(
        self, predictor: Predictor, row: int, summary: Summary, has_boxes: bool, prompts: Any
    ) -> tuple[Any, ...]:
        """The new cells of a row: mask, source, mean confidence, confidence."""
        index = self.index
        if has_boxes and prompts is None:
            summary.without_boxes += 1
            return None, None, None, None
        try:
            where = index.where(row, "image")
            encoded = index.encoded(index.image_cell(row), row, "image")
            picture = open_picture(encoded, where, max_pixels=index.max_pixels)
            image = image_pixels(picture, where, bits=predictor.image_bits)
            boxes = _boxes(prompts, index.where(row, BOX)) if has_boxes else None
        except DataError as error:
            summary.add_problem(str(error))
            return None, None, None, None
        prediction = predictor.predict(image, boxes)
        summary.add(prediction)
        mean = float(prediction.confidence.mean(dtype=np.float64))
        mask = _mask_png(prediction, binary=predictor.labels is None)
        cell: bytes | str = mask
        if self._masks is not None:
            path = self._masks / f"{row:08d}.png"
            with writing(path):
                path.write_bytes(mask)
            cell = f"{self._masks.name}/{path.name}"
        return cell, predictor.source, mean, _png(confidence_bytes(prediction.confidence))

    def _merged(self, table: pa.Table, filled: _Filled, first: int) -> pa.Table:
        """A row group with its new cells; those of annotated rows stay as they are."""
        columns = {name: table[name] for name in table.column_names}
        annotated = pa.array(self.index.has_segmentation[first : first + len(table)])
        has_mask = pa.array([source is not None for source in filled.source])
        new = {
            "mask": (filled.mask, pc.invert(has_mask)),
            SOURCE: (filled.source, annotated),
            ROW_CONFIDENCE: (filled.row_confidence, annotated),
            CONFIDENCE: (filled.confidence, annotated),
        }
        for name, (cells, keep) in new.items():
            kind = self.schema.field(name).type
            fresh = pa.array(cells, kind)
            if name in columns:
                old = columns[name].combine_chunks().cast(kind)
                fresh = pc.if_else(keep, old, fresh)
            columns[name] = fresh
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _has_paths(self, column: str) -> bool:
        return takes_paths(plain(self._source_file.schema_arrow.field(column).type))


def _check_free(path: Path) -> None:
    if path.exists():
        raise ValueError(f"out: {str(path)!r} exists already, and nothing is overwritten")


def _boxes(cell: Any, where: str) -> npt.NDArray[np.float32]:
    """The boxes of a cell, one or a list of them, as (K, 4).

    Raises:
        DataError: They are no boxes.
    """
    try:
        boxes = np.asarray(cell, np.float32)
    except (TypeError, ValueError):
        boxes = np.zeros(1, np.float32)
    boxes = boxes.reshape(-1, 4) if boxes.shape in ((0,), (4,)) else boxes
    if (
        boxes.ndim != 2
        or boxes.shape[1] != 4
        or not np.isfinite(boxes).all()
        or (boxes[:, :2] >= boxes[:, 2:]).any()
    ):
        raise DataError(
            f"{where}: expected [left, top, right, bottom] in pixels, or a list of such boxes, "
            f"got {shown(cell)}"
        )
    return boxes


def _mask_png(prediction: Prediction, *, binary: bool) -> bytes:
    mask = prediction.mask
    if binary:
        return _png((mask > 0).astype(np.uint8) * FULL)
    # Pillow writes no 32-bit PNG.
    return _png(mask.astype(np.uint8 if mask.dtype == np.uint8 else np.uint16))


def _png(pixels: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
