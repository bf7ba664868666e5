"""The losses that tests and benchmarks run through: one row each."""

from typing import NamedTuple

from fastseg_losses import get_loss_function
from fastseg_losses.base import SegmentationLoss


class Row(NamedTuple):
    name: str  # for get_loss_function
    arguments: dict
    label: str

    def build(self, **shared) -> SegmentationLoss:
        return get_loss_function(self.name, **{**self.arguments, **shared})


# One row a loss, at its defaults: what the benchmarks time.
DEFAULTS = [
    Row("bce", {}, "bce"),
    Row("dice", {}, "dice"),
    Row("iou", {}, "iou"),
    Row("tversky", {}, "tversky"),
    Row("focal", {}, "focal"),
    Row("combined", {}, "combined"),
]

# The branches behind the parameters: what the tests check.
VARIANTS = [
    Row("bce", {"pos_weight": 3.0, "label_smoothing": 0.1}, "bce-weighted-smoothed"),
    Row("dice", {"smooth": 0.0}, "dice-smooth0"),
    Row("dice", {"log_loss": True}, "log-dice"),
    Row("iou", {"log_loss": True, "smooth": 0.0}, "log-iou"),
    Row("tversky", {"alpha": 0.7, "beta": 0.3, "gamma": 0.75}, "focal-tversky-0.75"),
    Row("tversky", {"gamma": 4 / 3, "log_loss": True}, "log-tversky-1.33"),
    Row("focal", {"alpha": None, "gamma": 0.0}, "focal-gamma0"),
    Row("focal", {"alpha": 0.6, "gamma": 0.5}, "focal-gamma0.5"),
    Row("focal", {"alpha": 1.0, "gamma": 5.0}, "focal-gamma5"),
    Row(
        "combined",
        {"iou_weight": 0.3, "tversky_weight": 0.2, "focal_gamma": 1.5, "bce_pos_weight": 2.0},
        "combined-all",
    ),
]

ALL = [*DEFAULTS, *VARIANTS]

# Multiclass, with a softmax; ALPHA stands for one value per class (`alphas`).
MULTICLASS = [
    Row("ce", {}, "ce"),
    Row("dice", {}, "dice"),
    Row("iou", {}, "iou"),
    Row("tversky", {}, "tversky"),
    Row("focal", {}, "focal"),
    Row("combined", {}, "combined"),
]
MULTICLASS_VARIANTS = [
    Row("ce", {"label_smoothing": 0.1}, "ce-smoothed"),
    Row("dice", {"smooth": 0.0}, "dice-smooth0"),
    Row("iou", {"log_loss": True, "smooth": 0.0}, "log-iou"),
    Row("tversky", {"gamma": 4 / 3, "log_loss": True}, "log-tversky-1.33"),
    Row("focal", {"gamma": 0.0}, "focal-gamma0"),
    Row("focal", {"gamma": 0.5, "alpha": "ALPHA"}, "focal-balanced-gamma0.5"),
    Row("focal", {"gamma": 5.0, "alpha": "ALPHA"}, "focal-balanced-gamma5"),
    Row(
        "combined",
        {
            "iou_weight": 0.3,
            "tversky_weight": 0.2,
            "focal_alpha": "ALPHA",
            "bce_label_smoothing": 0.05,
        },
        "combined-all",
    ),
]
ALL_MULTICLASS = [*MULTICLASS, *MULTICLASS_VARIANTS]


def alphas(row: Row, num_classes: int) -> Row:
    """The row for that many classes."""
    values = [0.25 + 0.5 * (c % 3) for c in range(num_classes)]
    arguments = {k: values if v == "ALPHA" else v for k, v in row.arguments.items()}
    return row._replace(arguments={"mode": "multiclass", **arguments})


def ids(rows: list[Row]) -> list[str]:
    return [row.label for row in rows]
