"""Whether PyTorch looks at a call's operators in place of its values, where a launch has no place.

A launch takes addresses. A fake tensor has none (its `data_ptr()` is 0), a graph that is recorded
keeps no launch that it did not see, and a transform of `torch.func` hands out wrapped tensors. Such
calls take the operators of `ops.py`, which PyTorch knows, or an error that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# By name: looked up at every call, where each dot costs 20 ns.
_transforms = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_recorder = torch._C._get_tracing_state
_is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_batchedtensor
_is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
_no_dispatch: Any = Tensor.__torch_dispatch__


def is_traced(logits: Any) -> bool:
    """Whether a call on these logits has to go through what PyTorch knows as operators.

    True in `torch.compile` and `torch.jit.trace`, for FakeTensor, DTensor and other subclasses with
    a `__torch_dispatch__`, under a dispatch mode (`FakeTensorMode`, `make_fx`, `FlopCounterMode`),
    under a transform of `torch.func`, and in forward-mode differentiation.
    """
    if torch.compiler.is_compiling():  # first: the compiler need not follow what comes behind
        return True
    if _transforms() or _modes() or _recorder() is not None or forward_ad._current_level >= 0:
        return True
    kind = type(logits)
    # no tensor at all: the call's own checks say so
    return kind is not Tensor and getattr(kind, "__torch_dispatch__", _no_dispatch) != _no_dispatch


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for many, under vmap or `torch.autograd.grad(is_grads_batched=True)`."""
    return _is_batched(tensor) or _is_legacy_batched(tensor)


def refuse_transforms(logits: Tensor) -> None:
    """Say so where the kernels would lose a derivative that PyTorch asks for.

    Raises:
        RuntimeError: under a transform of `torch.func`; logits with a forward-mode tangent.
    """
    if _transforms():
        what = "transforms of torch.func (grad, vmap, jacrev, jvp, ...)"
    elif forward_ad._current_level >= 0 and forward_ad.unpack_dual(logits).tangent is not None:
        what = "forward-mode derivatives"
    else:
        return
    raise RuntimeError(f"logits: the fused kernels do not take {what}; use backend='torch'")
