"""What a step takes: GPU time by events, elsewhere wall time."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

WARM_UP = 3
GPU_STEPS = 20  # between two events, so that what the host adds to a step is hidden where it can be
CPU_STEPS = 7


def milliseconds(step: Callable[[], Any], device: torch.device) -> float:
    """Time of one step: GPU, the mean of a run of steps; elsewhere the median of single ones."""
    for _ in range(WARM_UP):
        step()
    if device.type == "cuda":
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(GPU_STEPS):
                step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / GPU_STEPS
    times = []
    for _ in range(CPU_STEPS):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return median(times) * 1000
