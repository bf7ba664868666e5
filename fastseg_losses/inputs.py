"""What a call may pass: shapes, dtypes and devices, checked and brought to (N, C, P)."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg_losses.spec import LossSpec

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# logits, targets, valid, class_weights, pos_weight (with a softmax: alpha)
Inputs = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]


class Sizes(NamedTuple):
    """Samples, classes, pixels (the product of the spatial sizes)."""

    N: int
    C: int
    P: int


def check_inputs(
    mode: str,
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None,
    class_weights: Tensor | None,
    pos_weight: Tensor | None,
    *,
    softmax: bool = False,
    constants: bool = True,
) -> Sizes:
    """Check one call's tensors against each other.

    Args:
        mode: of the loss.
        logits: see `ops.segmentation_loss`, as for the other tensors.
        targets: see there.
        valid: see there.
        class_weights: see there.
        pos_weight: see there.
        softmax: alpha comes in place of pos_weight.
        constants: whether a tensor other than the logits that requires grad is an error.

    Returns:
        The canonical sizes.

    Raises:
        TypeError: something is no tensor, or of a dtype that cannot be read.
        ValueError: shapes or devices that do not fit together.
    """
    for name, tensor in (("logits", logits), ("targets", targets)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if logits.dtype not in FLOATING:
        swapped = logits.dtype in (torch.bool, torch.uint8, torch.int64)
        hint = "; are logits and targets swapped?" if swapped and targets.dtype in FLOATING else ""
        raise TypeError(
            "logits: expected float32, float16, bfloat16 or float64 (before the sigmoid), "
            f"got {logits.dtype}{hint}"
        )
    if targets.dtype.is_complex or targets.dtype.is_floating_point and targets.dtype.itemsize < 2:
        raise TypeError(
            f"targets: expected bool, an integer or a floating dtype, got {targets.dtype}"
        )
    if constants and targets.requires_grad:
        raise ValueError(
            "targets: expected a tensor that does not require grad; pass targets.detach()"
        )
    sizes = _sizes(mode, logits)
    if mode == "multiclass" and not is_soft(logits, targets):
        _check_class_ids(logits, targets)
    else:
        _check_targets_shape(mode, logits, targets)
    _check_valid(mode, logits, sizes, valid)
    last = "alpha" if softmax else "pos_weight"
    for name, vector, lengths in (
        ("class_weights", class_weights, (sizes.C,)),
        (last, pos_weight, (sizes.C,) if softmax else (1, sizes.C)),
    ):
        # any(==), not in: under torch.compile numel may be symbolic
        if vector is not None and not any(vector.numel() == n for n in lengths):
            expected = " or ".join(str(n) for n in dict.fromkeys(lengths))
            raise ValueError(
                f"{name}: expected {expected} values for {sizes.C} classes, got {vector.numel()}"
            )
        if constants and vector is not None and vector.requires_grad:
            raise ValueError(f"{name}: expected a tensor that does not require grad")
    for name, other in (
        ("targets", targets),
        ("valid", valid),
        ("class_weights", class_weights),
        (last, pos_weight),
    ):
        if other is not None and other.device != logits.device:
            raise ValueError(
                f"{name}: expected device {logits.device} as the logits', got {other.device}"
            )
    return sizes


def check_call(spec: LossSpec, inputs: Inputs, *, constants: bool = True) -> Sizes:
    """Check one call's tensors against each other and against what the loss is.

    Args:
        spec: the loss.
        inputs: logits, targets, valid, class_weights and pos_weight, or with a softmax alpha.
        constants: see `check_inputs`.

    Raises:
        TypeError: see `check_inputs`, as for ValueError.
    """
    sizes = check_inputs(spec.mode, *inputs, softmax=spec.softmax, constants=constants)
    logits, targets = inputs[:2]
    if spec.mode == "multiclass" and spec.ignore_index is not None and is_soft(logits, targets):
        raise ValueError(
            f"ignore_index: {spec.ignore_index} names a class id, but the targets have the logits' "
            f"shape {tuple(logits.shape)} (probabilities); pass what counts as `valid`"
        )
    return sizes


def is_soft(logits: Tensor, targets: Tensor) -> bool:
    """Whether multiclass targets are probabilities of the logits' shape, not class ids."""
    return targets.shape == logits.shape


def _sizes(mode: str, logits: Tensor) -> Sizes:
    shape = tuple(logits.shape)
    if mode == "binary":
        if not shape:
            raise ValueError(
                "logits: expected shape (N, 1, *spatial) or (N, *spatial), got a 0-d tensor"
            )
        if len(shape) > 4 and shape[1] != 1:
            raise ValueError(
                "logits: expected (N, 1, *spatial) or (N, *spatial), at most 3-D space, in "
                f"mode 'binary' (for C classes pass mode='multiclass' or 'multilabel'), got {shape}"
            )
        if len(shape) == 4 and shape[1] != 1:
            warnings.warn(
                f"logits: shape {shape} is read as volumes of one class, (N, *spatial), in mode "
                "'binary'; if the second size counts classes, the loss needs mode='multilabel' or "
                "'multiclass', and if not, logits[:, None] says so",
                UserWarning,
                stacklevel=2,
            )
        return Sizes(shape[0], 1, _product(shape[1:]))  # (N, 1, *) and (N, *) hold the same pixels
    if len(shape) < 2:
        raise ValueError(f"logits: expected shape (N, C, *spatial) in mode {mode!r}, got {shape}")
    if mode == "multiclass" and shape[1] < 2:
        raise ValueError(
            "logits: expected shape (N, C, *spatial) with C of at least 2 in mode 'multiclass' "
            f"('binary' has one class), got {shape}"
        )
    return Sizes(shape[0], shape[1], _product(shape[2:]))


