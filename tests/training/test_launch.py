from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training.index_files import write_index, zeros
from training.runs import ROWS, SIZE, metrics, run, squares, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.config import EXIT_BAD_INPUT, EXIT_OK, EXIT_REFUSED
from fastseg_losses.training.launch import pick_device
from fastseg_losses.training.model import LightweightUNet


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny net, and no pictures, which take longer to draw than an epoch to train."""
    monkeypatch.setattr(launching, "build_model", lambda spec: LightweightUNet(widths=(8, 16)))
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


@pytest.mark.parametrize("marked", [False, True], ids=["none annotated", "all empty"])
def test_nothing_to_learn_from_is_refused_before_anything_is_written(
    marked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(ROWS), cell=zeros(SIZE), marked=marked)
    folder = tmp_path / "run"
    assert run(data, folder) == EXIT_REFUSED
    assert not folder.exists()
    shown = capsys.readouterr()
    assert "refusing to train: Nothing to learn from" in shown.err
    assert "Samples with segmentation" in shown.out


def test_a_folder_that_holds_something_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    assert run(write_set(tmp_path / "d.parquet"), tmp_path / "run") == EXIT_BAD_INPUT
    assert "output_dir: expected a new or empty folder" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("row", "column"), [(4, "mask"), (4, "image")], ids=["broken mask", "broken image"]
)
def test_unreadable_rows_are_named_before_the_first_step(
    row: int, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = squares(8)
    (masks if column == "mask" else images)[row] = b"garbage"
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 8)
    assert run(data, tmp_path / "run") == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert f"row {row}, column '{column}'" in error and "d.parquet" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_only_decoding_shows_is_one_line(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = squares(8)
    images = [image[: len(image) // 2] for image in images]  # headers intact
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 8)
    assert run(data, tmp_path / "run", num_workers=workers) == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert "column 'image'" in error and "row " in error
    assert "Traceback" not in error


def test_a_set_without_validation_rows_trains_and_reports_no_dice(tmp_path: Path) -> None:
    images, masks = squares(6)
    data = write_index(tmp_path / "d.parquet", images, masks, [True] * 6)
    images, masks = squares(2)
    val = write_index(tmp_path / "v.parquet", images, [None, None], [False, False])
    folder = tmp_path / "run"
    assert run(data, folder, val=str(val)) == EXIT_OK
    assert metrics(folder)[0]["val_dice"] == ""
    assert (folder / "best.pt").is_file()
    assert not (folder / "samples.png").exists()


class NoTensor(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": images[:, :1]}


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("a mistake in the user's net")


def test_a_net_with_the_wrong_output_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "build_model", lambda spec: NoTensor())
    assert run(write_set(tmp_path / "d.parquet"), tmp_path / "run") == EXIT_BAD_INPUT
    assert "model: expected NoTensor to return a tensor, got dict" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_net_that_fails_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "build_model", lambda spec: Fails())
    with pytest.raises(RuntimeError, match=r"the net failed on images \(1, 3, 32, 32\)") as caught:
        run(write_set(tmp_path / "d.parquet"), tmp_path / "run")
    assert "a mistake in the user's net" in str(caught.value.__cause__)


def test_a_device_that_is_not_there_is_named() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="device: 'cuda:99' asked for, but torch sees"):
        pick_device("cuda:99")
