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


def shown(value: object, most: int = 80) -> str:
    """A value of the user's data for a message: its repr, cut where it is long."""
    size = len(value) if isinstance(value, (str, bytes)) else 0
    if isinstance(value, (str, bytes)) and size > most:
        return f"{value[:most]!r}... ({size} {'bytes' if isinstance(value, bytes) else 'letters'})"
    text = repr(value)
    return text if len(text) <= 2 * most else f"{text[: 2 * most]}..."


def one_line(text: str, most: int = 80) -> str:
    """A text of the user's data inside a line: without line breaks and control characters, cut."""
    cut = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
