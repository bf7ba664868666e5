import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from training.index_files import GARBAGE, png, write_index, zeros
from training.pseudo_files import Bright, cells, fill
from training.runs import squares, write_set

from fastseg_losses.training.data import open_index
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import Labels
from fastseg_losses.training.predictor import Prediction
from fastseg_losses.training.pseudo_writer import PseudoWriter
from fastseg_losses.training.training_options import TrainingOptions

ANNOTATED = [True, False, False, True, False, True, False]
NEW = ["mask_source", "mask_confidence", "confidence"]


def write_bytes(path: Path, **columns: Any) -> Path:
    """Seven rows, the annotated ones with true masks and the others with whatever was there."""
    images, masks = squares(len(ANNOTATED))
    junk = [None, zeros(), GARBAGE, None]
    stored = [mask if ok else junk.pop() for mask, ok in zip(masks, ANNOTATED, strict=True)]
    return write_index(path, images, stored, ANNOTATED, **columns)


def pixels(cell: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell)))


def test_unannotated_rows_are_filled_and_stay_unannotated(tmp_path: Path) -> None:
    source = write_bytes(tmp_path / "in.parquet")
    out = fill(source, tmp_path / "out.parquet")
    assert cells(out, "has_segmentation") == ANNOTATED
    sources = cells(out, "mask_source")
    assert sources == [None if ok else "bright@0" for ok in ANNOTATED]
    for row, ok in enumerate(ANNOTATED):
        mask, confidence = cells(out, "mask")[row], cells(out, "confidence")[row]
        mean = cells(out, "mask_confidence")[row]
        if ok:
            assert (mask, confidence, mean) == (cells(source, "mask")[row], None, None)
            continue
        bright = pixels(cells(out, "image")[row]) > 100
        assert np.array_equal(pixels(mask), bright * 255)
        assert mean == pytest.approx(0.8)
        assert pixels(confidence).dtype == np.uint8
        assert np.unique(pixels(confidence)).tolist() == [153, 255]
        assert pixels(confidence).shape == bright.shape


def test_everything_else_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    extra = pa.array(["x", None, "y", "x", "y", "x", "x"]).dictionary_encode()
    table = pq.read_table(write_bytes(path, image_id=list("abcdefg")))
    table = table.append_column("site", extra).append_column("n", pa.array([7] * 7, pa.int8()))
    table = table.select(["n", "mask", "site", "has_segmentation", "image", "image_id"])
    table = table.replace_schema_metadata({"owner": "us", "pandas": "{}"})
    pq.write_table(table, path, row_group_size=2, compression="zstd")
    out = fill(path, tmp_path / "out.parquet")
    before, after = pq.ParquetFile(path), pq.ParquetFile(out)
    assert after.schema_arrow.names == before.schema_arrow.names + NEW
    assert after.schema_arrow.metadata == before.schema_arrow.metadata
    sizes = [after.metadata.row_group(g).num_rows for g in range(after.metadata.num_row_groups)]
    assert sizes == [2, 2, 2, 1]
    assert after.metadata.row_group(0).column(0).compression == "ZSTD"
    old, new = before.read(), after.read()
    for name in ("n", "site", "has_segmentation", "image", "image_id"):
        assert new.schema.field(name).equals(old.schema.field(name))
        assert new[name].equals(old[name])
    kept = [row for row, ok in enumerate(ANNOTATED) if ok]
    assert new.select(old.column_names).take(kept).equals(old.take(kept))


