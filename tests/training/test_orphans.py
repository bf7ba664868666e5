import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A worker that starts working only when its trainer is dead, and one whose trainer lives.
SCRIPT = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from fastseg_losses.training.orphans import end_if_orphaned

def work(path, waits):
    Path(path + ".started").touch()
    while waits and os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    end_if_orphaned(0)
    Path(path).touch()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    one = context.Process(target=work, args=("kept", False))
    one.start()
    one.join()
    context.Process(target=work, args=("orphan", True)).start()
    while not Path("orphan.started").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_lost_its_trainer_ends(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    start = time.monotonic()
    # Reading to the end of the output waits for whoever still holds it: the worker.
    subprocess.run(
        [sys.executable, str(script), method],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        timeout=60,
    )
    assert time.monotonic() - start < 50
    names = {path.name for path in tmp_path.iterdir()} - {"script.py"}
    assert names == {"kept", "kept.started", "orphan.started"}
