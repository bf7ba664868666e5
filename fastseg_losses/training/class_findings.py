"""What the monitor of multiclass mode says: evidence and advice in words, class by class."""

from __future__ import annotations

from collections.abc import Sequence

from fastseg_losses.stats import SegmentationSnapshot
from fastseg_losses.training.tally import Tally

# Classes that a message lists; further ones are counted.
MAX_LISTED = 5

_ADVICE = (
    "Likely optimisation: first try to overfit one batch (train.py --overfit-batches 1; if even "
    "that fails, it is the masks or the code), then check the learning rate and the ids in the "
    "masks (debug_masks.py --mode multiclass)"
)

_REMEDY = (
    "check whether resizing to --image-size loses its small objects, try a region loss, which "
    "gives each class the same weight (--loss dice, or a larger --dice-weight), and more images "
    "that show it."
)


def nothing_annotated() -> str:
    """For batches without a single pixel that counts."""
    return (
        "collapse, cause (a), the data: not one annotated pixel in any batch so far, so there is "
        "nothing to learn. Fix the data: run debug_masks.py --mode multiclass, check "
        "has_segmentation and whether the ignored value covers everything."
    )


def one_class_only(total: Tally) -> str:
    """For targets that show a single class."""
    (only,) = (k for k, share in enumerate(total.class_target) if share > 0)
    return (
        f"collapse, cause (a), the data: the targets of all batches so far show class {only} only, "
        "so always predicting it is the right answer and a loss of 0 means nothing. Fix the data: "
        "run debug_masks.py --mode multiclass, check has_segmentation and the ids in the masks; if "
        "the files do show other classes, check whether a small --image-size loses them."
    )


def swallowed(window: Tally, k: int, *, checks: int, batches: int) -> str:
    """For a net that predicts one class (almost) everywhere."""
    others = [j for j in range(window.num_classes) if j != k and window.class_target[j] > 0]
    others.sort(key=window.class_target.__getitem__, reverse=True)
    return (
        f"collapse, cause (b), class {k} swallows the others: for {checks} checks ({batches} "
        f"batches) it is predicted at {_percent(window.class_pred[k])} of the pixels although the "
        f"targets show it at {_percent(window.class_target[k])}, and {_targets(window, others)}. "
        f"{_ADVICE}; were masks that show class {k} alone really drawn? Only then suspect "
        "imbalance and the loss (--loss dice, or a larger --dice-weight)."
    )


def not_yet(window: Tally, classes: Sequence[int], checks: int) -> str:
    """For rare classes that the net has never predicted; arguments as of `unpredicted`."""
    return (
        f"no collapse, but not predicted for {checks} checks or more: {_targets(window, classes)}. "
        "A rare class comes late, so wait if the other classes still improve. If it never comes: "
        f"{_REMEDY}"
    )


def unpredicted(window: Tally, classes: Sequence[int], found: Sequence[int], checks: int) -> str:
    """For classes that the targets show and the net (almost) never predicts.

    Args:
        window: the batches of the last check.
        classes: which ones.
        found: those of them that had been predicted before.
        checks: for how many checks at least.
    """
    lost = f" (predicted earlier: {', '.join(map(str, found))})" if found else ""
    return (
        f"collapse, cause (b), never predicted for {checks} checks or more{lost}: "
        f"{_targets(window, classes)}. {_ADVICE}. Then {_REMEDY}"
    )


def recovered(classes: Sequence[int]) -> str:
    """For classes that are predicted after they had been reported."""
    return f"predictions recovered: class {', '.join(map(str, classes))} is predicted again."


def shares(seen: Tally | SegmentationSnapshot) -> str:
    """Predicted and target shares of the classes that differ most."""
    pairs = list(zip(seen.class_pred, seen.class_target, strict=True))
    order = sorted(range(len(pairs)), key=lambda k: -abs(pairs[k][0] - pairs[k][1]))
    listed = [f"class {k} {pairs[k][0]:.3g}/{pairs[k][1]:.3g}" for k in order[:MAX_LISTED]]
    return "predicted/target share of " + ", ".join(listed)


def _targets(window: Tally, classes: Sequence[int]) -> str:
    listed = [
        f"class {k} at {_percent(window.class_target[k])} of the target pixels (predicted "
        f"{_percent(window.class_pred[k])})"
        for k in classes[:MAX_LISTED]
    ]
    more = len(classes) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")


def _percent(share: float) -> str:
    # Three digits, however small: a class of 0.01 % must not read as 0.
    return f"{100 * share:.3g}%"
