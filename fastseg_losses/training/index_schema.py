"""Which columns an index has to have, and of which types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from fastseg_losses.training.decode import DataError

REQUIRED = ("image", "mask", "has_segmentation")


def check_schema(path: Path, schema: pa.Schema) -> None:
    """Checks the columns of an index.

    Args:
        path: The index's file, named in messages.
        schema: Its schema.

    Raises:
        DataError: A ValueError; a column is missing, there twice, or of the wrong type.
    """
    for column in REQUIRED:
        count = schema.names.count(column)
        if count != 1:
            found = "is missing" if count == 0 else f"is there {count} times"
            raise DataError(
                f"{path}: column {column!r} {found}; expected once each: "
                f"{', '.join(REQUIRED)}; found: {', '.join(schema.names)}"
            )
    pictures = "binary (an encoded PNG or JPEG) or string (a path)"
    _check_type(path, schema, "image", pictures, _is_binary, _is_string)
    # All-null columns have the type null: a set with no annotation at all looks like that.
    _check_type(path, schema, "mask", pictures, _is_binary, _is_string, pa.types.is_null)
    _check_type(path, schema, "has_segmentation", "bool", pa.types.is_boolean)
    if "split" in schema.names:
        _check_type(path, schema, "split", "string ('train' or 'val')", _is_string)


def _check_type(path: Path, schema: pa.Schema, column: str, expected: str, *kinds: Any) -> None:
    found = schema.field(column).type
    plain = found.value_type if pa.types.is_dictionary(found) else found
    if not any(kind(plain) for kind in kinds):
        raise DataError(f"{path}: column {column!r}: expected {expected}, got {found}")


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_string(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
