"""The pixels of the collapse study: decoded once, with a sparse variant, in one file.

Decoding needs the trainer's packages (pyarrow, Pillow), reading the file needs NumPy alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# Foreground of the sparse set: about half of its images hold one small object, twice this share.
SPARSE_SHARE = 0.002
# Of an image's pixels, so many at least must be background to paint over objects with.
SPARSE_BACKGROUND = 0.05
# An object's rim, which resizing has mixed with its surroundings.
RIM = 2


class Pixels(NamedTuple):
    """One set at one size: every row annotated, train rows and validation rows."""

    images: Bytes  # (N, 3, S, S)
    masks: Bytes  # (N, 1, S, S), 0 or 1
    is_val: Bools  # (N,)


class Packed(NamedTuple):
    """What a study trains on."""

    sets: dict[str, Pixels]
    mean: npt.NDArray[np.float32]  # (3,); image = (pixels / 255 - mean) / std
    std: npt.NDArray[np.float32]
    refusals: dict[str, int]  # the trainer's exit code by loss, no training row annotated


def pack(index_path: Path, target: Path, *, size: int, losses: dict[str, dict[str, Any]]) -> None:
    """Decode an index whose rows are all annotated, and let the trainer refuse its bare variant.

    Args:
        index_path: the parquet index.
        target: the .npz to write.
        size: height and width of the images in pixels.
        losses: settings of the trainer by loss, for the refusals.

    Raises:
        ValueError: a row is not annotated, or one side has no foreground.
    """
    from fastseg_losses.training.data import ParquetSegmentation, open_index
    from fastseg_losses.training.samples import MEAN, STD

    splits = open_index(index_path)
    train, val = splits.train_all.rows, splits.val_all.rows
    rows = [*train, *val]
    if not splits.train_all.index.has_segmentation[rows].all():
        raise ValueError(f"{index_path}: expected every row annotated, so that the truth is known")
    data = ParquetSegmentation(splits.train_all.index, rows, size)
    samples = [data[place] for place in range(len(data))]
    images = np.stack([sample["image"].numpy() for sample in samples])
    if images.dtype != np.uint8:
        raise TypeError(f"samples: expected uint8 images, got {images.dtype}")
    masks = np.stack([sample["mask"].numpy() for sample in samples])
    is_val = np.arange(len(rows)) >= len(train)
    sets = {"nuclei": Pixels(images, masks, is_val)}
    sets["sparse"] = sparse_set(sets["nuclei"])
    for name, pixels in sets.items():
        if not all(pixels.masks[pixels.is_val == side].any() for side in (False, True)):
            raise ValueError(f"{index_path}: expected foreground on both sides of the {name} set")
    arrays = {f"{name}_{part}": array for name, s in sets.items() for part, array in _parts(s)}
    refusals = {name: refusal(index_path, settings) for name, settings in losses.items()}
    arrays |= {"mean": np.array(MEAN, np.float32), "std": np.array(STD, np.float32)}
    np.savez_compressed(target, refusals=json.dumps(refusals), **arrays)


def load(path: Path) -> Packed:
    """Read what :func:`pack` wrote."""
    with np.load(path) as file:
        names = [key.removesuffix("_images") for key in file.files if key.endswith("_images")]
        sets = {n: Pixels(*(file[f"{n}_{part}"] for part in Pixels._fields)) for n in names}
        return Packed(sets, file["mean"], file["std"], json.loads(str(file["refusals"])))


def refusal(index_path: Path, settings: dict[str, Any]) -> int:
    """The exit code of the trainer on this index with no training row annotated."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fastseg_losses.training.config import resolve
    from fastseg_losses.training.data import open_index
    from fastseg_losses.training.launch import launch

    val = set(open_index(index_path).val_all.rows)
    table = pq.read_table(index_path)
    names = ["val" if row in val else "train" for row in range(len(table))]
    with tempfile.TemporaryDirectory() as folder:
        bare = table.drop_columns(
            [c for c in ("split", "has_segmentation") if c in table.schema.names]
        )
        bare = bare.append_column("split", pa.array(names))
        bare = bare.append_column("has_segmentation", pa.array([n == "val" for n in names]))
        data = Path(folder) / "index.parquet"
        pq.write_table(bare, data, row_group_size=32)
        run = {"data": str(data), "output_dir": str(Path(folder) / "run"), "device": "cpu"}
        return launch(resolve(settings | run | {"max_steps": 1, "num_workers": 0}))


