"""The command itself, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.index_files import write_index

ROOT = Path(__file__).parents[1]

WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({modules!r}))  # an import of these fails
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without(modules: list[str], *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where some modules are not installed."""
    code = WITHOUT.format(modules=modules, argv=[str(ROOT / argv[0]), *argv[1:]])
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def train(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # One thread: beside a parallel test run, two per process are slower than one.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(cwd)}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *options],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_first_command_of_a_newcomer_works_anywhere(tmp_path: Path) -> None:
    options = ("--max-steps", "4", "--image-size", "32", "--seed", "1", "--device", "cpu")
    result = train(*options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "train-001"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "logs",
        "metrics.csv",
        "curves.png",
        "samples.png",
        "last.pt",
        "best.pt",
        "report.html",
        "synthetic",
    }
    for part in ("Lightweight segmentation head", "Verdict:", "val_dice", "finished: 4 steps"):
        assert part in result.stdout
    assert "\r" not in result.stderr, "a bar was drawn although stderr is no terminal"


def test_multiclass_works_without_data(tmp_path: Path) -> None:
    options = ("--max-steps", "2", "--image-size", "32", "--loss", "ce", "--device", "cpu")
    result = train("--mode", "multiclass", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "train-001"
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "val_miou,val_mdice,val_iou_0" in header and header.endswith("val_dice_4")
    assert "Class 3: " in result.stdout and "best validation mean IoU" in result.stdout


def test_nothing_to_learn_from_is_refused_with_its_own_code(tmp_path: Path) -> None:
    data = write_index(tmp_path / "d.parquet", [b"never decoded"] * 3, [None] * 3, [False] * 3)
    result = train("--data", str(data), "--output-dir", "run", cwd=tmp_path)
    assert result.returncode == 3
    assert "refusing to train" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "missing.parquet"), "missing.parquet: no such file"),
        (("--mode", "multiclass", "--loss", "bce"), "in mode multiclass, got 'bce'"),
        (("--num-classes", "3"), "--num-classes: expected mode multiclass beside it, got 3"),
        (("--lr", "-1"), "--lr: expected a finite number above 0, got -1.0"),
        (("--model", "nowhere_at_all:make"), "--model: no module 'nowhere_at_all'"),
        (("--dice-weight", "-1"), "--dice-weight: expected a finite number of at least 0"),
        (("--image-sizes", "64"), "unknown argument --image-sizes; did you mean --image-size?"),
        (("--output-dir", "a_file/x"), "--output-dir: cannot make the folder"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a_file").touch()
    result = train(*options, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("argv", [["train.py"], ["debug_masks.py", "any.parquet"]])
def test_without_the_extra_the_missing_packages_are_named(argv: list[str]) -> None:
    result = run_without(["PIL", "pyarrow"], *argv)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{argv[0]}: error: the trainer needs pillow, pyarrow: ")
    assert "pip install '.[train]'" in line


def test_tensorboard_is_needed_only_if_asked_for() -> None:
    result = run_without(["tensorboard"], "train.py", "--tensorboard")
    assert result.returncode == 2
    assert "the trainer needs tensorboard: " in result.stderr


def test_help_does_not_wait_for_torch() -> None:
    result = run_without(["torch"], "train.py", "--help")
    assert result.returncode == 0, result.stderr
    assert "--on-collapse" in result.stdout and "exit codes" in result.stdout
