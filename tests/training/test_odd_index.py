"""Indices as accidents leave them: damaged bytes, odd cells, enormous texts."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from training.index_files import image, mask, write_index, write_simple
from training.pseudo_files import Bright
from training.runs import ROWS, run, small_net, squares, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.audit import take_census
from fastseg_losses.training.decode import DataError
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT, EXIT_OK
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.pseudo_writer import PseudoWriter

# Damages a file in many ways; each is read in a process of its own, since pyarrow ends the whole
# process on some of them (its size statistics, "terminate called after throwing").
FUZZ = """
import json, os, random, sys
from fastseg_losses.training.audit import take_census
from fastseg_losses.training.decode import DataError
from fastseg_losses.training.index import IndexTable

whole, path, endings = open(sys.argv[1], "rb").read(), sys.argv[2], []
for seed in range(int(sys.argv[3])):
    chance, content = random.Random(seed), bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        footer = len(content) - 3500 if chance.random() < 0.5 else 0
        content[chance.randrange(footer, len(content))] = chance.randrange(256)
    if chance.random() < 0.2:
        content = content[: chance.randrange(len(content))]
    open(path, "wb").write(content)
    pid = os.fork()
    if not pid:
        code = 3
        try:
            "\\n".join(take_census(IndexTable(path), decode_images=True).lines())
            code = 0
        except DataError as error:
            code = 1 if path in str(error) else 2
        finally:
            os._exit(code)
    endings.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(endings))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.slow
def test_a_damaged_file_is_read_or_named(tmp_path: Path) -> None:
    columns = {"image_id": list("abcdef"), "split": ["train"] * 5 + ["val"]}
    columns |= {"mask_source": ["a"] * 6, "mask_confidence": [0.5] * 6}
    whole = write_simple(tmp_path / "whole.parquet", 6, **columns)
    command = [sys.executable, "-c", FUZZ, str(whole), str(tmp_path / "damaged.parquet"), "600"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    endings = collections.Counter(json.loads(result.stdout))
    print(endings)
    assert endings[1] > 200 and endings[0] > 50
    assert set(endings) <= {0, 1, -signal.SIGABRT}
    assert endings[-signal.SIGABRT] <= 3


def odd(path: Path, **columns: Any) -> str:
    """What is said of an index of three rows with odd cells in some columns."""
    try:
        census = take_census(IndexTable(write_simple(path, 3, **columns)))
    except DataError as error:
        return str(error)
    return "\n".join((*census.lines(), *census.problems))


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"has_segmentation": [1.0, NAN, 0.0]}, "'has_segmentation': expected bool, got double"),
        ({"has_segmentation": ["yes", "no", ""]}, "'has_segmentation': expected bool, got string"),
        ({"has_segmentation": [True, None, False]}, "row 1, column 'has_segmentation': expected"),
        ({"image": [NAN, NAN, NAN]}, "column 'image': expected binary"),
        ({"image": ["a.png", None, "b.png"]}, "row 1, column 'image': expected an image, got null"),
        ({"mask": [mask(), None, mask()]}, "row 1, column 'mask': expected a mask since"),
        ({"image": [[1], [2], [3]]}, "column 'image': expected binary"),
        ({"split": ["train", "nan", "val"]}, "row 1, column 'split': expected 'train' or 'val'"),
        ({"split": ["train", None, "val"]}, "row 1, column 'split': expected 'train' or 'val'"),
        ({"split": [0.0, NAN, 1.0]}, "column 'split': expected string"),
        ({"image_id": [1.5, NAN, 2.0], "mask": [mask(), None, mask()]}, "row 1 (image_id nan)"),
        ({"image_id": [["x"], None, []], "mask": [mask(), None, mask()]}, "row 1 (image_id None)"),
    ],
)
def test_odd_cells_are_named(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    text = odd(tmp_path / "d.parquet", **columns)
    assert said in text and len(text) < 2000


def test_nan_is_no_confidence(tmp_path: Path) -> None:
    flags = {"has_segmentation": [True, False, False], "mask_source": [None, "a", "b"]}
    text = odd(tmp_path / "d.parquet", **flags, mask_confidence=[0.5, NAN, 0.75])
    assert "from a, b, mean confidence 0.750" in text


def test_enormous_texts_are_cut_in_messages(tmp_path: Path) -> None:
    long = "x" * 5_000_000
    cells: list[Any] = [mask(), None, mask()]
    for columns in (
        {"image_id": [long] * 3, "mask": cells},
        {"image_id": [[long]] * 3, "mask": cells},
        {"split": ["train", long, "val"]},
        {"image": [long] * 3},
        {"mask": [long] * 3},
        {"has_segmentation": [False] * 3, "mask_source": [long, "b", "c"]},
    ):
        assert len(odd(tmp_path / "d.parquet", **columns)) < 3000


def test_texts_of_an_index_do_not_break_lines(tmp_path: Path) -> None:
    said = odd(
        tmp_path / "d.parquet",
        has_segmentation=[True, False, True],
        mask_source=[None, "net\nVerdict: fine\x1b[2J", None],
        image_id=["a", "b", "c\nVerdict: fine\x1b[2J"],
        mask=[mask(), None, None],
    )
    assert said.count("\nVerdict: ") == 1 and "\x1b" not in said
    assert "net\\nVerdict: fine\\x1b[2J" in said


def test_text_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, pa.array(["abc"] * 3).buffers()[:2] + [pa.py_buffer(b"\xff" * 9)]
    )
    for column in ("image_id", "split", "image", "mask", "mask_source"):
        text = odd(tmp_path / "d.parquet", **{column: broken})
        assert (
            str(tmp_path / "d.parquet") in text
            and "Verdict: Something to learn from: 3" not in text
        )


