"""Columns of a parquet file, read with a bound on what they take in memory.

What a file says of its own size is that of its encoded pages. A value that stands in a column a
million times is stored once, so a file of 1 MB can become 1 TB; and a file that was tampered with
may say anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

# Rows in one step, at most: what a file can claim before the bound is looked at.
STEP_ROWS = 4096


class TooLarge(ValueError):  # noqa: N818 - the caller says what to do about it
    """The columns take more memory than they may."""


def column_sizes(file: pq.ParquetFile, group: int) -> dict[str, int]:
    """What each column of a row group takes, uncompressed but encoded, in bytes."""
    row_group = file.metadata.row_group(group)
    sizes = dict.fromkeys(file.schema_arrow.names, 0)
    for place in range(row_group.num_columns):
        chunk = row_group.column(place)
        path = chunk.path_in_schema  # of a column of lists: its name.list.element
        name = path if path in sizes else path.partition(".")[0]
        sizes[name] += int(chunk.total_uncompressed_size)
    return sizes


def read_columns(
    file: pq.ParquetFile, columns: Sequence[str], *, largest: int, limit: int, group: int | None
) -> pa.Table:
    """Reads columns a few rows at a time, and stops where they become too large.

    Args:
        file: The opened file.
        columns: Names of columns.
        largest: What these columns take in one row group at most, uncompressed but encoded: no
            row of them is larger.
        limit: Bytes that they may take in memory.
        group: The row group; None: all.

    Raises:
        TooLarge: They take more.
        Exception: The file is damaged; pyarrow raises a dozen types then.
    """
    groups = range(file.metadata.num_row_groups) if group is None else [group]
    step = min(STEP_ROWS, max(1, limit // max(1, largest)))
    # One thread: the loader's workers are the parallelism.
    source = file.iter_batches(step, row_groups=list(groups), columns=columns, use_threads=False)
    batches, taken = [], 0
    for batch in source:
        taken += sum(_own_bytes(values) for values in batch.columns)
        if taken > limit:
            raise TooLarge(f"more than {limit} bytes")
        batches.append(batch)
    names = [file.schema_arrow.field(name) for name in columns]
    return pa.Table.from_batches(batches, None if batches else pa.schema(names))


def _own_bytes(values: pa.Array) -> int:
    """What an array takes, without a dictionary, which all parts of a column have in common."""
    own = values.indices if pa.types.is_dictionary(values.type) else values
    return int(own.nbytes)
