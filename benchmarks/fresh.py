"""A rival under torch.compile in a process of its own: compiled for one shape, then timed on call.

The shapes that other cases compile for would make it dynamic in a shared process. Compilation runs
in parallel with other workers; measuring waits for a line on standard input, so that it is alone.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import Case, draw, measure, mode_of, step_of
from rivals import compiled, rival

SPOKEN = "fresh: "


def say(text: str) -> None:
    """A line for the parent."""
    print(SPOKEN + text, flush=True)


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
            bufsize=0,  # select() must see whatever has not been read
            start_new_session=True,
        )

    def wait(self, until: float) -> None:
        """Wait until it has compiled (or failed), or until `time.monotonic()` says so."""
        self.verdict = self._hear(until) or "it compiled too long"

    def figures(self) -> dict[str, Any]:
        """Have it measure, alone.

        Raises:
            RuntimeError: the rival does not compile.
        """
        if self.verdict != "ready":
            self.process.kill()
            raise RuntimeError(self.verdict)
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        heard = self._hear(time.monotonic() + 60)
        self.process.kill()
        if not heard:
            raise RuntimeError("it did not measure")
        figures: dict[str, Any] = json.loads(heard)
        return figures

    def _hear(self, until: float) -> str:
        """The next line that is meant for us; libraries print lines of their own."""
        assert self.process.stdout is not None
        while True:
            left = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], left)
            line = self.process.stdout.readline().decode() if ready else ""
            if not line:
                return ""
            if line.startswith(SPOKEN):
                return line.removeprefix(SPOKEN).strip()


def main() -> None:
    """The worker."""
    which, name, fields = json.loads(sys.argv[1])
    case = Case(*(tuple(field) if isinstance(field, list) else field for field in fields))
    try:
        loss = compiled(rival(which, name, mode_of(case)), dynamic=False)
        step = step_of(loss, case, [draw(case, "cuda")])
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    except Exception as error:
        say(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    del step
    torch.cuda.empty_cache()
    say("ready")
    sys.stdin.readline()
    say(json.dumps(measure(loss, case, "cuda")))


if __name__ == "__main__":
    main()
