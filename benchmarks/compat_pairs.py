"""Each compat loss and the peer's own, at the arguments that people use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peer_packages import smp_losses
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
SIGMOID = {"sigmoid": True}
SOFTMAX = {"softmax": True, "to_onehot_y": True}
DICE = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}


class Pair(NamedTuple):
    """A loss class of a peer, and its arguments; several classes: their sum."""

    library: str
    classes: tuple[str, ...]
    arguments: dict[str, Any]


def _smp(*classes: str, **arguments: Any) -> Pair:
    return Pair("smp", classes, arguments)


def _monai(*classes: str, **arguments: Any) -> Pair:
    return Pair("monai", classes, arguments)


# One or several masks.
MASKS = {
    "smp Dice": _smp("DiceLoss"),
    "smp Jaccard": _smp("JaccardLoss"),
    "smp Tversky": _smp("TverskyLoss"),
    "smp Focal": _smp("FocalLoss"),
    "smp SoftBCE": _smp("SoftBCEWithLogitsLoss"),
    "smp Dice + Focal": _smp("DiceLoss", "FocalLoss"),
    "MONAI Dice": _monai("DiceLoss", **SIGMOID),
    "MONAI Dice squared": _monai("DiceLoss", **SIGMOID, squared_pred=True),
    "MONAI Tversky": _monai("TverskyLoss", **SIGMOID),
    "MONAI Focal": _monai("FocalLoss"),
    "MONAI GeneralizedDice": _monai("GeneralizedDiceLoss", **SIGMOID),
    "MONAI DiceFocal": _monai("DiceFocalLoss", **SIGMOID),
    "nnU-Net DC_and_BCE": Pair("nnunet", ("DC_and_BCE_loss",), {}),
    "torchvision focal": Pair("torchvision", ("sigmoid_focal_loss",), {}),
}
# One mask only: of several, cross-entropy has a softmax.
ONE_MASK = {"MONAI DiceCE": _monai("DiceCELoss", **SIGMOID)}
# Class ids.
IDS = {
    "smp Dice": _smp("DiceLoss"),
    "smp Focal": _smp("FocalLoss"),
    "smp SoftCE": _smp("SoftCrossEntropyLoss", smooth_factor=0.1),
    "smp Dice + Focal": _smp("DiceLoss", "FocalLoss"),
    "MONAI Dice": _monai("DiceLoss", **SOFTMAX),
    "MONAI Focal": _monai("FocalLoss", to_onehot_y=True),
    "MONAI Focal softmax": _monai("FocalLoss", to_onehot_y=True, use_softmax=True),
    "MONAI GeneralizedDice": _monai("GeneralizedDiceLoss", **SOFTMAX),
    "MONAI DiceCE": _monai("DiceCELoss", **SOFTMAX),
    "MONAI DiceFocal": _monai("DiceFocalLoss", to_onehot_y=True, sigmoid=True),
    "MONAI DiceFocal softmax": _monai("DiceFocalLoss", **SOFTMAX),
    "nnU-Net DC_and_CE": Pair("nnunet", ("DC_and_CE_loss",), {}),
}


def pair(name: str, mode: str) -> Pair | None:
    """The pair of that name, or None."""
    if mode == "multiclass":
        return IDS.get(name)
    return MASKS.get(name, ONE_MASK.get(name) if mode == "binary" else None)


def ours(name: str, mode: str) -> Loss:
    """The compat loss."""
    found = pair(name, mode)
    assert found is not None
    module = importlib.import_module(f"fastseg_losses.compat.{found.library}")
    return _loss(module, found, mode)


def theirs(name: str, mode: str) -> Loss:
    """The peer's own; of nnU-Net its formulas, it is not a library to install for losses.

    Raises:
        ImportError: the peer is not installed.
    """
    found = pair(name, mode)
    assert found is not None
    if found.library == "nnunet":
        return nnunet_ids if mode == "multiclass" else nnunet_masks
    if found.library == "smp":
        return _loss(smp_losses(), found, mode)
    modules = {"monai": "monai.losses", "torchvision": "torchvision.ops"}
    return _loss(importlib.import_module(modules[found.library]), found, mode)


def _loss(module: Any, found: Pair, mode: str) -> Loss:
    if found.library == "torchvision":
        return lambda x, t: module.sigmoid_focal_loss(x, t.to(x.dtype), reduction="mean")
    parts = []
    for name in found.classes:
        given: tuple[Any, ...] = ()
        if found.library == "smp" and not name.startswith("Soft"):
            given = (mode,)
        if found.library == "nnunet":
            dice = DICE if mode == "multiclass" else {"batch_dice": True, "smooth": 1e-5}
            given = (dice, {}) if mode == "multiclass" else ({}, dice)
        parts.append(getattr(module, name)(*given, **found.arguments))

    def targets(x: Tensor, t: Tensor) -> Tensor:
        if mode == "multiclass":
            return t.long() if found.library == "smp" else t[:, None]
        return t.to(x.dtype)

    if len(parts) > 1 and hasattr(module, "SumLoss"):
        parts = [module.SumLoss(*parts)]
    if len(parts) == 1:
        return lambda x, t: parts[0](x, targets(x, t))
    return lambda x, t: parts[0](x, targets(x, t)) + parts[1](x, targets(x, t))


# ---- nnU-Net's formulas, as its MemoryEfficientSoftDiceLoss writes them


def _soft_dice(p: Tensor, t: Tensor, do_bg: bool) -> Tensor:
    axes = tuple(range(2, p.dim()))
    if not do_bg:
        p, t = p[:, 1:], t[:, 1:]
    sums = [v.sum(axes, dtype=torch.float32).sum(0) for v in (p * t, p, t)]
    score = (2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5).clip(min=1e-8)
    return -score.mean()


def nnunet_ids(x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy and Dice of labels."""
    with torch.no_grad():
        hot = torch.zeros_like(x, dtype=torch.float32).scatter_(1, y[:, None].long(), 1)
    return F.cross_entropy(x, y.long()) + _soft_dice(torch.softmax(x, 1), hot, do_bg=False)


def nnunet_masks(x: Tensor, t: Tensor) -> Tensor:
    """BCE and Dice of regions."""
    t = t.to(x.dtype)
    bce = F.binary_cross_entropy_with_logits(x, t)
    return bce + _soft_dice(torch.sigmoid(x), t, do_bg=True)
