"""Where a step's time goes: a trace of some steps, and a table of its parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, schedule

from fastseg_losses.training.run_folder import writing

LOGGER = logging.getLogger("fastseg_losses.training")

# Steps that are let pass (compilation, allocation, cuDNN's choices), warmed up with the profiler
# on, recorded.
PASSED, WARM, RECORDED = 10, 3, 10


class StepProfiler:
    """Records some steps with torch's profiler and writes what it saw.

    Args:
        folder: the run's folder; ``profile/trace.json`` (chrome://tracing, Perfetto) and
            ``profile/table.txt`` are written there.
        device: where the net is.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder / "profile"
        self._on_cuda = device.type == "cuda"
        activities = [ProfilerActivity.CPU]
        if self._on_cuda:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=PASSED, warmup=WARM, active=RECORDED, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )
        self._steps = 0

    def step(self) -> None:
        """An optimizer step has been queued."""
        if self._steps == 0:
            self._profile.start()
        self._steps += 1
        if self._steps < PASSED + WARM + RECORDED:
            self._profile.step()
        elif self._steps == PASSED + WARM + RECORDED:
            self._profile.stop()

    def close(self) -> None:
        """The run has ended."""
        if not 0 < self._steps < PASSED + WARM + RECORDED:
            return
        self._profile.stop()
        if self._steps <= PASSED + WARM:
            LOGGER.warning(
                "--profile: nothing was recorded, which takes %d steps; the run had %d",
                PASSED + WARM + RECORDED,
                self._steps,
            )

    def _write(self, recorded: Any) -> None:
        key = "self_device_time_total" if self._on_cuda else "self_cpu_time_total"
        parts = recorded.key_averages()
        table = parts.table(sort_by=key, row_limit=60)
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(self._folder / "trace.json"))
            (self._folder / "table.txt").write_text(table + "\n", encoding="utf-8")
        LOGGER.info("profile of %d steps: %s", RECORDED, self._folder)
        if self._on_cuda:
            whole, ours = kernel_times(parts)
            LOGGER.info(
                "GPU time of a step %.2f ms, of it the loss with its statistics %.0f us (%.2f%%)",
                whole / RECORDED / 1000,
                ours / RECORDED,
                100 * ours / whole,
            )


def kernel_times(parts: Iterable[Any]) -> tuple[float, float]:
    """Microseconds that all kernels took on the GPU, and those of this package.

    Operators and annotations have the time of their kernels too, which stand for themselves.

    Args:
        parts: what torch's profiler has recorded, averaged by name.
    """
    times = {
        part.key: part.self_device_time_total
        for part in parts
        if part.device_type is DeviceType.CUDA and not part.is_user_annotation
    }
    ours = sum(time for name, time in times.items() if _is_of_the_loss(name))
    return sum(times.values()), ours


def _is_of_the_loss(name: str) -> bool:
    """Whether a kernel is one of this package's, by the way that all of them are named."""
    return name.startswith("_") and name.endswith("_kernel")
