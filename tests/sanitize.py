"""Every kernel under NVIDIA's compute-sanitizer: `python tests/sanitize.py LOGS`, on a GPU.

Runs tests/sanitize_cases.py by itself first (which also compiles the kernels), then under each
tool, prints a table and leaves what each run said in the folder LOGS. The exit code is 0 if all
cases are right and no tool finds anything, 1 if not (or there is no GPU), 2 if there is no
compute-sanitizer.

    memcheck    reads and writes outside of an allocation, or at an unaligned address
    racecheck   shared memory that threads write and read without a barrier between
    initcheck   global memory that is read before anything was written to it
    synccheck   barriers that not all threads reach
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
COMMAND = "compute-sanitizer"
FOUND = 99  # the exit code that the sanitizer is told to give where it finds something

TOOLS = {
    # Calls that fail on purpose (torch asks the driver for what it may lack) are no finding.
    # Padding behind each allocation catches what a neighbour would hide.
    "memcheck": ["--report-api-errors", "no", "--padding", "64"],
    "racecheck": ["--racecheck-report", "analysis"],
    "initcheck": [],
    "synccheck": [],
}
# The kernels' inputs lie in torch's cache of large blocks otherwise, where everything is inside.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TRITON_INTERPRET": "0"}
# What it says where it does not find the process that it has started, which then waits for ever:
# seen on an H100 with memcheck and synccheck, in runs of which others went well.
UNATTACHED = "No attachable process found"
ATTEMPTS = 4
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?")


class Run(NamedTuple):
    """How one run ended."""

    name: str
    code: int | None  # None: it took too long
    findings: int | None  # None: the tool gave no summary
    wrong: int | None  # None: the cases did not come to their end
    seconds: float

    @property
    def clean(self) -> bool:
        return self.code == 0 and self.findings == 0 and self.wrong == 0

    @property
    def outcome(self) -> str:
        if self.clean:
            return "clean"
        if self.code is None:
            return "took too long"
        if self.findings is None:
            return "no summary: see the log"
        if self.findings:
            return f"{self.findings} findings"
        return "died" if self.wrong is None else f"{self.wrong} cases wrong"


def start(name: str, command: list[str], logs: Path, timeout: float) -> Run:
    """Run, with all that it says in LOGS/NAME.log; a tool's own lines begin with ====."""
    environ = {**os.environ, **ENVIRONMENT}
    places = [str(HERE.parent), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    log = logs / f"{name}.log"
    began = time.monotonic()
    for _ in range(ATTEMPTS):
        code = wait_for(command, environ, log, timeout - (time.monotonic() - began))
        text = log.read_text(errors="replace")
        if UNATTACHED not in text:
            break
    counts = [int(n) for n in SUMMARY.findall(text)]  # one a process
    ended = re.search(r"^\d+ cases, (\d+) wrong$", text, flags=re.MULTILINE)
    findings = 0 if name == "alone" else sum(counts) if counts else None
    wrong = int(ended.group(1)) if ended else None
    return Run(name, code, findings, wrong, time.monotonic() - began)


def wait_for(command: list[str], environ: dict[str, str], log: Path, timeout: float) -> int | None:
    """The exit code, None where the process took too long or was never found by the sanitizer."""
    end = time.monotonic() + timeout
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environ, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None:
            if time.monotonic() > end or UNATTACHED in log.read_text(errors="replace"):
                os.killpg(process.pid, signal.SIGKILL)  # what the sanitizer has started, too
                process.wait()
                return None
            time.sleep(0.05)
    return process.returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The kernels under compute-sanitizer.")
    parser.add_argument("logs", type=Path, help="folder for what each run says")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--timeout", type=float, default=600, help="seconds a tool may take")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args(arguments)
    sanitizer = shutil.which(COMMAND)
    if sanitizer is None:
        print(f"{COMMAND} is not on PATH: it comes with the CUDA toolkit (package cuda-sanitizer)")
        return 2
    options.logs.mkdir(parents=True, exist_ok=True)
    cases = [sys.executable, str(HERE / "sanitize_cases.py"), "--only", options.only]
    runs = [start("alone", cases, options.logs, options.timeout)]
    show(runs[0])
    if not runs[0].clean:
        print(f"the cases are not right by themselves: {options.logs / 'alone.log'}")
        return 1
    for tool in options.tools:
        # The size at which the single launch is taken by itself: only where it takes seconds.
        large = ["--large"] if tool == "memcheck" else []
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), *TOOLS[tool]]
        command += ["--target-processes", "application-only"]  # no compiler that it starts
        runs.append(start(tool, [*command, *cases, *large], options.logs, options.timeout))
        show(runs[-1])
    return 0 if all(run.clean for run in runs) else 1


def show(run: Run) -> None:
    print(f"{run.name:10} {run.outcome:28} {run.seconds:6.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
