import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training.class_files import palette_png
from training.index_files import GARBAGE, SIZE, image, mask, png, write_index, write_simple, zeros

from fastseg_losses.training.augment import Augmentation
from fastseg_losses.training.decode import DataError
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import BINARY_IGNORED, Labels
from fastseg_losses.training.samples import MEAN, STD, Draw, ParquetSegmentation, normalised


def dataset(path: Path, size: int = SIZE, **options: object) -> ParquetSegmentation:
    index = IndexTable(path)
    return ParquetSegmentation(index, range(len(index)), size, **options)  # type: ignore[arg-type]


def test_a_sample_is_the_picture_to_be_normalised(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    drawn = np.random.default_rng(1).integers(0, 2, (SIZE, SIZE), np.uint8)
    sample = dataset(write_index(tmp_path / "s.parquet", [png(rgb)], [png(drawn)], [True]))[0]
    expected = (rgb / 255.0 - MEAN) / STD
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, SIZE, SIZE)
    image = normalised(sample["image"])
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    batch = torch.stack([sample["image"]] * 3)
    assert torch.equal(normalised(batch), torch.stack([image] * 3))  # bit by bit
    assert sample["mask"].dtype == torch.uint8
    assert torch.equal(sample["mask"], torch.from_numpy(drawn)[None])
    assert sample["valid"].dtype == torch.bool
    assert sample["valid"].shape == ()
    assert bool(sample["valid"])
    assert sample["row"] == 0


def test_grey_equals_the_same_picture_as_rgb(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 31), np.uint8)
    cells = [png(grey), png(np.stack([grey] * 3, axis=-1))]
    masks = [png(np.zeros((20, 31), np.uint8))] * 2
    data = dataset(write_index(tmp_path / "s.parquet", cells, masks, [True, True]))
    assert torch.equal(data[0]["image"], data[1]["image"])


def test_mask_is_resized_to_nearest_and_image_is_interpolated(tmp_path: Path) -> None:
    half = np.zeros((8, 4), np.uint8)
    half[:, 2:] = 255
    path = write_index(tmp_path / "s.parquet", [png(half)], [png(half)], [True])
    sample = dataset(path, 16)[0]
    assert sample["image"].shape == (3, 16, 16)
    expected = torch.zeros(1, 16, 16, dtype=torch.uint8)
    expected[:, :, 8:] = 1
    assert torch.equal(sample["mask"], expected)
    assert len(sample["image"][0].unique()) > 2


@pytest.mark.parametrize(
    "unread", [None, zeros(), mask(5), GARBAGE, png(np.zeros((2, 2), np.uint8))]
)
@pytest.mark.parametrize("how", [Augmentation(), Augmentation(30, 0.3, 0.2)])
def test_unannotated_rows_never_depend_on_their_mask(
    tmp_path: Path, unread: bytes | None, how: Augmentation
) -> None:
    flags = [True, False, False, True]
    images, masks = [image(i) for i in range(4)], [mask(i) for i in range(4)]
    plain = dataset(write_index(tmp_path / "a.parquet", images, masks, flags), augment=how)
    masks[1] = masks[2] = unread  # type: ignore[call-overload]
    other = dataset(write_index(tmp_path / "b.parquet", images, masks, flags), augment=how)
    for epoch in range(4):
        for position, annotated in enumerate(flags):
            a, b = plain[epoch, position], other[epoch, position]
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["mask"], b["mask"])
            assert bool(a["valid"]) == bool(b["valid"]) == annotated
            assert bool(b["mask"].any()) == annotated


