"""A model's logits before it upsamples them, put aside by hooks on its heads.

Hooks, and no method replaced: they are copied and pickled with the model, `torch.compile` traces
them, and wrappers (DataParallel, DDP, Accelerate) and whoever looks at the signature of `forward`
see the model as it was. What one call puts aside lies on the head itself, since the replicas of
`nn.DataParallel` share the hooks but not the modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.upsampling import interpolate

# Attributes of modules that carry the hooks; plain ones, so that they are in no state_dict.
_ASKED, _KEPT, _HANDLES = "_fastseg_asked", "_fastseg_logits", "_fastseg_handles"
LABELS, CRITERION = "_fastseg_labels", "fused_criterion"


def keep_logits(head: nn.Module, args: Any, logits: Tensor) -> Tensor | None:
    """The forward hook of a head: puts its output aside where `ask` said so."""
    hand_on = getattr(head, _ASKED, None)
    if hand_on is None:
        return None
    setattr(head, _ASKED, None)
    setattr(head, _KEPT, logits)
    # One channel of one sample: what the model's own interpolation then takes is next to nothing.
    return None if hand_on else logits[:1, :1].detach()


def ask(head: nn.Module | None, *, hand_on: bool | None) -> None:
    """Say what the head's coming call does; at every call, since the one before may have failed.

    Args:
        head: with the hook `keep_logits`; None: the model has none.
        hand_on: put the output aside and let the model have it too, or a placeholder; None: do
            nothing.
    """
    if head is not None:
        setattr(head, _ASKED, hand_on)


def take(head: nn.Module) -> Tensor:
    """What the head's last call put aside; the head forgets it."""
    logits: Tensor = getattr(head, _KEPT)
    setattr(head, _KEPT, None)
    return logits


def fitted(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits, or if they are larger than the labels, as with a DPT of patch size 8, shrunk."""
    size = tuple(labels.shape[-2:])
    larger = logits.shape[-2] > size[0] or logits.shape[-1] > size[1]
    return interpolate(logits, size, "bilinear") if larger else logits


def install(model: nn.Module, handles: Sequence[RemovableHandle]) -> None:
    """Note the hooks of a model, for `remove_fused_loss`."""
    setattr(model, _HANDLES, list(handles))


def is_installed(model: nn.Module) -> bool:
    """Whether a model has such hooks."""
    return getattr(model, _HANDLES, None) is not None


def remove_fused_loss(model: nn.Module) -> None:
    """Undo `use_fused_loss` or `torchvision_criterion`, on the model or on a copy of it.

    Args:
        model: the model; nothing happens to one without.
    """
    if not is_installed(model):
        return
    for handle in getattr(model, _HANDLES):
        handle.remove()
    for module in model.modules():
        for name in (_ASKED, _KEPT, _HANDLES, LABELS):
            module.__dict__.pop(name, None)
    if hasattr(model, CRITERION):
        delattr(model, CRITERION)


def check_criterion(criterion: object) -> None:
    """Check that something is a loss for low-resolution logits.

    Raises:
        TypeError: it cannot be called.
        ValueError: a loss of this package that does not upsample.
    """
    if not callable(criterion):
        raise TypeError(f"criterion: expected a loss, or None, got {criterion!r}")
    if isinstance(criterion, SegmentationLoss) and criterion.spec.upsample is None:
        raise ValueError(
            "criterion: expected a loss with upsample='bilinear', since the logits come at a lower "
            f"resolution than the labels, got {criterion}"
        )
