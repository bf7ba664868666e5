"""The one way from the peers' losses to the kernels: specs, tensors, numbers, the backend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastseg_losses.arguments import check_choice
from fastseg_losses.backends import BACKENDS, torch_loss
from fastseg_losses.ops import segmentation_loss
from fastseg_losses.ops_generalized import Finish
from fastseg_losses.ops_relay import Relay
from fastseg_losses.spec import LossSpec, PointTerm, RegionTerm

# The fields of a PointTerm and of a RegionTerm, in their order.
Point = tuple[Any, ...]
Region = tuple[Any, ...]

MAX_SPECS = 1024  # numbers that change at every step, an annealed weight, make a spec each
_SPECS: dict[tuple[Any, ...], LossSpec] = {}

_backend = "auto"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute the losses of `compat` on this backend until the block ends, in every thread.

    The peers' calls have no argument for it. "torch" has what the kernels have not: second
    derivatives, `torch.func`, forward mode.

    Args:
        name: "auto", "triton" or "torch".

    Raises:
        ValueError: another name.

    Example:
        >>> import torch
        >>> from fastseg_losses import compat
        >>> from fastseg_losses.compat.monai import DiceLoss
        >>> x, t = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> with compat.backend("torch"):
        ...     torch.func.hessian(DiceLoss(sigmoid=True))(x, t).shape
        torch.Size([1, 1, 2, 2, 1, 1, 2, 2])
    """
    global _backend
    check_choice("backend", name, BACKENDS)
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def chosen_backend() -> str:
    """The name given to `backend`, or "auto"."""
    return _backend


@torch.compiler.assume_constant_result  # a dict: torch.compile would trace into an lru_cache
def spec_of(
    mode: str,
    points: tuple[Point, ...],
    regions: tuple[Region, ...],
    reduction: str,
    ignore_index: int | None,
    include_background: bool,
    batch: bool,
    absent: str,
    activation: str | None,
    overlap: str,
    squared: bool,
) -> LossSpec:
    """The spec with these fields, made once; terms as tuples, which torch.compile takes."""
    fields: tuple[Any, ...] = (ignore_index, include_background, batch, absent, activation)
    fields += (overlap, squared)
    key = (mode, points, regions, reduction, *fields)
    if key not in _SPECS:
        if len(_SPECS) >= MAX_SPECS:
            _SPECS.clear()
        terms = (tuple(PointTerm(*p) for p in points), tuple(RegionTerm(*r) for r in regions))
        # NumPy's flags find the same spec, but are no part of one
        _SPECS[key] = LossSpec(
            mode,
            *terms,
            reduction,
            ignore_index,
            bool(include_background),
            bool(batch),
            absent,
            activation,
            overlap,
            bool(squared),
        )
    return _SPECS[key]


def fused(
    inputs: Sequence[Tensor | None],
    mode: str,
    points: tuple[Point, ...] = (),
    regions: tuple[Region, ...] = (),
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
    include_background: bool = True,
    batch: bool = False,
    absent: str = "keep",
    activation: str | None = None,
    overlap: str = "product",
    squared: bool = False,
    through: Relay | Finish | None = None,
) -> Tensor:
    """A loss through the kernels (the reference where they cannot run), differentiable.

    Args:
        inputs: logits, targets, then what there is of valid, class_weights, and pos_weight (with a
            softmax: focal's alpha).
        mode: see `LossSpec`, as for what follows.
        points: the pointwise terms.
        regions: the region terms.
        reduction: or "sums", for I, P, T and V stacked.
        ignore_index: target value whose pixels do not count.
        include_background: whether class 0 has region terms.
        batch: one group for each class over the batch.
        absent: which groups count.
        activation: None for the mode's own, "sigmoid", or "identity".
        overlap: "product" or "minimum".
        squared: squares in P and T.
        through: what the loss goes through: a relay adds its gradient to that of others of the same
            logits, a finish makes generalised Dice of sums.

    Returns:
        Float32, or float64 for float64 logits; no subclass of a tensor, whatever came.
    """
    if ignore_index is not None and type(ignore_index) is not int:
        ignore_index = _integer(ignore_index)
    spec = spec_of(
        *(mode, points, regions, reduction, ignore_index, include_background, batch, absent),
        *(activation, overlap, squared),
    )
    logits, targets, valid, class_weights, vector = (*inputs, None, None, None)[:5]
    assert logits is not None and targets is not None
    if type(logits) is not Tensor:
        logits = plain(logits)
    if type(targets) is not Tensor:
        targets = plain(targets)
    if valid is not None and type(valid) is not Tensor:
        valid = plain(valid)
    kind = computed_in(logits)
    constants = not targets.requires_grad
    if class_weights is not None:
        class_weights = class_weights.to(kind)
        constants = constants and not class_weights.requires_grad
    if vector is not None:
        vector = vector.to(kind)
        constants = constants and not vector.requires_grad
    tensors = (logits, targets, valid, class_weights, vector)
    if not constants:
        loss, _ = torch_loss(spec, tensors, None, constants=False)
    elif through is not None:
        loss = through.loss(spec, tensors, _backend)
    else:
        loss, _ = segmentation_loss(spec, tensors, backend=_backend)
    if reduction == "mean" and (points or not batch) and logits.numel() == 0:
        return loss * math.nan  # a mean of nothing, as in the peers
    return loss


