"""The little state that launches share, and what a launch asks of its device."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastseg_losses.stats import bad_targets_error

if TYPE_CHECKING:
    from fastseg_losses.kernels.early_plan import EarlyPlan
    from fastseg_losses.kernels.launch import Plan

LONGEST_ROW = 1 << 13  # float32; 1024 classes need 5137
CLASS_ALARM = 2  # what the multiclass kernel sets; others set 1
# int32 a device, zeroed before any capture: a captured launch takes its plan's for good.
CAPTURE_COUNTERS = 1 << 16
SHARED_COUNTERS = 1 << 14  # int32 a stream; more where a plan needs more
ASSUMPTIONS = 1 << 10  # float32 a stream, one a plan; then another thousand
FULL = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC)  # of which an OSError says no file

_CAPTURED: dict[torch.device, tuple[Tensor, int]] = {}  # counters for captures, how many are taken
_CAPTURED_TABLES: dict[int, tuple[Tensor, ...]] = {}  # by id; read when their plan is long gone
_CAPTURING = threading.Lock()
_ASSUMING = threading.Lock()
_SHARED: dict[tuple[torch.device, int, bool], Tensor] = {}  # counters, by stream and kind
_ASSUMED: dict[tuple[torch.device, int], tuple[Tensor, int]] = {}  # by stream, how many are taken
_UNREAD: dict[torch.device, Tensor] = {}
# An int32 in host memory that the kernel sets on bad targets, the same for NumPy, is it pinned.
_ALARM: list[Any] = []


def made_aside(make: Callable[[], Tensor], device: torch.device) -> Tensor:
    """What `make` returns, allocated outside whatever memory pool a CUDA graph is using.

    Pools are bound to the stream that warms up or captures, or (cudagraph trees) to the thread, so
    it is made on another stream by another thread, which waits for it: launches of any stream that
    come later may read it at once, those of a capture too.
    """
    if device.type != "cuda":
        return make()
    with torch.cuda.device(device):
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()

    def on_the_side() -> Tensor:
        with torch.cuda.device(device), torch.cuda.stream(aside):
            made = make()
            aside.synchronize()
            return made

    with ThreadPoolExecutor(max_workers=1) as executor:
        tensor = executor.submit(on_the_side).result()
    tensor.record_stream(current)  # when it is freed, launches there may still be using it
    return tensor


def _lasting(size: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that outlives the call; see `made_aside`."""
    return made_aside(lambda: torch.full((size,), value, dtype=dtype, device=device), device)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return device.type == "cuda" and torch._C._cuda_isCurrentStreamCapturing()


def counters_for(plan: Plan | EarlyPlan, device: torch.device, stream: int) -> Tensor:
    """Counters that no launch in flight shares, as all launches before have left them.

    Launches of one stream follow each other, whatever their plan; each leaves its counters at 0, or
    (numbered ones) at numbers that no later launch waits for before 2^32 groups. So a stream has
    two sets for all plans. It is known by its handle: one for several streams (cudaStreamPerThread
    of several threads) is none that PyTorch gives. A captured launch may be replayed beside any
    other, so it gets counters of its own.
    """
    size = plan.num_counters
    if stream and is_capturing(device):  # the default stream, 0, cannot be captured
        with _CAPTURING:
            if plan.tables:
                keep_for_replays(plan.tables)
            slab, taken = _CAPTURED.get(device, (None, 0))
            if slab is None or taken + size > slab.numel():
                # one more node a replay
                return torch.zeros(size, dtype=torch.int32, device=device)
            _CAPTURED[device] = slab, taken + size
            return slab[taken : taken + size]
    counters = plan.counters.get(stream)
    if counters is None:
        counters = _stream_counters(size, device, stream, numbered=plan.numbered)
        outlive_launches(plan.tables, device)
        if device.type == "cuda" and device not in _CAPTURED:
            _CAPTURED[device] = _lasting(CAPTURE_COUNTERS, 0, torch.int32, device), 0
        plan.counters[stream] = counters  # last: what fails before is done again
    return counters


def _stream_counters(size: int, device: torch.device, stream: int, *, numbered: bool) -> Tensor:
    if device.type != "cuda":  # a launch that was cut short spoils its own: see `guarded`
        return _lasting(size, 0, torch.int32, device)
    slab = _SHARED.get((device, stream, numbered))
    if slab is None or slab.numel() < size:
        # Plans that were here before keep the smaller one: with counters of their own.
        doubled = 1 << (size - 1).bit_length()
        slab = _lasting(max(doubled, SHARED_COUNTERS), 0, torch.int32, device)
        _SHARED[device, stream, numbered] = slab
    return slab[:size]


