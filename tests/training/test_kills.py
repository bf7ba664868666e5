"""A training that is killed at random moments is the same training in the end.

8 kills in the test suite; `KILLS=50 pytest tests/training/test_kills.py` makes it 50.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import killed_often, killed_run
from training.runs import SIZE, write_set
from training.test_resume import check_equal

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.exit_codes import EXIT_OK

KILLS = int(os.environ.get("KILLS", "8"))

# 20 training rows: 5 batches an epoch, a checkpoint every other one.
OPTIONS = [
    *("--image-size", str(SIZE), "--batch-size", "4", "--epochs", str(8 + 3 * KILLS)),
    *("--num-workers", os.environ.get("KILLS_WORKERS", "0"), "--device", "cpu", "--lr", "5e-3"),
    *("--check-every", "3", "--schedule", "cosine", "--ema", "0.9", "--save-every", "2"),
]


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_from_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_set(tmp_path / "d.parquet")
    folder, unbroken = tmp_path / "run", tmp_path / "unbroken"
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    options = ["--data", str(data), *OPTIONS]
    end = subprocess.run(
        [sys.executable, killed_often.__file__, str(KILLS), "1", *options]
        + ["--output-dir", str(folder)],
        # One thread: after a fork, the parent's other threads are gone.
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert end.returncode == 0, end.stderr
    seen = json.loads(end.stdout.splitlines()[-1])
    print(seen)
    assert seen["killed"] == KILLS
    assert seen["steps"] and seen["before any checkpoint"] < KILLS
    # What killed writes left is gone, and no dead process keeps the folder locked.
    assert not list(folder.glob(".*.tmp"))
    monkeypatch.setattr(launching, "build_model", killed_run.net_with_dropout)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)
    assert launching.launch(parse_args([*options, "--output-dir", str(unbroken)])) == EXIT_OK
    check_equal(folder, unbroken)
