"""A run on a disk that is full, or in a folder that nobody may write."""

import contextlib
import errno
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training.pseudo_files import Bright
from training.runs import ROWS, log, run, small_net, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs, run_folder
from fastseg_losses.training.checkpoint import load_checkpoint, save_checkpoint
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT, EXIT_CANNOT_WRITE, EXIT_OK
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.pseudo_writer import PseudoWriter
from fastseg_losses.training.run_folder import WriteError
from fastseg_losses.training.run_log import LogFile
from fastseg_losses.training.trainer import Trainer

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, really full when it is full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(folder: Path, *, but: int = 0) -> None:
    """Leave so many bytes of a disk, at most."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    size = max(0, (folder / "filler").stat().st_size - but)
    os.truncate(folder / "filler", size)


@pytest.mark.parametrize("left", [0, 4096, 40_000, 100_000])
def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_last_checkpoint(
    left: int,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    step = Trainer.train_step
    last = small_disk / "run" / "last.pt"
    whole = []

    def fill(trainer: Trainer, *batches: Any) -> None:
        step(trainer, *batches)
        if trainer.step == 7:  # in the second of three epochs
            whole.append(last.read_bytes())
            fill_up(small_disk, but=left)

    data = write_set(tmp_path / "d.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", fill)
        assert run(data, small_disk / "run", epochs=3) == EXIT_CANNOT_WRITE
    said = capfd.readouterr().err
    assert "Traceback" not in said and "unexpected pos" not in said
    errors = [line for line in said.splitlines() if "last.pt is that of step 5" in line]
    (error,) = errors
    assert error.startswith(str(small_disk / "run"))
    assert "cannot be written (No space left on device)" in error
    assert last.read_bytes() == whole[0]
    assert load_checkpoint(last)["step"] == 5
    assert not list((small_disk / "run").glob(".*"))
    # With room again it goes on.
    (small_disk / "filler").unlink()
    monkeypatch.setattr(launching, "build_model", small_net)
    assert launching.launch(launching_config(small_disk / "run")) == EXIT_OK
    assert load_checkpoint(last)["epoch"] == 3


def launching_config(folder: Path) -> Any:
    from fastseg_losses.training.command_line import parse_args

    return parse_args(["--resume", str(folder)])


def test_a_disk_that_is_full_from_the_start(
    small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "d.parquet")
    fill_up(small_disk)
    assert run(data, small_disk / "run") in (EXIT_BAD_INPUT, EXIT_CANNOT_WRITE)
    said = capfd.readouterr().err
    assert "(No space left on device)" in said and "Traceback" not in said
    assert not (small_disk / "run").exists(), "it would refuse the same folder the next time"


def test_pseudo_masks_on_a_full_disk_leave_nothing(small_disk: Path, tmp_path: Path) -> None:
    index = IndexTable(write_set(tmp_path / "d.parquet", undrawn=range(0, ROWS, 2)))
    fill_up(small_disk, but=8192)
    with pytest.raises(WriteError, match="out.parquet: cannot be written .No space left"):
        PseudoWriter(index, small_disk / "out.parquet").write(Bright())
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


STATE = {"model": {"weight": torch.zeros(50_000)}, "average": None, "step": 1}


@pytest.mark.parametrize("room", [0, 1, 1000, 100_000, 199_999, 200_000, 201_000])
def test_whatever_part_of_a_checkpoint_has_room_the_cause_is_said(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    before = path.read_bytes()
    assert len(before) > 201_000
    written = 0

    class Full(run_folder._RawFile):
        def write(self, data: Any) -> int:
            nonlocal written
            if written >= room:
                self.error = FULL
                raise FULL
            written += (count := super().write(bytes(data)[: room - written]))
            return count

    monkeypatch.setattr(run_folder, "_RawFile", Full)
    with pytest.raises(WriteError) as caught:
        save_checkpoint(path, STATE | {"step": 2})
    assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from fastseg_losses.training.checkpoint import save_checkpoint
path, state = Path(sys.argv[1]), {"model": {"weight": torch.ones(50_000)}, "average": None}
save_checkpoint(path, state)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
save_checkpoint(path, state)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_write_that_the_system_cuts_off_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    end = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True)
    assert end.returncode == 1
    assert end.stderr.splitlines()[-1].endswith("last.pt: cannot be written (File too large)")
    assert load_checkpoint(path)["model"]["weight"].sum() == 50_000
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that this process may read and not write; root may write anything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder / "d.parquet")
        (folder / "run").mkdir()
        folder.chmod(0o755)
        (folder / "run").chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            (folder / "run").chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("name", ["run", "run/inner"])
def test_a_folder_that_may_not_be_written_is_named(
    name: str, as_nobody: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(as_nobody / "d.parquet", as_nobody / name) == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("--output-dir: cannot ")
    assert str(as_nobody / name) in error and error.endswith("(Permission denied)")
    assert not list((as_nobody / "run").iterdir())


@pytest.mark.parametrize("name", ["metrics.csv", "last.pt", "best.pt"])
def test_a_file_that_became_a_folder_ends_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, folder = Trainer.train_step, tmp_path / "run"

    def replace(trainer: Trainer, *batches: Any) -> None:
        step(trainer, *batches)
        if trainer.step == 3:
            (folder / name).mkdir()

    monkeypatch.setattr(Trainer, "train_step", replace)
    assert run(write_set(tmp_path / "d.parquet"), folder) == EXIT_CANNOT_WRITE
    said = capsys.readouterr().err
    assert f"{folder / name}: cannot be written (Is a directory); no checkpoint is written" in said
    assert "Traceback" not in said
    assert not list(folder.glob(".*"))


def test_a_log_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = LogFile(tmp_path / "training.log")
    assert file.stream is not None
    file.stream.close()
    file.stream = open("/dev/full", "w")  # noqa: SIM115 - the handler closes it
    for _ in range(3):
        file.handle(logging.LogRecord("x", logging.INFO, __file__, 1, "a line", None, None))
    file.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path / 'training.log'} cannot be written (No space left on device)"


def test_a_log_line_with_a_path_that_is_no_utf_8_is_written(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run-\xff")
    assert run(write_set(tmp_path / "d.parquet"), folder) == EXIT_OK
    assert "run-\\udcff" in log(folder)
    assert "run-\\udcff" in (folder / "report.html").read_text(encoding="utf-8")
