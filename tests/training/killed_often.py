"""A training that is killed again and again: killed_often.py KILLS SEED [train.py's options].

Imports once; each life of the training is a fork that goes on from the last one's last.pt and is
killed after a random time. Prints what it saw as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from training import killed_run

from fastseg_losses.training import html_page, outputs
from fastseg_losses.training import launch as launching
from fastseg_losses.training.command_line import parse_args


def live(options: list[str]) -> int:
    """Start a training in a process of its own, as if from a shell; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = launching.launch(parse_args(options))
    finally:
        os._exit(code)


def step_of(folder: Path) -> int:
    """Read everything in a killed run's folder; the step of last.pt."""
    step: int = torch.load(folder / "last.pt", weights_only=True)["step"]
    if (folder / "best.pt").exists():
        torch.load(folder / "best.pt", weights_only=True)
    json.loads((folder / "config.json").read_text())
    if (folder / "metrics.csv").exists():
        lines = (folder / "metrics.csv").read_text().splitlines()
        assert len({line.count(",") for line in lines}) == 1
    if (folder / "report.html").exists():
        assert (folder / "report.html").read_text().rstrip().endswith("</html>")
    return step


def main() -> None:
    """Kill, look, go on; in the end let the run finish."""
    kills, seed, options = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    folder = Path(options[options.index("--output-dir") + 1])
    launching.build_model = killed_run.net_with_dropout  # type: ignore[assignment]
    for name in ("plot_curves", "plot_samples"):
        setattr(outputs.report, name, lambda *args, **options: None)
    html_page.draw_charts = lambda *args, **options: []  # type: ignore[assignment]
    chance = random.Random(seed)
    seen = {"killed": 0, "while writing": 0, "without progress": 0, "before any checkpoint": 0}
    steps = [0]
    # Until a life's first checkpoint, in seconds, as far as seen: kills are drawn around it.
    start = 0.3
    while seen["killed"] < kills:
        goes_on = (folder / "last.pt").exists()
        pid = live(["--resume", str(folder)] if goes_on else options)
        time.sleep(chance.uniform(0, 2 * start))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"a life ended by itself, status {status}, steps {steps}"
        seen["killed"] += 1
        seen["while writing"] += any(folder.glob(".*.tmp"))
        if not (folder / "last.pt").exists():
            seen["before any checkpoint"] += 1
            start *= 1.2
            if folder.exists():  # nothing to go on from: a user would start anew
                folder.rename(folder.with_name(f"killed-{seen['killed']}"))
            continue
        steps.append(step_of(folder))
        assert steps[-1] >= steps[-2], f"a checkpoint went back: {steps}"
        seen["without progress"] += steps[-1] == steps[-2]
        start *= 1.05 if steps[-1] == steps[-2] else 0.95
    _, status = os.waitpid(live(["--resume", str(folder)]), 0)
    assert status == 0, f"the last life ended with status {status}"
    print(json.dumps(seen | {"steps": steps[1:]}))


if __name__ == "__main__":
    main()
