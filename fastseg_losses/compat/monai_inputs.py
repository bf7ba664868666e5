"""What MONAI's losses take, brought to what the kernels take."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg_losses.compat.fused import computed_in, flat, fused

REDUCTIONS = ("none", "mean", "sum")


class Call(NamedTuple):
    """One call: the tensors, and the keyword arguments of `fused` that follow from them.

    Attributes:
        inputs: logits, targets, valid.
        mode: of the library.
        shared: activation, ignore_index, include_background.
        C: channels of the logits.
        dropped: channels without a loss, 0 or 1; where the mode has no background, and for
            pointwise terms with sigmoids, the weights say so.
    """

    inputs: tuple[Tensor, Tensor, Tensor | None]
    mode: str
    shared: dict[str, Any]
    C: int
    dropped: int

    @property
    def classes(self) -> int:
        """Channels that have a loss."""
        return self.C - self.dropped

    @property
    def softmax(self) -> bool:
        """Whether the channels share a softmax."""
        return self.mode == "multiclass" and self.shared["activation"] is None

    @property
    def weighed(self) -> bool:
        """Whether it is the weights that leave the background out of a region term."""
        return self.dropped > 0 and self.mode != "multiclass"


def check_reduction(reduction: Any, choices: tuple[str, ...] = REDUCTIONS) -> str:
    """The name of a reduction, also of MONAI's enumeration.

    Raises:
        ValueError: there is no such reduction.
    """
    name = str(getattr(reduction, "value", reduction))
    if name not in choices:
        raise ValueError(
            f"reduction: expected one of {', '.join(map(repr, choices))}, got {reduction!r}"
        )
    return name


def check_activation(sigmoid: bool, softmax: bool, other_act: Callable | None) -> None:
    """At most one.

    Raises:
        TypeError: other_act cannot be called.
        ValueError: more than one.
    """
    if other_act is not None and not callable(other_act):
        raise TypeError(f"other_act must be None or callable but is {type(other_act).__name__}.")
    if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
        raise ValueError(
            "Incompatible values: more than 1 of [sigmoid=True, softmax=True, other_act is not "
            "None]."
        )


def prepare(
    input: Tensor,
    target: Tensor,
    *,
    include_background: bool,
    to_onehot_y: bool,
    sigmoid: bool,
    softmax: bool,
    other_act: Callable | None = None,
    ignore_index: int | None = None,
    valid: Tensor | None = None,
    mismatch: type[Exception] = AssertionError,
) -> Call:
    """Check shapes as there and choose the mode.

    Args:
        input: (B, C, *spatial).
        target: (B, C, *spatial), or labels (B, 1, *spatial) with to_onehot_y.
        include_background: whether channel 0 has a loss; of one channel it has.
        to_onehot_y: whether targets are labels; nothing is made of them but ids.
        sigmoid: the activation, like softmax and other_act.
        softmax: see there.
        other_act: see there; computed by PyTorch.
        ignore_index: see `DiceLoss`.
        valid: which pixels count, (B, 1, *spatial) bool.
        mismatch: what targets of another shape raise.
    """
    C = input.shape[1]
    if C == 1 and (softmax or to_onehot_y or not include_background):
        for name, flag in (
            ("softmax=True", softmax),
            ("to_onehot_y=True", to_onehot_y),
            ("include_background=False", not include_background),
        ):
            if flag:
                warnings.warn(f"single channel prediction, `{name}` ignored.", stacklevel=4)
        softmax = to_onehot_y = False
        include_background = True
    if other_act is not None:
        input = other_act(input)
    expected = (input.shape[0], 1, *input.shape[2:]) if to_onehot_y else input.shape
    if target.shape != expected:
        raise mismatch(
            f"ground truth has different shape ({target.shape}) from input ({input.shape})"
        )
    if ignore_index is not None and C > 1 and not to_onehot_y:
        here = one_hot_mask(target, ignore_index)
        valid = here if valid is None else valid & here
        ignore_index = None
    shared: dict[str, Any] = {"ignore_index": ignore_index}
    shared["activation"] = None if softmax else "sigmoid" if sigmoid else "identity"
    if to_onehot_y or softmax:
        shared["include_background"] = include_background
        if to_onehot_y and (target.is_floating_point() or target.dtype == torch.bool):
            target = target.to(torch.int32)
        mode = "multiclass"
    else:
        mode = "binary" if C == 1 else "multilabel"
        if sigmoid:
            shared["activation"] = None
        if C == 1:  # volumes of one channel are not mistaken for channels
            input, target = flat(input, target)
            if valid is not None and input.dim() == 2:
                valid = valid.flatten(1)
    return Call((input, target, valid), mode, shared, C, 0 if include_background else 1)


def as_one_group(call: Call) -> Call:
    """A call without space as probabilities of one sample and channel.

    There a sum over no axes is one over all: sums that are not of the batch are of everything.
    """
    x, t, valid = call.inputs
    ignored = call.shared["ignore_index"]
    if ignored is not None:
        here = t != ignored
        t, valid = torch.where(here, t, 0), here if valid is None else valid & here
    if call.shared["activation"] != "identity":
        x = x.to(computed_in(x))
        x = torch.softmax(x, 1) if call.softmax else torch.sigmoid(x)
    if t.shape != x.shape:
        t = torch.nn.functional.one_hot(t[:, 0].long(), call.C)
    x, t = x[:, call.dropped :], t[:, call.dropped :]
    valid = None if valid is None else valid.expand_as(x).reshape(1, -1)
    shared = {"ignore_index": None, "activation": "identity"}
    return Call((x.reshape(1, -1), t.reshape(1, -1), valid), "binary", shared, 1, 0)


def one_hot_mask(target: Tensor, ignore_index: int) -> Tensor:
    """Which pixels of a one-hot target count: not that class, or for any other number any class."""
    if 0 <= ignore_index < target.shape[1]:
        return target[:, ignore_index : ignore_index + 1] != 1
    return target.sum(1, keepdim=True) > 0


def check_length(weight: Tensor, classes: int) -> None:
    """One weight for all of the channels that have a loss, or one for each.

    Raises:
        ValueError: another number of them.
    """
    if weight.dim() and weight.shape[0] != classes:
        raise ValueError(
            "The length of the `weight` sequence should be the same as the number of classes. "
            "If `include_background=False`, the weight should not include the background "
            f"category class 0. Expected {classes}, got {weight.shape[0]}."
        )


def check_weight(weight: Any) -> Tensor | None:
    """A loss's weights as a tensor, or None.

    Checked here and not at every call: on a GPU that would wait for it.

    Raises:
        ValueError: a negative one.
    """
    if weight is None:
        return None
    weight = torch.as_tensor(weight)
    if bool((weight < 0).any()):
        raise ValueError("the value/values of the `weight` should be no less than 0.")
    return weight


def class_weight(call: Call, weight: Tensor | None, *, points: bool = False) -> Tensor | None:
    """One weight for each of C channels, 0 for the background that nothing else leaves out.

    Args:
        call: the call.
        weight: as the caller gave it.
        points: there is a pointwise term, with sigmoids.

    Raises:
        ValueError: another number of weights than channels with a loss.
    """
    if weight is None and not call.dropped:
        return None
    device = call.inputs[0].device
    if weight is not None and call.classes > 1:
        check_length(weight, call.classes)
        weight = weight.to(device, torch.float32).expand(call.classes)
    elif not call.weighed and not (points and call.dropped):
        return None
    else:
        weight = torch.ones(call.classes, device=device)
    return torch.nn.functional.pad(weight, (call.dropped, 0))


def run(
    call: Call,
    points: tuple[Any, ...],
    regions: tuple[Any, ...],
    reduction: str,
    weight: Tensor | None = None,
    *,
    vector: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """A loss of the call; every group counts as in MONAI, and weights are not normalised."""
    if call.dropped and reduction == "mean":  # what has a weight of 0 is in the mean
        share = call.C / call.classes
        if not call.softmax:
            points = tuple((name, w * share, *rest) for name, w, *rest in points)
        if call.weighed:
            regions = tuple((name, w * share, *rest) for name, w, *rest in regions)
    loss = fused(
        (*call.inputs, weight, vector),
        call.mode,
        points,
        regions,
        reduction=reduction,
        absent="all",
        **call.shared,
        **more,
    )
    return loss[..., call.dropped :] if reduction == "none" and call.weighed else loss
