from pathlib import Path
from typing import IO

import pytest

from fastseg_losses.training.run_folder import (
    check_free,
    is_unfinished,
    make_run_folder,
    write_atomically,
)


def test_numbered_folders_are_fresh_each_time(tmp_path: Path) -> None:
    names = [make_run_folder(None, parent=tmp_path / "runs").name for _ in range(3)]
    assert names == ["train-001", "train-002", "train-003"]


def test_a_gap_is_not_filled_and_other_names_do_not_matter(tmp_path: Path) -> None:
    for name in ("train-007", "train-x", "other"):
        (tmp_path / name).mkdir()
    assert make_run_folder(None, parent=tmp_path).name == "train-008"


def test_an_explicit_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert make_run_folder(str(path)) == path
    assert path.is_dir()


def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    assert make_run_folder(str(tmp_path)) == tmp_path


def test_a_folder_that_holds_something_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_text("precious")
    with pytest.raises(ValueError, match="output_dir: .*holds 1 entries"):
        make_run_folder(str(tmp_path))
    assert (tmp_path / "last.pt").read_text() == "precious"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match="output_dir: expected a folder"):
        check_free(str(path))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="output_dir: cannot make the folder '.*file/run'"):
        make_run_folder(str(tmp_path / "file" / "run"))


def test_only_what_precedes_the_first_epoch_is_unfinished(tmp_path: Path) -> None:
    for name in ("logs", "synthetic"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.json").touch()
    assert is_unfinished(tmp_path)
    for name in ("last.pt", "metrics.csv", "precious"):
        (tmp_path / name).touch()
        assert not is_unfinished(tmp_path)
        (tmp_path / name).unlink()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_old_content_stays_until_the_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def look(file: IO[bytes]) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, look)
    assert path.read_bytes() == b"new"
