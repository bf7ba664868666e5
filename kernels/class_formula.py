"""A multiclass formula in the words of its kernels, whatever the resolution of the logits."""

from collections.abc import Sequence
from typing import Any

from fastseg_losses.kernels import finalize, terms
from fastseg_losses.kernels.launch import Formula, Strides, sloped_sums


def class_loss_shape(N: int, C: int, f: Formula) -> tuple[int, ...]:
    """The shape of the loss under the formula's reduction."""
    classes = C - f.first_class
    per_group = (classes,) if f.batch else (N, classes)
    shapes = {"none": (N,) if f.points else per_group, "sums": (4, N, C)}
    return shapes.get(f.reduction, ())


def class_dloss_strides(f: Formula, strides: Sequence[int]) -> Strides | None:
    """Strides (k, n, c) of an upstream gradient (N,), of which there is one a sample; else None."""
    return (0, strides[0], 0) if len(strides) == 1 and f.points else None


def forward_constants(f: Formula, C: int, *, ids: bool) -> dict[str, Any]:
    """What the forward kernels must know of the formula at compile time."""
    first = finalize.FIRST_POINT.value
    columns = tuple(first + k for k in range(len(f.points)))
    columns += (finalize.MASS.value, finalize.PREDICTED.value)
    if not ids:
        columns += (finalize.TARGET.value, finalize.ACTUAL.value)
    return {
        "TERMS": _terms(f),
        "BALANCED": f.balanced,
        "COLUMNS": (*columns, finalize.VALID.value, finalize.COUNTED.value),
        "LOGS": f.logs,
        "POWERS": f.powers,
        "REDUCTION": f.reduction,
        "ABSENT": f.absent,
        "BLOCK_C": 1 << (C - 1).bit_length(),
    }


def backward_constants(f: Formula) -> dict[str, Any]:
    """The same of the backward kernels."""
    sums = f.reduction == "sums"
    return {
        "TERMS": _terms(f) if f.softmax else (*sloped_sums(f), *_terms(f)),
        "REGION": bool(f.logs) or sums,
        "SUMS": sums,
        "PER_CLASS": sums or (f.reduction == "none" and not f.points),
    }


def _terms(f: Formula) -> tuple[Any, ...]:
    functions = terms.SOFTMAX if f.softmax else terms.POINTWISE
    return tuple(functions[name] for name in f.points)
