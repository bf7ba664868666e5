"""Measure tiles: python benchmarks/tune.py [--shape 32x1x1024x1024] [--pairs float32/uint8 ...].

Compiles every candidate in parallel, times each kernel alone and the best ones together, and prints
what `kernels/tiles.py` should say. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fastseg_losses import CombinedSegmentationLoss, plans
from fastseg_losses.kernels.launch import Plan
from fastseg_losses.kernels.tiles import ForwardTile, GradientTile
from fastseg_losses.state import LONGEST_ROW, alarm_on

COPY_BANDWIDTH = 3.0e12  # bytes/s, read + written, device to device on an H100

# (rows, width, warps, stages, programs, registers) by bytes of logits and targets
FORWARD: dict[str, list[tuple[int, ...]]] = {
    "float32/float32": [
        *itertools.product((128,), (4,), (4,), (1, 2, 3, 4), (6,), (80,)),
        *itertools.product((128,), (4,), (4,), (3,), (8,), (64,)),
        *itertools.product((256,), (4,), (4,), (1, 2, 3), (6,), (80,)),
        *itertools.product((256,), (4,), (4,), (3,), (5,), (96,)),
        *itertools.product((256,), (4,), (8,), (3,), (4,), (64,)),
        *itertools.product((64,), (4,), (2,), (3,), (12,), (80,)),
    ],
    "float32/uint8": [
        *itertools.product((128,), (8,), (4,), (1, 2, 3), (8,), (64,)),
        *itertools.product((128,), (8,), (4,), (2, 3), (6,), (80,)),
        *itertools.product((256,), (8,), (8,), (1, 2), (4,), (64,)),
        *itertools.product((128,), (16,), (4,), (1,), (5,), (96,)),
        *itertools.product((64,), (8,), (2,), (3,), (12,), (80,)),
    ],
    "bfloat16/uint8": [
        *itertools.product((128,), (8,), (4,), (1, 2, 3, 4), (8,), (64,)),
        *itertools.product((128,), (8,), (4,), (1, 3), (6,), (80,)),
        *itertools.product((128,), (16,), (4,), (1, 2), (5,), (96,)),
        *itertools.product((128,), (16,), (4,), (1, 2), (6,), (80,)),
        *itertools.product((128,), (16,), (4,), (1, 2), (4,), (128,)),
        *itertools.product((64,), (16,), (2,), (1,), (10,), (96,)),
        *itertools.product((64,), (16,), (2,), (1,), (12,), (80,)),
    ],
}
# (rows, width, warps, tiles, registers)
GRADIENT: dict[str, list[tuple[int, ...]]] = {
    "float32/float32": [
        *itertools.product((256,), (4,), (4,), (1, 2, 4), (48, 64)),
        *itertools.product((512,), (4,), (4, 8), (1, 2), (64,)),
        *itertools.product((128,), (4,), (4,), (2, 4), (48,)),
    ],
    "float32/uint8": [
        *itertools.product((128, 256), (8,), (4,), (1, 2, 4), (48, 64)),
        *itertools.product((512,), (8,), (8,), (1, 2), (64,)),
    ],
    "bfloat16/uint8": [
        *itertools.product((128, 256), (8,), (4,), (1, 2, 4, 8), (48, 64)),
        *itertools.product((512,), (8,), (4,), (1, 2), (64, 80)),
        *itertools.product((512,), (8,), (8,), (1, 2, 4), (48, 64)),
        *itertools.product((128,), (16,), (4,), (1, 2, 4), (64, 80)),
    ],
}


def plan_of(logits: torch.Tensor, targets: torch.Tensor) -> Plan:
    """A fresh plan of the combined loss for these tensors."""
    plan = plans._make_plan(CombinedSegmentationLoss().spec, (logits, targets, None, None, None))
    assert plan is not None
    return plan


def with_tiles(plan: Plan, forward: ForwardTile | None, gradient: GradientTile | None) -> Plan:
    """A plan like this one with other tiles."""
    return Plan(plan.layout, plan.formula, plan.device, forward, gradient)


def forward_tensors(plan: Plan, logits: torch.Tensor, targets: torch.Tensor) -> tuple[Any, ...]:
    """What the forward launch takes."""
    device = logits.device
    scratch = torch.empty(plan.scratch_size, device=device)
    counters = torch.zeros(plan.num_counters, dtype=torch.int32, device=device)
    loss, row = torch.empty((), device=device), torch.empty(LONGEST_ROW, device=device)
    alarm = alarm_on(device)
    outputs = (loss, row, scratch, scratch, counters, alarm, *plan.no_gradient)
    return (*outputs, logits, targets, None, None, None, *plan.no_gradient)


def gradient_tensors(
    table: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
) -> tuple[Any, ...]:
    """What the backward launch takes."""
    dloss = torch.ones((), device=logits.device)
    return (torch.empty_like(logits), dloss, table, logits, targets, None, None)


def draw(pair: str, shape: tuple[int, ...], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits and masks."""
    logits_name, targets_name = pair.split("/")
    logits = (torch.randn(shape, device=device) * 3).to(getattr(torch, logits_name))
    return logits, (torch.rand(shape, device=device) < 0.3).to(getattr(torch, targets_name))


