import json
from pathlib import Path

import torch

from fastseg_losses.training.profile import PASSED, RECORDED, WARM, StepProfiler


def test_some_steps_are_recorded_once(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, torch.device("cpu"))
    x = torch.randn(8, 8)
    for step in range(PASSED + WARM + RECORDED + 5):
        assert (tmp_path / "profile").exists() == (step >= PASSED + WARM + RECORDED)
        x @ x
        profiler.step()
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    calls = [e for e in trace["traceEvents"] if e.get("name") == "aten::mm"]
    assert len(calls) == RECORDED
    assert "aten::mm" in (tmp_path / "profile" / "table.txt").read_text()
