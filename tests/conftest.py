"""Where the kernels run: on the GPU if there is one, else interpreted on the CPU."""

import os
import sys
import zlib

import torch

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so before the first import of fastseg_losses.kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if torch.cuda.is_available() and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)  # here it runs on the device: `-m gpu` wants it too
        elif "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device():
    """The device on which backend="triton" runs in this session."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("neither a CUDA device nor TRITON_INTERPRET=1")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def seed(request):
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def first_division():
    """Each test's first large shape may take the single launch, whatever came before it."""
    single_plan = sys.modules.get("fastseg_losses.kernels.single_plan")
    if single_plan is not None:
        single_plan._COMPILED.clear()


@pytest.fixture
def cuda():
    """The current CUDA device, for tests that only a GPU can run."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def poisoned(cuda):
    """Whatever the allocator hands out next holds NaN, so that an unwritten output shows."""
    for size in (1 << 28, 1 << 20, 1 << 12, 1 << 9):
        blocks = [torch.full((size // 4,), float("nan"), device=cuda) for _ in range(4)]
        del blocks
