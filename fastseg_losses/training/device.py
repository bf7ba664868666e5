"""Which device a run uses, and what the log says of it."""

from __future__ import annotations

import torch

from fastseg_losses.training.distributed import World
from fastseg_losses.training.surroundings import device_name, versions


def pick_device(name: str, world: World) -> torch.device:
    """The device that ``--device`` names, with its index; under torchrun each process's own.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if world.size > 1:
        if device.index is not None:
            raise ValueError(f"device: expected cuda without a number under torchrun, got {name!r}")
        device = torch.device("cuda", world.local_rank)
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or (device.index or 0) >= count:
        raise ValueError(f"device: {name!r} asked for, but torch sees {count} CUDA devices")
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def describe_machine(device: torch.device, world: World) -> str:
    """One line for the log: versions, device, processes."""
    parts = [f"{name} {version}" for name, version in versions().items()]
    parts += [f"device {device_name(device)}", f"{torch.get_num_threads()} threads"]
    if world.size > 1:
        parts.append(f"{world.size} processes")
    return ", ".join(parts)
