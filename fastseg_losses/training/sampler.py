"""The order in which rows are drawn: seeded, epoch by epoch, divided among processes."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from fastseg_losses.training.checks import check_int
from fastseg_losses.training.index import GROUP_CACHE_BYTES
from fastseg_losses.training.samples import Draw, ParquetSegmentation

_Ints = npt.NDArray[np.int64]


def foreground_draws(rows: int, foreground: int, share: float) -> int:
    """How many of an epoch's draws are rows with foreground.

    Args:
        rows: Rows of the set, which are as many as the draws.
        foreground: Those that have foreground.
        share: The least share of the draws that they make up.
    """
    # Rounded first: 0.33 * 100 is 33.000000000000004.
    return max(foreground, math.ceil(round(share * rows, 6)))


class EpochSampler(Sampler[Draw]):
    """Yields draws that name their epoch, so that workers that live on know it without being told.

    Each pass is the next epoch, from 0; `start` goes to another one. The order depends on
    (seed, epoch) and never on the number of workers. If a set's encoded images exceed the row-group
    cache, row groups are shuffled first and then the rows within as many groups as fit: a uniform
    shuffle would read a whole row group for each row.

    With `foreground_share` an epoch still draws as many rows as there are. If too few of them have
    foreground, those are drawn several times, each nearly as often as any other, in place of some
    of the others; which ones stay out changes from epoch to epoch.

    With several processes all have the same order, in which `world_size * batch_size` draws in a
    row are a global batch: each process takes its own consecutive part of it. Of an incomplete last
    one the parts are as equal as they can be. All processes have the same number of batches:
    where one's part would be empty, it gets a draw that does not count, so that its sample comes
    with `valid` false. No row counts twice.
    """

    def __init__(
        self,
        data: ParquetSegmentation,
        *,
        shuffle: bool,
        seed: int,
        batch_size: int = 1,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        foreground_rows: Sequence[int] = (),
        foreground_share: float = 0.0,
    ) -> None:
        """Orders a data set's positions.

        Args:
            data: The data set.
            shuffle: Whether the order is random, anew in each epoch.
            seed: Seed of the order.
            batch_size: Draws in a batch of one process.
            drop_last: Whether an incomplete last global batch is left out.
            rank: Number of this process, from 0.
            world_size: Number of processes.
            foreground_rows: Rows of the index that have foreground.
            foreground_share: The least share of an epoch's draws that they make up; 0: each row
                is drawn once.

        Raises:
            ValueError: A number is out of range, or foreground is asked for and there is none.
        """
        check_int("batch_size", batch_size, minimum=1)
        check_int("world_size", world_size, minimum=1)
        check_int("rank", rank, minimum=0)
        if rank >= world_size:
            raise ValueError(f"rank: expected at most {world_size - 1}, got {rank}")
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._global_batch = world_size * batch_size
        self._epoch = 0
        self._skip = 0
        self._groups = np.array([data.index.group_of(int(row)) for row in data.rows], np.int64)
        self._group_bytes = np.array(data.index.group_image_bytes)
        if data.pseudo_confidence is not None:
            self._group_bytes += data.index.group_confidence_bytes
        count = len(self._groups)
        has_foreground = np.isin(data.rows, np.asarray(foreground_rows, np.int64))
        self._foreground = np.flatnonzero(has_foreground)
        self._others = np.flatnonzero(~has_foreground)
        if not 0 <= foreground_share < 1:
            raise ValueError(
                f"foreground_share: expected a number from 0 to below 1, got {foreground_share!r}"
            )
        if foreground_share and not shuffle:
            raise ValueError("foreground_share: expected 0 without shuffle, with a fixed order")
        if foreground_share and not len(self._foreground):
            raise ValueError(
                "foreground_rows: expected at least one row with foreground to oversample, got none"
            )
        self._wanted = foreground_draws(count, len(self._foreground), foreground_share)
        self._count = count - count % self._global_batch if drop_last else count

    def __len__(self) -> int:
        """The number of this process's draws in a complete pass."""
        full, rest = divmod(self._count, self._global_batch)
        first, end = self._part(rest)
        return full * self._global_batch // self._world_size + (max(end - first, 1) if rest else 0)

    def start(self, epoch: int, skip: int = 0) -> None:
        """Makes the next pass the one of this epoch, without its first batches.

        Args:
            epoch: The epoch, from 0.
            skip: Batches of this process that are left out; none of their rows is read.

        Raises:
            ValueError: A number is out of range.
        """
        check_int("epoch", epoch, minimum=0)
        check_int("skip", skip, minimum=0)
        batches = -(-self._count // self._global_batch)
        if skip > batches:
            raise ValueError(f"skip: expected at most the epoch's {batches} batches, got {skip}")
        self._epoch, self._skip = epoch, skip

    def __iter__(self) -> Iterator[Draw]:
        """Starts a pass and goes on to the next epoch."""
        epoch, skip = self._epoch, self._skip
        self._epoch, self._skip = epoch + 1, 0
        draws = self._order(epoch)[: self._count]
        mine: list[Draw] = []
        for first in range(skip * self._global_batch, self._count, self._global_batch):
            batch = draws[first : first + self._global_batch]
            part = slice(*self._part(len(batch)))
            mine += batch[part] or [batch[0]._replace(counts=False)]
        return iter(mine)

    def _part(self, size: int) -> tuple[int, int]:
        """Where this process's part of a global batch of so many draws begins and ends."""
        begin, end = (-(-size * rank // self._world_size) for rank in (self._rank, self._rank + 1))
        return begin, end

    def _order(self, epoch: int) -> list[Draw]:
        """An epoch's draws of all processes, those left out by `drop_last` included."""
        if not self._shuffle:
            return [Draw(epoch, position) for position in range(len(self._groups))]
        rng = np.random.default_rng((self._seed, epoch))
        positions, repeats = self._chosen(rng)
        order = self._shuffled(rng, self._groups[positions])
        pairs = zip(positions[order].tolist(), repeats[order].tolist(), strict=True)
        return [Draw(epoch, position, repeat) for position, repeat in pairs]

    def _chosen(self, rng: np.random.Generator) -> tuple[_Ints, _Ints]:
        """Which positions an epoch draws, and the how manieth time each."""
        count, foreground = len(self._groups), self._foreground
        if self._wanted == len(foreground):
            return np.arange(count), np.zeros(count, np.int64)
        times, more = divmod(self._wanted, len(foreground))
        others = rng.permutation(self._others)[: count - self._wanted]
        positions = [*[foreground] * times, rng.permutation(foreground)[:more], others]
        repeats = [*range(times), times, 0]
        counts = [len(part) for part in positions]
        return np.concatenate(positions), np.repeat(repeats, counts)

    def _shuffled(self, rng: np.random.Generator, drawn_groups: _Ints) -> _Ints:
        """A random order of an epoch's draws, given the row group of each."""
        groups = np.unique(drawn_groups)
        budget = GROUP_CACHE_BYTES // 2  # the other half is for the masks
        if sum(self._group_bytes[g] for g in groups) <= budget:
            return rng.permutation(len(drawn_groups))
        windows: list[list[int]] = []
        room = 0
        for group in rng.permutation(groups).tolist():
            if not windows or self._group_bytes[group] > room:
                windows.append([])
                room = budget
            windows[-1].append(group)
            room -= self._group_bytes[group]
        parts = [rng.permutation(np.flatnonzero(np.isin(drawn_groups, w))) for w in windows]
        return np.concatenate(parts)
