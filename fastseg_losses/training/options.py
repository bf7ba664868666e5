"""How a setting of a run is declared: a dataclass field that is also a command-line option."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


def option(
    group: str,
    default: Any,
    text: str,
    *,
    parse: type = str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        group: the heading in ``--help``.
        default: its value where nothing is given.
        text: what ``--help`` says.
        parse: turns the typed text into the value; bool makes a flag without a value.
        choices: the values that there are, if only some.
        metavar: the value's name in ``--help``.
    """
    metadata = {
        "group": group,
        "help": text,
        "parse": parse,
        "choices": choices,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata=metadata)
