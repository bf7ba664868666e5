"""One command for the results: python benchmarks/run.py NAME [pytest options].

Runs the benchmarks (all, or what the options select) and writes benchmarks/results/NAME.json, .md
and .png. A run that is cut off writes what it had measured: its rows are kept as they come.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> int:
    """Run, collect, report."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    target = HERE / "results" / f"{sys.argv[1]}.json"
    command = [sys.executable, "-m", "pytest", str(HERE), "--benchmark-only", "-q", *sys.argv[2:]]
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as rows:
        environment = os.environ | {"FASTSEG_BENCH_ROWS": rows.name}
        tests = subprocess.Popen(command, cwd=HERE.parent, env=environment)
        signal.signal(signal.SIGTERM, lambda *_: tests.terminate())  # `timeout` sends it to us
        try:
            code = tests.wait()
        except KeyboardInterrupt:  # the tests have had it too
            code = tests.wait()
        measured = [json.loads(line) for line in Path(rows.name).read_text().splitlines()]
    if not measured:
        return code or 1
    write(target, [rounded(row) for row in measured])
    report = subprocess.run([sys.executable, str(HERE / "report.py"), str(target)])
    return code or report.returncode


def write(target: Path, rows: list[dict[str, Any]]) -> None:
    """The rows beside the machine that they were measured on."""
    sys.path.insert(0, str(HERE))
    from conftest import machine

    date = datetime.now(timezone.utc).date().isoformat()
    target.parent.mkdir(exist_ok=True)
    content = {"machine": machine(), "date": date, "rows": rows}
    target.write_text(json.dumps(content, indent=0) + "\n")


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Five digits are more than any of them deserves."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
