"""The parquet index of a data set: checked once when opened, then read by row group."""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastseg_losses.training.bounded_reading import TooLarge, column_sizes, read_columns
from fastseg_losses.training.checks import shown
from fastseg_losses.training.decode import DataError
from fastseg_losses.training.index_paths import read_named
from fastseg_losses.training.index_schema import check_schema
from fastseg_losses.training.pseudo_columns import CONFIDENCE, pseudo_masks, small_columns
from fastseg_losses.training.settings import MAX_PIXELS

# Encoded row groups kept in memory, for each process that reads (a loader's workers each have it).
GROUP_CACHE_BYTES = 256 * 2**20

# A row group is the smallest piece of a parquet file that can be read. pandas writes a whole table
# as one by default, and 4 workers that each hold a 5 GiB group end in an out-of-memory kill that
# says nothing; so such a file is refused with the remedy.
MAX_GROUP_BYTES = 2**30

# Flags, ids, splits and sources of masks are kept as Python objects: of this many rows at most, and
# with texts that take this much together.
MAX_ROWS = 2**25
MAX_SMALL_BYTES = 2**30


class IndexTable:
    """An opened index: a row per image, with `image`, `mask` and `has_segmentation`.

    `image` and `mask` are each either a binary column (an encoded PNG or JPEG) or a string column
    (a path relative to the index's folder). `has_segmentation` (bool, no nulls) alone says whether
    a row is annotated; the mask cell of a row where it is false is never looked at, unless
    `mask_source` says that it is a pseudo-mask and the caller asks for it. `image_id` and `split`
    are optional. Rows count from 0.

    Picklable for worker processes: file handle and cache stay behind and each process opens the
    file for itself.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        allow_outside: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_group_bytes: int = MAX_GROUP_BYTES,
    ) -> None:
        """Opens and checks an index; reads its small columns but no image and no mask.

        Args:
            path: The parquet file.
            allow_outside: Accept path cells that lead out of the index's folder (absolute
                paths, `..`, links).
            max_pixels: The largest width times height of an image that is accepted.
            max_group_bytes: The largest row group (uncompressed, image and mask) that is accepted.

        Raises:
            DataError: A ValueError; no such file, no parquet file or a damaged one, no rows or far
                too many, a required column is missing or has the wrong type, a null in
                `has_segmentation`, a huge row group.
        """
        self.path = Path(path)
        self.allow_outside = allow_outside
        self.max_pixels = max_pixels
        self.max_group_bytes = max_group_bytes
        self.group_image_bytes: list[int] = []
        self.group_confidence_bytes: list[int] = []
        self._largest: dict[str, int] = {}  # of a column in a row group, in bytes
        self._pid = -1
        self._file: pq.ParquetFile | None = None
        self._cache: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()
        try:
            self.folder = self.path.parent.resolve()
            if not self.path.exists():
                raise DataError(f"{self.path}: no such file")
            if not self.path.is_file():
                raise DataError(f"{self.path}: expected a parquet file, got a folder or a device")
            if self.path.stat().st_size == 0:
                raise DataError(f"{self.path}: the file is empty (0 bytes), expected parquet")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error

        file = self._open()
        groups, metadata = range(file.metadata.num_row_groups), file.metadata
        sizes = [metadata.row_group(group).num_rows for group in groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if self._starts[-1] == 0:
            raise DataError(f"{self.path}: the index has no rows")
        if not (min(sizes) >= 0 and self._starts[-1] <= MAX_ROWS):
            raise DataError(
                f"{self.path}: expected at most {MAX_ROWS} rows, got {self._starts[-1]} in "
                f"{len(sizes)} row groups"
            )
        with self._damage_named():
            check_schema(self.path, file.schema_arrow)
            self._has_confidence = CONFIDENCE in file.schema_arrow.names
            self._check_group_sizes(file)
            self._read_small_columns(file)

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        """The state without file handle and cache, which belong to one process."""
        return {**self.__dict__, "_pid": -1, "_file": None, "_cache": OrderedDict()}

    def where(self, row: int, column: str) -> str:
        """Names a cell for a message: file, row (from 0), image_id if there is one, and column."""
        name = "" if self.image_ids is None else f" (image_id {shown(self.image_ids[row])})"
        return f"{self.path}: row {row}{name}, column {column!r}"

    def group_of(self, row: int) -> int:
        """The row group that holds a row."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def image_cell(self, row: int) -> bytes | str:
        """The image cell of a row: encoded bytes, or a path as written in the index.

        Raises:
            DataError: The cell is null or its row group cannot be read.
        """
        cell = self._cell(row, "image")
        if cell is None:
            raise DataError(f"{self.where(row, 'image')}: expected an image, got null")
        return cell

    def mask_cell(self, row: int) -> bytes | str:
        """The mask cell of an annotated row: encoded bytes, or a path as written in the index.

        Raises:
            DataError: The cell is null although the row is annotated.
            ValueError: The row is not annotated: nothing may depend on what its cell holds.
        """
        if not self.has_segmentation[row]:
            raise ValueError(f"{self.where(row, 'mask')}: never read, has_segmentation is false")
        cell = self._cell(row, "mask")
        if cell is None:
            raise DataError(
                f"{self.where(row, 'mask')}: expected a mask since has_segmentation is true, got "
                "null (set has_segmentation to false if nobody annotated this image)"
            )
        return cell

    def pseudo_cell(self, row: int, column: str) -> bytes | str:
        """A cell of a row's pseudo-mask: encoded bytes, or a path as written in the index.

        Args:
            row: The row, from 0.
            column: "mask" or "confidence".

        Raises:
            DataError: The cell is null, or there is no such column.
            ValueError: The row has no pseudo-mask: nothing may depend on what its cell holds.
        """
        where = self.where(row, column)
        if not self.pseudo.rows[row]:
            raise ValueError(f"{where}: never read, the row has no pseudo-mask")
        if column == CONFIDENCE and not self._has_confidence:
            raise DataError(
                f"{where}: expected the pixels' confidence, but there is no such column"
            )
        cell = self._cell(row, column)
        if not isinstance(cell, (bytes, str)):
            raise DataError(
                f"{where}: expected a PNG since mask_source names a pseudo-mask, got {shown(cell)}"
            )
        return cell

    def encoded(self, cell: bytes | str, row: int, column: str) -> bytes:
        """The encoded picture of a cell; reads the file if the cell is a path. Thread-safe.

        Raises:
            DataError: The path leaves the index's folder, or there is no readable file.
        """
        if isinstance(cell, bytes):
            return cell
        where = self.where(row, column)
        return read_named(cell, self.folder, where, allow_outside=self.allow_outside)

    def _cell(self, row: int, column: str) -> bytes | str | None:
        group = self.group_of(row)
        values = self._group_column(group, column)
        try:
            cell: bytes | str | None = values[row - int(self._starts[group])].as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where(row, column)}: the path is not valid UTF-8") from error
        return cell

    def _group_column(self, group: int, column: str) -> pa.ChunkedArray:
        if self._pid != os.getpid():  # a forked worker must not use its parent's handle
            self._reopen()
        key = (group, column)
        if key not in self._cache:
            self._cache[key] = self._read_group(group, column)
            # The newest entry always stays, even when it is larger than the budget alone.
            while len(self._cache) > 1 and self._cached_bytes() > GROUP_CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _cached_bytes(self) -> int:
        return sum(values.nbytes for values in self._cache.values())

    def _read_group(self, group: int, column: str) -> pa.ChunkedArray:
        assert self._file is not None
        first, after = int(self._starts[group]), int(self._starts[group + 1])
        with self._damage_named(
            f": row group {group} (rows {first} to {after - 1}), column {column!r}"
        ):
            try:
                values = read_columns(
                    self._file,
                    [column],
                    largest=self._largest[column],
                    limit=self.max_group_bytes,
                    group=group,
                )[column]
            except TooLarge as error:
                raise self._too_large(group, f"grows when it is read, column {column!r}") from error
            if len(values) != after - first:
                raise ValueError(f"{len(values)} values for {after - first} rows")
            return values

    @contextlib.contextmanager
    def _damage_named(self, where: str = "") -> Iterator[None]:
        """What pyarrow raises on a damaged file, as one type that names the file."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # KeyError, IndexError and UnicodeDecodeError were seen too
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(f"{self.path}{where}: cannot be read ({text})") from error

    def _open(self) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(self.path, memory_map=False, pre_buffer=False)
        except Exception as error:  # as in _damage_named
            text = " ".join(str(error).split())
            raise DataError(f"{self.path}: not a readable parquet file ({text})") from error
        self._file, self._pid = file, os.getpid()
        return file

    def _reopen(self) -> None:
        rows = self._open().metadata.num_rows
        if rows != len(self):
            raise DataError(
                f"{self.path}: the file changed while in use: {len(self)} rows before, {rows} now"
            )

    def _check_group_sizes(self, file: pq.ParquetFile) -> None:
        for group in range(file.metadata.num_row_groups):
            size = column_sizes(file, group)
            if size["image"] + size["mask"] > self.max_group_bytes:
                raise self._too_large(group, f"holds {size['image'] + size['mask']} bytes")
            self.group_image_bytes.append(size["image"])
            self.group_confidence_bytes.append(size.get(CONFIDENCE, 0))
            for column, taken in size.items():
                self._largest[column] = max(taken, self._largest.get(column, 0))

    def _too_large(self, group: int, what: str) -> DataError:
        return DataError(
            f"{self.path}: row group {group} {what}, more than the {self.max_group_bytes} bytes "
            "that are read at once; rewrite the file with smaller row groups, e.g. "
            "pyarrow.parquet.write_table(table, path, row_group_size=64)"
        )

    def _read_small_columns(self, file: pq.ParquetFile) -> None:
        small = [
            c for c in ("has_segmentation", "image_id", "split") if c in file.schema_arrow.names
        ]
        small += small_columns(file.schema_arrow)
        try:
            table = read_columns(
                file,
                small,
                largest=sum(self._largest[column] for column in small),
                limit=MAX_SMALL_BYTES,
                group=None,
            )
        except TooLarge as error:
            raise DataError(
                f"{self.path}: columns {small}: {error}; they should hold short texts"
            ) from error
        self.image_ids: list[Any] | None = None
        if "image_id" in small:
            self.image_ids = table["image_id"].to_pylist()
        self.split: list[str] | None = None
        flags = table["has_segmentation"].to_pylist()
        if None in flags:
            row = flags.index(None)
            raise DataError(
                f"{self.where(row, 'has_segmentation')}: expected true or false, got null"
            )
        self.has_segmentation = np.array(flags, dtype=bool)
        self.pseudo = pseudo_masks(table, self.has_segmentation)
        if "split" in small:
            self.split = table["split"].to_pylist()
            for row, name in enumerate(self.split):
                if name not in ("train", "val"):
                    raise DataError(
                        f"{self.where(row, 'split')}: expected 'train' or 'val', got {shown(name)}"
                    )
