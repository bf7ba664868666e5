"""The processes of a run: one, or those that ``torchrun`` started, one for each device."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Steps between two agreements of the processes on whether to end: one message of a few bytes.
AGREE_EVERY = 10


class World:
    """What the processes of a run tell each other; with one process, nothing.

    Attributes:
        rank: this process's number, from 0.
        size: number of processes.
        local_rank: its number on this machine, which is that of its CUDA device.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        # What is said between hosts must not wait for a device: NCCL's messages would.
        self._host: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files and its log."""
        return self.rank == 0

    def connect(self, device: torch.device) -> None:
        """Meet the other processes; NCCL between CUDA devices, else gloo."""
        if self.size == 1:
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self._host = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD

    def add_up(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place; on CUDA the host does not wait."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers; each waits for the others."""
        if self.size == 1:
            return number
        shared = torch.tensor([number])
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self._host)
        return int(shared)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank; each waits for the others."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self._host)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value."""
        shared = [value]
        if self.size > 1:
            dist.broadcast_object_list(shared, src=0, group=self._host)
        return shared[0]

    def copy_from_main(self, value: Tensor) -> None:
        """Overwrite a tensor with the main process's."""
        if self.size > 1:
            dist.broadcast(value, src=0)

    def leave(self) -> None:
        """End the connection."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def find_world() -> World:
    """What ``torchrun`` says in the environment; without it, one process.

    Raises:
        ValueError: the environment holds some of its variables, but not all.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = [name for name in names if name in os.environ]
    if "WORLD_SIZE" not in found:
        return World()
    if len(found) < len(names):
        missing = next(name for name in names if name not in found)
        raise ValueError(
            f"environment: expected {', '.join(names)} as torchrun sets them, got no {missing}"
        )
    rank, size, local_rank = (int(os.environ[name]) for name in names)
    return World(rank, size, local_rank)