def plain(tensor: Tensor) -> Tensor:
    """Without a subclass that is one in name, MONAI's MetaTensor: the launches need its memory."""
    kind: Any = type(tensor)
    if (
        kind is Tensor
        or kind is nn.Parameter
        or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    ):
        return tensor  # a tensor all the same; or one whose memory is not its values
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _integer(value: Any) -> Any:
    """An ignore_index as Python has it; one that is no integer is no label either."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if value == int(value) else float(value)


def number(value: Any) -> float:
    """A number of a loss: Python's, NumPy's, or a tensor of one value.

    Raises:
        TypeError: a tensor that requires grad, which would get none.
    """
    if type(value) is float:
        return value
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError("expected a number, got a tensor that requires grad: it would get none")
    return float(value)


def focal_of(alpha: Any, gamma: Any) -> Point:
    """The focal loss of the papers, with sigmoids; alpha below 0 for no balance.

    Raises:
        ValueError: gamma below 0.
    """
    alpha, gamma = number(alpha), number(gamma)
    if gamma < 0:
        raise ValueError(f"gamma: expected a number of at least 0, got {gamma!r}")
    return ("focal", 1.0, 0.0, alpha if alpha >= 0 else None, gamma)


def keeps(loss: Any, known: type[nn.Module], *methods: str) -> bool:
    """Whether these methods are those of `known`, in the loss's class and in itself."""
    kind, changed = type(loss), loss.__dict__
    for name in methods:
        if getattr(kind, name, None) is not getattr(known, name) or name in changed:
            return False
    return True


def is_own(part: Any, known: type[nn.Module]) -> bool:
    """Whether a part of a loss computes what `known` does, so that one launch may replace its call.

    Args:
        part: a module that the caller may have subclassed, replaced, changed or hooked.
        known: the class that the launch stands for.
    """
    own = getattr(type(part), "forward", None) is known.forward and "forward" not in part.__dict__
    return own and not part._forward_hooks and not part._forward_pre_hooks


def mean_factor(size: int) -> tuple[float, float]:
    """What makes a sum over `size` elements their mean: a term's weight, and a factor of the loss.

    The weight is a number of the launch; under torch.compile sizes may be symbols, which a spec
    cannot hold.
    """
    if size == 0:
        return 1.0, math.nan
    return (1.0, 1 / size) if torch.compiler.is_compiling() else (1 / size, 1.0)


def computed_in(logits: Tensor) -> torch.dtype:
    """Float32 but for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def reduced(each: Tensor, reduction: str | None) -> Tensor:
    """Each element's value under "mean" or "sum"; anything else leaves it."""
    if reduction == "mean":
        return each.mean()
    return each.sum() if reduction == "sum" else each


def flat(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, P), what they are in binary mode, or as they are where that says the same.

    A view costs autograd a step of its own each way, a fifth of the host's time for a call.
    """
    if logits.dim() > 2 and logits.shape[1] == 1 and logits.shape == targets.shape:
        return logits, targets
    if logits.dim() < 2:
        return logits.reshape(1, -1), targets.reshape(1, -1)
    return logits.flatten(1), targets.flatten(1) if targets.dim() > 1 else targets[:, None]


def rounded(loss: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """A loss in the dtype that PyTorch's own arithmetic on both would give it."""
    if not targets.is_floating_point():
        return loss.to(inputs.dtype)
    return loss.to(torch.promote_types(inputs.dtype, targets.dtype))
