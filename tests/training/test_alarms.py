"""What the monitor says about whole runs: one on emptied masks, and healthy ones."""

import logging
from pathlib import Path

import pytest
from training.index_files import zeros
from training.runs import ROWS, SIZE, log, metrics, run, small_net, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.config import resolve
from fastseg_losses.training.exit_codes import EXIT_OK


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples", "plot_class_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def test_a_run_on_half_emptied_masks_does_not_stay_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emptied = [row for row in range(ROWS) if row % 6 in (0, 2, 4)]
    data = write_set(tmp_path / "d.parquet", undrawn=emptied, cell=zeros(SIZE), marked=True)
    assert run(data, tmp_path / "run", loss="bce", epochs=24, check_every=10) == EXIT_OK
    warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    (fell,) = [message for message in warnings if "the validation Dice fell" in message]
    assert "12 of 20 annotated training rows (60%) have an empty mask" in fell
    end = log(tmp_path / "run").splitlines()[-1]
    assert f"{len(warnings)} warnings of the monitor, the last at step" in end
    assert "the validation score fell far below its best" in end


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_the_synthetic_run_is_left_alone(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"mode": mode, "image_size": 32, "epochs": 6, "device": "cpu", "check_every": 10}
    assert launching.launch(resolve(settings | {"output_dir": str(tmp_path / "run")})) == EXIT_OK
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    score = {"binary": "val_dice", "multiclass": "val_miou"}[mode]
    first, *_, last = (float(row[score]) for row in metrics(tmp_path / "run"))
    assert last > first, "it learns"
