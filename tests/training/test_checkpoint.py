from pathlib import Path

import pytest
import torch
from torch import nn

from fastseg_losses.training import checkpoint
from fastseg_losses.training.checkpoint import first_nonfinite, save_checkpoint
from fastseg_losses.training.config import TrainConfig, resolve


def stepped() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = nn.Conv2d(3, 1, 3)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    return net, optimizer


def save(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    save_checkpoint(
        path,
        model=net,
        optimizer=optimizer,
        config=resolve({"epochs": 7}),
        epoch=3,
        step=42,
        metrics={"epoch": 3, "val_dice": 0.5},
    )


def test_a_checkpoint_is_plain_data_and_complete(tmp_path: Path) -> None:
    net, optimizer = stepped()
    path = tmp_path / "last.pt"
    save(path, net, optimizer)
    state = torch.load(path, weights_only=True)
    other = nn.Conv2d(3, 1, 3)
    other.load_state_dict(state["model"])
    assert torch.equal(other.weight, net.weight)
    again = torch.optim.AdamW(other.parameters())
    again.load_state_dict(state["optimizer"])
    assert again.state_dict()["state"][0]["step"] == 1
    assert TrainConfig.from_dict(state["config"]).epochs == 7
    assert (state["epoch"], state["step"], state["metrics"]["val_dice"]) == (3, 42, 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_crash_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, optimizer = stepped()
    path = tmp_path / "last.pt"
    save(path, net, optimizer)
    before = path.read_bytes()

    def crash(state: object, file: object) -> None:
        file.write(b"PK half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        save(path, net, optimizer)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_first_parameter_that_is_lost_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert first_nonfinite(net) is None
    with torch.no_grad():
        net[1].running_mean[2] = float("inf")
    assert first_nonfinite(net) == "1.running_mean"
