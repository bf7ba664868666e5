"""What people use today, each as a function of logits and targets."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import compat_pairs
import torch
import torch.nn.functional as F
from peer_packages import smp_losses
from torch import Tensor
from torch.autograd import Function

from fastseg_losses import get_loss_function

Loss = Callable[[Tensor, Tensor], Tensor]
MULTILABEL_DIMS = 2  # everything behind (N, C) is space
WEIGHTS = {"bce": 0.4, "dice": 0.4, "focal": 0.2}
UPSAMPLED = " upsampled"  # behind a loss's name: of logits that are smaller than the targets


# ---- by hand: the formulas as one would write them for the compiler, without helper tensors


def _bce(x: Tensor, t: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, t)


def _sums(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, space = torch.sigmoid(x), tuple(range(MULTILABEL_DIMS, x.dim()))
    return (p * t).sum(space), p.sum(space), t.sum(space)


def _dice(x: Tensor, t: Tensor) -> Tensor:
    I, P, T = _sums(x, t)  # noqa: E741
    return (1 - (2 * I + 1) / (P + T + 1)).mean()


def _iou(x: Tensor, t: Tensor) -> Tensor:
    I, P, T = _sums(x, t)  # noqa: E741
    return (1 - (I + 1) / (P + T - I + 1)).mean()


def _tversky(x: Tensor, t: Tensor) -> Tensor:
    I, P, T = _sums(x, t)  # noqa: E741
    return (1 - (I + 1) / (I + 0.3 * (P - I) + 0.7 * (T - I) + 1)).mean()


def _focal(x: Tensor, t: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p = torch.sigmoid(x)
    miss = p + t - 2 * p * t
    return ((0.25 * t + 0.75 * (1 - t)) * miss * miss * bce).mean()


def _combined(x: Tensor, t: Tensor) -> Tensor:
    return 0.4 * _bce(x, t) + 0.4 * _dice(x, t) + 0.2 * _focal(x, t)


def _ce_dice(x: Tensor, y: Tensor) -> Tensor:
    """Multiclass, without a one-hot tensor once it is compiled: the comparison is fused."""
    space = tuple(range(MULTILABEL_DIMS, x.dim()))
    p = torch.softmax(x, 1)
    classes = torch.arange(x.shape[1], device=x.device).view(1, -1, *(1,) * len(space))
    hit = y.long()[:, None] == classes
    I, P, T = (p * hit).sum(space), p.sum(space), hit.sum(space)  # noqa: E741
    return 0.5 * F.cross_entropy(x, y.long()) + 0.5 * (1 - (2 * I + 1) / (P + T + 1)).mean()


HAND = {
    "ce+dice": _ce_dice,
    "bce": _bce,
    "dice": _dice,
    "iou": _iou,
    "tversky": _tversky,
    "focal": _focal,
    "combined": _combined,
}


def hand(name: str) -> Loss:
    """The formula in eager PyTorch, half precision computed in float32 as ours is."""
    if name.endswith(UPSAMPLED):
        at_full_size = hand(name.removesuffix(UPSAMPLED))

        def upsampled(logits: Tensor, targets: Tensor) -> Tensor:
            size = targets.shape[-2:]
            return at_full_size(F.interpolate(logits.float(), size, mode="bilinear"), targets)

        return upsampled
    formula = HAND[name]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return formula(logits.float(), targets.float())

    def from_ids(logits: Tensor, targets: Tensor) -> Tensor:
        return formula(logits.float(), targets)

    return from_ids if name == "ce+dice" else loss


# ---- the installed peers


def _smp(name: str, mode: str) -> Loss:
    smp = smp_losses()
    if mode == "multiclass":
        dice = smp.DiceLoss(mode, smooth=1.0)
        both = {"ce+dice": lambda x, y: F.cross_entropy(x, y.long()) + dice(x, y.long())}
        return _pick(name, both)
    singles = {
        "bce": smp.SoftBCEWithLogitsLoss(),
        "dice": smp.DiceLoss(mode, smooth=1.0),
        "iou": smp.JaccardLoss(mode, smooth=1.0),
        "tversky": smp.TverskyLoss(mode, smooth=1.0, alpha=0.3, beta=0.7),
        "focal": smp.FocalLoss(mode, alpha=0.25),
    }
    return _with_floats(name, singles)


def _monai(name: str, mode: str) -> Loss:
    monai = importlib.import_module("monai.losses")
    if mode == "multiclass":
        both = monai.DiceCELoss(to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0)
        return _pick(name, {"ce+dice": lambda x, y: both(x, y[:, None].long())})
    shared = {"sigmoid": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
    singles = {
        "dice": monai.DiceLoss(**shared),
        "iou": monai.DiceLoss(jaccard=True, **shared),
        "tversky": monai.TverskyLoss(alpha=0.3, beta=0.7, **shared),
        "focal": monai.FocalLoss(alpha=0.25),
        "combined": monai.DiceFocalLoss(alpha=0.25, **shared),  # it has no BCE
    }
    return _with_floats(name, singles)


def _torchvision(name: str, mode: str) -> Loss:
    focal = importlib.import_module("torchvision.ops").sigmoid_focal_loss
    return _with_floats(name, {"focal": lambda x, t: focal(x, t, reduction="mean")})


def _pick(name: str, losses: dict[str, Loss]) -> Loss:
    if name not in losses:
        raise LookupError(f"it has no {name} loss")
    return losses[name]


def _with_floats(name: str, singles: dict[str, Loss]) -> Loss:
    """Masks as the peers take them; where there is no combination, the sum of the parts."""
    if name in singles:
        single = singles[name]
        return lambda x, t: single(x, t.float())
    if name == "combined" and set(WEIGHTS) <= set(singles):
        parts = [(weight, singles[part]) for part, weight in WEIGHTS.items()]

        def combined(x: Tensor, t: Tensor) -> Tensor:
            t = t.float()
            return sum((weight * loss(x, t) for weight, loss in parts), x.new_zeros(()))

        return combined
    return _pick(name, singles)


PEERS: dict[str, Callable[[str, str], Loss]] = {
    "smp": _smp,
    "monai": _monai,
    "torchvision": _torchvision,
}


def rival(which: str, name: str, mode: str) -> Loss:
    """A loss of eager PyTorch or of a peer; "compat": the one that compat has by that name.

    Raises:
        ImportError: the peer is not installed, or something that it needs is not.
        LookupError: the peer has no such loss.
    """
    if which == "compat":
        return compat_pairs.theirs(name, mode)
    return hand(name) if which == "eager" else PEERS[which](name, mode)


def ours(name: str, mode: str) -> Loss:
    """This library's module, with its statistics; or its compat loss of a peer's name."""
    if compat_pairs.pair(name, mode) is not None:
        return compat_pairs.ours(name, mode)
    options: dict[str, Any] = {"upsample": "bilinear"} if name.endswith(UPSAMPLED) else {}
    name = name.removesuffix(UPSAMPLED)
    if name == "ce+dice":
        options |= {"bce_weight": 0.5, "dice_weight": 0.5, "focal_weight": 0.0}
        name = "combined"
    criterion = get_loss_function(name, mode=mode, **options)
    return lambda x, t: criterion(x, t, return_stats=True)[0]


class _Launches(Function):
    """Not a loss: what autograd charges for any custom function of these tensors."""

    @staticmethod
    def forward(ctx, logits):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(logits)
        return torch.empty((), device=logits.device)

    @staticmethod
    def backward(ctx, dloss):  # type: ignore[no-untyped-def]
        (logits,) = ctx.saved_tensors
        return torch.empty_like(logits)


def autograd_alone(logits: Tensor, targets: Tensor) -> Tensor:
    """The price of a custom autograd function that does nothing."""
    return _Launches.apply(logits)


def compiled(formula: Loss, *, dynamic: bool) -> Loss:
    """A rival under torch.compile: for one shape, or for all."""
    return torch.compile(formula, dynamic=dynamic, fullgraph=False)


def pairs() -> list[tuple[str, str]]:
    """The dtypes of logits and targets."""
    logits, targets = ("float32", "bfloat16", "float16"), ("float32", "uint8", "bool")
    return list(itertools.product(logits, targets))