def _check_class_ids(logits: Tensor, targets: Tensor) -> None:
    shape, found = tuple(logits.shape), tuple(targets.shape)
    ids = (shape[0], *shape[2:])
    if found != ids and found != (shape[0], 1, *shape[2:]):
        hint = "; is the batch dimension missing?" if found == shape[1:] else ""
        raise ValueError(
            f"targets: expected class ids of shape {ids}, or probabilities of the logits' shape "
            f"{shape}, in mode 'multiclass', got {found}{hint}"
        )
    if targets.dtype.is_floating_point:
        raise TypeError(f"targets: expected class ids of an integer dtype, got {targets.dtype}")


def _check_targets_shape(mode: str, logits: Tensor, targets: Tensor) -> None:
    expected, found = tuple(logits.shape), tuple(targets.shape)
    if found == expected:
        return
    if mode == "binary" and _binary_forms(found) & _binary_forms(expected):
        return
    ids = (expected[0], *expected[2:])
    hint = ""
    several = len(expected) > 1 and expected[1] > 1 and not targets.dtype.is_floating_point
    if several and found in (ids, (ids[0], 1, *ids[1:])):
        hint = f"; for class ids of {expected[1]} classes pass mode='multiclass'"
    raise ValueError(
        f"targets: expected the logits' shape {expected} in mode {mode!r}, got {found}{hint}"
    )


def _binary_forms(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """A shape as it stands, and without the channel if its second size may be one."""
    return {shape, (shape[0], *shape[2:])} if len(shape) > 1 and shape[1] == 1 else {shape}


def _check_valid(mode: str, logits: Tensor, sizes: Sizes, valid: Tensor | None) -> None:
    if valid is None:
        return
    if not isinstance(valid, Tensor):
        raise TypeError(f"valid: expected a bool torch.Tensor or None, got {type(valid).__name__}")
    if valid.dtype != torch.bool:
        raise TypeError(
            f"valid: expected dtype torch.bool (True where annotated), got {valid.dtype}"
        )
    found = tuple(valid.shape)
    if mode == "binary":
        pixels = _binary_forms(tuple(logits.shape))
    else:
        pixels = {(sizes.N, *logits.shape[2:])}
    pixels |= {(shape[0], 1, *shape[1:]) for shape in pixels}
    if found != (sizes.N,) and found not in pixels:
        raise ValueError(
            f"valid: expected shape ({sizes.N},) for whole samples or {min(pixels, key=len)} for "
            f"pixels, got {found}"
        )


def check_stats_out(stats_out: Tensor, size: int, device: torch.device) -> None:
    """Check the tensor into which a caller wants the statistics written.

    Raises:
        TypeError: it is no tensor.
        ValueError: its dtype, shape or device does not fit.
    """
    if not isinstance(stats_out, Tensor):
        raise TypeError(f"stats_out: expected a torch.Tensor or None, got {stats_out!r}")
    if (
        stats_out.dtype != torch.float32
        or tuple(stats_out.shape) != (size,)
        or stats_out.device != device
        or not stats_out.is_contiguous()
    ):
        raise ValueError(
            f"stats_out: expected a contiguous float32 tensor of shape ({size},) on {device}, got "
            f"{stats_out.dtype} {tuple(stats_out.shape)} on {stats_out.device}"
        )


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def live_pixels(
    sizes: Sizes, targets: Tensor, valid: Tensor | None, ignore_index: int | None
) -> Tensor | None:
    """Which pixels count: bool, broadcastable to (N, C, P); None when all do.

    Args:
        sizes: the canonical sizes.
        targets: (N, C, P), or class ids (N, 1, P).
        valid: as the caller passed it.
        ignore_index: target value that marks an ignored pixel.
    """
    live = None
    if ignore_index is not None:
        # In floating point: uint8 compared with -100 as integers would wrap to 156.
        wide = targets.dtype.itemsize > 2 and targets.dtype != torch.float32
        kind = torch.float64 if wide else torch.float32
        live = targets.to(kind) != ignore_index
    if valid is not None:
        shape = (
            (sizes.N, 1, 1)
            if valid.dim() == 1 and valid.shape[0] == sizes.N
            else (sizes.N, 1, sizes.P)
        )
        mask = valid.reshape(shape)
        live = mask if live is None else live & mask
    return live


def pixel_stride(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The one stride that walks all of these dimensions in order, or None when there is none.

    Example:
        >>> pixel_stride((4, 5), (15, 3)), pixel_stride((4, 5), (1, 4))
        (3, None)
    """
    real = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size != 1]
    if not real:
        return 1
    for (_, outer), (size, inner) in zip(real, real[1:], strict=False):
        if outer != size * inner:
            return None
    return real[-1][1]


def target_strides(
    mode: str, sizes: Sizes, logits: Tensor, targets: Tensor
) -> tuple[int, int, int] | None:
    """Strides (n, c, p) of the targets; class ids are those of one channel."""
    if mode == "multiclass" and not is_soft(logits, targets):
        return canonical_strides("binary", Sizes(sizes.N, 1, sizes.P), targets)
    return canonical_strides(mode, sizes, targets)


def canonical_strides(mode: str, sizes: Sizes, tensor: Tensor) -> tuple[int, int, int] | None:
    """Strides (n, c, p) of a tensor of the logits' shape; None if its pixels have no one stride."""
    channel = 0 if mode == "binary" else 1
    pixel = pixel_stride(tuple(tensor.shape[channel + 1 :]), tensor.stride()[channel + 1 :])
    if pixel is None:
        return None
    # the stride of a dimension of one is arbitrary and would only spoil the alignment
    n = tensor.stride(0) if sizes.N > 1 else 0
    c = tensor.stride(channel) if sizes.C > 1 else 0
    return n, c, pixel