def test_mask_column_is_not_even_read_for_unannotated_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, step: int, **options: Any) -> object:
        if "has_segmentation" not in options["columns"]:  # those are read when it is opened
            read.append((options["row_groups"], options["columns"]))
        return original(self, step, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    path = write_simple(
        tmp_path / "s.parquet", 4, has_segmentation=[False, False, True, True], row_group_size=2
    )
    data = dataset(path)
    for position in (0, 1, 2):
        data[position]
    assert read == [([0], ["image"]), ([1], ["image"]), ([1], ["mask"])]


@pytest.mark.parametrize("labels", [None, Labels(3, 255), Labels(3, 1), Labels(300, 65535)])
def test_a_pseudo_mask_ignores_what_it_is_unsure_of(labels: Labels | None, tmp_path: Path) -> None:
    drawn = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 2
    sure = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 > 0
    stored = (drawn * (255 if labels is None else 2)).astype(np.uint8)
    columns = {
        "mask_source": ["net", None],
        "confidence": [png(np.where(sure, 230, 229).astype(np.uint8)), b"garbage"],
    }
    path = tmp_path / "s.parquet"
    write_index(path, [image(0), image(1)], [png(stored)] * 2, [False] * 2, **columns)
    index = IndexTable(path)
    data = ParquetSegmentation(index, [0, 1], SIZE, labels=labels, pseudo_confidence=0.9)
    ignored = 255 if labels is None else labels.ignore_index
    value = 1 if labels is None else 2
    assert np.array_equal(data[0]["mask"][0].numpy(), np.where(sure, drawn * value, ignored))
    assert bool(data[0]["pseudo"]) and not bool(data[0]["valid"])
    assert not data[1]["mask"].any() and not bool(data[1]["pseudo"])
    off = ParquetSegmentation(index, [0, 1], SIZE, labels=labels)
    assert not off[0]["mask"].any() and not bool(off[0]["pseudo"])


def test_an_annotated_row_is_never_a_pseudo_mask(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "s.parquet", 2, mask_source=["net", None])
    data = ParquetSegmentation(IndexTable(path), [0], SIZE, pseudo_confidence=0.9)
    assert bool(data[0]["valid"]) and not bool(data[0]["pseudo"])
    with pytest.raises(ValueError, match="never read, the row has no pseudo-mask"):
        data.index.pseudo_cell(0, "mask")


def test_flips_depend_on_seed_epoch_and_row_only(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "s.parquet", 6)
    index = IndexTable(path)
    plain = ParquetSegmentation(index, range(6), SIZE)
    data = ParquetSegmentation(index, range(6), SIZE, augment=Augmentation(), seed=3)
    seen = set()
    for epoch in range(6):
        for position in range(6):
            sample, source = data[epoch, position], plain[position]
            matching = [
                dims
                for dims in ((), (1,), (2,), (1, 2))
                if torch.equal(sample["image"], source["image"].flip(dims))
                and torch.equal(sample["mask"], source["mask"].flip(dims))
            ]
            assert len(matching) == 1  # image and mask flipped alike
            seen.add(matching[0])
    assert seen == {(), (1,), (2,), (1, 2)}
    # Another order of rows, a single row and no cache give the same samples.
    other = ParquetSegmentation(index, [5, 2], SIZE, augment=Augmentation(), seed=3, cache_bytes=0)
    assert torch.equal(other[4, 0]["image"], data[4, 5]["image"])
    assert torch.equal(other[4, 1]["mask"], data[4, 2]["mask"])
    reseeded = ParquetSegmentation(index, range(6), SIZE, augment=Augmentation(), seed=4)
    assert any(not torch.equal(reseeded[0, i]["image"], data[0, i]["image"]) for i in range(6))


def test_full_augmentation_depends_on_seed_epoch_and_row_only(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet", 6))
    how = Augmentation(30, 0.3, 0.2)
    data = ParquetSegmentation(index, range(6), SIZE, augment=how, seed=3)
    other = ParquetSegmentation(index, [5, 2], SIZE, augment=how, seed=3, cache_bytes=0)
    for epoch in (0, 4):
        for place, position in enumerate((5, 2)):
            a, b = other[epoch, place], data[epoch, position]
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["mask"], b["mask"])
    assert not torch.equal(data[0, 2]["image"], data[1, 2]["image"])
    values = {int(v) for position in range(6) for v in data[0, position]["mask"].unique()}
    assert values == {0, 1, BINARY_IGNORED}
    labels = Labels(2, 7)
    classes = ParquetSegmentation(index, range(6), SIZE, augment=how, seed=3, labels=labels)
    values = {int(v) for position in range(6) for v in classes[0, position]["mask"].unique()}
    assert values == {0, 1, labels.ignore_index}


def test_a_draw_can_be_a_repeat_or_not_count(tmp_path: Path) -> None:
    data = dataset(write_simple(tmp_path / "s.parquet", 3), augment=Augmentation(30, 0.3, 0.2))
    once, twice = data[Draw(1, 2)], data[Draw(1, 2, repeat=1)]
    assert torch.equal(once["image"], data[1, 2]["image"])
    assert not torch.equal(once["image"], twice["image"])
    uncounted = data[Draw(1, 2, counts=False)]
    assert torch.equal(once["image"], uncounted["image"])
    assert bool(once["valid"])
    assert not bool(uncounted["valid"])


def test_rotation_knows_the_aspect_ratio_of_the_file(tmp_path: Path) -> None:
    # A disk in a picture twice as wide as high, turned by any angle, stays half as wide as high.
    y, x = np.mgrid[0:40, 0:80] + 0.5
    disk = ((y - 20) ** 2 + (x - 40) ** 2 <= 15**2).astype(np.uint8)
    path = write_index(tmp_path / "s.parquet", [png(disk)], [png(disk)], [True])
    data = dataset(path, 64, augment=Augmentation(rotate=180))
    for epoch in range(20):
        rows, columns = torch.nonzero(data[epoch, 0]["mask"][0] == 1, as_tuple=True)
        assert float(rows.double().std() / columns.double().std()) == pytest.approx(2, rel=0.05)


def test_decoded_samples_are_kept_only_within_the_budget(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "s.parquet", 3)
    need = 3 * 4 * SIZE * SIZE
    for budget, kept in ((need, 3), (need - 1, 0), (0, 0)):
        data = dataset(path, cache_bytes=budget)
        first = [data[i] for i in range(3)]
        assert len(data._decoded) == kept
        first[0]["image"].zero_()  # what a caller does to a sample must not reach the cache
        first[0]["mask"].fill_(9)
        assert data[0]["image"].any()
        assert data[0]["mask"].max() == 1
        assert not pickle.loads(pickle.dumps(data))._decoded


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("image", GARBAGE, "expected an encoded PNG or JPEG"),
        ("image", image(1)[:200], "cannot decode"),
        ("image", image(1, size=SIZE + 1), None),
        ("mask", None, "got null"),
        ("mask", GARBAGE, "expected an encoded PNG or JPEG"),
        ("mask", mask(1)[:50], "cannot decode|expected an encoded"),
        ("mask", mask(1, size=SIZE + 1), f"expected a mask as large as its image, {SIZE}x{SIZE}"),
        ("mask", mask(1, high=7), "expected the mask values 0 and 1, or 0 and 255, got 0, 7"),
        ("mask", image(1), "one channel"),
    ],
)
def test_bad_cell_names_file_row_and_column(
    tmp_path: Path, column: str, cell: bytes | None, message: str | None
) -> None:
    cells = {"image": [image(0), image(1)], "mask": [mask(0), mask(1)]}
    cells[column][1] = cell  # type: ignore[call-overload]
    path = write_index(
        tmp_path / "s.parquet", cells["image"], cells["mask"], [True, True], image_id=["x", "y"]
    )
    data = dataset(path)
    data[0]
    if message is None:  # a wrong size is blamed on the mask
        column, message = "mask", f"its image, {SIZE + 1}x{SIZE + 1}"
    with pytest.raises(DataError, match=message) as caught:
        data[1]
    assert f"{path}: row 1 (image_id 'y'), column {column!r}" in str(caught.value)


