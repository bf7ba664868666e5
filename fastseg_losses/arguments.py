"""Arguments that are numbers, flags or choices: checked, with errors that say what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

Mode = Literal["binary", "multilabel", "multiclass"]
Reduction = Literal["mean", "sum", "none"]
Absent = Literal["keep", "skip"]
Activation = Literal["sigmoid"] | None
UpsampleMode = Literal["bilinear", "nearest"]
Upsample = UpsampleMode | None
Backend = Literal["auto", "triton", "torch"]

MODES: tuple[str, ...] = get_args(Mode)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
UPSAMPLES: tuple[str, ...] = get_args(UpsampleMode)


def check_weight(name: str, value: float) -> float:
    """A term's weight in the combination: a finite number of at least 0."""
    check_number(name, value, 0.0, math.inf)
    return float(value)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of some strings.

    Raises:
        ValueError: another value.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, flag: object) -> None:
    """A bool.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(flag, bool):
        raise TypeError(f"{name}: expected a bool, got {flag!r}")


def check_number(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """A finite number from `low` (above it, if `above`) to `high`.

    Raises:
        TypeError: no number.
        ValueError: outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}{mode_hint(value)}")
    inside = (low < value if above else low <= value) and value <= high
    if not inside or not _is_finite(value):
        bound = f"{'above' if above else 'at least'} {low:g}" + (
            "" if math.isinf(high) else f" and at most {high:g}"
        )
        raise ValueError(f"{name}: expected a finite number {bound}, got {value!r}")


def mode_hint(value: object) -> str:
    """What to add to an error about a mode that came where another argument was expected."""
    return f"; mode is a keyword: mode={value!r}" if value in MODES else ""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond any float
        return False