def undrawn_rows(rows: int, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Which training rows nobody annotated: exactly round(share x rows), whatever they show.

    Of one seed, the rows of a smaller share are among those of a larger one.

    Args:
        rows: how many training rows there are.
        share: from 0 to 1.
        seed: the run's seed.
    """
    order = np.random.default_rng((seed, rows)).permutation(rows)
    return np.sort(order[: round(share * rows)])


def sparse_set(pixels: Pixels) -> Pixels:
    """The same images with one small object in about half of them and none in the others.

    All other objects are painted over with pixels of the image's own background, so that every
    mask is right. Images that are too full for that are left out.
    """
    size = pixels.masks.shape[-1]
    wanted = 2 * SPARSE_SHARE * size**2
    parts = []
    for side in (False, True):
        rng = np.random.default_rng(int(side))
        rows = rng.permutation(np.flatnonzero(pixels.is_val == side))
        rows = np.array(
            [r for r in rows if _background(pixels.masks[r, 0]).mean() >= SPARSE_BACKGROUND]
        )
        images, masks = pixels.images[rows].copy(), np.zeros_like(pixels.masks[rows])
        missing = SPARSE_SHARE * masks.size
        for image, mask, truth in zip(images, masks, pixels.masks[rows, 0], strict=True):
            if missing > wanted / 2:
                mask[0] = small_object(truth.astype(bool), wanted)
            missing -= mask.sum()
            _paint_over(image, truth.astype(bool), mask[0].astype(bool), rng)
        order = np.argsort(rows)  # the objects not all at the front
        parts.append(Pixels(images[order], masks[order], np.full(len(rows), side)))
    return Pixels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def small_object(mask: Bools, wanted: float) -> Bools:
    """The object of a mask (H, W) whose area is nearest to `wanted`, within a factor of two.

    Objects are what hangs together, corners included; nothing where none fits.
    """
    names = components(mask)
    areas = np.bincount(names.ravel())
    areas[0] = 0
    nearest = int(np.argmin(np.abs(areas - wanted)))
    if not wanted / 2 <= areas[nearest] <= 2 * wanted:
        return np.zeros_like(mask)
    return names == nearest


def components(mask: Bools) -> npt.NDArray[np.int64]:
    """A number from 1 for each object of a mask (H, W), corners included; 0 for the background."""
    names = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, _largest_near(names), 0)
        if (spread == names).all():
            numbers = np.unique(np.append(0, names), return_inverse=True)[1]
            return numbers[1:].reshape(mask.shape)
        names = spread


def _largest_near(values: npt.NDArray[Any], reach: int = 1) -> npt.NDArray[Any]:
    """The largest value within `reach` pixels in both directions, (H, W)."""
    for axis in (0, 1):
        moved = np.pad(np.moveaxis(values, axis, 0), ((reach, reach), (0, 0)))
        count = len(moved) - 2 * reach
        largest = np.max([moved[k : k + count] for k in range(2 * reach + 1)], axis=0)
        values = np.moveaxis(largest, 0, axis)
    return values


def _background(mask: npt.NDArray[Any]) -> Bools:
    return ~_largest_near(mask.astype(bool), RIM)


def _paint_over(image: Bytes, truth: Bools, kept: Bools, rng: np.random.Generator) -> None:
    """Replace the objects of an image (3, H, W) but the kept one, rims included, in place."""
    gone = _largest_near(truth & ~kept, RIM) & ~_largest_near(kept, 1)
    places = np.flatnonzero(_background(truth))
    flat = image.reshape(3, -1)
    flat[:, np.flatnonzero(gone)] = flat[:, rng.choice(places, int(gone.sum()))]


def _parts(pixels: Pixels) -> list[tuple[str, npt.NDArray[Any]]]:
    return list(zip(Pixels._fields, pixels, strict=True))
