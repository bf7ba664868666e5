"""What to do about each finding of the monitor, step by step, for a reader of the run's report.

The steps and their order are those of docs/TRAINING_FIX.md, whose sections they name: data before
optimisation, optimisation before the loss.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.findings import Cause

GUIDE = "docs/TRAINING_FIX.md"
CAUSES = "Causes, in the order in which they occur"
CLASSES = "With more than two classes"
VERIFY = "How to verify"
OTHERWISE = "What else to try, once the data is right"
LIMITS = "What Dice and focal cure, and what they do not"


@dataclass(frozen=True)
class Remedy:
    """What to do about one cause.

    Attributes:
        steps: what to do, in this order.
        commands: for some of the steps, by their place, what to type.
        section: the heading in `GUIDE` that says more.
    """

    steps: tuple[str, ...]
    commands: dict[int, str]
    section: str


def remedy(cause: Cause, config: TrainConfig) -> Remedy:
    """What to do about a cause, with the commands of this run; no step for a recovery."""
    steps, section = _REMEDIES[cause]
    command = census_command(config)
    commands = {place: command for place, step in enumerate(steps) if step == _COUNT}
    return Remedy(steps, commands, section)


def census_command(config: TrainConfig) -> str:
    """The command that prints the census of the run's own data."""
    parts = ["python", "debug_masks.py", "INDEX" if config.data is None else config.data]
    if config.labels is not None:
        parts += ["--mode", "multiclass", "--num-classes", str(config.labels.num_classes)]
        parts += ["--ignore-index", str(config.labels.ignore_index)]
    return shlex.join(parts)


_COUNT = "Count what is in the masks:"
_OPEN_EMPTY = (
    "Open ten images whose mask is empty. If objects are visible, nobody drew them: set "
    "has_segmentation to false for such rows. No choice of loss repairs that."
)
_OVERFIT = (
    "Train and validate on one batch of rows that have foreground (--overfit-batches 1). If even "
    "that fails, it is the masks or the code, not imbalance."
)
_OVERFIT_CLASSES = (
    "Train and validate on one batch (--overfit-batches 1). If even that fails, it is the masks or "
    "the code, not imbalance."
)
_RATE = "Try --lr ten times smaller, then ten times larger, for some hundred steps each."
_SIZE = "Raise --image-size: objects of a few pixels vanish when a large image is resized."
_REGION = (
    "Only then the loss: --loss dice, --loss tversky or a larger --dice-weight give sparse "
    "foreground its weight."
)
_REGION_CLASSES = (
    "Only then the loss: --loss dice or a larger --dice-weight give each class the same weight."
)
_IDS = (
    "Look at the census's class ids: ids from 1 to C where 0 to C - 1 is read, colours in place of "
    "ids and JPEG masks are the usual mistakes."
)

_REMEDIES: dict[Cause, tuple[tuple[str, ...], str]] = {
    Cause.NO_FOREGROUND: (
        (
            _COUNT,
            "Check has_segmentation: true means that somebody annotated the row, empty or not.",
            _SIZE,
        ),
        VERIFY,
    ),
    Cause.NOT_PREDICTED: ((_COUNT, _OPEN_EMPTY, _OVERFIT, _RATE, _REGION), CAUSES),
    Cause.MOSTLY_MISSED: ((_COUNT, _OPEN_EMPTY, _OVERFIT, _RATE, _REGION), CAUSES),
    Cause.UNDRAWN_MASKS: (
        (
            _OPEN_EMPTY,
            "If they are truly empty, nothing is wrong: this is a question, and it stops no run.",
        ),
        LIMITS,
    ),
    Cause.ALL_FOREGROUND: (
        (
            "Look at a few masks: are foreground and background swapped?",
            _RATE,
            "Lower the weight of a loss that favours recall (Tversky's beta, pos_weight).",
        ),
        CAUSES,
    ),
    Cause.ONE_CLASS: ((_COUNT, _IDS, _OVERFIT_CLASSES, _RATE, _REGION_CLASSES), CLASSES),
    Cause.CLASS_MISSING: (
        (_COUNT, _IDS, _OVERFIT_CLASSES, _RATE, _SIZE, _REGION_CLASSES),
        CLASSES,
    ),
    Cause.RARE_CLASS_MISSING: (
        (
            "Wait while the other classes still improve: a rare class comes late.",
            _SIZE,
            _REGION_CLASSES,
            "Add images that show the class.",
        ),
        CLASSES,
    ),
    Cause.NON_FINITE: (
        (
            "Go on from last.pt or best.pt: they hold the last epoch that was finite.",
            "Lower --lr ten times, and let it rise over --warmup-steps.",
            "Limit the gradients with --clip-grad 1.",
            "In a net of your own, look for divisions, logarithms and float16 that overflows.",
        ),
        CAUSES,
    ),
    Cause.BAD_TARGETS: (
        (
            _COUNT,
            "Save binary masks with the values 0 and 1 or 0 and 255, class masks with ids from 0 "
            "to C - 1 or the ignored value; as PNG, resized with nearest, without anti-aliasing.",
        ),
        CAUSES,
    ),
    Cause.VALIDATION_FELL: (
        (
            "Use best.pt, which is that of the best epoch.",
            _COUNT,
            _OPEN_EMPTY,
            _RATE,
            "If the training loss still falls, it is overfitting: end earlier (--patience 5) or "
            "add images.",
        ),
        VERIFY,
    ),
    Cause.RECOVERED: ((), VERIFY),
}
