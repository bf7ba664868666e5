import shlex
import sys

import pytest
import torch

from fastseg_losses.training.surroundings import command, device_name, peak_memory, versions


def test_the_command_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train.py", "--data", "my set's/index.parquet"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert shlex.split(command())[1:] == arguments


def test_versions_name_torch() -> None:
    assert versions()["torch"] == torch.__version__
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")
def test_peak_memory_never_falls() -> None:
    first = peak_memory(torch.device("cpu"))
    held = torch.ones(16 * 2**20)  # 64 MiB, touched
    then = peak_memory(torch.device("cpu"))
    assert first is not None and then is not None
    assert then[0] >= first[0] > held.nbytes
    assert then[1] == "held by the process"


@pytest.mark.gpu
def test_peak_memory_on_cuda_is_what_torch_allocated() -> None:
    device = torch.device("cuda")
    held = torch.ones(2**20, device=device)
    found = peak_memory(device)
    assert found is not None and found[0] >= held.nbytes
    assert device_name(device) == torch.cuda.get_device_name()