def compile_one(job: tuple[str, tuple[int, ...], tuple[int, ...], bool]) -> None:
    """Compile one candidate into Triton's cache; runs in a worker."""
    pair, shape, tile, forward = job
    small = (shape[0], shape[1], 1, 64)  # the same specialisation as the real shape
    logits, targets = draw(pair, small, "cuda")
    plan = plan_of(logits, targets)
    if forward:
        plan = with_tiles(plan, ForwardTile(*tile), None)
        plan.forward_launch().bind(forward_tensors(plan, logits, targets))
    else:
        plan = with_tiles(plan, None, GradientTile(*tile))
        tensors = gradient_tensors(torch.empty(plan.table_size, device="cuda"), logits, targets)
        plan.backward_launch().bind((*tensors, 0, 0, 0))


def gpu_time(call: Callable[[], None], iterations: int = 20, rounds: int = 5) -> float:
    """Median microseconds a call, by events around a run of calls."""
    call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(iterations):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / iterations * 1e3)
    return sorted(times)[len(times) // 2]


def rounds_of(calls: list[Callable[[], None]]) -> Callable[[], None]:
    """Call them in turn, one a call: inputs rotate."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def in_turn(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    """One call after the other."""

    def both() -> None:
        first()
        second()

    return both


def tune(pair: str, shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Time every candidate of a pair of dtypes, then the best three of each side together."""
    pixels = math.prod(shape)
    logits_bytes, targets_bytes = (getattr(torch, name).itemsize for name in pair.split("/"))
    per_set = pixels * (2 * logits_bytes + targets_bytes)
    sets = [draw(pair, shape, "cuda") for _ in range(max(1, min(8, (256 << 20) // per_set)))]
    base = plan_of(*sets[0])
    stream = torch.cuda.current_stream().cuda_stream

    def forward_call(plan: Plan) -> tuple[Callable[[], None], torch.Tensor]:
        tensors = [forward_tensors(plan, *s) for s in sets]
        return rounds_of([lambda t=t: plan.forward(t, stream) for t in tensors]), tensors[0][2]

    def gradient_call(plan: Plan, table: torch.Tensor) -> Callable[[], None]:
        tensors = [gradient_tensors(table, *s) for s in sets]
        return rounds_of([lambda t=t: plan.backward(t, (0, 0, 0), stream) for t in tensors])

    read = pixels * (logits_bytes + targets_bytes) / COPY_BANDWIDTH * 1e6
    write = pixels * logits_bytes / COPY_BANDWIDTH * 1e6
    best: dict[str, list[tuple[float, tuple[int, ...]]]] = {"forward": [], "gradient": []}
    for tile in FORWARD[pair]:
        call, table = forward_call(with_tiles(base, ForwardTile(*tile), None))
        best["forward"].append((gpu_time(call), tile))
    for tile in GRADIENT[pair]:
        time = gpu_time(gradient_call(with_tiles(base, None, GradientTile(*tile)), table))
        best["gradient"].append((time, tile))
    for side, floor in (("forward", read), ("gradient", read + write)):
        for time, tile in sorted(best[side]):
            yield {"side": side, "tile": tile, "us": time, "ratio": time / floor}
    for (_, f), (_, g) in itertools.product(
        sorted(best["forward"])[:3], sorted(best["gradient"])[:3]
    ):
        plan = with_tiles(base, ForwardTile(*f), GradientTile(*g))
        forward, table = forward_call(plan)
        backward = gradient_call(plan, table)
        time = gpu_time(in_turn(forward, backward))
        yield {"side": "pair", "tile": (f, g), "us": time, "ratio": time / (2 * read + write)}


def main() -> None:
    """Tune, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="32x1x1024x1024")
    parser.add_argument("--pairs", nargs="+", default=list(FORWARD))
    parser.add_argument("--top", type=int, default=6, help="rows printed of each side")
    parser.add_argument("--json", type=Path, help="where all figures go")
    options = parser.parse_args()
    shape = tuple(map(int, options.shape.split("x")))
    jobs = [(p, shape, t, True) for p in options.pairs for t in FORWARD[p]]
    jobs += [(p, shape, t, False) for p in options.pairs for t in GRADIENT[p]]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 2), mp_context=context) as pool:
        list(pool.map(compile_one, jobs))
    results = {}
    for pair in options.pairs:
        results[pair] = rows = list(tune(pair, shape))
        for side in ("forward", "gradient", "pair"):
            for row in sorted((r for r in rows if r["side"] == side), key=lambda r: r["us"])[
                : options.top
            ]:
                print(
                    f"{pair:18s} {side:9s} {row['us']:8.1f} us  {row['ratio']:.3f}  {row['tile']}"
                )
    if options.json:
        options.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
