"""What a run was started with and on: the command, the device, the memory that it took."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path

import torch

import fastseg_losses


def command() -> str:
    """The command line of this process, ready to be pasted into a shell."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


def versions() -> dict[str, str]:
    """What a result may depend on, by name."""
    return {
        "fastseg-losses": fastseg_losses.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's own name; on anything else what torch calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def peak_memory(device: torch.device) -> tuple[int, str] | None:
    """The most memory that the run has held so far, in bytes, and what was counted.

    On CUDA it is what torch allocated, which the host knows without asking the device; on the CPU
    what the process held, which only Linux is asked for. None: not known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "allocated on the GPU"
    if sys.platform != "linux":
        return None
    import resource

    # In KiB on Linux; other systems count otherwise.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "held by the process"
