import json
from collections import namedtuple
from pathlib import Path

import torch
from torch.autograd import DeviceType

from fastseg_losses.training.profile import PASSED, RECORDED, WARM, StepProfiler, kernel_times


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


def test_each_kernel_counts_once() -> None:
    part = namedtuple("part", "key self_device_time_total device_type is_user_annotation")
    parts = [
        part("aten::conv2d", 90.0, DeviceType.CPU, False),  # that of its kernel
        part("cudnn_conv", 90.0, DeviceType.CUDA, False),
        part("_sums_forward_kernel", 6.0, DeviceType.CUDA, False),
        part("_gradient_kernel", 4.0, DeviceType.CUDA, False),
        part("ProfilerStep*", 100.0, DeviceType.CUDA, True),
    ]
    assert kernel_times(parts) == (100.0, 10.0)
