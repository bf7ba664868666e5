"""Target values that no formula is for: found on the CPU at once, where a look costs no wait."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg_losses.stats import TARGET_TOLERANCE

SHOWN_IDS = 4  # of several wrong class ids, these are named


def check_range(t: Tensor, live: Tensor | None, *, multiclass: bool) -> None:
    """Targets or probabilities in [0, 1].

    Args:
        t: floating, 0 where a pixel does not count.
        live: 1 where a pixel counts, else 0, broadcastable to t; None when all do.
        multiclass: whether these are probabilities of classes.

    Raises:
        ValueError: a value outside, or NaN; the message says which, and the likeliest reason.
    """
    if not t.numel():
        return
    t = t.detach()  # compat takes targets that require grad
    least, largest = t.aminmax()  # NaN if there is one
    if float(least) >= 0 and float(largest) <= 1:
        return
    if not bool(_outside(torch.stack((least, largest))).any()):
        return  # within the tolerance
    outside = _outside(t)
    values, valid = t[outside], t.numel()
    if live is not None:
        valid = int(live.expand_as(t).sum(dtype=torch.float64))
    hint = ""
    if bool(values.isnan().any()):
        found = f"NaN at {int(values.isnan().sum())} of {valid} valid targets"
    else:
        found = f"values from {least:g} to {largest:g}, {values.numel()} of {valid} valid ones"
        found += " outside"
        whole = float(least) >= 0 and bool((values == values.round()).all())
        if whole and not multiclass:
            hint = "; class ids are for mode='multiclass'"
            if float(largest) == 255:
                hint = "; divide a mask of 0 and 255 by 255 (ignore_index leaves pixels out)"
        elif 2 * values.numel() > valid:
            hint = "; are logits and targets swapped?"
    expected = "probabilities of the classes" if multiclass else "values"
    raise ValueError(f"targets: expected {expected} in [0, 1], got {found}{hint}")


def check_ids(ids: Tensor, bad: Tensor, num_classes: int) -> None:
    """Class ids from 0 to C - 1.

    Args:
        ids: the class ids.
        bad: bool, of as many elements, which of them counts and is no class.
        num_classes: C.

    Raises:
        ValueError: an id that is no class; the message names it.
    """
    if not bool(bad.any()):
        return
    wrong = ids.flatten().to(torch.int64)[bad.flatten()]
    different = wrong.unique().tolist()
    names = ", ".join(map(str, different[:SHOWN_IDS]))
    names += ", ..." if len(different) > SHOWN_IDS else ""
    raise ValueError(
        f"targets: expected class ids from 0 to {num_classes - 1}, got "
        f"{'id' if len(different) == 1 else 'ids'} {names} at {wrong.numel()} valid pixels; "
        "name the id of ignored pixels as ignore_index"
    )


def _outside(t: Tensor) -> Tensor:
    return ~((t - 0.5).abs() <= 0.5 + TARGET_TOLERANCE)
