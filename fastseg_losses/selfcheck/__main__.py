"""The command: python -m fastseg_losses.selfcheck [--device D] [--backend B] [--quick] [--json]."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict

import torch

from fastseg_losses.backends import BACKENDS
from fastseg_losses.selfcheck import cases
from fastseg_losses.selfcheck.check import Row, check
from fastseg_losses.selfcheck.environment import environment, is_interpreted

HEADER = (
    f"{'mode':<10} {'loss':<17} {'dtype':<8} {'backend':<8} {'value error':>11} {'(plain)':>9} "
    f"{'gradient':>8} {'(plain)':>9} {'ours':>9} {'eager':>9}"
)
LEGEND = """error: relative to the formula in float64; (plain): that of the formula in eager
PyTorch, float32; times: milliseconds forward and backward, {clock}; triton/1: in one launch"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print and return the exit code: 0 if every row agrees, else 1."""
    options = parse(arguments)
    device: torch.device = options.device
    interpreted = is_interpreted(device) and options.backend != "torch"
    # "auto" never takes the kernels on the CPU; who asks for the interpreter wants to see them
    backend = "triton" if interpreted else options.backend
    shapes = cases.GPU_SHAPES if device.type == "cuda" else cases.CPU_SHAPES
    shapes = cases.INTERPRETED_SHAPES if interpreted else shapes
    timed = not (interpreted or options.quick)
    known = environment(device)
    known["asked for"] = f"backend={options.backend!r}"
    if not options.json:
        print_environment(known, device)
    begun = time.perf_counter()
    rows = []
    with warnings.catch_warnings():
        # that "auto" falls back: the environment has said so, and why
        warnings.filterwarnings("ignore", "fastseg_losses falls back", RuntimeWarning)
        for case in cases.all_cases(options.quick):
            if case.dtype == torch.float64 and device.type not in ("cpu", "cuda"):
                continue  # Apple's GPUs have none
            rows.append(check(case, shapes, device, _backend_for(case, backend), timed=timed))
            if not options.json:
                print(line_of(rows[-1]), flush=True)
    seconds = time.perf_counter() - begun
    failed = [row for row in rows if row.troubles]
    good = bool(rows) and not failed
    if options.json:
        print(json.dumps({"ok": good, "environment": known, "rows": [asdict(r) for r in rows]}))
    else:
        print(f"\n{verdict(rows, failed)} ({seconds:.0f} s)")
    return 0 if good else 1


def _backend_for(case: cases.Case, backend: str) -> str:
    """The kernels refuse float64 by design; "auto" is what takes the torch backend for it."""
    return "auto" if case.dtype == torch.float64 and backend == "triton" else backend


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with a device that is there."""
    parser = argparse.ArgumentParser(
        prog="python -m fastseg_losses.selfcheck",
        description="Compute every loss here and compare value and gradient with float64.",
        epilog="Exit code: 0 if every row agrees, 1 if one does not, 2 for wrong options.",
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu, ...; default: cuda if there is one")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: auto")
    parser.add_argument("--quick", action="store_true", help="float32 alone, without times")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args(arguments)
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each device type fails in its own words
        parser.error(f"--device: expected a device that works here, got {name!r}: {error}")
    options.device = device
    return options


def print_environment(known: dict[str, str], device: torch.device) -> None:
    """The lines above the table."""
    for name, text in known.items():
        print(f"{name:<15} {text}")
    clock = "GPU time by events" if device.type == "cuda" else "wall time"
    print(f"\n{LEGEND.format(clock=clock)}\n\n{HEADER}")


def line_of(row: Row) -> str:
    """One line of the table; what is wrong stands at its end."""

    def error(value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}"

    def took(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    line = (
        f"{row.mode:<10} {row.loss:<17} {row.dtype:<8} {row.backend:<8} {error(row.value):>11} "
        f"{error(row.value_plain):>9} {error(row.gradient):>8} {error(row.gradient_plain):>9} "
        f"{took(row.ours_ms):>9} {took(row.plain_ms):>9}"
    )
    return f"{line}  FAILED: {'; '.join(row.troubles)}" if row.troubles else line


def verdict(rows: Sequence[Row], failed: Sequence[Row]) -> str:
    """The last line, which says enough by itself."""
    if not rows:
        return "FAILED: nothing was checked"
    if failed:
        names = "; ".join(
            f"{row.mode} {row.loss} {row.dtype} ({', '.join(row.troubles)})" for row in failed
        )
        return f"FAILED: {len(failed)} of {len(rows)} rows: {names}"
    served = sorted({row.backend.split("/")[0] for row in rows})
    return f"ok: {len(rows)} rows agree; served by {' and '.join(served)}"


if __name__ == "__main__":
    sys.exit(main())
