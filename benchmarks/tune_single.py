"""Measure tiles of the single launch: python benchmarks/tune_single.py [OUT.json].

For each problem all candidates in one run, kernel alone, beside both launches of the usual plan and
checked against its loss and gradient. Compiles in parallel. Needs an H100 or H200.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tune import draw, forward_tensors, gpu_time, gradient_tensors, in_turn, plan_of, rounds_of

from fastseg_losses.kernels.single_plan import SinglePlan
from fastseg_losses.kernels.tiles import SingleTile


class Job(NamedTuple):
    """A problem and a tile for it: team, teams, tiles, warps, slots, lag, programs."""

    pair: str
    shape: tuple[int, ...]
    tile: tuple[int, ...]


MILLION = (32, 1, 1024, 1024)
CANDIDATES: dict[tuple[str, tuple[int, ...]], list[tuple[int, ...]]] = {
    ("float32/float32", MILLION): [
        (128, 1, 8, 8, 3, 1, 1),
        (256, 1, 4, 8, 3, 1, 2),
        (512, 1, 4, 4, 3, 1, 4),
    ],
    ("float32/uint8", MILLION): [
        (128, 1, 8, 8, 3, 1, 1),
        (256, 1, 4, 8, 3, 1, 2),
        (512, 1, 4, 4, 3, 1, 4),
    ],
    ("bfloat16/uint8", MILLION): [(256, 1, 4, 8, 3, 1, 2)],
    ("float32/float32", (128, 1, 512, 512)): [
        (32, 4, 8, 8, 3, 1, 1),
        (64, 4, 4, 8, 3, 1, 2),
        (128, 4, 4, 4, 3, 1, 4),
    ],
    ("float32/uint8", (128, 1, 512, 512)): [
        (74, 7, 7, 4, 3, 1, 4),
        (128, 4, 4, 4, 3, 1, 4),
    ],
    ("float32/float32", (512, 1, 256, 256)): [
        (8, 16, 8, 8, 3, 1, 1),
        (16, 16, 4, 8, 3, 1, 2),
        (32, 16, 4, 4, 3, 1, 4),
    ],
    ("float32/float32", (16, 1, 1024, 1024)): [
        (128, 1, 8, 8, 3, 1, 1),
        (256, 1, 4, 8, 3, 1, 2),
    ],
    ("float32/float32", (64, 1, 512, 1024)): [
        (128, 2, 4, 8, 3, 1, 2),
        (256, 2, 4, 4, 3, 1, 4),
    ],
    ("float32/float32", (64, 1, 640, 640)): [
        (100, 2, 4, 8, 3, 1, 2),
        (200, 2, 4, 4, 3, 1, 4),
    ],
    ("float32/uint8", (64, 1, 640, 640)): [
        (115, 4, 7, 4, 3, 1, 4),
        (200, 2, 4, 4, 3, 1, 4),
    ],
    ("float32/float32", (2048, 1, 128, 128)): [(8, 64, 4, 4, 3, 1, 4)],
    ("float32/float32", (8, 1, 1024, 1024)): [(256, 1, 4, 8, 3, 1, 2)],
}


def single_of(job: Job, logits: torch.Tensor, targets: torch.Tensor) -> SinglePlan:
    """The combined loss in one launch with this tile."""
    plan = plan_of(logits, targets)
    return SinglePlan(plan.layout, plan.formula, plan.device, SingleTile(*job.tile))


def tensors_of(plan: SinglePlan, logits: torch.Tensor, targets: torch.Tensor) -> tuple[Any, ...]:
    """What the launch takes."""
    loss, row, _, _, _, alarm, *_ = forward_tensors(plan_of(logits, targets), logits, targets)
    scratch = torch.empty(plan.scratch_size, device="cuda")
    counters = torch.zeros(plan.num_counters, dtype=torch.int32, device="cuda")
    outputs = (loss, row, scratch, scratch, counters, alarm, torch.empty_like(logits))
    return (*outputs, logits, targets, None, None, None, torch.ones(1, device="cuda"))


def compile_one(job: Job) -> str:
    """Compile into Triton's cache, in a worker; an error's first line."""
    logits, targets = draw(job.pair, job.shape, "cuda")
    try:
        plan = single_of(job, logits, targets)
        plan.forward_launch().bind(tensors_of(plan, logits, targets))
    except Exception as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return ""


def measure(job: Job, sets: list[Any], expected: tuple[Any, ...]) -> dict[str, Any]:
    """Microseconds of the launch, and how far its loss and gradient are from the usual ones."""
    plan = single_of(job, *sets[0])
    tensors = [tensors_of(plan, *each) for each in sets]
    stream = torch.cuda.current_stream().cuda_stream
    plan.forward(tensors[0], stream)
    loss, dlogits = tensors[0][0], tensors[0][6]
    off = ((dlogits - expected[1]).norm() / expected[1].norm()).item()
    time = gpu_time(rounds_of([lambda t=t: plan.forward(t, stream) for t in tensors]))
    return {
        **{"pair": job.pair, "shape": job.shape, "tile": job.tile, "us": round(time, 1)},
        **{"loss off": abs(loss - expected[0]).item(), "gradient off": off},
    }


def two_launches(sets: list[Any]) -> tuple[Callable[[], None], tuple[Any, ...]]:
    """Both launches of the usual plan, and what they give for the first set."""
    plan, stream = plan_of(*sets[0]), torch.cuda.current_stream().cuda_stream
    ahead = [forward_tensors(plan, *each) for each in sets]
    back = [gradient_tensors(t[2], *each) for t, each in zip(ahead, sets, strict=True)]
    forward = rounds_of([lambda t=t: plan.forward(t, stream) for t in ahead])
    backward = rounds_of([lambda t=t: plan.backward(t, (0, 0, 0), stream) for t in back])
    plan.forward(ahead[0], stream)
    plan.backward(back[0], (0, 0, 0), stream)
    loss, dlogits = ahead[0][0].clone(), back[0][0].clone()
    return in_turn(forward, backward), (loss, dlogits)


def main() -> None:
    """Tune, print, and write JSON where asked."""
    jobs = [Job(*problem, tile) for problem, tiles in CANDIDATES.items() for tile in tiles]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=8, mp_context=spawn) as pool:
        failed = dict(zip(jobs, pool.map(compile_one, jobs), strict=True))
    found: list[dict[str, Any]] = []
    for (pair, shape), tiles in CANDIDATES.items():
        sets = [draw(pair, shape, "cuda") for _ in range(2)]
        both, expected = two_launches(sets)
        found.append({"pair": pair, "shape": shape, "two launches": round(gpu_time(both), 1)})
        print(found[-1], flush=True)
        for job in (Job(pair, shape, tile) for tile in tiles):
            if failed[job]:
                found.append({"pair": pair, "shape": shape, "tile": job.tile, "error": failed[job]})
            else:
                try:
                    found.append(measure(job, sets, expected))
                except RuntimeError as error:  # more programs than fit at once
                    found.append({**job._asdict(), "error": str(error)})
            print(found[-1], flush=True)
        del both, expected, sets
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
