"""The folder of one run: never one that holds something already, and nothing in it half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

DEFAULT_PARENT = Path("runs")

# What stands in a run's folder although no epoch is complete.
BEFORE_FIRST_EPOCH = {"config.json", "logs", "report.html", "synthetic", "tensorboard"}


def check_free(output_dir: str) -> None:
    """Refuse a folder that holds something; called before the data is read, which may take long.

    Raises:
        ValueError: the path is a file, or a folder that is not empty.
    """
    path = Path(output_dir)
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"output_dir: expected a folder, got the file {output_dir!r}")
    count = sum(1 for _ in path.iterdir())
    if count:
        raise ValueError(
            f"output_dir: expected a new or empty folder, got {output_dir!r}, which holds {count} "
            "entries; a run's folder is never overwritten"
        )


def make_run_folder(output_dir: str | None, *, parent: Path = DEFAULT_PARENT) -> Path:
    """Make the run's folder.

    Args:
        output_dir: the user's choice; None takes the next free ``runs/train-NNN``.
        parent: where the numbered folders stand.

    Raises:
        ValueError: see :func:`check_free`; or no folder can be made there.
    """
    if output_dir is not None:
        check_free(output_dir)
        path = Path(output_dir)
        _make(path)
        return path
    _make(parent)
    taken = [int(p.name[6:]) for p in parent.glob("train-*") if p.name[6:].isdecimal()]
    number = max(taken, default=0) + 1
    while True:
        path = parent / f"train-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another run that started at the same moment took it
            number += 1
        else:
            return path


def is_unfinished(folder: Path) -> bool:
    """Whether a run left nothing worth keeping: no epoch was finished, no weights were saved."""
    return {path.name for path in folder.iterdir()} <= BEFORE_FIRST_EPOCH


def discard(folder: Path) -> None:
    """Remove the folder of a run."""
    shutil.rmtree(folder)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output_dir: cannot make the folder {str(path)!r} ({error.strerror})"
        ) from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file in one step: a crash leaves the old content or the new, never a part.

    Args:
        path: the file.
        write: writes the content into the binary file that it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        # The rename is only durable once the folder's entry is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
