from pathlib import Path

import pytest
import torch
from torch import nn

from fastseg_losses.training import checkpoint
from fastseg_losses.training.checkpoint import (
    FORMAT,
    first_nonfinite,
    load_checkpoint,
    result_weights,
    save_checkpoint,
)

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
    for content in ({"format": FORMAT, "model": Evil()}, [1], {}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="expected a checkpoint of train.py"):
            load_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


def test_the_first_parameter_that_is_lost_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert first_nonfinite(net) is None
    with torch.no_grad():
        net[1].running_mean[2] = float("inf")
    assert first_nonfinite(net) == "1.running_mean"
