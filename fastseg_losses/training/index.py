"""The parquet index of a data set: checked once when opened, then read by row group."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastseg_losses.training.decode import MAX_PIXELS, DataError
from fastseg_losses.training.pseudo_columns import CONFIDENCE, pseudo_masks, small_columns

# Encoded row groups kept in memory, for each process that reads (a loader's workers each have it).
GROUP_CACHE_BYTES = 256 * 2**20

# A row group is the smallest piece of a parquet file that can be read. pandas writes a whole table
# as one by default, and 4 workers that each hold a 5 GiB group end in an out-of-memory kill that
# says nothing; so such a file is refused with the remedy.
MAX_GROUP_BYTES = 2**30

# No encoded picture of up to MAX_PIXELS is larger in practice; bounds what a path cell can load.
MAX_ENCODED_BYTES = 512 * 2**20

REQUIRED = ("image", "mask", "has_segmentation")


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
            DataError: A ValueError; no such file, no parquet file, no rows, a required column is
                missing or has the wrong type, a null in `has_segmentation`, a huge row group.
        """
        self.path = Path(path)
        self.allow_outside = allow_outside
        self.max_pixels = max_pixels
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
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if self._starts[-1] == 0:
            raise DataError(f"{self.path}: the index has no rows")
        self._check_schema(file.schema_arrow)
        self.group_confidence_bytes: list[int] = []
        self.group_image_bytes = self._check_group_sizes(file, max_group_bytes)
        self._read_small_columns(file)

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        """The state without file handle and cache, which belong to one process."""
        return {**self.__dict__, "_pid": -1, "_file": None, "_cache": OrderedDict()}

    def where(self, row: int, column: str) -> str:
        """Names a cell for a message: file, row (from 0), image_id if there is one, and column."""
        name = "" if self.image_ids is None else f" (image_id {self.image_ids[row]!r})"
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
                f"{where}: expected a PNG since mask_source names a pseudo-mask, got {cell!r}"
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
        try:
            target = (self.folder / cell).resolve()
            if not self.allow_outside and not target.is_relative_to(self.folder):
                raise DataError(
                    f"{where}: the path {cell!r} leads out of the index's folder, which only "
                    "--allow-outside (allow_outside=True) accepts"
                )
            if not target.is_file():
                raise DataError(f"{where}: no such file: {cell!r} (looked for {target})")
            if target.stat().st_size > MAX_ENCODED_BYTES:
                raise DataError(
                    f"{where}: {cell!r} has {target.stat().st_size} bytes, more than the "
                    f"{MAX_ENCODED_BYTES} that are accepted"
                )
            return target.read_bytes()
        except DataError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise DataError(f"{where}: cannot read {cell!r} ({error})") from error

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
        try:
            # One thread: the loader's workers are the parallelism.
            return self._file.read_row_group(group, columns=[column], use_threads=False)[column]
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}: row group {group} (rows {self._starts[group]} to "
                f"{self._starts[group + 1] - 1}), column {column!r}: cannot be read ({error})"
            ) from error

    def _open(self) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(self.path, memory_map=False, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: not a readable parquet file ({error})") from error
        self._file, self._pid = file, os.getpid()
        return file

    def _reopen(self) -> None:
        rows = self._open().metadata.num_rows
        if rows != len(self):
            raise DataError(
                f"{self.path}: the file changed while in use: {len(self)} rows before, {rows} now"
            )

    def _check_schema(self, schema: pa.Schema) -> None:
        for column in REQUIRED:
            count = schema.names.count(column)
            if count != 1:
                found = "is missing" if count == 0 else f"is there {count} times"
                raise DataError(
                    f"{self.path}: column {column!r} {found}; expected once each: "
                    f"{', '.join(REQUIRED)}; found: {', '.join(schema.names)}"
                )
        pictures = "binary (an encoded PNG or JPEG) or string (a path)"
        self._check_type(schema, "image", pictures, _is_binary, _is_string)
        # All-null columns have the type null: a set with no annotation at all looks like that.
        self._check_type(schema, "mask", pictures, _is_binary, _is_string, pa.types.is_null)
        self._check_type(schema, "has_segmentation", "bool", pa.types.is_boolean)
        self._has_confidence = CONFIDENCE in schema.names
        if "split" in schema.names:
            self._check_type(schema, "split", "string ('train' or 'val')", _is_string)

    def _check_type(self, schema: pa.Schema, column: str, expected: str, *kinds: Any) -> None:
        found = schema.field(column).type
        plain = found.value_type if pa.types.is_dictionary(found) else found
        if not any(kind(plain) for kind in kinds):
            raise DataError(f"{self.path}: column {column!r}: expected {expected}, got {found}")

    def _check_group_sizes(self, file: pq.ParquetFile, limit: int) -> list[int]:
        image_bytes = []
        for g in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(g)
            chunks = [group.column(c) for c in range(group.num_columns)]
            size = {c.path_in_schema: c.total_uncompressed_size for c in chunks}
            if size["image"] + size["mask"] > limit:
                raise DataError(
                    f"{self.path}: row group {g} holds {size['image'] + size['mask']} bytes, more "
                    f"than the {limit} that are read at once; rewrite the file with smaller row "
                    "groups, e.g. pyarrow.parquet.write_table(table, path, row_group_size=64)"
                )
            image_bytes.append(int(size["image"]))
            self.group_confidence_bytes.append(int(size.get(CONFIDENCE, 0)))
        return image_bytes

    def _read_small_columns(self, file: pq.ParquetFile) -> None:
        small = [
            c for c in ("has_segmentation", "image_id", "split") if c in file.schema_arrow.names
        ]
        small += small_columns(file.schema_arrow)
        try:
            table = file.read(columns=small, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: columns {small}: cannot be read ({error})") from error
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
                        f"{self.where(row, 'split')}: expected 'train' or 'val', got {name!r}"
                    )


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_string(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
