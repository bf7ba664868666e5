"""What a bug report needs to know of the machine, and whether the kernels run on it."""

from __future__ import annotations

import importlib
import os
import platform
import re
from pathlib import Path

import numpy
import torch

import fastseg_losses
from fastseg_losses.backends import find_trouble

VARIABLES = ("TRITON_", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF")


def environment(device: torch.device) -> dict[str, str]:
    """Versions, device and backend, in the order in which they are printed."""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    build = f"ROCm {torch.version.hip}" if torch.version.hip else build
    known = {
        "fastseg-losses": f"{fastseg_losses.__version__} in {installed_at()}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__} ({build})",
        "triton": triton_version(),
        "numpy": numpy.__version__,
        "device": describe(device),
        "backend": backend_line(device),
    }
    if not torch.cuda.is_available():
        known["cuda"] = f"not available: {why_no_cuda()}"
    names = [name for name in sorted(os.environ) if name.startswith(VARIABLES)]
    if names:
        known["variables"] = ", ".join(f"{name}={os.environ[name]}" for name in names)
    return known


def installed_at() -> str:
    """The package's folder, without the user's name where it is under their home."""
    return str(Path(fastseg_losses.__file__).parent).replace(str(Path.home()), "~", 1)


def why_no_cuda() -> str:
    """What torch says when it is asked to start CUDA."""
    try:
        torch.cuda.init()
    except Exception as error:  # a missing driver, a missing build: each has its own type
        return str(error).strip().splitlines()[0]
    return "torch found no device"


def triton_version() -> str:
    """Triton's version, or why there is none."""
    try:
        return str(importlib.import_module("triton").__version__)
    except Exception as error:  # a broken Triton fails in many ways; say which
        return f"missing ({type(error).__name__}: {error})"


def describe(device: torch.device) -> str:
    """The device in words: name, compute capability, memory, driver."""
    if device.type != "cuda":
        return f"{device}, {processor_name()}, {torch.get_num_threads()} threads"
    card = torch.cuda.get_device_properties(device)
    parts = [
        f"{device}, {card.name}",
        f"compute capability {card.major}.{card.minor}",
        f"{card.multi_processor_count} multiprocessors",
        f"{card.total_memory / 2**30:.0f} GiB",
        f"driver {driver_version()}",
    ]
    return ", ".join(parts)


def processor_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model on Linux, else what Python knows."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """NVIDIA's driver version as the kernel module states it (Linux), else "unknown"."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    found = re.search(r"\d+\.\d+(?:\.\d+)?", text)
    return found.group() if found else "unknown"


def is_interpreted(device: torch.device) -> bool:
    """Whether the kernels run here through Triton's interpreter (TRITON_INTERPRET=1)."""
    return device.type == "cpu" and not find_trouble("cpu", None)


def backend_line(device: torch.device) -> str:
    """What backend="auto" takes on the device, and why."""
    trouble = find_trouble(device.type, device.index)
    if is_interpreted(device):
        return "triton, interpreted, as TRITON_INTERPRET=1 asks ('auto' takes torch on the CPU)"
    if trouble:
        return f"torch (plain PyTorch): {trouble}"
    return "triton; float64 takes torch, because the kernels compute in float32"
