"""What a call costs the host, part by part: python benchmarks/host.py NAME.

Writes benchmarks/results/NAME.json. The operator's forward and backward are called directly, so
autograd's engine and nn.Module are left out; a loop of calls is timed while the device works
behind it, its queue never full, and waited for between loops. Needs a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import triton
from conftest import machine
from measure import Case, draw, step_of, wall_us
from rivals import autograd_alone

from fastseg_losses import CombinedSegmentationLoss, ops, ops_launches, plans, state, tracing
from fastseg_losses.kernels.handles import direct_launcher

RESULTS = Path(__file__).parent / "results"
SHAPE = (8, 1, 512, 512)
CALLS = 100  # two launches each: far from the 1024 that a queue holds


def host_us(call: Callable[[], Any], rounds: int = 41) -> float:
    """Median microseconds a call, the device not waited for within a round."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS)
    torch.cuda.synchronize()
    return median(times) * 1e6


@triton.jit
def _nothing_kernel(pointer):
    pass


def bare_launches(tensor: torch.Tensor) -> dict[str, float]:
    """An empty kernel: by Triton's launcher as the plans call it, and by the driver alone."""
    compiled = _nothing_kernel.warmup(tensor, grid=(1, 1, 1))
    compiled[(1, 1, 1)](tensor)  # loads it
    address, stream = tensor.data_ptr(), torch.cuda.current_stream().cuda_stream
    rows = {}
    direct = direct_launcher(compiled)
    if direct is not None:
        start, rest = direct
        rows["empty kernel, Triton's launcher"] = host_us(
            lambda: start(1, 1, 1, stream, *rest, address)
        )
    launch = ctypes.PyDLL("libcuda.so.1").cuLaunchKernel
    slots = (ctypes.c_uint64 * 4)(address)  # and Triton's scratch pointers
    places = [ctypes.addressof(slots) + 8 * k for k in range(4)]
    grid = (ctypes.c_uint(1),) * 3
    arguments = (
        *(ctypes.c_void_p(compiled.function), *grid, ctypes.c_uint(128), *grid[:2]),
        *(ctypes.c_uint(0), ctypes.c_void_p(stream), (ctypes.c_void_p * 4)(*places), None),
    )
    assert launch(*arguments) == 0
    rows["empty kernel, cuLaunchKernel through ctypes"] = host_us(lambda: launch(*arguments))
    return rows


def measure_host() -> dict[str, float]:
    """Microseconds by what is called."""
    case = Case(SHAPE, "float32", "float32", backward=True)
    logits, targets = draw(case, "cuda")
    criterion = CombinedSegmentationLoss().cuda()
    spec, inputs = criterion.spec, (logits, targets, None, None, None)
    criterion(logits, targets).backward()
    plan, _ = plans.plan_for(spec, inputs)
    with torch.no_grad():
        _, table = ops_launches.launch_forward(plan, inputs, None)
    dloss, device = torch.ones((), device="cuda"), logits.device
    stream = state.stream_of(plan.device.index)
    addressed = [*inputs, *[table] * 6]

    def forward() -> Any:
        with torch.no_grad():
            return ops.segmentation_loss(spec, inputs)

    def without_grad() -> None:
        with torch.no_grad():
            pass

    rows = {
        "forward": host_us(forward) - host_us(without_grad),
        "backward": host_us(lambda: ops_launches.launch_backward(plan, inputs, table, dloss)),
        "  its plan": host_us(lambda: plans.PLANS.get(plans.key_of(spec, inputs))),
        "  is it traced": host_us(lambda: tracing.is_traced(logits)),
        "  has an earlier call failed": host_us(state.raise_alarm),
        "  is its device current": host_us(lambda: state.is_foreign(plan.device.index)),
        "  an allocation": host_us(lambda: torch.empty_like(plan.blanks.scratch)),
        "  gradient's allocation": host_us(lambda: torch.empty_like(logits)),
        "  11 addresses": host_us(lambda: [None if t is None else t.data_ptr() for t in addressed]),
        "  counters": host_us(lambda: state.counters_for(plan, device, stream)),
        **{f"  {name}": us for name, us in bare_launches(table).items()},
    }
    rows["forward and backward"] = rows["forward"] + rows["backward"]
    steps = {
        "wall, nn.Module and autograd": criterion,
        "wall, F.binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
        "wall, an autograd.Function that launches nothing": autograd_alone,
    }
    # in turns: the host's speed changes from second to second
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _, (name, loss) in itertools.product(range(7), steps.items()):
        times[name].append(wall_us(step_of(loss, case, [inputs[:2]]), "cuda"))
    return rows | {name: median(values) for name, values in times.items()}


def first_calls() -> dict[str, float]:
    """How much longer a new shape's first step takes than its next ones, the device waited for.

    Of 20 shapes of each kind, the first two left out, which compile: rows that start at 16 bytes,
    rows that do not, and (on Hopper) what takes one launch. Without Python's collector, as in
    `timeit`: it takes 100 ms or more of whichever call it comes in.
    """
    gc.collect()
    gc.disable()
    kinds = {
        "even rows": [(8, 1, 256 + 16 * k, 320 + 8 * k) for k in range(20)],
        "odd rows": [(8, 1, 255 + 3 * k, 321 + 2 * k) for k in range(20)],
        "large": [(24 + k % 3, 1, *(736 + 32 * (k % 7),) * 2) for k in range(20)],
    }
    rows = {}
    for kind, shapes in kinds.items():
        criterion, longer = CombinedSegmentationLoss(), []
        for shape in shapes:
            case = Case(shape, "float32", "uint8", backward=True)
            step, times = step_of(criterion, case, [draw(case, "cuda")]), []
            torch.empty((2, *shape), device="cuda")  # so that PyTorch has memory for the gradient
            for _ in range(4):
                torch.cuda.synchronize()
                start = time.perf_counter()
                step()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            longer.append((times[0] - min(times[1:])) * 1e6)
        rows[f"first call at a new shape, {kind}: longer by (median)"] = median(longer[2:])
        rows[f"first call at a new shape, {kind}: longer by (most)"] = max(longer[2:])
    gc.enable()
    return rows


def main() -> None:
    """Measure, print, and keep."""
    rows = {name: round(us, 2) for name, us in (measure_host() | first_calls()).items()}
    for name, us in rows.items():
        print(f"{name:64s}{us:8.2f}")
    date = datetime.now(timezone.utc).date().isoformat()
    content = {"machine": machine(), "date": date, "shape": SHAPE, "microseconds": rows}
    RESULTS.joinpath(f"{sys.argv[1]}.json").write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    main()
