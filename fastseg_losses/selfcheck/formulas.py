"""The losses as one writes them in plain PyTorch: a second opinion that shares no code with ours.

In float64 they are what the self-check takes for true; in float32 they are what it compares errors
and times with. They are slower and less careful than `reference.py`, which is what is checked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255  # the class id that does not count

WEIGHTS = {"bce": 0.4, "ce": 0.4, "dice": 0.4, "focal": 0.2}  # CombinedSegmentationLoss's defaults


def plain_loss(
    name: str, mode: str, x: Tensor, targets: Tensor, valid: Tensor | None, gamma: float = 2.0
) -> Tensor:
    """A loss at its defaults, by its name in `get_loss_function`.

    Args:
        name: "bce" or "ce", "dice", "iou", "tversky", "focal" or "combined".
        mode: "binary", "multilabel" or "multiclass".
        x: (N, C, H, W) logits, float32 or float64.
        targets: masks of the same shape, or class ids (N, H, W), `IGNORED` where none counts.
        valid: bool (N,) or (N, H, W), or None.
        gamma: of focal.

    Raises:
        ValueError: another name.
    """
    live = live_pixels(mode, targets, valid)
    x = torch.where(live, x, 0.0)
    if name == "combined":
        first = "ce" if mode == "multiclass" else "bce"
        parts = (plain_loss(n, mode, x, targets, valid, gamma) for n in (first, "dice", "focal"))
        return sum(
            (WEIGHTS[n] * part for n, part in zip((first, "dice", "focal"), parts, strict=True)),
            x.new_zeros(()),
        )
    t = masks_of(mode, x, targets, live)
    if name in ("bce", "ce", "focal"):
        value = _pointwise(name, mode, x, t, gamma)
        counts = live.expand_as(value)
        return torch.where(counts, value, 0.0).sum() / counts.sum()
    p = torch.softmax(x, 1) if mode == "multiclass" else torch.sigmoid(x)
    losses = 1 - _score(name, *region_sums(p, t, live))
    groups = live.flatten(2).any(-1).expand_as(losses)
    return torch.where(groups, losses, 0.0).sum() / groups.sum()


def live_pixels(mode: str, targets: Tensor, valid: Tensor | None) -> Tensor:
    """Bool (N, 1, H, W): what counts."""
    live = targets != IGNORED if mode == "multiclass" else torch.ones_like(targets[:, 0]).bool()
    if valid is not None:
        live = live & valid.reshape(-1, *(valid.shape[1:] or (1, 1)))
    return live[:, None]


def masks_of(mode: str, x: Tensor, targets: Tensor, live: Tensor) -> Tensor:
    """One mask a class, in the logits' dtype, 0 where nothing counts."""
    if mode == "multiclass":
        known = torch.where(live[:, 0], targets, 0).long()
        targets = F.one_hot(known, x.shape[1]).movedim(-1, 1)
    return torch.where(live, targets.to(x), 0.0)


def region_sums(p: Tensor, t: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum p t, sum p and sum t over the pixels that count, each (N, C)."""
    return ((p * t * live).sum((2, 3)), (p * live).sum((2, 3)), (t * live).sum((2, 3)))


def _pointwise(name: str, mode: str, x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """A value at every pixel: (N, C, H, W), multiclass (N, 1, H, W)."""
    if mode == "multiclass":
        nll = -(t * torch.log_softmax(x, 1)).sum(1, keepdim=True)
        return nll if name == "ce" else (1 - torch.exp(-nll)) ** gamma * nll
    nll = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    if name == "bce":
        return nll
    p = torch.sigmoid(x)
    missed = p * (1 - t) + (1 - p) * t
    return (0.25 * t + 0.75 * (1 - t)) * missed**gamma * nll


def _score(name: str, hit: Tensor, predicted: Tensor, drawn: Tensor) -> Tensor:
    if name == "dice":
        return (2 * hit + 1) / (predicted + drawn + 1)
    if name == "iou":
        return (hit + 1) / (predicted + drawn - hit + 1)
    if name == "tversky":
        return (hit + 1) / (hit + 0.3 * (predicted - hit) + 0.7 * (drawn - hit) + 1)
    raise ValueError(f"name: expected a loss that the self-check knows, got {name!r}")


def plain_statistics(
    mode: str, x: Tensor, targets: Tensor, valid: Tensor | None
) -> dict[str, float]:
    """The statistics that do not depend on the loss, by their names in `SegmentationSnapshot`."""
    live = live_pixels(mode, targets, valid)
    x = torch.where(live, x, 0.0)
    t = masks_of(mode, x, targets, live)
    if mode == "multiclass":
        p, guess = torch.softmax(x, 1).max(1, keepdim=True)
        t, named = t.max(1, keepdim=True)
        counts = live
        hits = int(((guess == named) & counts).sum())
        missed = false = int(((guess != named) & counts).sum())
    else:
        p = torch.sigmoid(x)
        counts = live.expand_as(p)
        yes, drawn = (p > 0.5) & counts, (t > 0.5) & counts
        hits = int((yes & drawn).sum())
        false, missed = int((yes & ~drawn).sum()), int((~yes & drawn).sum())
    number = int(counts.sum())
    return {
        "pred_mean": float(torch.where(counts, p, 0.0).sum()) / number,
        "target_mean": float(torch.where(counts, t, 0.0).sum()) / number,
        "pred_max": float(torch.where(counts, p, 0.0).max()),
        "tp": hits,
        "fp": false,
        "fn": missed,
        "valid": number,
        "nonfinite": 0,
        "bad_targets": 0,
    }


# ---- other libraries' losses, as `compat` has them


def smp_dice(x: Tensor, ids: Tensor) -> Tensor:
    """segmentation_models_pytorch's DiceLoss("multiclass"): a class over the batch, 0 if absent."""
    hit, predicted, drawn = _batch_sums(x, ids)
    losses = 1 - 2 * hit / (predicted + drawn).clamp_min(1e-7)
    return (losses * (drawn > 0)).mean()


def monai_dice_ce(x: Tensor, ids: Tensor) -> Tensor:
    """MONAI's DiceCELoss(to_onehot_y=True, softmax=True)."""
    live = torch.ones_like(ids[:, None]).bool()
    hit, predicted, drawn = region_sums(
        torch.softmax(x, 1), masks_of("multiclass", x, ids, live), live
    )
    dice = 1 - (2 * hit + 1e-5) / (predicted + drawn + 1e-5)
    return dice.mean() + F.cross_entropy(x, ids.long())


def nnunet_dice_ce(x: Tensor, ids: Tensor) -> Tensor:
    """nnU-Net's DC_and_CE_loss with batch Dice and without the background."""
    hit, predicted, drawn = (s[1:] for s in _batch_sums(x, ids))
    dice = (2 * hit + 1) / (predicted + drawn + 1).clamp_min(1e-8)
    return F.cross_entropy(x, ids.long()) - dice.mean()


def torchvision_focal(x: Tensor, masks: Tensor) -> Tensor:
    """torchvision's sigmoid_focal_loss(reduction="mean")."""
    return _pointwise("focal", "binary", x, masks.to(x), 2.0).mean()


def sam2_dice(x: Tensor, masks: Tensor) -> Tensor:
    """SAM 2's dice_loss with as many objects as masks."""
    p, t = torch.sigmoid(x).flatten(1), masks.to(x).flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def _batch_sums(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    live = torch.ones_like(ids[:, None]).bool()
    sums = region_sums(torch.softmax(x, 1), masks_of("multiclass", x, ids, live), live)
    hit, predicted, drawn = (s.sum(0) for s in sums)
    return hit, predicted, drawn
