import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import killed_run
from training.runs import SIZE, metrics, same, weights, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_OK,
)
from fastseg_losses.training.tally import Tally
from fastseg_losses.training.trainer import Trainer

# 20 training rows: 5 batches an epoch.
OPTIONS = [
    *("--image-size", str(SIZE), "--batch-size", "4", "--epochs", "4", "--num-workers", "0"),
    *("--device", "cpu", "--lr", "5e-3", "--check-every", "3", "--schedule", "cosine"),
    *("--warmup-steps", "3", "--clip-grad", "1", "--ema", "0.9", "--patience", "3"),
]
TIMES = ("images_per_s", "data_share", "peak_gb")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net of the killed run, and no pictures."""
    monkeypatch.setattr(launching, "build_model", killed_run.net_with_dropout)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def train(*options: str) -> int:
    return launching.launch(parse_args([*options]))


def curve(folder: Path) -> list[dict[str, str]]:
    rows = metrics(folder)
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def check_equal(folder: Path, unbroken: Path) -> None:
    assert curve(folder) == curve(unbroken)
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (folder, unbroken))
    assert same(a["model"], b["model"]) and same(a["average"]["model"], b["average"]["model"])
    for name in ("epoch", "step", "draws", "epoch_is_drawn"):
        assert a[name] == b[name]
    assert a["ranks"][0]["monitor"] == b["ranks"][0]["monitor"]
    assert torch.equal(a["ranks"][0]["random"]["torch"], b["ranks"][0]["random"]["torch"])
    assert same(weights(folder, "best.pt"), weights(unbroken, "best.pt"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end; its folder is `run` beside its data."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = write_set(folder / "d.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "build_model", killed_run.net_with_dropout)
        code = train("--data", str(data), "--output-dir", str(folder / "run"), *OPTIONS)
    assert code == EXIT_OK
    return folder


@pytest.mark.parametrize(
    ("at", "saved", "options"),
    [
        ("6", 5, []),  # resumed from the end of the first epoch
        ("9", 8, ["--save-every", "4"]),  # from the middle of the second
        ("17", 16, ["--save-every", "1"]),  # from the first step of the last
        ("15s", 15, ["--save-every", "5"]),  # between an epoch's last step and its validation
    ],
)
def test_killed_and_resumed_is_the_same_run(
    at: str, saved: int, options: list[str], unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, killed_run.__file__, at, "--data", f"{unbroken}/d.parquet"]
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    end = subprocess.run(
        [*command, "--output-dir", str(folder), *OPTIONS, *options],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert end.returncode == -signal.SIGKILL, end.stderr
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == saved
    assert train("--resume", str(folder)) == EXIT_OK
    check_equal(folder, unbroken / "run")


@pytest.mark.parametrize("step", [3, 8, 14])
def test_ctrl_c_and_resume_is_the_same_run(
    step: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = Trainer.train_step

    def interrupted(self: Trainer, *batches: object) -> None:
        original(self, *batches)  # type: ignore[arg-type]
        if self.step == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        code = train("--data", f"{unbroken}/d.parquet", "--output-dir", str(folder), *OPTIONS)
    assert code == EXIT_INTERRUPTED
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == step
    assert train("--resume", str(folder)) == EXIT_OK
    check_equal(folder, unbroken / "run")


def test_a_finished_run_goes_on_with_more_epochs(
    unbroken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    options = [*OPTIONS, "--schedule", "constant"]
    base = ["--data", f"{unbroken}/d.parquet", *options]
    assert train(*base, "--output-dir", str(folder), "--epochs", "2") == EXIT_OK
    assert train("--resume", str(folder)) == EXIT_OK
    assert "nothing left to train: 2 of 2 epochs are done; --epochs takes more" in caplog.text
    # Nothing was trained with another rate, so no file may say so.
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    assert train("--resume", str(folder), "--lr", "0.5") == EXIT_OK
    assert "the folder stays as it is, without lr 0.005 -> 0.5" in caplog.text
    assert before == {path: path.read_bytes() for path in folder.glob("*.*")}
    assert train("--resume", str(folder), "--epochs", "4") == EXIT_OK
    assert "other settings than before: epochs 2 -> 4" in caplog.text
    whole = tmp_path / "whole"
    assert train(*base, "--output-dir", str(whole)) == EXIT_OK
    check_equal(folder, whole)
    assert parse_args(["--config", str(folder / "config.json")]).epochs == 4


def test_ctrl_c_while_validating_keeps_the_epochs_statistics(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = Trainer._validated

    def interrupted(self: Trainer) -> object:
        if self.epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validated", interrupted)
        code = train("--data", f"{unbroken}/d.parquet", "--output-dir", str(folder), *OPTIONS)
    assert code == EXIT_INTERRUPTED
    assert train("--resume", str(folder)) == EXIT_OK
    check_equal(folder, unbroken / "run")


def test_more_steps_go_on_where_max_steps_ended(unbroken: Path, tmp_path: Path) -> None:
    base = ["--data", f"{unbroken}/d.parquet", *OPTIONS, "--schedule", "constant"]
    base += ["--patience", "9"]
    folder, whole = tmp_path / "run", tmp_path / "whole"
    assert train(*base, "--max-steps", "7", "--output-dir", str(folder)) == EXIT_OK
    assert train("--resume", str(folder), "--max-steps", "15") == EXIT_OK
    assert train(*base, "--max-steps", "15", "--output-dir", str(whole)) == EXIT_OK
    assert same(weights(folder), weights(whole))
    assert [row["epoch"] for row in metrics(folder)] == ["1", "2", "3"]
    assert metrics(folder)[1]["train_loss"] == metrics(whole)[1]["train_loss"]


def test_settings_that_change_the_batches(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = Trainer.train_step

    def interrupted(self: Trainer, *batches: object) -> None:
        original(self, *batches)  # type: ignore[arg-type]
        if self.step == 9:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        train("--data", f"{unbroken}/d.parquet", "--output-dir", str(folder), *OPTIONS)
    options = ["--batch-size", "8", "--loss", "bce", "--epochs", "3"]
    assert train("--resume", str(folder), *options) == EXIT_OK
    # 16 of the second epoch's 20 rows were drawn: one batch of 4 is left; then 3 of the third's.
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 9 + 1 + 3
    assert train("--resume", str(folder), "--amp", "fp16", "--epochs", "4") == EXIT_OK


def test_another_order_begins_the_epoch_anew(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = Trainer.train_step

    def interrupted(self: Trainer, *batches: object) -> None:
        original(self, *batches)  # type: ignore[arg-type]
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        train("--data", f"{unbroken}/d.parquet", "--output-dir", str(folder), *OPTIONS)
    seen: list[int] = []
    joined = Tally.joined

    def counted(parts: list[Tally]) -> Tally:
        seen.append(parts[0].batches)
        return joined(parts)

    monkeypatch.setattr(Tally, "joined", counted)
    assert train("--resume", str(folder), "--seed", "9", "--epochs", "1") == EXIT_OK
    assert seen[0] == 5  # not 5 + 3
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 3 + 5


def test_nan_is_never_saved(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--data", f"{unbroken}/d.parquet", *OPTIONS, "--warmup-steps", "0"]
    code = train(*options, "--lr", "1e30", "--save-every", "1", "--output-dir", str(folder))
    assert code == EXIT_NON_FINITE
    saved = folder / "last.pt"
    assert not saved.exists() or all(torch.isfinite(v).all() for v in weights(folder).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "multiclass", "--num-classes", "3"], "--mode: expected 'binary' as in the"),
        (["--model", "nets:make"], "--model: expected None as in the resumed run"),
        (["--output-dir", "other"], "--output-dir: expected none beside --resume"),
    ],
)
def test_what_cannot_change(
    options: list[str], message: str, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--resume", str(unbroken / "run"), *options])
    assert message in capsys.readouterr().err


def test_no_run_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--resume", str(tmp_path)])
    assert "--resume: expected the folder of a run" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_an_error(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((unbroken / "run" / "config.json").read_bytes())
    whole = (unbroken / "run" / "last.pt").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not a checkpoint"):
        (folder / "last.pt").write_bytes(content)
        assert train("--resume", str(folder)) == EXIT_BAD_INPUT
        assert "expected a checkpoint of train.py" in capsys.readouterr().err
        assert (folder / "last.pt").read_bytes() == content
