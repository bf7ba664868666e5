"""Measure multiclass tiles: python benchmarks/tune_multiclass.py [--cases SHAPE:LOGITS:IDS ...].

Compiles every candidate in parallel, times each kernel alone on the given shapes (softmax,
cross-entropy + Dice + statistics), and prints what `kernels/tiles.py` should say. Needs a CUDA
device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measure import Case, draw, input_sets
from tune import COPY_BANDWIDTH, forward_tensors, gpu_time, gradient_tensors, rounds_of

from fastseg_losses import CombinedSegmentationLoss, plans
from fastseg_losses.kernels.multiclass_plan import ClassPlan
from fastseg_losses.kernels.tiles import ClassTile

DEFAULTS = (
    "8x19x512x1024:float32:int64",
    "8x19x512x1024:bfloat16:uint8",
    "1x118x128x128x128:float32:uint8",
    "4x150x512x512:bfloat16:uint8",
)
# programs a multiprocessor and registers a thread, for 4 warps; halved and doubled for others
RESIDENT = ((2, 255), (3, 168), (4, 128), (5, 96), (8, 64))


def candidates(C: int) -> Iterator[ClassTile]:
    """Tiles whose threads hold at most 160 logits."""
    for lanes, width, warps in itertools.product((1, 2, 4, 8, 16, 32), (1, 2, 4, 8), (2, 4)):
        steps = -(-C // lanes)
        rows = 32 * warps // lanes
        if steps > 40 or steps * width > 160 or lanes > C:
            continue
        needed = 40 + steps * (width + 3)  # logits and three sums of each class
        for programs, registers in RESIDENT:
            if 0.6 * needed <= registers <= 1.8 * needed:
                for stages in (1, 2) if C <= 8 else (1,):
                    programs_here = programs * 4 // warps
                    yield ClassTile(rows, lanes, width, warps, stages, programs_here, registers)


def plan_of(case: Case, tile: ClassTile, forward: bool) -> tuple[ClassPlan, Any, Any]:
    """A plan with that tile, on one set of tensors of the case."""
    logits, ids = draw(case, "cuda")
    logits = logits.detach()
    weights = {"bce_weight": 0.5, "dice_weight": 0.5, "focal_weight": 0.0}
    spec = CombinedSegmentationLoss(mode="multiclass", **weights).spec
    base = plans._make_plan(spec, (logits, ids, None, None, None))
    tiles = (tile, None) if forward else (None, tile)
    return ClassPlan(base.layout, base.formula, base.device, *tiles), logits, ids


def compile_one(job: tuple[Case, ClassTile, bool]) -> None:
    """Compile one candidate into Triton's cache; runs in a worker."""
    case, tile, forward = job
    small = case._replace(shape=(*case.shape[:2], 1, 64))  # specialises as the real shape does
    plan, logits, ids = plan_of(small, tile, forward)
    if forward:
        plan.forward_launch().bind(forward_tensors(plan, logits, ids))
    else:
        tensors = gradient_tensors(torch.empty(plan.table_size, device="cuda"), logits, ids)
        plan.backward_launch().bind((*tensors, 0, 0, 0))


def tune(case: Case, tiles: list[ClassTile]) -> Iterator[dict[str, Any]]:
    """Time every candidate, forward and backward."""
    sets = [(x.detach(), ids) for x, ids in input_sets(case, "cuda")]
    stream = torch.cuda.current_stream().cuda_stream
    for tile, forward in itertools.product(tiles, (True, False)):
        plan, _, _ = plan_of(case, tile, forward)
        if forward:
            calls = [forward_tensors(plan, *s) for s in sets]
            step = rounds_of([lambda p=plan, t=t: p.forward(t, stream) for t in calls])
        else:
            table = torch.zeros(plan.table_size, device="cuda")
            calls = [gradient_tensors(table, *s) for s in sets]
            step = rounds_of([lambda p=plan, t=t: p.backward(t, (0, 0, 0), stream) for t in calls])
        time = gpu_time(step, iterations=8, rounds=3)
        bytes_ = case.read_bytes if forward else case.moved_bytes - case.read_bytes
        floor = bytes_ / COPY_BANDWIDTH * 1e6
        side = "forward" if forward else "gradient"
        yield {"side": side, "tile": tile, "us": time, "ratio": time / floor}


def main() -> None:
    """Tune, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=DEFAULTS)
    parser.add_argument("--top", type=int, default=5, help="rows printed of each side")
    parser.add_argument("--json", type=Path, help="where all figures go")
    options = parser.parse_args()
    results = {}
    context = multiprocessing.get_context("spawn")
    for text in options.cases:
        shape, logits, targets = text.split(":")
        case = Case(tuple(map(int, shape.split("x"))), logits, targets, True, ids=True)
        tiles = list(candidates(case.shape[1]))
        with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 2), mp_context=context) as pool:
            list(pool.map(compile_one, itertools.product([case], tiles, (True, False))))
        results[text] = rows = list(tune(case, tiles))
        if options.json:
            options.json.write_text(json.dumps(results))
        for side in ("forward", "gradient"):
            of_side = sorted((r for r in rows if r["side"] == side), key=lambda r: r["us"])
            for row in of_side[: options.top]:
                figures = f"{row['us']:8.1f} us {row['ratio']:.3f} {row['tile']}"
                print(f"{text:34s} {side:9s} {figures}", flush=True)


if __name__ == "__main__":
    main()
