"""Settings from a file, and those of a run that is resumed; what is typed beside them wins."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.settings import AUGMENT_STRENGTHS, COMBINED_WEIGHTS

# What a checkpoint's net depends on, or its statistics: another value would be another run.
FIXED = ("mode", "num_classes", "model", "head_stride")


def read_settings(path: str) -> dict[str, Any]:
    """Settings from a YAML or JSON file, by field name, with ``-`` or ``_``.

    Args:
        path: a ``.json``, ``.yaml`` or ``.yml`` file: one mapping; a run's config.json is one.

    Raises:
        ValueError: it cannot be read, is no mapping, names an unknown setting, or a value has the
            wrong type.
    """
    content = _parse(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"config: expected {path} to hold settings by name, got {content!r}")
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    settings = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"config: unknown setting {key!r} in {path}{hint}")
        settings[name] = _checked(fields[name], value, path)
    return settings


def settings_to_resume(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run in a folder, changed by those that are given.

    Args:
        folder: the run's folder.
        given: settings by field name.

    Returns:
        All settings.

    Raises:
        ValueError: the folder holds no run, or what its net depends on would change.
    """
    path = Path(folder)
    for name in ("config.json", "last.pt"):
        if not (path / name).is_file():
            raise ValueError(f"resume: expected the folder of a run, got {folder!r}: no {name}")
    before = read_settings(str(path / "config.json"))
    if before.get("model") is None:  # runs from before there was a choice
        before.setdefault("head_stride", 1)
    if given.get("output_dir") is not None:
        raise ValueError("output_dir: expected none beside --resume, which goes on in its folder")
    for name in FIXED:
        if name in given and given[name] != before.get(name):
            raise ValueError(
                f"{name}: expected {before.get(name)!r} as in the resumed run, got {given[name]!r}"
            )
    return beside(before, given) | {"output_dir": folder}


def beside(file: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file and what is typed, which wins.

    What only went with another choice in the file (the weights of a combined loss, the strengths of
    an augmentation, the stride of the built-in net) is left out: nobody asked for it.
    """
    both = dict(file) | dict(typed)
    dropped: tuple[str, ...] = ()
    if both.get("loss", "combined") != "combined":
        dropped += tuple(COMBINED_WEIGHTS)
    if both.get("augment") != "full":
        dropped += tuple(AUGMENT_STRENGTHS)
    if both.get("pseudo_weight") is None:
        dropped += ("pseudo_confidence",)
    if both.get("model") is not None:
        dropped += ("head_stride",)
    return {k: v for k, v in both.items() if k in typed or k not in dropped}


def _parse(path: str) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise ValueError(f"config: {path} cannot be read ({reason})") from error
    kind = Path(path).suffix.lower()
    if kind == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"config: {path} is no JSON: {error}") from error
    if kind in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"config: {path} is no YAML: {' '.join(str(error).split())}"
            ) from error
    raise ValueError(f"config: expected a .json, .yaml or .yml file, got {path!r}")


def _checked(field: dataclasses.Field[Any], value: Any, path: str) -> Any:
    """A value as its option would give it; YAML reads 1e-3 as text, so numbers may be text."""
    kind = field.metadata["parse"]
    if value is None and field.default is None:
        return None
    if kind is float and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    raise ValueError(f"config: expected {field.name} in {path} to be {names[kind]}, got {value!r}")
