"""How the benchmarks measure: GPU time, wall time, launches, memory, and the floor."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
L2_BYTES = 64 << 20  # more than any L2 cache today's GPUs have for one kernel's reads (H100: 50 MB)


class Case(NamedTuple):
    """One problem: shape of the logits, dtypes, whether the gradient is wanted.

    ids: multiclass; size: of the targets, where it is not the logits'.
    """

    shape: tuple[int, ...]
    logits: str
    targets: str
    backward: bool
    ids: bool = False
    size: tuple[int, ...] = ()

    @property
    def work(self) -> str:
        """Sizes, for tables."""
        shape, size = ("x".join(map(str, sizes)) for sizes in (self.shape, self.size))
        return f"{shape} to {size}" if size else shape

    @property
    def label(self) -> str:
        """For test ids."""
        way = "forward+backward" if self.backward else "forward"
        return f"{self.work.replace(' ', '-')}-{self.logits}-{self.targets}-{way}"

    @property
    def targets_shape(self) -> tuple[int, ...]:
        """Shape of masks, or of class ids."""
        space = self.size or self.shape[2:]
        return (self.shape[0], *space) if self.ids else (*self.shape[:2], *space)

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs."""
        return (
            math.prod(self.shape) * getattr(torch, self.logits).itemsize
            + math.prod(self.targets_shape) * getattr(torch, self.targets).itemsize
        )

    @property
    def moved_bytes(self) -> int:
        """Two-read floor: each launch reads the inputs once, the second writes the gradient."""
        if not self.backward:
            return self.read_bytes
        gradient = math.prod(self.shape) * getattr(torch, self.logits).itemsize
        return 2 * self.read_bytes + gradient


def mode_of(case: Case) -> str:
    """The mode that a case asks for."""
    if case.ids:
        return "multiclass"
    return "binary" if case.shape[1] == 1 else "multilabel"


def draw(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """Random logits and masks, a third of the pixels foreground; or class ids."""
    logits = torch.empty(case.shape, device=device, dtype=getattr(torch, case.logits)).normal_(0, 3)
    shape, dtype = case.targets_shape, getattr(torch, case.targets)
    if case.ids:
        ids = torch.randint(case.shape[1], shape, device=device, dtype=dtype)
        return logits.requires_grad_(case.backward), ids
    masks = (torch.rand(shape, device=device) < 0.3).to(dtype)
    return logits.requires_grad_(case.backward), masks


def input_sets(case: Case, device: str) -> list[tuple[Tensor, Tensor]]:
    """Inputs to rotate among: together more than the cache holds, so that each read is one."""
    wanted = -(-2 * L2_BYTES // case.read_bytes) if device == "cuda" else 1
    return [draw(case, device) for _ in range(max(1, min(8, wanted)))]


def step_of(loss: Loss, case: Case, sets: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], Any]:
    """One training step's share of the loss, on the next set of inputs."""
    turn = itertools.cycle(sets)

    def forward() -> Any:
        return loss(*next(turn))

    def both() -> Any:
        logits, targets = next(turn)
        logits.grad = None
        loss(logits, targets).backward()

    return both if case.backward else forward


def sync(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def wall_us(step: Callable[[], Any], device: str, seconds: float = 0.1) -> float:
    """Median microseconds a call of a loop of calls, the device waited for at its end only."""
    for _ in range(3):
        step()
    sync(device)
    start = time.perf_counter()
    step()
    sync(device)
    once = time.perf_counter() - start
    calls = max(1, min(200, int(seconds / 5 / max(once, 1e-6))))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            step()
        sync(device)
        times.append((time.perf_counter() - start) / calls)
    return median(times) * 1e6


def events_us(step: Callable[[], Any], rounds: int = 7, calls: int = 10) -> float:
    """Median microseconds a call between two events around a run of calls, gaps included."""
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls * 1e3)
    return median(times)


def captured(loss: Loss, case: Case) -> torch.cuda.CUDAGraph:
    """Forward and backward on one set of inputs, captured in a CUDA graph."""
    logits, targets = draw(case, "cuda")
    dloss = torch.ones((), device="cuda")
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(loss(logits, targets), logits, dloss)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        torch.autograd.grad(loss(logits, targets), logits, dloss)
    return graph


def kernels_us(step: Callable[[], Any], calls: int = 8) -> tuple[float, float]:
    """Microseconds of kernels a call (the profiler's, without gaps), and launches a call."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as seen:
        for _ in range(calls):
            step()
        torch.cuda.synchronize()
    events = [e for e in seen.events() if e.device_type.name == "CUDA"]
    return sum(e.device_time for e in events) / calls, len(events) / calls


def peak_bytes(step: Callable[[], Any], sets: Sequence[tuple[Tensor, Tensor]]) -> int:
    """Peak memory above the inputs: gradient, saved tensors, workspace."""
    step()
    for logits, _ in sets:
        logits.grad = None
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


_COPY: dict[str, float] = {}


def copy_bandwidth() -> float:
    """Bytes a second of a device-to-device copy, read and written, of 1 GiB."""
    if "cuda" not in _COPY:
        source = torch.randn(1 << 28, device="cuda")
        target = torch.empty_like(source)
        for _ in range(3):
            target.copy_(source)
        time_us = events_us(lambda: target.copy_(source))
        _COPY["cuda"] = 2 * source.nbytes / time_us * 1e6
    return _COPY["cuda"]


def measure(loss: Loss, case: Case, device: str) -> dict[str, Any]:
    """All figures of one implementation of a loss on one case."""
    sets = input_sets(case, device)
    step = step_of(loss, case, sets)
    figures: dict[str, Any] = {"wall_us": wall_us(step, device), "moved_bytes": case.moved_bytes}
    if device == "cuda":
        figures["events_us"] = events_us(step)
        figures["gpu_us"], figures["launches"] = kernels_us(step)
        figures["peak_mb"] = peak_bytes(step, sets) / 1e6
        bandwidth = copy_bandwidth()
        floor_us = case.moved_bytes / bandwidth * 1e6
        figures["copy_gb_s"] = bandwidth / 1e9
        figures["floor_us"] = floor_us
        figures["bandwidth_share"] = floor_us / figures["gpu_us"]
        figures["floor_ratio"] = figures["gpu_us"] / floor_us
    return figures
