"""Takes the census of a data set: what is annotated, what is empty, what a net can learn from.

Adding a loss term does not help where the masks are zero because nobody drew them, so this is
counted before training and not guessed afterwards.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from fastseg_losses.training.census import Census, ClassCensus
from fastseg_losses.training.decode import (
    DataError,
    binary_mask,
    check_same_size,
    class_mask,
    class_values,
    image_pixels,
    is_deep,
    largest_value,
    mask_values,
    open_picture,
    upright_size,
)
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import Labels

# Pixels of a mask.
COUNTED_AT_ONCE = 2**20


@dataclass(frozen=True)
class _Finding:
    """What one row showed: pixels of each value stored in its mask, and what is wrong with it."""

    counts: dict[int, int] = field(default_factory=dict)
    problem: str | None = None
    deep_largest: int | None = None  # largest value of a 16-bit image


def take_census(
    index: IndexTable,
    rows: Sequence[int] | None = None,
    *,
    decode_images: bool = False,
    labels: Labels | None = None,
) -> Census | ClassCensus:
    """Counts the states of rows and looks at every annotated mask.

    Masks are decoded in full; of an annotated row's image only the header is read, to compare
    sizes, unless it is a 16-bit one, whose largest value matters. Unreadable rows are counted, not
    raised.

    Args:
        index: The opened index.
        rows: The rows to count, from 0; None: all.
        decode_images: Whether every image is decoded in full, those of unannotated rows too. Finds
            damage that the header does not show; takes several times longer.
        labels: What the values of the masks mean, for class ids; None: foreground or not.
    """
    chosen = range(len(index)) if rows is None else rows
    annotated = sum(bool(index.has_segmentation[row]) for row in chosen)
    look = partial(_look_at, index, decode_image=decode_images, labels=labels)
    ordered = sorted(chosen)
    findings: list[_Finding] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # A row group at a time: cells are taken out here (the index is not thread-safe) and decoded
        # in the pool, where Pillow and zlib work without the interpreter lock.
        for _, group in groupby(ordered, key=index.group_of):
            jobs = [pool.submit(look, row, *_cells(index, row, decode_images)) for row in group]
            findings.extend(job.result() for job in jobs)
    problems = [f.problem for f in findings if f.problem is not None]
    deep = [f.deep_largest for f in findings if f.deep_largest is not None]
    pseudo = [row for row in chosen if index.pseudo.rows[row]]
    noted = [index.pseudo.confidences[row] for row in pseudo]
    means = [mean for mean in noted if mean is not None and math.isfinite(mean)]
    common: dict[str, Any] = {
        "rows": len(chosen),
        "pseudo": len(pseudo),
        "pseudo_sources": tuple(sorted({str(index.pseudo.sources[row]) for row in pseudo})),
        "pseudo_confidence": fmean(means) if means else None,
        "annotated": annotated,
        "unannotated": len(chosen) - annotated,
        "unreadable": len(problems),
        "mask_values": tuple(sorted({value for f in findings for value in f.counts})),
        "problems": tuple(problems),
        "deep_images": len(deep),
        "deep_largest": max(deep, default=0),
    }
    masks = {
        row: f.counts
        for row, f in zip(ordered, findings, strict=True)
        if f.problem is None and f.counts
    }
    if labels is None:
        return Census(**common, **_count_foreground(masks))
    return ClassCensus(**common, **_count_classes(list(masks.values()), labels))


def _count_foreground(masks: dict[int, dict[int, int]]) -> dict[str, Any]:
    """The fields of `Census` that come from the masks."""
    shares = []
    for counts in masks.values():
        size = sum(counts.values())
        shares.append((size - counts.get(0, 0)) / size)
    foreground = tuple(row for row, share in zip(masks, shares, strict=True) if share > 0)
    return {
        "foreground_rows": foreground,
        "empty": len(shares) - len(foreground),
        "nonzero_share": len(foreground) / len(shares) if shares else 0.0,
        "foreground_mean": fmean(shares) if shares else 0.0,
        "foreground_median": median(shares) if shares else 0.0,
    }


def _count_classes(masks: list[dict[int, int]], labels: Labels) -> dict[str, Any]:
    """The fields of `ClassCensus` that come from the masks."""
    pixels, class_rows, alone_rows = Counter[int](), Counter[int](), Counter[int]()
    several_rows = ignored = ignored_rows = 0
    for counts in masks:
        ids = {value: n for value, n in counts.items() if value != labels.ignore_index}
        pixels.update(ids)
        class_rows.update(ids.keys())
        alone_rows.update(ids.keys() if len(ids) == 1 else ())
        several_rows += len(ids) > 1
        ignored += counts.get(labels.ignore_index, 0)
        ignored_rows += not ids
    classes = range(labels.num_classes)
    return {
        "labels": labels,
        "pixels": tuple(pixels[k] for k in classes),
        "class_rows": tuple(class_rows[k] for k in classes),
        "alone_rows": tuple(alone_rows[k] for k in classes),
        "several_rows": several_rows,
        "ignored": ignored,
        "ignored_rows": ignored_rows,
    }


def _counts(values: npt.NDArray[Any]) -> dict[int, int]:
    """How often each value occurs; in parts, since bincount takes 8 bytes for each pixel."""
    flat = values.ravel()
    found = np.zeros(int(flat.max(initial=0)) + 1, np.int64)
    for start in range(0, flat.size, COUNTED_AT_ONCE):
        found += np.bincount(flat[start : start + COUNTED_AT_ONCE], minlength=len(found))
    return {value: int(found[value]) for value in np.flatnonzero(found).tolist()}


_CellOrError = bytes | str | DataError | None


def _cells(index: IndexTable, row: int, decode_images: bool) -> tuple[_CellOrError, _CellOrError]:
    """The image and mask cells that a row's census needs; an error stands in for its cell."""
    image: _CellOrError = None
    mask: _CellOrError = None
    try:
        if decode_images or index.has_segmentation[row]:
            image = index.image_cell(row)
        if index.has_segmentation[row]:
            mask = index.mask_cell(row)
    except DataError as error:
        if image is None:
            image = error
        else:
            mask = error
    return image, mask


