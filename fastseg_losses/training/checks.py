"""Checks of arguments that several modules share."""

from numbers import Integral


def check_int(name: str, value: object, *, minimum: int) -> None:
    """Raises unless a value is a whole number of at least `minimum`.

    Raises:
        TypeError: It is no integer (a bool is none here).
        ValueError: It is below the minimum.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if int(value) < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
