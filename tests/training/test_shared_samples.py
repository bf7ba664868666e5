import io
import multiprocessing
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from training.index_files import SIZE, encode, image, mask, write_index

from fastseg_losses.training import samples as samples_module
from fastseg_losses.training import shared_samples
from fastseg_losses.training.augment import Augmentation
from fastseg_losses.training.data import IndexTable, ParquetSegmentation, Sample, make_loader
from fastseg_losses.training.labels import Labels
from fastseg_losses.training.shared_samples import Decoded, SharedSamples, is_room_for

ROWS = 8
NEEDED = ROWS * 4 * SIZE**2


def write_files(folder: Path) -> ParquetSegmentation:
    """Rows whose pictures are files of their own, every other one grey."""
    for row in range(ROWS):
        picture = Image.open(io.BytesIO(image(row)))
        grey = encode(picture.convert("L"), "PNG")
        (folder / f"{row}.png").write_bytes(grey if row % 2 else image(row))
        (folder / f"{row}-mask.png").write_bytes(mask(row))
    path = write_index(
        folder / "s.parquet",
        [f"{row}.png" for row in range(ROWS)],
        [f"{row}-mask.png" for row in range(ROWS)],
        [row != 3 for row in range(ROWS)],
    )
    return ParquetSegmentation(
        IndexTable(path), range(ROWS), SIZE, augment=Augmentation(20, 0.2, 0.2), seed=1
    )


def loader_of(
    data: ParquetSegmentation, workers: int, start_method: str | None = None
) -> "DataLoader[Sample]":
    return make_loader(
        data,
        batch_size=1,
        shuffle=True,
        num_workers=workers,
        seed=1,
        drop_last=False,
        start_method=start_method,
    )


@pytest.mark.parametrize(("start_method", "workers"), [("fork", 2), ("spawn", 2)])
def test_what_one_worker_decoded_all_have(tmp_path: Path, start_method: str, workers: int) -> None:
    data = write_files(tmp_path)
    plain = loader_of(data, 0)
    expected = [list(plain) for _ in range(3)]
    shared = write_files(tmp_path)
    loader = loader_of(shared, workers, start_method)
    epochs = [list(loader)]
    for path in tmp_path.glob("*.png"):
        path.unlink()
    # From here on a row has to come from memory, whichever worker it was given to before.
    epochs += [list(loader) for _ in range(2)]
    for ours, theirs in zip(epochs, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            for key in ("image", "mask", "valid", "row"):
                assert torch.equal(a[key], b[key])  # type: ignore[literal-required]
    # And the process that started them has it too.
    assert torch.equal(shared[0, 5]["image"], data[0, 5]["image"])


def test_samples_that_do_not_fit_are_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_files(tmp_path)
    for budget, shared in ((NEEDED, True), (NEEDED - 1, False), (0, False)):
        data.cache_bytes = budget
        assert data.share_decoded("fork") == shared
    data.cache_bytes = NEEDED
    monkeypatch.setattr(samples_module, "is_room_for", lambda needed: needed < NEEDED)
    assert not write_files(tmp_path).share_decoded("fork")
    # Each worker then keeps its own, in its share of the budget; the batches are the same.
    plain = write_files(tmp_path)
    first, second = list(loader_of(plain, 2)), list(loader_of(plain, 0))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


def test_room_is_twice_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, 100)
    monkeypatch.setattr(shared_samples.shutil, "disk_usage", lambda path: usage)
    assert is_room_for(50)
    assert not is_room_for(51)


@pytest.mark.parametrize("labels", [None, Labels(300, 255)])
def test_a_row_comes_back_as_it_was(labels: Labels | None) -> None:
    dtype = "uint8" if labels is None else labels.dtype
    rng = np.random.default_rng(0)
    cache = SharedSamples(3, 5, dtype, multiprocessing.get_context("fork"))
    for position, channels in ((2, 3), (0, 1)):
        assert cache.get(position) is None
        pixels = rng.integers(0, 256, (channels, 5, 5), np.uint8)
        drawn = rng.integers(0, 200, (1, 5, 5)).astype(dtype)
        cache[position] = Decoded(pixels, drawn, 1.25)
        found = cache.get(position)
        assert found is not None
        assert np.array_equal(found.image, pixels)
        assert np.array_equal(found.mask, drawn)
        assert found.mask.dtype == drawn.dtype
        assert found.aspect == 1.25
    assert cache.get(1) is None
