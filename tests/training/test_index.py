import os
import pickle
import re
from pathlib import Path

import pyarrow as pa
import pytest
from training.index_files import GARBAGE, image, mask, write_index, write_simple

from fastseg_losses.training import index as index_module
from fastseg_losses.training.decode import DataError
from fastseg_losses.training.index import IndexTable


def refused(path: Path, *parts: str, **options: int) -> None:
    """Opening must fail with a ValueError that names the file and each of the parts."""
    with pytest.raises(ValueError) as caught:
        IndexTable(path, **options)
    assert isinstance(caught.value, DataError)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.parquet", "no such file")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    refused(tmp_path, "folder")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").touch()
    refused(tmp_path / "set.parquet", "empty")


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"PAR1" + bytes(40) + b"PAR1"])
def test_not_a_parquet_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.parquet").write_bytes(content)
    refused(tmp_path / "set.parquet", "not a readable parquet file")


def test_truncated_parquet_file(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "set.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "not a readable parquet file")


def test_no_rows(tmp_path: Path) -> None:
    nothing = {
        "image": pa.array([], pa.binary()),
        "mask": pa.array([], pa.binary()),
        "has_segmentation": pa.array([], pa.bool_()),
    }
    refused(write_index(tmp_path / "set.parquet", [], [], [], **nothing), "no rows")
    # As pandas writes it: without a value, the columns have no type either.
    refused(write_index(tmp_path / "untyped.parquet", [], [], []), "no rows")


@pytest.mark.parametrize("column", ["image", "mask", "has_segmentation"])
def test_missing_column(tmp_path: Path, column: str) -> None:
    path = write_simple(tmp_path / "set.parquet", 2, **{column: None})
    refused(path, f"column {column!r} is missing")


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("image", [1, 2], "int64"),
        ("image", [None, None], "null"),
        ("image", [{"bytes": b"", "path": ""}] * 2, "struct"),
        ("mask", [0.5, 1.0], "double"),
        ("has_segmentation", [1, 0], "int64"),
        ("has_segmentation", ["true", "false"], "string"),
        ("split", [0, 1], "int64"),
    ],
)
def test_wrong_column_type(tmp_path: Path, column: str, values: list[object], found: str) -> None:
    path = write_simple(tmp_path / "set.parquet", 2, **{column: values})
    refused(path, f"column {column!r}", "expected", found)


def test_null_flag_is_named_by_row_and_image_id(tmp_path: Path) -> None:
    path = write_simple(
        tmp_path / "set.parquet", 3, has_segmentation=[True, None, None], image_id=["a", "b", "c"]
    )
    refused(path, "row 1 (image_id 'b')", "column 'has_segmentation'", "null")


@pytest.mark.parametrize("name", [None, "test", "Train"])
def test_unknown_split(tmp_path: Path, name: str | None) -> None:
    path = write_simple(tmp_path / "set.parquet", 2, split=["train", name])
    refused(path, "row 1", "column 'split'", repr(name))


def test_huge_row_group_is_refused_with_the_remedy(tmp_path: Path) -> None:
    refused(write_simple(tmp_path / "set.parquet"), "row_group_size=", max_group_bytes=500)


def test_every_binary_and_string_type_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image(0))
    for kind in (pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())):
        path = write_simple(tmp_path / "b.parquet", 2, image=pa.array([image(0)] * 2, kind))
        assert IndexTable(path).image_cell(1) == image(0)
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        path = write_simple(tmp_path / "s.parquet", 2, image=pa.array(["a.png"] * 2, kind))
        index = IndexTable(path)
        assert index.encoded(index.image_cell(1), 1, "image") == image(0)


def test_cells_are_found_across_row_groups(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "set.parquet", 8, row_group_size=3))
    assert len(index) == 8
    assert [index.group_of(row) for row in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [index.image_cell(row) for row in range(8)] == [image(row) for row in range(8)]
    assert [index.mask_cell(row) for row in range(8)] == [mask(row) for row in range(8)]


def test_mask_of_an_unannotated_row_cannot_be_asked_for(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "set.parquet", 2, has_segmentation=[True, False]))
    with pytest.raises(ValueError, match="row 1.*'mask'.*never read"):
        index.mask_cell(1)


def test_null_mask_marked_as_annotated(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "set.parquet", 2, mask=[mask(0), None]))
    with pytest.raises(DataError, match="row 1, column 'mask'.*has_segmentation is true, got null"):
        index.mask_cell(1)


def test_null_image(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "set.parquet", 2, image=[image(0), None]))
    with pytest.raises(DataError, match="row 1, column 'image': expected an image, got null"):
        index.image_cell(1)


