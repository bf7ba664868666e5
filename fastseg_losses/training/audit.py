"""The census of a data set: what is annotated, what is empty, and whether a net can learn from it.

Adding a loss term does not help where the masks are zero because nobody drew them, so this is
counted before training and not guessed afterwards.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median

import numpy as np

from fastseg_losses.training.decode import (
    DataError,
    binary_mask,
    check_same_size,
    describe_values,
    image_pixels,
    mask_values,
    open_picture,
    upright_size,
)
from fastseg_losses.training.index import IndexTable

# Above this share of all-zero masks among the annotated ones, the verdict asks whether they were
# really annotated. It asks only: in a set of defect images most may well be empty.
EMPTY_SHARE_ASKED = 0.5

# Problems kept as text; further ones are only counted.
MAX_PROBLEMS = 5


@dataclass(frozen=True)
class Census:
    """What `take_census` found.

    Attributes:
        rows: All rows.
        annotated: Rows with has_segmentation true, unreadable ones included.
        foreground: Annotated rows whose mask has a non-zero value.
        empty: Annotated rows whose mask is all zero.
        unannotated: Rows with has_segmentation false; their masks were not read.
        unreadable: Rows that training could not read.
        nonzero_share: Share of the readable masks that have a non-zero value; 0 if there is none.
        foreground_mean: Mean foreground share of the readable masks, empty ones included.
        foreground_median: Its median.
        mask_values: The values stored in the annotated masks, before 255 becomes 1.
        problems: What is wrong with the first few unreadable rows.
    """

    rows: int
    annotated: int
    foreground: int
    empty: int
    unannotated: int
    unreadable: int
    nonzero_share: float
    foreground_mean: float
    foreground_median: float
    mask_values: tuple[int, ...]
    problems: tuple[str, ...]

    @property
    def learnable(self) -> bool:
        """Whether at least one annotated row has foreground."""
        return self.foreground > 0

    @property
    def verdict(self) -> str:
        """What the counts mean, in words."""
        parts = []
        if self.unreadable:
            parts.append(
                f"{self.unreadable} of {self.rows} rows cannot be read and would stop training: "
                "repair or remove them."
            )
        if not self.annotated:
            parts.append(
                f"Nothing to learn from: none of the {self.rows} rows is annotated "
                "(has_segmentation is false everywhere)."
            )
        elif not self.learnable and self.empty:
            parts.append(
                f"Nothing to learn from: all {self.empty} readable annotated masks are empty, so a "
                "net that predicts nothing is right about each of them. Were these masks ever "
                "drawn? If not, has_segmentation should be false."
            )
        elif not self.learnable:
            parts.append("Nothing to learn from: no annotated row can be read.")
        elif self.empty > EMPTY_SHARE_ASKED * (self.empty + self.foreground):
            parts.append(
                f"{self.empty} of {self.empty + self.foreground} annotated masks are all zero. "
                "Looks like missing annotation: check. Are these images really free of foreground, "
                "or did nobody annotate them? If nobody did, has_segmentation should be false."
            )
        else:
            parts.append(
                f"Something to learn from: {self.foreground} annotated rows with foreground."
            )
        return " ".join(parts)

    def lines(self) -> list[str]:
        """The census as lines of text, the verdict last."""
        values = describe_values(list(self.mask_values)) if self.mask_values else "none"
        return [
            f"Rows: {self.rows}",
            f"Samples with segmentation: {self.annotated} / {self.rows}",
            f"Annotated with foreground: {self.foreground}",
            f"Annotated and empty: {self.empty}",
            f"Not annotated (mask never read): {self.unannotated}",
            f"Unreadable: {self.unreadable}",
            *(f"  {problem}" for problem in self.problems),
            *(["  ..."] if self.unreadable > len(self.problems) else []),
            f"Masks with non-zero values: {100 * self.nonzero_share:.1f}%",
            f"Mask values found: {values}",
            f"Foreground share of a mask: mean {100 * self.foreground_mean:.2f}%, "
            f"median {100 * self.foreground_median:.2f}%",
            f"Verdict: {self.verdict}",
        ]


@dataclass(frozen=True)
class _Finding:
    """What one row showed: `share` is None where no mask was read or it is unusable."""

    values: tuple[int, ...] = ()
    share: float | None = None
    problem: str | None = None


def take_census(
    index: IndexTable, rows: Sequence[int] | None = None, *, decode_images: bool = False
) -> Census:
    """Counts the three states of rows and looks at every annotated mask.

    Masks are decoded in full; of an annotated row's image only the header is read, to compare
    sizes. Unreadable rows are counted, not raised.

    Args:
        index: The opened index.
        rows: The rows to count, from 0; None: all.
        decode_images: Whether every image is decoded in full, those of unannotated rows too. Finds
            damage that the header does not show; takes several times longer.
    """
    chosen = range(len(index)) if rows is None else rows
    annotated = sum(bool(index.has_segmentation[row]) for row in chosen)
    findings: list[_Finding] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # A row group at a time: cells are taken out here (the index is not thread-safe) and decoded
        # in the pool, where Pillow and zlib work without the interpreter lock.
        for _, group in groupby(sorted(chosen), key=index.group_of):
            jobs = [
                pool.submit(_look_at, index, row, *_cells(index, row, decode_images), decode_images)
                for row in group
            ]
            findings.extend(job.result() for job in jobs)
    shares = [f.share for f in findings if f.share is not None]
    foreground = sum(share > 0 for share in shares)
    problems = [f.problem for f in findings if f.problem is not None]
    return Census(
        rows=len(chosen),
        annotated=annotated,
        foreground=foreground,
        empty=len(shares) - foreground,
        unannotated=len(chosen) - annotated,
        unreadable=len(problems),
        nonzero_share=foreground / len(shares) if shares else 0.0,
        foreground_mean=fmean(shares) if shares else 0.0,
        foreground_median=median(shares) if shares else 0.0,
        mask_values=tuple(sorted({value for f in findings for value in f.values})),
        problems=tuple(problems[:MAX_PROBLEMS]),
    )


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
    index: IndexTable, row: int, image: _CellOrError, mask: _CellOrError, decode_image: bool
) -> _Finding:
    values: tuple[int, ...] = ()
    try:
        size = None
        if image is not None:
            where = index.where(row, "image")
            picture = open_picture(
                _encoded(index, image, row, "image"), where, max_pixels=index.max_pixels
            )
            size = upright_size(picture)
            if decode_image:
                image_pixels(picture, where)
        if mask is None:
            return _Finding()
        where = index.where(row, "mask")
        picture = open_picture(
            _encoded(index, mask, row, "mask"), where, max_pixels=index.max_pixels
        )
        stored = mask_values(picture, where)
        values = tuple(np.flatnonzero(np.bincount(stored.ravel())).tolist())
        binary = binary_mask(stored, where, lossy=picture.format == "JPEG")
        assert size is not None  # an annotated row's image is always looked at
        check_same_size(upright_size(picture), size, where)
        return _Finding(values=values, share=float(np.count_nonzero(binary)) / binary.size)
    except DataError as error:
        return _Finding(values=values, problem=str(error))


def _encoded(index: IndexTable, cell: bytes | str | DataError, row: int, column: str) -> bytes:
    if isinstance(cell, DataError):
        raise cell
    return index.encoded(cell, row, column)
