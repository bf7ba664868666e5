"""The folder of one run: never one that holds something already, and nothing in it half-written."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

DEFAULT_PARENT = Path("runs")

# What stands in a run's folder although no epoch is complete.
BEFORE_FIRST_EPOCH = {"config.json", "logs", "report.html", "synthetic", "tensorboard"}

# Made first of all, in one step that succeeds once: of two runs, one has it.
CLAIM = "logs"

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


class WriteError(OSError):
    """A file cannot be written: the disk is full, or the folder read-only.

    Args:
        path: the file.
        error: what the system said.
    """

    def __init__(self, path: Path | str, error: OSError | str) -> None:
        # Both come as text where the exception is pickled on its way to other processes.
        reason = error if isinstance(error, str) else error.strerror or str(error)
        super().__init__(str(path), reason)

    def __str__(self) -> str:
        """One line."""
        return f"{self.args[0]}: cannot be written ({self.args[1]})"


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
        ValueError: see :func:`check_free`; or no folder can be made there, nothing can be written
            into it, or another run took it at the same moment.
    """
    if output_dir is not None:
        check_free(output_dir)
        path = Path(output_dir)
        _make(path)
        _claim(path)
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
        except OSError as error:
            raise _no_folder(path, error) from error
        else:
            _claim(path)
            return path


def is_unfinished(folder: Path) -> bool:
    """Whether a run left nothing worth keeping: no epoch was finished, no weights were saved."""
    return {path.name for path in folder.iterdir()} <= BEFORE_FIRST_EPOCH


def discard(folder: Path) -> None:
    """Remove the folder of a run; a mount point stays, empty."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writes left unfinished that were killed, as large as a checkpoint each."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(path, error) from error


def _no_folder(path: Path, error: OSError) -> ValueError:
    return ValueError(f"output_dir: cannot make the folder {str(path)!r} ({error.strerror})")


def _claim(path: Path) -> None:
    try:
        (path / CLAIM).mkdir()
    except FileExistsError:
        raise ValueError(
            f"output_dir: expected a new or empty folder, got {str(path)!r}, which another run "
            "took at the same moment; a run's folder is never overwritten"
        ) from None
    except OSError as error:
        raise ValueError(
            f"output_dir: cannot write into the folder {str(path)!r} ({error.strerror})"
        ) from error


class _RawFile(io.FileIO):
    """Remembers why a write failed: torch.save says "unexpected pos 704 vs 598" on a full disk."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what fails in the block which file could not be written.

    Args:
        path: the file or the folder that the block writes.

    Raises:
        WriteError: the system refused.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file in one step: a crash leaves the old content or the new, never a part.

    Args:
        path: the file.
        write: writes the content into the binary file that it is given.

    Raises:
        WriteError: the system refused: the disk is full, or the folder read-only. The old content
            stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            raw = _RawFile(temporary, "wb")
            try:
                with io.BufferedWriter(raw) as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
            except Exception:
                if raw.error is not None:
                    raise raw.error from None
                raise
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
