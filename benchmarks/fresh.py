"""A rival under torch.compile in a process of its own: compiled for one shape, then timed on call.

The shapes that other cases compile for would make it dynamic in a shared process. Compilation runs
in parallel with other workers; measuring waits for a line on standard input, so that it is alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from measure import Case, draw, measure, mode_of, step_of
from rivals import compiled, rival


class Worker:
    """The parent's end of one process."""

    def __init__(self, which: str, name: str, case: Case) -> None:
        argument = json.dumps([which, name, list(case)])
        # Inductor would start a pool of compilers in each of a dozen workers.
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), argument],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def wait(self) -> None:
        """Wait until it has compiled (or failed)."""
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline().strip()

    def figures(self) -> dict[str, Any]:
        """Have it measure, alone.

        Raises:
            RuntimeError: the rival does not compile.
        """
        if self.ready != "ready":
            self.process.wait()
            raise RuntimeError(self.ready or "the worker ended without a word")
        out, _ = self.process.communicate("go\n")
        figures: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return figures


def main() -> None:
    """The worker."""
    which, name, fields = json.loads(sys.argv[1])
    case = Case(tuple(fields[0]), *fields[1:])
    try:
        loss = compiled(rival(which, name, mode_of(case)), dynamic=False)
        step = step_of(loss, case, [draw(case, "cuda")])
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    del step
    torch.cuda.empty_cache()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(measure(loss, case, "cuda")), flush=True)


if __name__ == "__main__":
    main()
