"""The wheel in clean environments, Python by torch: `python tests/matrix.py`, or `make matrix`.

For each pair: a new environment, the wheel and that torch from PyPI, `pip check`, the self-check on
plain PyTorch and with the kernels interpreted, the tests of the losses against the installed
package, kernels built for a GPU that need not be there. Needs uv
(https://docs.astral.sh/uv), which also fetches the Pythons, and about 20 GB in its cache: PyPI's
torch for Linux is a CUDA build. Prints a line for each pair, and ends with 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OLDEST, PINNED = "2.8.0", "2.13.0"
PAIRS = (
    *(f"{python}/{OLDEST}" for python in ("3.10", "3.13")),
    *(f"{python}/{PINNED}" for python in ("3.10", "3.11", "3.12", "3.13")),
)
# Triton 3.4's interpreter makes Python numbers of arrays of one element, which NumPy 2.5 refuses.
COMPANIONS = {OLDEST: ("numpy<2.4",)}
# What needs neither the training extra nor other libraries.
TESTS = (
    *("test_losses", "test_reference", "test_reference_multiclass", "test_inputs", "test_stats"),
    *("test_spec", "test_arguments", "test_functional", "test_signatures", "test_target_values"),
)
# Not the single launch: Triton 3.4's Gluon has other names, and two launches serve there.
BUILDS = "test_every_dtype_builds and sm_90 and float32"


class Step(NamedTuple):
    """One thing that must end with exit code 0."""

    name: str
    command: list[str]
    variables: dict[str, str] = {}


def main() -> int:
    """Run the pairs; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pairs", nargs="*", default=PAIRS, help="PYTHON/TORCH; default: %(default)s"
    )
    parser.add_argument("--uv", default="uv", help="the uv to call; default: the one on PATH")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastseg-matrix-") as name:
        work = Path(name)
        wheel = build_wheel(work)
        copy_tests(work / "tree")
        results = [run_pair(pair, wheel, work, options.uv) for pair in options.pairs]
    return 0 if results and all(results) else 1


def build_wheel(work: Path) -> Path:
    """A wheel of the working tree, by way of an sdist, as a package index would have it."""
    tree = work / "source"  # setuptools leaves build/ behind, and packs what a stale one holds
    left = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "runs")
    shutil.copytree(ROOT, tree, ignore=left)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        sys.exit(built.stdout + built.stderr)
    [wheel] = work.glob("*.whl")
    return wheel


def copy_tests(tree: Path) -> None:
    """Tests without the sources beside them: what they import is what is installed."""
    for folder in ("tests", "benchmarks"):
        left = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / folder, tree / folder, ignore=left)
    shutil.copy(ROOT / "pyproject.toml", tree)


def run_pair(pair: str, wheel: Path, work: Path, uv: str) -> bool:
    """One line of the table; whether all went well."""
    python, torch = pair.split("/")
    home = work / "environment"
    interpreter = str(home / "bin" / "python")
    install = [uv, "pip", "install", "--quiet", "--python", interpreter]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    chosen = [f"tests/{name}.py" for name in TESTS]
    check = ["-m", "fastseg_losses.selfcheck", "--device", "cpu"]
    steps = [
        Step("environment", [uv, "venv", "--quiet", "--python", python, str(home)]),
        Step("install", [*install, f"torch=={torch}", *COMPANIONS.get(torch, ()), str(wheel)]),
        Step("pip check", [uv, "pip", "check", "--python", interpreter]),
        Step("self-check", [interpreter, *check]),
        Step("interpreted", [interpreter, *check, "--quick"], {"TRITON_INTERPRET": "1"}),
        Step("test tools", [*install, "pytest>=8.2", "hypothesis"]),
        Step("tests", [interpreter, *tests, "-m", "not slow and not gpu", *chosen]),
        Step(
            "builds",
            [interpreter, *tests, "-m", "compile_only", "-k", BUILDS, "tests/test_compile_only.py"],
            {"TRITON_INTERPRET": "0"},
        ),
    ]
    begun, said = time.perf_counter(), {}
    for step in steps:
        ran = subprocess.run(
            step.command,
            cwd=work / "tree",
            env={**clean_environment(), **step.variables},
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            print(f"| {python} | {torch} | {step.name} FAILED |\n{ran.stdout}{ran.stderr}")
            return _finish(home, False)
        lines = [line for line in ran.stdout.splitlines() if line.strip("= ")]
        said[step.name] = lines
    triton = next(line.split()[1] for line in said["self-check"] if line.startswith("triton"))
    cells = [python, torch, triton, said["self-check"][-1], said["interpreted"][-1]]
    cells += [_passed(said[name]) for name in ("tests", "builds")]
    print(f"| {' | '.join(cells)} | {time.perf_counter() - begun:.0f} s |", flush=True)
    return _finish(home, True)


def clean_environment() -> dict[str, str]:
    """Ours, without what would let sources or other packages in."""
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TRITON_INTERPRET", "UV_CONSTRAINT")
    return {name: value for name, value in os.environ.items() if name not in names}


def _passed(lines: list[str]) -> str:
    return next(line.strip("= ") for line in reversed(lines) if " passed" in line)


def _finish(home: Path, good: bool) -> bool:
    shutil.rmtree(home, ignore_errors=True)  # 5 GB each
    return good


if __name__ == "__main__":
    sys.exit(main())
