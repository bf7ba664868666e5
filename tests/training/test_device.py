import pytest
import torch

from fastseg_losses.training.device import describe_machine, pick_device
from fastseg_losses.training.distributed import World


def test_a_device_that_is_not_there_is_named() -> None:
    world = World()
    assert pick_device("cpu", world) == torch.device("cpu")
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        pick_device("gpu", world)
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'mps'"):
        pick_device("mps", world)  # torch knows the name everywhere, and fails at the first tensor
    with pytest.raises(ValueError, match="device: 'cuda:99' asked for, but torch sees"):
        pick_device("cuda:99", world)


def test_each_process_has_a_device_of_its_own() -> None:
    second = World(rank=1, size=2, local_rank=1)
    with pytest.raises(ValueError, match="device: expected cuda without a number under torchrun"):
        pick_device("cuda:0", second)
    if torch.cuda.device_count() < 2:
        with pytest.raises(ValueError, match="device: 'cuda' asked for, but torch sees"):
            pick_device("cuda", second)
    else:
        assert pick_device("cuda", second) == torch.device("cuda", 1)
    assert pick_device("cpu", second) == torch.device("cpu")


def test_the_log_names_versions_and_processes() -> None:
    line = describe_machine(torch.device("cpu"), World(0, 2, 0))
    assert torch.__version__ in line and "device cpu" in line and line.endswith("2 processes")
