"""Faults for the tests to bring about: memory that runs out, Ctrl-C at any moment."""

import contextlib
import gc
import signal
from unittest import mock

import torch

from fastseg_losses import CombinedSegmentationLoss, DiceLoss

ALLOCATING = {
    torch: ("empty", "empty_like", "empty_strided", "full", "zeros"),
    torch.Tensor: ("clone", "new_empty"),
}


class OutOfMemory(contextlib.ExitStack):
    """Refuses one of the allocations that are asked for inside: number `refused`, from 0.

    No dispatch mode, under which a loss goes another way (`fastseg_losses/tracing.py`).
    """

    def __init__(self, refused):
        super().__init__()
        self.refused, self.asked = refused, 0

    def __enter__(self):
        for owner, names in ALLOCATING.items():
            for name in names:
                allocate = self.counting(getattr(owner, name))
                self.enter_context(mock.patch.object(owner, name, allocate))
        return super().__enter__()

    def counting(self, allocate):
        def counted(*args, **kwargs):
            out = allocate(*args, **kwargs)
            # Triton's interpreter makes empty tensors; they take no memory.
            if out.numel():
                self.asked += 1
                if self.asked == self.refused + 1:
                    raise torch.OutOfMemoryError("CUDA out of memory (a test)")
            return out

        return counted


@contextlib.contextmanager
def interrupted(seconds):
    """Ctrl-C after so many seconds, unless what is inside has ended by then."""
    came = []

    def interrupt(*_):
        came.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        # NumPy answers one that comes while it reads a shape with a TypeError: 1 of 900 here.
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def living_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def binary(device):
    logits = torch.randn(2, 1, 5, 7, device=device)
    return DiceLoss(backend="triton"), logits, (logits > 1).to(torch.uint8)


def multiclass(device):
    logits = torch.randn(2, 3, 4, 4, device=device)
    return DiceLoss(mode="multiclass", backend="triton"), logits, logits.argmax(1)


def upsampled(device):
    logits = torch.randn(1, 1, 2, 2, device=device)
    target = (torch.rand(1, 1, 4, 4, device=device) < 0.5).to(torch.uint8)
    return DiceLoss(upsample="bilinear", backend="triton"), logits, target


def single(device):
    """Large enough for the launch that reads each input once, where there is one (Hopper)."""
    logits = torch.randn(16, 1, 1024, 1024, device=device)
    return CombinedSegmentationLoss(backend="triton"), logits, (logits > 1).float()


KINDS = {"binary": binary, "multiclass": multiclass, "upsampled": upsampled}