def test_mask_column_without_any_mask(tmp_path: Path) -> None:
    path = write_simple(
        tmp_path / "set.parquet", 2, mask=[None, None], has_segmentation=[False] * 2
    )
    assert not IndexTable(path).has_segmentation.any()


def test_damaged_page_is_named(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "set.parquet", 3)
    index = IndexTable(path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(60) + content[64:])  # the first page of the first column
    with pytest.raises(DataError, match="row group 0 .rows 0 to 2., column 'image'"):
        index.image_cell(0)


def test_file_that_changed_is_noticed_when_opened_again(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "set.parquet", 3)
    index = pickle.loads(pickle.dumps(IndexTable(path)))
    write_simple(path, 4)
    with pytest.raises(DataError, match="changed while in use: 3 rows before, 4 now"):
        index.image_cell(0)


def test_pickled_index_leaves_handle_and_cache_behind(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "set.parquet"))
    index.image_cell(0)
    copy = pickle.loads(pickle.dumps(index))
    assert copy._file is None
    assert not copy._cache
    assert copy.image_cell(5) == image(5)


def test_row_group_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = IndexTable(write_simple(tmp_path / "set.parquet", 8, row_group_size=1))
    monkeypatch.setattr(index_module, "GROUP_CACHE_BYTES", 3 * len(image(0)))
    for row in range(8):
        index.image_cell(row)
        assert index._cached_bytes() <= 3 * len(image(0)) + 100
    assert (7, "image") in index._cache
    assert (0, "image") not in index._cache


def outside(tmp_path: Path, cell: str) -> Path:
    (tmp_path / "secret.png").write_bytes(image(0))
    return write_simple(tmp_path / "set" / "index.parquet", 1, image=[cell])


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_path_out_of_the_folder(tmp_path: Path, kind: str) -> None:
    cell = {"parent": "../secret.png", "absolute": str(tmp_path / "secret.png"), "link": "l.png"}
    path = outside(tmp_path, cell[kind])
    if kind == "link":
        (path.parent / "l.png").symlink_to(tmp_path / "secret.png")
    index = IndexTable(path)
    message = (
        f"row 0, column 'image': the path .*{re.escape(cell[kind])}.* leads out of the index's "
        f"folder '{tmp_path}/set'; --allow-outside "
    )
    with pytest.raises(DataError, match=message):
        index.encoded(index.image_cell(0), 0, "image")
    index = IndexTable(path, allow_outside=True)
    assert index.encoded(index.image_cell(0), 0, "image") == image(0)


def test_a_folder_that_is_a_link_leads_out_too(tmp_path: Path) -> None:
    path = outside(tmp_path, "pictures/secret.png")
    (path.parent / "pictures").symlink_to(tmp_path)
    index = IndexTable(path)
    with pytest.raises(DataError, match="leads out of the index's folder"):
        index.encoded(index.image_cell(0), 0, "image")


def test_an_absolute_path_into_the_folder_is_inside(tmp_path: Path) -> None:
    # As scripts write them; also where the index is opened through a link to its folder.
    path = tmp_path / "set" / "index.parquet"
    write_simple(path, 1, image=[str(tmp_path / "set" / "a.png")])
    (tmp_path / "set" / "a.png").write_bytes(image(0))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for opened in (path, tmp_path / "link" / "index.parquet"):
        index = IndexTable(opened)
        assert index.encoded(index.image_cell(0), 0, "image") == image(0)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("gone.png", "no such file"),
        ("", "expected a file, got the folder"),
        (".", "expected a file, got the folder"),
        ("folder.png", "expected a file, got the folder"),
        ("a\0b.png", "cannot read"),
        ("x" * 5000, "cannot read 'x+'... .5000 letters"),
        ("circle.png", "cannot read|no such file"),
        ("pipe.png", "no such file"),
    ],
)
def test_path_without_a_readable_file(tmp_path: Path, cell: str, reason: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    os.mkfifo(tmp_path / "pipe.png")
    index = IndexTable(write_simple(tmp_path / "set.parquet", 1, mask=[cell]))
    with pytest.raises(
        DataError, match=rf"set\.parquet: row 0, column 'mask': ({reason})"
    ) as caught:
        index.encoded(index.mask_cell(0), 0, "mask")
    assert len(str(caught.value)) < 500


def test_path_that_leaves_and_comes_back_is_inside(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(image(0))
    path = write_simple(tmp_path / "set.parquet", 1, image=["images/../images/a.png"])
    index = IndexTable(path)
    assert index.encoded(index.image_cell(0), 0, "image") == image(0)


def test_bytes_are_never_taken_for_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image(0))
    index = IndexTable(write_simple(tmp_path / "set.parquet", 1, image=[b"a.png"]))
    assert index.encoded(index.image_cell(0), 0, "image") == b"a.png" != GARBAGE
