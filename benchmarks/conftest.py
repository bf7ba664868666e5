"""Which cases are benchmarked, and what they need once a session."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import compat_pairs
import pytest
import rivals
import torch
from fresh import Worker
from measure import (
    Case,
    captured,
    copy_bandwidth,
    draw,
    events_us,
    measure,
    mode_of,
    step_of,
    sync,
)
from rivals import ours, pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGE = (32, 1, 1024, 1024)
SHAPES = [(8, 1, 512, 512), LARGE, (4, 1, 128, 128), (2, 4, 96, 96, 96)]
SMALL_SHAPES = [(2, 1, 64, 64), (1, 4, 16, 16, 16)]  # without a GPU the figures mean little
# Multiclass, forward and backward: shape, logits, class ids.
MULTICLASS = [
    Case((8, 19, 512, 1024), "float32", "int64", True, ids=True),
    Case((8, 19, 512, 1024), "bfloat16", "uint8", True, ids=True),
    Case((1, 118, 128, 128, 128), "float32", "int64", True, ids=True),
    Case((2, 118, 128, 128, 128), "float32", "uint8", True, ids=True),
    Case((16, 150, 512, 512), "bfloat16", "uint8", True, ids=True),
]
SMALL_MULTICLASS = [
    Case((2, 5, 64, 64), "float32", "int64", True, ids=True),
    Case((1, 19, 16, 16, 16), "float32", "uint8", False, ids=True),
]
# Logits smaller than the targets.
UPSAMPLED = [
    Case((32, 1, 256, 256), "float32", "uint8", True, size=(1024, 1024)),
    Case((16, 150, 128, 128), "float32", "int64", True, ids=True, size=(512, 512)),
    Case((8, 19, 128, 256), "bfloat16", "uint8", True, ids=True, size=(512, 1024)),
]
SMALL_UPSAMPLED = [
    Case((2, 1, 16, 16), "float32", "uint8", True, size=(64, 64)),
    Case((1, 5, 8, 16), "float32", "int64", True, ids=True, size=(32, 64)),
]
# Compat cases that are measured as CUDA graphs too, beside the compiled peer, at the smallest size.
COMPAT_SMALL = ("smp Dice", "smp Focal", "smp SoftBCE", "MONAI GeneralizedDice", "MONAI DiceFocal")
COMPILE_SECONDS = 120  # for a dozen rivals at once
SINGLES = ["bce", "dice", "iou", "tversky", "focal"]


def all_cases() -> list[Case]:
    """Every shape, pair of dtypes and direction."""
    shapes = SHAPES if DEVICE == "cuda" else SMALL_SHAPES
    dtypes = pairs() if DEVICE == "cuda" else [("float32", "float32"), ("float32", "uint8")]
    return [
        Case(s, *pair, backward) for s in shapes for pair in dtypes for backward in (False, True)
    ]


# The compiled rivals, whose compilation takes seconds each: forward and backward, the usual dtypes.
COMPILED_PAIRS = [("float32", "float32"), ("float32", "uint8"), ("bfloat16", "uint8")]


def compiled_cases() -> list[tuple[str, str, Case]]:
    """(rival, loss, case) that are compiled for one shape."""
    if DEVICE != "cuda":
        return []
    chosen = [("eager", "combined", Case(s, *p, True)) for s in SHAPES for p in COMPILED_PAIRS]
    for rival in ("smp", "monai"):
        chosen += [(rival, "combined", Case(LARGE, *p, True)) for p in COMPILED_PAIRS[::2]]
        chosen.append((rival, "combined", Case(SHAPES[0], "float32", "float32", True)))
    for rival, cases in (("eager", MULTICLASS), ("smp", MULTICLASS[:3]), ("monai", MULTICLASS[:3])):
        chosen += [(rival, "ce+dice", case) for case in cases]
    chosen += [("eager", upsampled_name(case), case) for case in UPSAMPLED]
    large = Case(LARGE, "float32", "float32", True)
    return chosen + [("eager", name, large) for name in SINGLES]


def dynamic_cases() -> list[tuple[str, str, Case]]:
    """(rival, loss, case) that are compiled for all shapes."""
    if DEVICE != "cuda":
        return []
    chosen = [("eager", "combined", Case(LARGE, *p, True)) for p in COMPILED_PAIRS]
    return chosen + [("eager", upsampled_name(case), case) for case in UPSAMPLED]


def multiclass_cases() -> list[Case]:
    """The multiclass problems."""
    return MULTICLASS if DEVICE == "cuda" else SMALL_MULTICLASS


def upsampled_cases() -> list[Case]:
    """The problems whose logits are smaller than the targets."""
    return UPSAMPLED if DEVICE == "cuda" else SMALL_UPSAMPLED


def upsampled_name(case: Case) -> str:
    """The loss that such a problem is for."""
    return ("ce+dice" if case.ids else "combined") + rivals.UPSAMPLED


def compat_cases() -> list[tuple[str, str, Case]]:
    """(loss, mode, case) of the losses under their peers' names."""
    masks = [Case(s, "float32", "float32", True) for s in SHAPES]
    ids = MULTICLASS[:1]
    if DEVICE != "cuda":
        masks = [Case(s, "float32", "float32", True) for s in SMALL_SHAPES]
        ids = SMALL_MULTICLASS[:1]
    found = [(name, mode_of(case), case) for case in masks for name in compat_pairs.MASKS]
    found += [(n, "binary", c) for c in masks if c.shape[1] == 1 for n in compat_pairs.ONE_MASK]
    return found + [(name, "multiclass", case) for case in ids for name in compat_pairs.IDS]


