import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training.class_files import class_squares, write_class_set
from training.index_files import GARBAGE, image, mask, write_simple, zeros

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """The script's main function, imported as the script is: from the root of the checkout."""
    monkeypatch.syspath_prepend(str(ROOT))
    import debug_masks

    return debug_masks.main


Main = Callable[[list[str]], int]
Capture = pytest.CaptureFixture[str]


def test_prints_the_census(main: Main, tmp_path: Path, capsys: Capture) -> None:
    path = write_simple(tmp_path / "s.parquet", 3, has_segmentation=[True, True, False])
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Samples with segmentation: 2 / 3" in lines
    assert "Masks with non-zero values: 100.0%" in lines
    assert "Mask values found: 0, 1" in lines
    assert lines[-1].startswith("Verdict: Something to learn from")


@pytest.mark.parametrize("columns", [{"has_segmentation": [False] * 2}, {"mask": [zeros()] * 2}])
def test_nothing_to_learn_from(
    main: Main, tmp_path: Path, capsys: Capture, columns: dict[str, list[object]]
) -> None:
    assert main([str(write_simple(tmp_path / "s.parquet", 2, **columns))]) == 1
    assert "Verdict: Nothing to learn from" in capsys.readouterr().out


def test_unreadable_row(main: Main, tmp_path: Path, capsys: Capture) -> None:
    path = write_simple(tmp_path / "s.parquet", 2, mask=[mask(0), GARBAGE])
    assert main([str(path)]) == 2
    printed = capsys.readouterr().out
    assert f"{path}: row 1, column 'mask'" in printed
    assert "Unreadable: 1" in printed


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "column"])
def test_unreadable_file_is_one_line(
    main: Main, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    path = tmp_path / "s.parquet"
    if kind == "folder":
        path = tmp_path
    elif kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "a,b\n")
    elif kind == "column":
        write_simple(path, 2, mask=None)
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith(f"debug_masks.py: error: {path}: ")


def test_options(main: Main, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.png").write_bytes(image(0))
    path = write_simple(tmp_path / "set" / "s.parquet", 1, image=["../a.png"])
    assert main([str(path)]) == 2
    assert main([str(path), "--allow-outside"]) == 0
    (tmp_path / "a.png").write_bytes(image(0)[:200])
    assert main([str(path), "--allow-outside"]) == 2
    assert "cannot decode the picture" in capsys.readouterr().out
    assert main([str(path), "--allow-outside", "--headers-only"]) == 0
    assert main([str(path), "--allow-outside", "--headers-only", "--max-pixels", "9"]) == 2
    assert "(--max-pixels)" in capsys.readouterr().out


def test_help_is_quick_and_errors_are_exit_codes(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "debug_masks.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    start = time.perf_counter()
    shown = run("--help")
    assert time.perf_counter() - start < 1.0
    assert shown.returncode == 0
    assert "FILE" in shown.stdout
    failed = run(str(tmp_path / "no.parquet"))
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


def test_multiclass(main: Main, tmp_path: Path, capsys: Capture) -> None:
    path = str(write_class_set(tmp_path / "s.parquet", undrawn=[3]))
    options = ["--mode", "multiclass", "--num-classes"]
    assert main([path, *options, "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Samples with segmentation: 23 / 24" in lines
    assert f"Class 0: {100 * 23:,} pixels" in " ".join(lines)
    assert lines[-1].startswith("Verdict: Something to learn from: 3 of 3 classes")
    assert main([path, *options, "2"]) == 2
    assert "expected class ids from 0 to 1, or 255, got 0, 1, 2, 255" in capsys.readouterr().out
    assert main([path, *options, "256", "--ignore-index", "2"]) == 0
    assert "Ignored pixels (value 2)" in capsys.readouterr().out
    images, _ = class_squares()
    one = write_class_set(tmp_path / "one.parquet", masks=[zeros(32)] * len(images))
    assert main([str(one), *options, "3"]) == 1
    assert "Nothing to learn from: all 24" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["--mode multiclass", "--num-classes 3", "--mode multiclass --num-classes 1"]
)
def test_options_that_do_not_fit_are_refused(main: Main, line: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["any.parquet", *line.split()])
    assert caught.value.code == 2
    assert "error: --num-classes: expected" in capsys.readouterr().err