def test_pandas_reads_its_own_file_back(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = write_bytes(tmp_path / "in.parquet")
    pandas.read_parquet(path).to_parquet(path)
    frame = pandas.read_parquet(fill(path, tmp_path / "out.parquet"))
    assert list(frame.columns) == ["image", "mask", "has_segmentation", *NEW]


def write_paths(folder: Path) -> Path:
    images, masks = squares(4)
    folder.mkdir()
    for i in range(4):
        (folder / f"i{i}.png").write_bytes(images[i])
        (folder / f"m{i}.png").write_bytes(masks[i])
    names = [f"i{i}.png" for i in range(4)]
    stored = ["m0.png", "never/there.png", None, "m3.png"]
    return write_index(folder / "in.parquet", names, stored, [True, False, False, True])


def test_masks_as_paths_become_files_beside_the_index(tmp_path: Path) -> None:
    source = write_paths(tmp_path / "set")
    out = fill(source, tmp_path / "set" / "out.parquet")
    assert cells(out, "mask") == [
        "m0.png",
        "out_masks/00000001.png",
        "out_masks/00000002.png",
        "m3.png",
    ]
    bright = pixels((tmp_path / "set" / "i1.png").read_bytes()) > 100
    assert np.array_equal(
        pixels((tmp_path / "set/out_masks/00000001.png").read_bytes()), bright * 255
    )
    assert isinstance(cells(out, "confidence")[1], bytes)
    data = open_index(out, use_pseudo=True, val_path=source).train
    assert data.index.pseudo_cell(1, "mask") == "out_masks/00000001.png"


def test_an_index_with_paths_keeps_its_folder(tmp_path: Path) -> None:
    source = write_paths(tmp_path / "set")
    with pytest.raises(ValueError, match=r"out: expected a file in .*set.*, since the paths"):
        fill(source, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))


def test_an_index_of_bytes_may_go_anywhere(tmp_path: Path) -> None:
    source = write_bytes(tmp_path / "a" / "in.parquet")
    assert fill(source, tmp_path / "out.parquet").exists()


def test_a_mask_column_of_nulls_becomes_bytes(tmp_path: Path) -> None:
    source = write_index(tmp_path / "in.parquet", squares(3)[0], [None] * 3, [False] * 3)
    assert pq.read_schema(source).field("mask").type == pa.null()
    out = fill(source, tmp_path / "out.parquet")
    assert pq.read_schema(out).field("mask").type == pa.binary()
    assert IndexTable(out).pseudo.rows.all()


def test_class_ids_are_written_as_ids(tmp_path: Path) -> None:
    source = write_index(tmp_path / "in.parquet", squares(2)[0], [None] * 2, [False] * 2)
    for count in (3, 300):
        labels = Labels(count, 65535 if count > 255 else 255)
        out = fill(source, tmp_path / f"{count}.parquet", Bright(labels))
        assert np.unique(pixels(cells(out, "mask")[0])).tolist() == [0, count - 1]


@pytest.mark.parametrize("name", ["out.parquet", "out_masks"])
def test_nothing_is_overwritten(name: str, tmp_path: Path) -> None:
    source = write_paths(tmp_path / "set")
    (tmp_path / "set" / name).write_text("mine")
    with pytest.raises(ValueError, match="out: .*exists already, and nothing is overwritten"):
        fill(source, tmp_path / "set" / "out.parquet")
    assert (tmp_path / "set" / name).read_text() == "mine"


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    source = write_paths(tmp_path / "set")
    before = sorted(path.name for path in (tmp_path / "set").iterdir())

    class Broken(Bright):
        def predict(self, *arguments: Any) -> Any:
            if self.boxes:
                raise KeyboardInterrupt
            return super().predict(*arguments)

    with pytest.raises(KeyboardInterrupt):
        fill(source, tmp_path / "set" / "out.parquet", Broken())
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == before


