"""The order in which rows are drawn: seeded, epoch by epoch, divided among processes."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from fastseg_losses.training.checks import check_int
from fastseg_losses.training.index import GROUP_CACHE_BYTES
from fastseg_losses.training.samples import Draw, ParquetSegmentation


class EpochSampler(Sampler[Draw]):
    """Yields draws that name their epoch, so that workers that live on know it without being told.

    Each pass is the next epoch, from 0; `start` goes to another one. The order depends on
    (seed, epoch) and never on the number of workers. If a set's encoded images exceed the row-group
    cache, row groups are shuffled first and then the rows within as many groups as fit: a uniform
    shuffle would read a whole row group for each row.

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

        Raises:
            ValueError: A number is out of range.
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
        self._group_bytes = data.index.group_image_bytes
        count = len(self._groups)
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
        order = self._order(epoch) if self._shuffle else np.arange(len(self._groups))
        draws = [Draw(epoch, position) for position in order[: self._count].tolist()]
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

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, epoch))
        groups = np.unique(self._groups)
        budget = GROUP_CACHE_BYTES // 2  # the other half is for the masks
        if sum(self._group_bytes[g] for g in groups) <= budget:
            return rng.permutation(len(self._groups))
        windows: list[list[int]] = []
        room = 0
        for group in rng.permutation(groups).tolist():
            if not windows or self._group_bytes[group] > room:
                windows.append([])
                room = budget
            windows[-1].append(group)
            room -= self._group_bytes[group]
        parts = [rng.permutation(np.flatnonzero(np.isin(self._groups, w))) for w in windows]
        return np.concatenate(parts)
