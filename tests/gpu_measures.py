"""What a call does to the device: kernels launched, bytes asked for."""

import torch
from torch.profiler import ProfilerActivity, profile


def kernels_of(call):
    """Names of the kernels and copies that a call launches."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        call()
        torch.cuda.synchronize()
    return [e.name for e in recorded.events() if e.device_type.name == "CUDA"]


def peak_bytes(call):
    """The most bytes that a call asks for at one time, what it returns among them.

    Asked for, not allocated: the allocator leaves up to 1 MiB of a kept block unsplit, so that
    allocated bytes depend on what ran before.
    """
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats()
    returned = call()
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    del returned
    assert peak > 0, "the allocator counts no requests (cudaMallocAsync does not)"
    return peak