def compiled_compat_cases() -> list[tuple[str, str, Case]]:
    """(rival, loss, case): what is compiled, the peers' own; nothing without a GPU."""
    if DEVICE != "cuda":
        return []
    return [("compat", name, case) for name, _, case in compat_cases()]


def label_of(value: Any) -> str | None:
    """Test ids."""
    return value.label if isinstance(value, Case) else None


@pytest.fixture(scope="session")
def workers(request: pytest.FixtureRequest) -> Iterator[dict[Any, Worker]]:
    """One process for each compiled rival that was collected; they compile at the same time."""
    chosen = {
        item.callspec.params["key"]
        for item in request.session.items
        if "workers" in getattr(item, "fixturenames", ())
    }
    started: dict[Any, Worker] = {}
    at_once = max(1, (os.cpu_count() or 2) - 2)
    pending = [key for key in compiled_cases() + compiled_compat_cases() if key in chosen]
    while pending:
        batch, pending = pending[:at_once], pending[at_once:]
        new = {key: Worker(*key) for key in batch}
        until = time.monotonic() + COMPILE_SECONDS
        for worker in new.values():
            worker.wait(until)
        started |= new
    yield started
    for worker in started.values():
        worker.process.kill()


def _compile(job: tuple[str, Case]) -> None:
    name, case = job
    small = case._replace(shape=(*case.shape[:2], 1, 64))  # specialises as the real shape does
    step_of(ours(name, mode_of(case)), small, [draw(small, "cuda")])()


@pytest.fixture(scope="session")
def kernels_built(request: pytest.FixtureRequest) -> None:
    """Our own kernels in Triton's cache before anything is timed, compiled by all cores."""
    if DEVICE != "cuda":
        return
    jobs = {
        (params.get("name", "ce+dice"), case._replace(shape=(2, case.shape[1])))
        for item in request.session.items
        if "kernels_built" in getattr(item, "fixturenames", ())
        for params in [item.callspec.params]
        for case in [params["case"]]
    }
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 2), get_context("spawn")) as pool:
        list(pool.map(_compile, sorted(jobs)))


@pytest.fixture
def record(benchmark: Any) -> Any:
    """Measure an implementation and keep its figures with the benchmark's own timing."""

    def run(implementation: str, name: str, case: Case, loss: Any) -> None:
        figures = measure(loss, case, DEVICE)
        keep(benchmark, implementation, name, case, figures)
        step = step_of(loss, case, [draw(case, DEVICE)])

        def timed() -> None:
            step()
            sync(DEVICE)

        benchmark.pedantic(timed, rounds=5, iterations=1, warmup_rounds=1)

    return run


def keep(benchmark: Any, implementation: str, name: str, case: Case, figures: dict) -> None:
    """Write a row's figures where the JSON carries them."""
    row = {"implementation": implementation, "loss": name, **case._asdict()}
    row["shape"] = case.work
    benchmark.extra_info.update({**row, **figures})
    if "FASTSEG_BENCH_ROWS" in os.environ:  # run.py's: a run that is cut off keeps what it has
        with Path(os.environ["FASTSEG_BENCH_ROWS"]).open("a") as file:
            file.write(json.dumps({**row, **figures}) + "\n")


def record_replay(
    benchmark: Any, implementation: str, name: str, case: Case, loss: rivals.Loss
) -> None:
    """Measure forward and backward as a CUDA graph, gaps between kernels included."""
    graph = captured(loss, case)
    figures = {"gpu_us": events_us(graph.replay, calls=200), "copy_gb_s": copy_bandwidth() / 1e9}
    keep(benchmark, f"{implementation}, graph replay", name, case, figures)
    benchmark.pedantic(graph.replay, rounds=5, iterations=20)


def machine() -> dict[str, Any]:
    """The device and the versions."""
    import triton

    found = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"}
    if DEVICE == "cuda":
        found["cuda"] = torch.version.cuda
    return found | {"torch": torch.__version__, "triton": triton.__version__}


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """The device and the versions, in the JSON."""
    machine_info.update(machine())