def outlive_launches(tables: tuple[Tensor, ...], device: torch.device) -> None:
    """Keep the memory of tables that are dropped from those who wait for launches on this stream.

    They were made on another stream, whose next tensor would otherwise be written over them.
    """
    if device.type == "cuda":
        for table in tables:
            table.record_stream(torch.cuda.current_stream(device))


def keep_for_replays(tables: tuple[Tensor, ...]) -> None:
    """Keep tables for good whose addresses are in a CUDA graph."""
    _CAPTURED_TABLES[id(tables)] = tables


def guarded(
    launch: Callable[..., Any], *arguments: Any, plan: Plan | EarlyPlan | None = None
) -> Any:
    """Launch or build, so that the next call finds nothing of a launch that was cut short.

    Raises:
        OSError: Triton cannot write what it has compiled; its own message may name no file.
    """
    try:
        return launch(*arguments)
    except BaseException as error:
        # Interpreted programs count themselves one after the other, and Ctrl-C comes between. On a
        # device a launch runs to its end; and where the device is lost, to free memory ends all.
        if plan is not None and not any(c.is_cuda for c in plan.counters.values()):
            plan.counters.clear()
        trouble = cache_trouble(error)
        if trouble:
            assert isinstance(error, OSError)
            raise OSError(error.errno, trouble) from error
        raise


def cache_trouble(error: BaseException) -> str:
    """What to do about an error of Triton's cache; empty if it is another one."""
    if not isinstance(error, OSError):
        return ""
    import triton

    folder = triton.knobs.cache.dir
    # A compiler that is not there is an OSError too; it is named, and lies elsewhere.
    if not (str(error.filename).startswith(folder) if error.filename else error.errno in FULL):
        return ""
    return (
        f"Triton cannot keep kernels in {folder} ({error}); TRITON_CACHE_DIR names another folder"
    )


def assumed_by(plan: EarlyPlan, device: torch.device, stream: int) -> Tensor:
    """The plan's last upstream gradient on this stream, 1 at first: the best guess."""
    assumed = plan.assumed.get(stream)
    if assumed is None:
        with _ASSUMING:  # two plans must not be given the same
            slab, taken = _ASSUMED.get((device, stream), (None, 0))
            if slab is None or taken == slab.numel():
                slab, taken = _lasting(ASSUMPTIONS, 1.0, torch.float32, device), 0
            _ASSUMED[device, stream] = slab, taken + 1
        plan.assumed[stream] = assumed = slab[taken : taken + 1]
    return assumed


def unread_on(device: torch.device) -> Tensor:
    """Where statistics go that nobody reads, from any number of launches at once."""
    if device not in _UNREAD:
        _UNREAD[device] = _lasting(LONGEST_ROW, 0.0, torch.float32, device)
    return _UNREAD[device]


def alarm_on(device: torch.device) -> Tensor:
    """Where the forward kernel reports targets outside [0, 1]: host memory that it can write."""
    if not _ALARM:
        # on the CPU by name: torch.set_default_device may say otherwise
        pin = device.type == "cuda"
        flag = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=pin)
        _ALARM.extend((flag, flag.numpy(), pin))  # read through numpy: 0.1 us in place of 3
    return _ALARM[0]


def raise_alarm() -> None:
    """Raise the ValueError of an earlier call, if a kernel has reported one meanwhile."""
    if _ALARM and _ALARM[1][0]:
        kind, _ALARM[1][0] = int(_ALARM[1][0]), 0
        raise bad_targets_error("some of an earlier call", -1 if kind == CLASS_ALARM else 0)


class _AfterFork:
    """Stands where the alarm is read, once CUDA's memory is not there any more."""

    def __getitem__(self, index: int) -> int:
        raise RuntimeError(
            "fastseg_losses: this process was forked from one that had used CUDA, which CUDA does "
            "not survive; start processes with the 'spawn' method"
        )


def _note_fork() -> None:
    # A child has no such memory: it would be killed by the first look. Kept, as freeing asks CUDA.
    if _ALARM and _ALARM[2]:
        _ALARM[1:] = _AfterFork(), True, _ALARM[1]


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_note_fork)


def index_of(device: torch.device) -> int | None:
    """Which GPU it is; None for none."""
    return device.index if device.type == "cuda" else None


def stream_of(index: int | None) -> int:
    """The handle of a GPU's current stream; 0 where there are no streams."""
    if index is None:
        return 0
    # As Triton asks, like the one below: their public forms build objects, 1 to 6 us a call.
    return torch._C._cuda_getCurrentRawStream(index)


def is_foreign(index: int | None) -> bool:
    """Whether another GPU than this one is current; kernels are launched on the current one."""
    return index is not None and index != torch._C._cuda_getDevice()
