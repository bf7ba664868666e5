"""Hugging Face transformers: models that take low-resolution logits straight to a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastseg_losses.integrations.low_logits import (
    CRITERION,
    LABELS,
    ask,
    check_criterion,
    fitted,
    install,
    keep_logits,
    remove_fused_loss,
    take,
)
from fastseg_losses.losses import BCELoss, CrossEntropyLoss

Criterion = Callable[[Tensor, Tensor], Tensor]


class Model(NamedTuple):
    """What a model calls its parts.

    Attributes:
        ignore: the setting that names the ignored label.
        full: the head's name if the model upsamples its logits with or without labels, else "".
        one_class: whether the model has a loss for a single class.
    """

    ignore: str = "semantic_loss_ignore_index"
    full: str = ""
    one_class: bool = False


# The models that upsample logits, align_corners=False, and take cross-entropy; by the names of
# their classes, so that transformers need not be imported. Subclasses are found too.
MODELS = {
    "BeitForSemanticSegmentation": Model(),
    "Data2VecVisionForSemanticSegmentation": Model(),
    "DPTForSemanticSegmentation": Model(),
    "MobileNetV2ForSemanticSegmentation": Model(),
    "MobileViTForSemanticSegmentation": Model(),
    "MobileViTV2ForSemanticSegmentation": Model(),
    "Sapiens2ForSemanticSegmentation": Model(),
    "SegformerForSemanticSegmentation": Model(one_class=True),
    "Tipsv2DptForSemanticSegmentation": Model(),
    "UperNetForSemanticSegmentation": Model(ignore="loss_ignore_index", full="decode_head"),
}


class FusedLoss:
    """What `use_fused_loss` returns: a context manager that undoes it at its end."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def remove(self) -> None:
        """Give the model its own loss back."""
        remove_fused_loss(self._model)

    def __enter__(self) -> FusedLoss:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def use_fused_loss(model: nn.Module, criterion: Criterion | None = None) -> FusedLoss:
    """Have a model of Hugging Face transformers take its loss straight from low-resolution logits.

    `model(pixel_values, labels)` returns what it returned before, but its loss comes from this
    package: the logits are upsampled, bilinear, inside the loss. The model's configuration counts
    as before: the ignored label, the auxiliary head and its weight. Without labels nothing changes.

    Copies and pickles of the model take it along, `torch.compile`, Trainer and Accelerate work on
    it. A second call replaces the first's criterion. It is undone by the result's `remove()`, at
    the end of a `with` block, and on a copy by `remove_fused_loss(copy)`.

    What differs: the loss is float32 for a model in half precision; a batch in which every label is
    ignored gives 0, and not NaN; the losses look at the labels' values. `UperNet`, which upsamples
    its logits in any case, returns them as they are in training with labels.

    Args:
        model: BEiT, Data2VecVision, DPT, MobileNetV2, MobileViT, MobileViTV2, Sapiens2, SegFormer,
            TIPSv2-DPT or UperNet, `...ForSemanticSegmentation`, or a subclass; not a wrapper of it.
        criterion: called with (low-resolution logits, labels), a loss of this package with
            `upsample="bilinear"`, for instance; as the model's sub-module `fused_criterion` it
            moves to other devices with it. None: the model's own loss, cross-entropy, and with one
            class SegFormer's binary cross-entropy.

    Returns:
        A handle to undo it.

    Raises:
        TypeError: no such model, or a criterion that cannot be called.
        ValueError: a loss of this package that does not upsample; no criterion for a model of one
            class that has no loss for that.
    """
    names = [base.__name__ for base in type(model).__mro__]
    known = next((MODELS[name] for name in names if name in MODELS), None)
    if known is None:
        raise TypeError(
            f"model: expected one of {', '.join(MODELS)}, got {type(model).__name__}; of another "
            "model, give its logits to a loss with upsample='bilinear' yourself"
        )
    if criterion is None:
        criterion = _own_loss(model, known)
    check_criterion(criterion)
    remove_fused_loss(model)
    setattr(model, CRITERION, criterion)
    place = [*inspect.signature(type(model).forward).parameters].index("labels") - 1
    heads = [getattr(model, name, None) for name in ("auxiliary_head", known.full) if name]
    install(
        model,
        [
            model.register_forward_pre_hook(_TakeLabels(place, known.full), with_kwargs=True),
            *(head.register_forward_hook(keep_logits) for head in heads if head is not None),
            model.register_forward_hook(_AddLoss(known.full)),
        ],
    )
    return FusedLoss(model)


class _TakeLabels:
    """The forward pre-hook: without labels the model computes no loss, and upsamples nothing."""

    def __init__(self, place: int, full: str) -> None:
        self.place = place
        self.full = full

    def __call__(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if len(args) > self.place:
            labels = args[self.place]
            args = (*args[: self.place], None, *args[self.place + 1 :])
        else:
            labels = kwargs.get("labels")
            kwargs = {**kwargs, "labels": None}
        setattr(model, LABELS, labels)
        none = labels is None
        ask(getattr(model, "auxiliary_head", None), hand_on=None if none else False)
        if self.full:
            ask(getattr(model, self.full), hand_on=None if none else not model.training)
        return args, kwargs


class _AddLoss:
    """The forward hook: the loss of what the call put aside, in the output where it belongs."""

    def __init__(self, full: str) -> None:
        self.full = full

    def __call__(self, model: Any, args: tuple, output: Any) -> Any:
        labels = getattr(model, LABELS)
        setattr(model, LABELS, None)
        if labels is None:
            return None
        is_tuple = isinstance(output, tuple)
        shown = output[0] if is_tuple else output.logits
        logits = take(getattr(model, self.full)) if self.full else shown
        criterion: Criterion = getattr(model, CRITERION)
        loss = criterion(fitted(logits, labels), labels)
        if getattr(model, "auxiliary_head", None) is not None:
            auxiliary = criterion(fitted(take(model.auxiliary_head), labels), labels)
            loss = loss + model.config.auxiliary_loss_weight * auxiliary
        if model.training:
            shown = logits
        if is_tuple:
            return (loss, shown, *output[1:])
        # A new one, since the loss has to come first: to_tuple() goes by the order of setting.
        return type(output)(**{**output, "logits": shown, "loss": loss})


def _own_loss(model: nn.Module, known: Model) -> Criterion:
    config: Any = model.config
    ignored = getattr(config, known.ignore)
    if config.num_labels > 1:
        return CrossEntropyLoss(ignore_index=ignored, upsample="bilinear")
    if not known.one_class:
        raise ValueError(
            f"criterion: expected a loss, since {type(model).__name__} has none for one class; "
            "BCELoss(upsample='bilinear'), for instance; got None"
        )
    return OneClassLoss(ignored)


class OneClassLoss(nn.Module):
    """SegFormer's loss for one class: the sum over the valid pixels by the number of all pixels.

    Args:
        ignored: the ignored label; so are all below 0.
    """

    def __init__(self, ignored: int) -> None:
        super().__init__()
        self.ignored = ignored
        self.bce = BCELoss(reduction="sum", upsample="bilinear")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (N, 1, h, w) and labels (N, H, W) to a scalar."""
        valid = (labels >= 0) & (labels != self.ignored)
        total: Tensor = self.bce(logits, labels, valid)
        return total / labels.numel()
