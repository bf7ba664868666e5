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


def ids(rows: list[Row]) -> list[str]:
    return [row.label for row in rows]
