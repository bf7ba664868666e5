"""One command for the results: python benchmarks/run.py NAME [pytest options].

Runs every benchmark and writes benchmarks/results/NAME.json, .md and .png.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run, shrink, report."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    target = HERE / "results" / f"{sys.argv[1]}.json"
    target.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", str(HERE), "--benchmark-only", "-q"]
    command += [f"--benchmark-json={target}", *sys.argv[2:]]
    code = subprocess.run(command, cwd=HERE.parent).returncode
    if not target.exists():
        return code
    shrink(target)
    report = subprocess.run([sys.executable, str(HERE / "report.py"), str(target)])
    return code or report.returncode


def shrink(path: Path) -> None:
    """Keep the figures and the machine's description; the raw timings of each round are noise."""
    import json

    content = json.loads(path.read_text())
    machine = content["machine_info"]
    names = ("device", "cuda", "torch", "triton", "python_version", "system")
    kept = {
        "machine_info": {name: machine[name] for name in names if name in machine},
        "datetime": content["datetime"],
        "benchmarks": [
            {"name": b["name"], "extra_info": rounded(b["extra_info"])}
            for b in content["benchmarks"]
        ],
    }
    path.write_text(json.dumps(kept, indent=0) + "\n")


def rounded(figures: dict) -> dict:
    """Five digits are more than any of them deserves."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
