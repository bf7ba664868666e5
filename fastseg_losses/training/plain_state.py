"""A monitor's memory as plain values, which a checkpoint holds without pickling any class."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.score_watch import ScoreWatch
from fastseg_losses.training.tally import Tally

_PLAIN = (bool, int, float, str, type(None))
_OBJECTS = {kind.__name__: kind for kind in (Tally, ScoreWatch, Finding)}


def to_plain(value: Any) -> Any:
    """Numbers, texts and lists of them for a value; `from_plain` is the inverse.

    Raises:
        TypeError: there is no plain form of it.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    kind = type(value).__name__
    if isinstance(value, Cause):
        return {"kind": "Cause", "value": value.name}
    if isinstance(value, (tuple, set, deque)):
        items = sorted(value, key=repr) if isinstance(value, set) else value
        most = value.maxlen if isinstance(value, deque) else None
        return {"kind": kind, "value": [to_plain(item) for item in items], "most": most}
    if isinstance(value, Mapping):
        pairs = [[to_plain(key), to_plain(item)] for key, item in value.items()]
        return {"kind": "dict", "value": pairs}
    if kind in _OBJECTS:
        return {"kind": kind, "value": to_plain(vars(value))}
    raise TypeError(f"value: expected what a monitor remembers, got {kind}")


def from_plain(value: Any) -> Any:
    """What `to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value["kind"], from_plain(value["value"])
    if kind == "Cause":
        return Cause[content]
    if kind == "dict":
        return {key: item for key, item in content}
    if kind == "deque":
        return deque(content, value["most"])
    if kind in ("tuple", "set"):
        return tuple(content) if kind == "tuple" else set(content)
    made = object.__new__(_OBJECTS[kind])
    vars(made).update(content)
    return made
