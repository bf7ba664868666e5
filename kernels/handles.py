"""Compiled kernels: found by what Triton specialises on, launched by their handle."""

from collections.abc import Callable, Sequence
from typing import Any

import triton
from triton.runtime import driver

MAX_HANDLES = 1024
_HANDLES: dict[Any, Any] = {}


def handle_of(kernel: Any, arguments: Sequence[Any], named: dict[str, Any], grid: Any) -> Any:
    """The kernel compiled for run-time arguments like these.

    Triton's own look-up makes a text of everything: 180 to 210 us of the 300 to 350 that plans of a
    new shape cost, 90 to 100 so (benchmarks/results/cpu-host.txt). The key tells more apart than
    Triton does, so at worst it is asked once more.
    """
    device = driver.active.get_current_device()
    traits = tuple(
        _trait(value, exact=not parameter.do_not_specialize)
        for value, parameter in zip(arguments, kernel.params, strict=False)
    )
    key = (kernel, device, tuple(named.items()), traits)
    handle = _HANDLES.get(key)
    if handle is None:
        if len(_HANDLES) >= MAX_HANDLES:
            _HANDLES.clear()
        handle = _HANDLES[key] = kernel.warmup(*arguments, **named, grid=grid)
    return handle


def _trait(value: Any, *, exact: bool) -> Any:
    """All of an argument that may change what is compiled."""
    if value is None:
        return None
    if isinstance(value, float):  # NumPy's too
        return float
    if isinstance(value, tuple):
        return tuple(_trait(v, exact=True) for v in value)
    if isinstance(value, int):  # 32 bits, 64, or unsigned; of others a 1, and what 16 divides
        return type(value), value if exact else (-(1 << 31) <= value < 1 << 31, value < 1 << 63)
    memory = value.untyped_storage().size()  # AMD's kernels address up to 2 GiB otherwise
    return value.dtype, value.data_ptr() % 16 == 0, memory < 1 << 31


def direct_launcher(compiled: Any) -> tuple[Callable[..., None], tuple[Any, ...]] | None:
    """Triton's C launcher and what it takes between the stream and the kernel's arguments.

    Its Python around it costs 5 us a launch, most of it for hooks that are not set. Only for the
    release whose launcher this was written and measured with; None: call the public way.
    """
    launcher = compiled.run
    if not triton.__version__.startswith("3.6.") or type(launcher).__name__ != "CudaLauncher":
        return None
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return None
    modes = (launcher.launch_cooperative_grid, launcher.launch_pdl)
    no_scratch, no_hooks = (None, None), (None, None, None)
    rest = (compiled.function, *modes, *no_scratch, compiled.packed_metadata, *no_hooks)
    return launcher.launch, rest
