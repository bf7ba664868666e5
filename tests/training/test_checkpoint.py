import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from training.runs import write_set

from fastseg_losses.training import checkpoint
from fastseg_losses.training.checkpoint import (
    FORMAT,
    first_nonfinite,
    load_checkpoint,
    result_weights,
    save_checkpoint,
)
from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.config import resolve
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT
from fastseg_losses.training.launch import launch
from fastseg_losses.training.prediction import load_model
from fastseg_losses.training.pseudo_label import main as pseudo_label

STATE = {"model": {"weight": torch.ones(3)}, "average": None, "step": 42}


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    state = load_checkpoint(path)
    assert torch.equal(result_weights(state)["weight"], torch.ones(3))
    assert (state["step"], state["format"]) == (42, FORMAT)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_average_is_the_result() -> None:
    state = STATE | {"average": {"model": {"weight": torch.zeros(3)}, "updates": 3}}
    assert not result_weights(state)["weight"].any()


def test_a_crash_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    before = path.read_bytes()

    def crash(state: object, file: object) -> None:
        file.write(b"PK half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, STATE)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


def test_other_files_are_refused_and_nothing_in_them_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(path)
    for content in ({"format": 1}, {"format": "2"}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"expected a checkpoint of format {FORMAT}, got"):
            load_checkpoint(path)
    for content in ([1], {}, {"format": FORMAT}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="expected a checkpoint of train.py"):
            load_checkpoint(path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"format": FORMAT, "model": Evil()}, protocol=2))


def zipped(path: Path) -> None:
    torch.save({"format": FORMAT, "model": Evil()}, path)


def deep(path: Path) -> None:
    torch.save(STATE | {"format": FORMAT, "ranks": [{"monitor": {"kind": Evil()}}]}, path)


@pytest.mark.parametrize("write", [pickled, zipped, deep])
def test_a_malicious_checkpoint_is_refused_and_does_nothing(
    write: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run, data = tmp_path / "run", write_set(tmp_path / "d.parquet", undrawn=[0])
    run.mkdir()
    path = run / "last.pt"
    write(path)
    # Loaded without care, it does what it is made for: else the rest would show nothing.
    with contextlib.suppress(RuntimeError):  # of a plain pickle torch finds out afterwards
        torch.load(path, weights_only=False)
    assert (tmp_path / "pwned").exists()
    (tmp_path / "pwned").unlink()

    message = "last.pt: expected a checkpoint of train.py, got a file that would call posix.system"
    for load in (load_checkpoint, load_model):
        with pytest.raises(ValueError, match=message):
            load(path)
    resolve({"data": str(data)}).save(run / "config.json")
    assert launch(parse_args(["--resume", str(run), "--device", "cpu"])) == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    options = ["--data", str(data), "--out", str(tmp_path / "o.parquet"), "--device", "cpu"]
    assert pseudo_label([*options, "--checkpoint", str(path)]) == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()


def test_a_folder_in_place_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read .Is a directory"):
        load_checkpoint(tmp_path)


def test_the_first_parameter_that_is_lost_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert first_nonfinite(net) is None
    with torch.no_grad():
        net[1].running_mean[2] = float("inf")
    assert first_nonfinite(net) == "1.running_mean"