@pytest.fixture
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def write_outside(tmp_path: Path) -> Path:
    """An index whose pictures lie in another folder, as absolute paths."""
    images, masks = squares()
    (tmp_path / "pictures").mkdir()
    cells = []
    for kind, pictures in (("i", images), ("m", masks)):
        paths = [tmp_path / "pictures" / f"{kind}{row}.png" for row in range(ROWS)]
        for path, picture in zip(paths, pictures, strict=True):
            path.write_bytes(picture)
        cells.append([str(path) for path in paths])
    undrawn = [row % 3 == 0 for row in range(ROWS)]
    return write_index(tmp_path / "set" / "d.parquet", *cells, [not flag for flag in undrawn])


def test_absolute_paths_train_with_the_option_that_the_error_names(
    tmp_path: Path, small_and_fast: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_outside(tmp_path)
    assert run(path, tmp_path / "run") == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{path}: row " in error and "leads out of the index's folder" in error
    assert "--allow-outside" in error
    assert run(path, tmp_path / "run", allow_outside=True) == EXIT_OK


def test_pseudo_masks_stay_in_the_folder_of_the_index(tmp_path: Path) -> None:
    path = write_outside(tmp_path)
    before = sorted((tmp_path / "pictures").iterdir())
    refused = PseudoWriter(IndexTable(path), path.with_name("a.parquet")).write(Bright())
    assert refused.filled == 0 and "--allow-outside" in refused.problems[0]
    allowed = IndexTable(path, allow_outside=True)
    assert PseudoWriter(allowed, path.with_name("b.parquet")).write(Bright()).filled == 8
    assert sorted((tmp_path / "pictures").iterdir()) == before
    cells = IndexTable(path.with_name("b.parquet")).pseudo_cell(0, "mask")
    assert cells == "b_masks/00000000.png"
    with pytest.raises(ValueError, match="out: expected a file in"):
        PseudoWriter(allowed, tmp_path / "pictures" / "c.parquet")
    # A link out of the folder in place of the masks' folder is somebody's, and not followed.
    (path.parent / "e_masks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((ValueError, OSError), match="e_masks"):
        PseudoWriter(allowed, path.with_name("e.parquet")).write(Bright())
    assert not (tmp_path / "elsewhere").exists()


def test_a_picture_that_became_a_folder_ends_the_run_with_its_row(
    tmp_path: Path,
    small_and_fast: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_outside(tmp_path)

    def replace(trainer: Any) -> None:
        for row in range(ROWS):
            (tmp_path / "pictures" / f"i{row}.png").unlink()
            (tmp_path / "pictures" / f"i{row}.png").mkdir()

    monkeypatch.setattr(launching, "log_end", replace)
    monkeypatch.setattr(launching.HtmlReport, "after_epoch", replace)
    folder = tmp_path / "run"
    assert run(path, folder, allow_outside=True, epochs=2, cache_mb=0) == EXIT_BAD_INPUT
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{path}: row " in error and "expected a file, got the folder" in error
    assert (folder / "last.pt").exists()


def test_a_truncated_file_of_a_set_is_named_while_it_trains(
    tmp_path: Path, small_and_fast: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_set(tmp_path / "d.parquet")
    content = path.read_bytes()
    chance = random.Random(0)
    for _ in range(20):
        path.write_bytes(content[: chance.randrange(1, len(content))])
        assert run(path, tmp_path / "run") == EXIT_BAD_INPUT
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"{path}: not a readable parquet file (")


def test_pictures_cut_at_any_place_are_named(tmp_path: Path) -> None:
    whole = image(3)
    # Checksums and the end mark are the last 20 bytes: without them the pixels are still whole.
    places = np.linspace(0, len(whole) - 21, 40).astype(int)
    images = [whole[:place] for place in places]
    path = write_index(tmp_path / "d.parquet", images, [mask(3)] * 40, [True] * 40)
    census = take_census(IndexTable(path), decode_images=True)
    assert census.unreadable == 40
    assert os.path.basename(path) in census.problems[0]
