"""The files that an index names."""

from __future__ import annotations

from pathlib import Path

from fastseg_losses.training.checks import shown
from fastseg_losses.training.decode import DataError

# No encoded picture of up to `MAX_PIXELS` is larger in practice; bounds what a path cell can load.
MAX_ENCODED_BYTES = 512 * 2**20


def read_named(cell: str, folder: Path, where: str, *, allow_outside: bool) -> bytes:
    """The content of a file that a cell names.

    Args:
        cell: The path as written, absolute or relative to the folder.
        folder: The index's folder, resolved.
        where: Which cell this is; the start of every error message.
        allow_outside: Whether the file may lie elsewhere, by `..`, a link or an absolute path.

    Raises:
        DataError: The path leaves the folder, or there is no readable file.
    """
    try:
        target = (folder / cell).resolve()
        if not allow_outside and not target.is_relative_to(folder):
            raise DataError(
                f"{where}: the path {shown(cell)} leads out of the index's folder "
                f"{str(folder)!r}; --allow-outside (in Python allow_outside=True) accepts such "
                "paths"
            )
        if target.is_dir():
            raise DataError(f"{where}: expected a file, got the folder {shown(cell)}")
        if not target.is_file():
            raise DataError(f"{where}: no such file: {shown(cell)} (looked for {target})")
        size = target.stat().st_size
        if size > MAX_ENCODED_BYTES:
            raise DataError(
                f"{where}: {shown(cell)} has {size} bytes, more than the {MAX_ENCODED_BYTES} that "
                "are accepted"
            )
        return target.read_bytes()
    except DataError:
        raise
    # ValueError: a null character in the path; RuntimeError: links in a circle.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{where}: cannot read {shown(cell)} ({reason})") from error