def _look_at(
    index: IndexTable,
    row: int,
    image: _CellOrError,
    mask: _CellOrError,
    *,
    decode_image: bool,
    labels: Labels | None,
) -> _Finding:
    counts: dict[int, int] = {}
    deep_largest = None
    try:
        size = None
        if image is not None:
            where = index.where(row, "image")
            picture = open_picture(
                _encoded(index, image, row, "image"), where, max_pixels=index.max_pixels
            )
            size = upright_size(picture)
            if is_deep(picture):
                deep_largest = largest_value(picture, where)
            elif decode_image:
                image_pixels(picture, where)
        if mask is None:
            return _Finding(deep_largest=deep_largest)
        where = index.where(row, "mask")
        picture = open_picture(
            _encoded(index, mask, row, "mask"), where, max_pixels=index.max_pixels
        )
        # Counted before they are judged: of a refused mask, too, the census tells the values.
        stored = (mask_values if labels is None else class_values)(picture, where)
        counts = _counts(stored)
        if labels is None:
            binary_mask(stored, where, lossy=picture.format == "JPEG")
        else:
            class_mask(stored, where, labels)
        assert size is not None  # an annotated row's image is always looked at
        check_same_size(upright_size(picture), size, where)
        return _Finding(counts, deep_largest=deep_largest)
    except DataError as error:
        return _Finding(counts, str(error), deep_largest)


def _encoded(index: IndexTable, cell: bytes | str | DataError, row: int, column: str) -> bytes:
    if isinstance(cell, DataError):
        raise cell
    return index.encoded(cell, row, column)
