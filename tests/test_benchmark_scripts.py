"""Benchmarks that run as scripts find what they import, from any folder and without pytest."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(BENCHMARKS.parent)  # where the package is not installed
    return subprocess.run(
        [sys.executable, *([code] if code.endswith(".py") else ["-c", code]), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_a_worker_for_a_compiled_rival_starts(tmp_path: Path) -> None:
    # Its standard error goes nowhere: an import that fails there reads as "it compiled too long".
    case = '["smp", "no such loss", [[2, 1, 8, 8], "float32", "float32", true, false]]'
    end = run(tmp_path, str(BENCHMARKS / "fresh.py"), case)
    assert end.stdout.startswith("fresh: LookupError"), end.stdout + end.stderr


def test_other_scripts_import(tmp_path: Path) -> None:
    names = "cpu_losses, collapse_study, host, pseudo_study, report, run"
    names += ", tune, tune_multiclass, tune_single"
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import {names}"
    end = run(tmp_path, code)
    assert end.returncode == 0, end.stderr
