"""Two runs that want the same folder: one has it, and the other leaves it alone."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from training import killed_run
from training.runs import SIZE, log, metrics, run, small_net, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs, run_folder
from fastseg_losses.training.checkpoint import load_checkpoint
from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT, EXIT_OK

NEVER = "1000000"


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def start(*options: str) -> "subprocess.Popen[str]":
    """A training in a process of its own, as two users have them."""
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, killed_run.__file__, NEVER, "--image-size", str(SIZE)]
        + ["--batch-size", "4", "--num-workers", "0", "--device", "cpu", *options],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_of_many_that_claim_a_folder_at_once_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "check_free", lambda path: None)  # all looked before any wrote
    for attempt in range(20):
        barrier, won, lost = threading.Barrier(8), [], []

        def claim(path: str = str(tmp_path / f"{attempt}"), barrier: Any = barrier) -> None:
            barrier.wait()
            try:
                won.append(run_folder.make_run_folder(path))  # noqa: B023 - joined in the loop
            except ValueError as error:
                lost.append(str(error))  # noqa: B023

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(lost) == 7
        assert all("another run took at the same moment" in text for text in lost)


def test_who_comes_second_leaves_the_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = write_set(tmp_path / "d.parquet"), tmp_path / "run"
    # What the first run has made when the second, which found the folder empty, comes to it. No
    # checkpoint is there yet, so that the second could take it for its own and remove it.
    run_folder.make_run_folder(str(folder))
    (folder / "config.json").write_text("the first one's")
    before = contents(folder)
    for module in (launching, run_folder):
        monkeypatch.setattr(module, "check_free", lambda path: None)
    assert run(data, folder) == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("--output-dir: expected a new or empty folder")
    assert contents(folder) == before


def test_two_processes_with_the_same_output_folder(tmp_path: Path) -> None:
    data, folder = write_set(tmp_path / "d.parquet"), tmp_path / "run"
    options = ["--data", str(data), "--output-dir", str(folder), "--epochs", "3"]
    both = [start(*options) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [EXIT_OK, EXIT_BAD_INPUT]
    loser = next(text for p, text in zip(both, said, strict=True) if p.returncode)
    assert loser.splitlines()[-1].startswith("--output-dir: expected a new or empty folder")
    assert len(metrics(folder)) == 3 and log(folder).count("command:") == 1
    assert load_checkpoint(folder / "last.pt")["epoch"] == 3


@pytest.mark.skipif(os.name != "posix", reason="record locks of files")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_that_still_trains_is_not_resumed(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = write_set(tmp_path / "d.parquet"), tmp_path / "run"
    options = ["--data", str(data), "--output-dir", str(folder), "--epochs", "5000"]
    process = start(*options, "--num-workers", workers)
    try:
        give_up = time.monotonic() + 60
        while not (folder / "last.pt").exists():
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.02)
        assert launching.launch(parse_args(["--resume", str(folder)])) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert "--resume: expected a run that has ended" in said
        assert "another process is training" in said
        assert process.poll() is None, said
    finally:
        process.kill()
        process.communicate()
    # Killed: its workers live on for seconds, and hold nothing.
    steps = load_checkpoint(folder / "last.pt")["step"]
    launching_again = parse_args(["--resume", str(folder), "--max-steps", str(steps + 1)])
    assert launching.launch(launching_again) == EXIT_OK
    assert load_checkpoint(folder / "last.pt")["step"] == steps + 1


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".last.pt.123.tmp", ".report.html.7.tmp", ".hidden", "a.1.tmp", ".x.tmp"):
        (tmp_path / name).touch()
    run_folder.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", "a.1.tmp", ".x.tmp"}