def test_a_file_that_came_into_being_meanwhile_stays(tmp_path: Path) -> None:
    source = write_bytes(tmp_path / "in.parquet")
    writer = PseudoWriter(IndexTable(source), tmp_path / "out.parquet")
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        writer.write(Bright())
    assert (tmp_path / "out.parquet").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_validation_rows_and_unreadable_images_get_none(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in.parquet", undrawn=[0, 5, 6], cell=zeros(32))
    table = pq.read_table(source).to_pydict()
    table["image"][6] = GARBAGE
    write_index(
        source, table["image"], table["mask"], table["has_segmentation"], split=table["split"]
    )
    summary = PseudoWriter(IndexTable(source), tmp_path / "out.parquet").write(Bright())
    out = IndexTable(tmp_path / "out.parquet")
    assert np.flatnonzero(out.pseudo.rows).tolist() == [0]
    assert cells(out.path, "mask")[6] == zeros(32)
    counts = (summary.filled, summary.validation, summary.unreadable, summary.unannotated)
    assert counts == (1, 1, 1, 3)
    (problem,) = summary.warnings()
    assert "row 6, column 'image'" in problem
    assert "Rows filled: 1 of 3" in summary.lines()[0]


def test_masks_can_be_made_anew(tmp_path: Path) -> None:
    first = fill(write_bytes(tmp_path / "in.parquet"), tmp_path / "first.parquet")
    other = Bright()
    other.source = "better@1"
    second = fill(first, tmp_path / "second.parquet", other)
    assert pq.read_schema(second).names == pq.read_schema(first).names
    assert set(cells(second, "mask_source")) == {None, "better@1"}


def test_somebody_elses_column_is_no_place_for_confidence(tmp_path: Path) -> None:
    source = write_bytes(tmp_path / "in.parquet", confidence=[0.5] * 7)
    with pytest.raises(ValueError, match="column 'confidence': expected binary.*got double"):
        fill(source, tmp_path / "out.parquet")


def test_nothing_to_fill_is_an_error(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in.parquet", undrawn=[5])  # a validation row
    with pytest.raises(ValueError, match="data: expected rows to fill"):
        fill(source, tmp_path / "out.parquet")


BOX = [2.0, 3.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("column", "given"),
    [
        ([BOX, None, BOX, None], [[BOX], [BOX]]),
        ([[BOX, BOX], None, [], None], [[BOX, BOX], []]),
    ],
)
def test_boxes_reach_the_predictor_that_takes_them(column: Any, given: Any, tmp_path: Path) -> None:
    source = write_index(
        tmp_path / "in.parquet", squares(4)[0], [None] * 4, [False] * 4, box=column
    )
    predictor = Bright(takes_boxes=True)
    summary = PseudoWriter(IndexTable(source), tmp_path / "out.parquet").write(predictor)
    assert [boxes.tolist() for boxes in predictor.boxes] == given
    assert all(boxes.shape[1:] == (4,) for boxes in predictor.boxes)
    assert summary.without_boxes == 2
    assert IndexTable(tmp_path / "out.parquet").pseudo.rows.tolist() == [True, False, True, False]
    other = Bright()
    fill(source, tmp_path / "other.parquet", other)
    assert other.boxes == [None] * 4


@pytest.mark.parametrize("box", [[1.0, 2.0, 3.0], [5.0, 5.0, 1.0, 9.0], [0.0, 0.0, 1.0, np.inf]])
def test_a_box_that_is_none_is_reported(box: list[float], tmp_path: Path) -> None:
    source = write_index(
        tmp_path / "in.parquet", squares(2)[0], [None] * 2, [False] * 2, box=[BOX, box]
    )
    writer = PseudoWriter(IndexTable(source), tmp_path / "out.parquet")
    summary = writer.write(Bright(takes_boxes=True))
    assert summary.filled == 1
    assert "row 1, column 'box': expected [left, top, right, bottom]" in summary.problems[0]


@pytest.mark.parametrize(("sure_of_dark", "warned"), [(0.4, True), (0.6, False)])
def test_a_threshold_that_leaves_little_is_warned_of(
    sure_of_dark: float, warned: bool, tmp_path: Path
) -> None:
    class OneSided(Bright):
        def predict(self, *arguments: Any) -> Prediction:
            mask, confidence = super().predict(*arguments)
            dark = np.flatnonzero(mask == 0)
            confidence[:] = 1.0
            unsure = TrainingOptions.pseudo_confidence / 2
            confidence.flat[dark[round(sure_of_dark * len(dark)) :]] = unsure
            return Prediction(mask, confidence)

    source = write_bytes(tmp_path / "in.parquet")
    summary = PseudoWriter(IndexTable(source), tmp_path / "out.parquet").write(OneSided())
    assert any("leaves 100.0% of foreground" in w for w in summary.warnings()) == warned


def test_masks_that_all_show_the_same_are_warned_of(tmp_path: Path) -> None:
    dark = [png(np.zeros((8, 8), np.uint8))] * 3
    source = write_index(tmp_path / "in.parquet", dark, [None] * 3, [False] * 3)
    summary = PseudoWriter(IndexTable(source), tmp_path / "out.parquet").write(Bright())
    assert "all 3 pseudo-masks show the value 0 alone" in summary.warnings()[0]
