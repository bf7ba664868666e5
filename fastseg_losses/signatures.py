"""The arguments that all losses share: their types and meaning, and how each class shows them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar, get_type_hints

from torch import Tensor
from typing_extensions import Unpack  # torch itself needs it; typing has it from Python 3.11 on

from fastseg_losses.arguments import Absent, Activation, Backend, Mode, Reduction, Upsample

__all__ = ["SharedArguments", "Unpack", "Weights", "shows_shared", "unexpected_argument"]

Weights = Sequence[float] | Tensor | float | None
Class = TypeVar("Class", bound=type)

MARK = "    **shared: see `SharedArguments`."  # in a docstring: where `shows_shared` puts the list

_LOGITS = "the losses take logits, and mode says whether a sigmoid or a softmax follows"
# Other libraries' names for what is here, or is not.
FOREIGN = {
    "from_logits": f"{_LOGITS}; fastseg_losses.compat.smp has smp's classes",
    "sigmoid": f"{_LOGITS}; fastseg_losses.compat.monai has MONAI's classes",
    "softmax": f"{_LOGITS}; fastseg_losses.compat.monai has MONAI's classes",
    "to_onehot_y": "mode='multiclass' reads class ids; fastseg_losses.compat.monai has MONAI's "
    "classes",
    "weight": "the classes' weights are class_weights",
}


class SharedArguments(TypedDict, total=False):
    """What every loss takes, by keyword, beside its own arguments.

    Attributes:
        mode: "binary" (one class, logits (N, 1, *spatial) or (N, *spatial)), "multilabel" (C
            independent classes) or "multiclass" (one of C classes at every pixel).
        reduction: how a term becomes a number. Pointwise terms (BCE, cross-entropy, focal) are
            sums over pixels, region terms (Dice, IoU, Tversky) one score for each group. "mean":
            sum over the valid elements / their number; mean over the groups. "sum": the plain
            sums, so that in a combination the pixels outweigh the groups. "none": (N, C), a
            pointwise term as each group's own mean over its pixels; region terms alone (C,) with
            batch=True; in multiclass mode (N,) where a pointwise term is among the terms.
        ignore_index: target value whose pixels count for nothing, or None.
        class_weights: (C,) weights of the classes, or None.
        include_background: False leaves class 0 out of the region terms, after the softmax;
            multiclass only.
        batch: True takes one region score per class over the whole batch, False one per sample and
            class.
        absent: "skip" leaves a class that a group's target lacks out of the region mean, "keep"
            counts it.
        activation: None (a softmax over the classes in multiclass mode, else a sigmoid) or
            "sigmoid" (multiclass: each class against the rest).
        upsample: "bilinear" or "nearest": the logits have a lower resolution than the targets, and
            the loss is that of `F.interpolate(logits.float(), size, mode=upsample)`, of which the
            kernels write nothing (2-D; 1-D and 3-D space on the torch backend). None: the same
            size.
        align_corners: of `F.interpolate`, for upsample="bilinear".
        backend: "auto" (Triton on CUDA tensors where it runs, else torch), "triton" or "torch".
    """

    mode: Mode
    reduction: Reduction
    ignore_index: int | None
    class_weights: Weights
    include_background: bool
    batch: bool
    absent: Absent
    activation: Activation
    upsample: Upsample
    align_corners: bool
    backend: Backend


def shows_shared(**defaults: Any) -> Callable[[Class], Class]:
    """Decorate a class so that `help`, `inspect.signature` and IPython list its `**shared`.

    Type checkers and editors read `Unpack[SharedArguments]`.

    Args:
        **defaults: shared arguments whose default differs in this class.
    """

    def decorate(cls: Class) -> Class:
        init: Any = vars(cls)["__init__"]
        own = inspect.signature(init, eval_str=True)
        base = inspect.signature(cls.__mro__[1]).parameters
        hints = get_type_hints(SharedArguments)
        kept = {n: p for n, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        for name in hints:
            if name not in kept:
                default = defaults.get(name, base[name].default)
                kind = inspect.Parameter.KEYWORD_ONLY
                kept[name] = inspect.Parameter(name, kind, default=default, annotation=hints[name])
        init.__signature__ = own.replace(parameters=list(kept.values()))
        init.__doc__ = f"Take the arguments that help({cls.__name__}) describes."
        if cls.__doc__ and SharedArguments.__doc__:  # python -OO keeps no docstrings
            listed = inspect.cleandoc(SharedArguments.__doc__).split("Attributes:\n")[1]
            cls.__doc__ = inspect.cleandoc(cls.__doc__).replace(MARK, listed)
        return cls

    return decorate


def unexpected_argument(cls: type, name: str) -> TypeError:
    """The error for an argument that a loss does not have: what it has, and what was meant."""
    has = [n for n in inspect.signature(cls).parameters if n not in ("points", "regions")]
    close = difflib.get_close_matches(name, has, n=1, cutoff=0.7)
    hint = f"{FOREIGN[name]}; " if name in FOREIGN else ""
    hint = f"did you mean {close[0]!r}? " if close and not hint else hint
    return TypeError(
        f"{cls.__name__}: unexpected argument {name!r}; {hint}the class takes {', '.join(has)}"
    )
