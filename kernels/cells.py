"""How outputs of an interpolation are dealt out to cells, along one axis; numpy, on the host.

The kernels of low-resolution logits think in cells, the squares between four neighbouring logits:
all outputs in a cell are made of the same four, with weights that the place in the cell decides.
Along an axis cell j holds the outputs between inputs j and j + 1. The axis is closed to a ring: the
last cell lies between the last input and the first, and holds what is clamped: first the outputs
past the last input, of which there are `split`, then those before the first. Sample points are
evenly spaced on the ring, so that no cell holds more than the ratio of the sizes, rounded up, and
at a whole ratio each holds as many.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Axis(NamedTuple):
    """An axis's outputs by cell: `most` places a cell, -1 where there are fewer outputs.

    A weight is the second input's share of an output; in the last cell 0 or 1.
    """

    size: int
    out: int
    most: int
    split: int
    positions: NDArray[np.int32]  # (size, most)
    weights: NDArray[np.float32]  # (size, most)

    @property
    def whole(self) -> bool:
        """Whether all cells hold as many outputs."""
        return bool((self.positions >= 0).all())

    @property
    def start(self) -> int:
        """The first cell's first output, if each cell's outputs follow at even steps; else -1."""
        start = int(self.positions[0, 0])
        place = start + np.arange(self.most)
        positions = (np.arange(self.size)[:, None] * self.most + place) % self.out
        weights = np.tile((place + 0.5) / self.most - 0.5, (self.size, 1))
        weights[-1] = np.arange(self.most) >= self.split
        even = (positions == self.positions).all() and np.allclose(weights, self.weights)
        return start if self.whole and even else -1

    @property
    def nearer(self) -> int:
        """From which place on the outputs of every cell are nearer to its second input; else -1."""
        place = np.arange(self.most)
        second = (self.weights > 0.5) | (self.positions < 0) & (place >= self.split)
        return self.split if (second == (place >= self.split)).all() else -1

    def padded(self, each: int) -> "Axis":
        """The same with a multiple of `each` places a cell."""
        more = [(0, 0), (0, -self.most % each)]
        positions = np.pad(self.positions, more, constant_values=-1)
        weights = np.pad(self.weights, more)
        most = positions.shape[1]
        return self._replace(most=most, positions=positions, weights=weights)


def flag_places(N: int, h: int, w: int) -> int:
    """Places for a flag of each strip of cells that the multiclass backward launch may have."""
    return N * (h + 1) * (1 + w // 31)  # a row has at most a block for each 31 cells


def axis_cells(size: int, out: int, upsample: str, *, align_corners: bool = False) -> Axis:
    """The cells of an axis of `size` inputs and `out` outputs, as `F.interpolate` places them.

    Example:
        >>> axis = axis_cells(2, 4, "bilinear")
        >>> axis.positions.tolist(), axis.weights.tolist(), axis.split
        ([[1, 2], [3, 0]], [[0.25, 0.75], [0.0, 1.0]], 1)
    """
    x = np.arange(out, dtype=np.int64)
    if upsample == "nearest":
        scale = np.float32(size) / np.float32(out)  # in float32, as PyTorch does: floor jumps
        cell = np.minimum(np.floor(x.astype(np.float32) * scale).astype(np.int64), size - 1)
        weight = np.zeros(out)
        first = cell < 0
    elif align_corners:
        steps = max(out - 1, 1)
        cell = x * (size - 1) // steps
        weight = (x * (size - 1) - cell * steps) / steps
        first = cell < 0
    else:  # the source is ((2 x + 1) size - out) / (2 out)
        source = (2 * x + 1) * size - out
        cell = source // (2 * out)
        weight = (source - cell * 2 * out) / (2 * out)
        first = cell < 0
        weight = np.where(first, 1.0, np.where(cell >= size - 1, 0.0, weight))
        cell = np.where(first, size - 1, np.minimum(cell, size - 1))
    order = np.argsort(2 * cell + first, kind="stable")
    counts = np.bincount(cell, minlength=size)
    most = int(counts.max())
    place = np.arange(out) - (np.cumsum(counts) - counts)[cell[order]]
    positions = np.full((size, most), -1, np.int32)
    weights = np.zeros((size, most), np.float32)
    positions[cell[order], place] = order
    weights[cell[order], place] = weight[order]
    split = int(counts[size - 1] - first.sum())
    return Axis(size, out, most, split, positions, weights)
