"""The schema of an index with pseudo-masks, from that of the index without."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from fastseg_losses.training.decode import DataError
from fastseg_losses.training.pseudo_columns import CONFIDENCE, ROW_CONFIDENCE, SOURCE

# The optional column with the boxes of an image's objects, which prompt a predictor.
BOX = "box"

# Parquet keeps no difference between these and the first of each pair.
_PLAIN = {
    pa.null(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.string_view(): pa.string(),
}


def output_schema(path: Path, schema: pa.Schema) -> pa.Schema:
    """The schema with the columns of pseudo-masks, in place where they exist, else at the end.

    Metadata and all other columns stay. `mask` becomes binary where it was nothing but nulls, and
    loses a dictionary, which new masks would not share.

    Args:
        path: The index's file, named in messages.
        schema: Its schema.

    Raises:
        DataError: A ValueError; a column of such a name holds something else.
    """
    mask = schema.get_field_index("mask")
    field = schema.field(mask)
    schema = schema.set(mask, field.with_type(plain(field.type)).with_nullable(True))
    for name, kind, accepted in (
        (SOURCE, pa.string(), (pa.string(), pa.large_string())),
        (ROW_CONFIDENCE, pa.float32(), (pa.float32(), pa.float64())),
        (CONFIDENCE, pa.binary(), (pa.binary(), pa.large_binary())),
    ):
        if name not in schema.names:
            schema = schema.append(pa.field(name, kind))
        elif (found := schema.field(name).type) not in accepted:
            raise DataError(
                f"{path}: column {name!r}: expected {kind}, to hold pseudo-masks, got {found}; "
                "give that column another name"
            )
    return schema


def plain(kind: pa.DataType) -> pa.DataType:
    """The type that new cells are written in, for a column of masks or images."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _PLAIN.get(kind, kind)


def takes_paths(kind: pa.DataType) -> bool:
    """Whether a plain type of a column of masks or images means paths, and not bytes."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
