"""A compiled kernel is found again where Triton would find it, and nowhere else."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastseg_losses import BCELoss, CombinedSegmentationLoss, DiceLoss
from fastseg_losses.kernels import handles, launch


class Kernel:
    """Stands for a JITFunction: `warmup` gives a new handle each time."""

    params = tuple(
        SimpleNamespace(do_not_specialize=name == "size")
        for name in ("logits_ptr", "valid_ptr", "size", "width", "weights")
    )

    def __init__(self):
        self.built = 0

    def warmup(self, *arguments, grid, **named):
        self.built += 1
        return self.built


@pytest.fixture
def kernel(monkeypatch):
    active = SimpleNamespace(get_current_device=lambda: 0)
    monkeypatch.setattr(handles, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(handles, "_HANDLES", {})
    return Kernel()


LOGITS = torch.zeros(64)
CALL = {
    "logits_ptr": LOGITS,
    "valid_ptr": None,
    "size": 7,
    "width": 16,
    "weights": (0.5, 1.0),
    "named": {"TERMS": (1, 2), "BATCH": False},
}


def find(kernel, **changed):
    *arguments, named = {**CALL, **changed}.values()
    return handles.handle_of(kernel, arguments, named, (1,))


@pytest.mark.parametrize(
    "changed",
    [
        *({}, {"size": 16}, {"size": 2**31 - 1}, {"size": -(2**31)}),
        *({"weights": (2.0, 3.0)}, {"weights": (np.float64(2.0), 3.0)}, {"logits_ptr": LOGITS[4:]}),
    ],
    ids=str,
)
def test_the_same_kernel_serves(kernel, changed):
    assert find(kernel) == find(kernel, **changed)
    assert kernel.built == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"logits_ptr": LOGITS[1:]},
        {"logits_ptr": LOGITS.half()},
        {"valid_ptr": torch.ones(3, dtype=torch.bool)},
        {"size": 2**31},
        {"size": 2**63},
        {"size": -(2**31) - 1},
        {"width": 17},
        {"width": 1},
        {"weights": (0.5,)},
        {"weights": (0.5, 1)},
        {"named": {"TERMS": (1, 3), "BATCH": False}},
        {"named": {"TERMS": (1, 2), "BATCH": True}},
    ],
    ids=lambda changed: str(next(iter(changed))),
)
def test_another_kernel_is_asked_for(kernel, changed):
    assert find(kernel) != find(kernel, **changed)
    assert find(kernel) == 1


def test_each_device_has_its_own(kernel):
    first = find(kernel)
    handles.driver.active.get_current_device = lambda: 1
    assert find(kernel) != first


def test_handles_do_not_add_up(kernel, monkeypatch):
    monkeypatch.setattr(handles, "MAX_HANDLES", 3)
    for width in range(2, 20):
        find(kernel, width=width)
        assert len(handles._HANDLES) <= 3


def test_what_did_not_compile_is_tried_again(kernel):
    def out_of_memory(*_, **__):
        raise RuntimeError

    kernel.warmup = out_of_memory
    with pytest.raises(RuntimeError):
        find(kernel)
    del kernel.warmup
    assert find(kernel) == 1


@pytest.mark.gpu
def test_the_handle_is_that_of_triton(cuda, monkeypatch):
    """Shapes, dtypes, layouts and addresses in turn: what the key leaves out changes nothing."""
    found = []

    def checked(kernel, arguments, named, grid):
        handle = handles.handle_of(kernel, arguments, named, grid)
        found.append(handle is kernel.warmup(*arguments, **named, grid=grid))
        return handle

    monkeypatch.setattr(launch, "handle_of", checked)
    losses = [CombinedSegmentationLoss(), DiceLoss(batch=True), BCELoss()]
    for dtype in (torch.float32, torch.bfloat16):
        for mask in (torch.uint8, torch.float32, torch.int64):
            for size in ((3, 1, 16, 16), (2, 1, 33, 33), (1, 1, 7, 7), (8, 1, 160, 160)):
                x = torch.randn(size, device=cuda, dtype=dtype)
                t = (torch.rand(size, device=cuda) < 0.3).to(mask)
                for criterion in losses:
                    for view in (x, x[..., 1:, 1:], x[..., 1:], x.transpose(-1, -2)):
                        leaf = view.detach().requires_grad_()
                        criterion(leaf, t[..., -view.shape[-2] :, -view.shape[-1] :]).backward()
    classes = CombinedSegmentationLoss(mode="multiclass")
    for C, size in ((3, 17), (5, 64), (5, 100)):
        leaf = torch.randn(2, C, size, size, device=cuda, requires_grad=True)
        classes(leaf, torch.randint(C, (2, size, size), device=cuda)).backward()
    assert len(found) > 100 and all(found), (len(found), found.count(False))