def test_image_size_limit_is_the_index_own(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet", 1), max_pixels=SIZE * SIZE - 1)
    with pytest.raises(DataError, match="row 0, column 'image': 12x12 is 144 pixels"):
        ParquetSegmentation(index, [0], SIZE)[0]


def test_arguments_out_of_range(tmp_path: Path) -> None:
    index = IndexTable(write_simple(tmp_path / "s.parquet", 2))
    with pytest.raises(ValueError, match="image_size: expected at least 1, got 0"):
        ParquetSegmentation(index, [0], 0)
    with pytest.raises(TypeError, match="image_size: expected an int, got float"):
        ParquetSegmentation(index, [0], 8.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed: expected at least 0"):
        ParquetSegmentation(index, [0], 8, seed=-1)
    for row in (-1, 2):
        with pytest.raises(ValueError, match=f"rows: expected numbers from 0 to 1, got {row}"):
            ParquetSegmentation(index, [0, row], 8)


@pytest.mark.parametrize(
    ("labels", "dtype"), [(Labels(4, 255), "uint8"), (Labels(300, 255), "int32")]
)
def test_class_ids_reach_the_sample_and_are_never_interpolated(
    tmp_path: Path, labels: Labels, dtype: str
) -> None:
    ids = np.zeros((8, 4), np.uint8)
    ids[:, 2:], ids[:2] = 3, 255
    cells = [palette_png(ids), GARBAGE]
    path = write_index(tmp_path / "s.parquet", [png(ids)] * 2, cells, [True, False])
    data = dataset(path, 16, labels=labels)
    expected = torch.zeros(1, 16, 16, dtype=getattr(torch, dtype))
    expected[:, :, 8:], expected[:, :4] = 3, 255
    assert torch.equal(data[0]["mask"], expected)
    assert data[0]["mask"].dtype == expected.dtype
    # Not annotated: the mask's bytes are never read, and the type is that of its neighbours.
    assert torch.equal(data[1]["mask"], torch.zeros_like(expected))
    assert data[1]["mask"].dtype == expected.dtype
    assert not data[1]["valid"]


def test_class_ids_out_of_range_name_file_row_column_and_values(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    path = write_index(tmp_path / "s.parquet", [png(ids)] * 2, [png(ids)] * 2, [True] * 2)
    message = "row 1, column 'mask': expected class ids from 0 to 1, or 255, got 0, 1, 2, 255"
    with pytest.raises(DataError, match=message) as caught:
        dataset(path, 2, labels=Labels(2, 255))[1]
    assert str(path) in str(caught.value)
