"""What the values of a multiclass mask mean: class ids, and one value for ignored pixels."""

from __future__ import annotations

from dataclasses import dataclass

from fastseg_losses.training.checks import check_int

MODES = ("binary", "multiclass")

# What a mask's PNG can hold, in 8 and in 16 bits.
LARGEST_BYTE = 255
LARGEST_WORD = 65535

# Value of the ignored pixels of a binary sample: what augmentation leaves uncovered. A mask's own
# 255 means foreground and has become 1 when the sample is made.
BINARY_IGNORED = 255


@dataclass(frozen=True)
class Labels:
    """How the masks of a multiclass set are read.

    Attributes:
        num_classes: Number of classes; their ids are 0 to num_classes - 1.
        ignore_index: Value of the pixels that count for nothing. The id of a class is allowed: that
            class is then ignored.

    Raises:
        TypeError: One of them is no integer.
        ValueError: One of them is out of range.
    """

    num_classes: int
    ignore_index: int

    def __post_init__(self) -> None:
        """Check that a mask can hold every value."""
        check_int("num_classes", self.num_classes, minimum=2)
        check_int("ignore_index", self.ignore_index, minimum=0)
        for name, value in (
            ("num_classes", self.num_classes),
            ("ignore_index", self.ignore_index),
        ):
            if value > LARGEST_WORD:
                raise ValueError(
                    f"{name}: expected at most {LARGEST_WORD} (a mask has 16 bits), got {value}"
                )

    @property
    def dtype(self) -> str:
        """The smallest type that holds every id and that torch computes with."""
        largest = max(self.num_classes - 1, self.ignore_index)
        return "uint8" if largest <= LARGEST_BYTE else "int32"

    @property
    def accepted(self) -> str:
        """The values that a mask may hold, in words."""
        ids = f"class ids from 0 to {self.num_classes - 1}"
        return ids if self.ignore_index < self.num_classes else f"{ids}, or {self.ignore_index}"


def default_ignore_index(num_classes: int) -> int:
    """255, the usual value, unless a class has that id."""
    return LARGEST_BYTE if num_classes <= LARGEST_BYTE else LARGEST_WORD


def labels_for(mode: str, num_classes: int | None, ignore_index: int | None) -> Labels | None:
    """What the options say about masks; None in binary mode.

    Args:
        mode: "binary" or "multiclass".
        num_classes: Number of classes, in multiclass mode only.
        ignore_index: Value of ignored pixels, in multiclass mode only; None: the default.

    Raises:
        TypeError: A number is no integer.
        ValueError: An unknown mode, a number out of range, or one that does not fit the mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == "binary":
        for name, value in (("num_classes", num_classes), ("ignore_index", ignore_index)):
            if value is not None:
                raise ValueError(
                    f"{name}: expected mode multiclass beside it, got {value} in mode binary"
                )
        return None
    if num_classes is None:
        raise ValueError("num_classes: expected the number of classes in mode multiclass, got none")
    if ignore_index is None:
        ignore_index = default_ignore_index(num_classes)
    return Labels(num_classes, ignore_index)
