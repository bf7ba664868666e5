"""The tables of a run's page: census, classes, settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastseg_losses.training.census import Census, ClassCensus, RowCensus
from fastseg_losses.training.command_line import flag_of
from fastseg_losses.training.config import TrainConfig, resolve
from fastseg_losses.training.report import class_colours
from fastseg_losses.training.settings import usual_head_stride

# Lines of the table of classes; beyond them only the classes with the lowest IoU are shown.
MAX_CLASSES = 200


@dataclass(frozen=True)
class Part:
    """A share of a bar.

    Attributes:
        label: what it counts.
        count: how many rows.
        share: of all rows, in [0, 1].
        kind: chooses the colour.
    """

    label: str
    count: int
    share: float
    kind: str


@dataclass(frozen=True)
class CensusCard:
    """One census.

    Attributes:
        title: what was counted.
        rows: how many rows.
        parts: the states of the rows.
        lines: the census's own lines, as name and value.
        verdict: what it means, in words.
        tone: "good", "asks" (something is to be looked at) or "bad" (nothing to learn from).
    """

    title: str
    rows: int
    parts: tuple[Part, ...]
    lines: tuple[tuple[str, str], ...]
    verdict: str
    tone: str


@dataclass(frozen=True)
class ClassLine:
    """One class.

    Attributes:
        id: its id.
        colour: CSS, the same as in samples.png.
        shares: of the pixels of each census, in its order, in percent; None where nobody counted.
        iou: of the last epoch; None if the class is not in the validation masks.
        dice: the same.
        best_iou: of the epoch that best.pt holds.
    """

    id: int
    colour: str
    shares: tuple[str | None, ...]
    iou: float | None
    dice: float | None
    best_iou: float | None


@dataclass(frozen=True)
class ClassTable:
    """The classes' scores.

    Attributes:
        counted: what the shares are of, in the order of `ClassLine.shares`.
        lines: the classes.
        total: how many classes there are.
        best_epoch: which epoch `ClassLine.best_iou` is of.
    """

    counted: tuple[str, ...]
    lines: tuple[ClassLine, ...]
    total: int
    best_epoch: int


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        flag: its option.
        value: as it would be typed.
        meaning: what --help says.
        changed: whether it differs from what a run without that option would have.
    """

    flag: str
    value: str
    meaning: str
    changed: bool


def census_card(title: str, census: RowCensus) -> CensusCard:
    """A census as a bar and lines."""
    states: list[tuple[str, int, str]] = []
    if isinstance(census, Census):
        states += [("with foreground", census.foreground, "full")]
        states += [("annotated and empty", census.empty, "empty")]
    if isinstance(census, ClassCensus):
        states += [("several classes", census.several_rows, "full")]
        states += [("a single class", sum(census.alone_rows), "empty")]
        states += [("all ignored", census.ignored_rows, "ignored")]
    states += [("with a pseudo-mask", census.pseudo, "unknown")]
    states += [("not annotated", census.unannotated - census.pseudo, "unknown")]
    states += [("unreadable", census.unreadable, "broken")]
    rows = max(census.rows, 1)
    parts = tuple(Part(label, n, n / rows, kind) for label, n, kind in states if n)
    lines = [line.partition(": ") for line in census.lines(problems=False)]
    named = tuple((name, value) for name, _, value in lines if name not in ("Rows", "Verdict"))
    clear = census.verdict.startswith("Something to learn from")
    tone = "good" if clear else "asks" if census.learnable else "bad"
    return CensusCard(title, census.rows, parts, named, census.verdict, tone)


def class_table(
    rows: Sequence[Mapping[str, float]],
    config: TrainConfig,
    censuses: Mapping[str, RowCensus],
    *,
    best: Mapping[str, float] | None,
) -> ClassTable | None:
    """The classes' scores in the last epoch and in the best one; None in binary mode.

    Args:
        rows: the epochs' numbers, by column of metrics.csv.
        config: the resolved settings.
        censuses: by what was counted.
        best: the row of the best epoch.
    """
    if config.labels is None or best is None:
        return None
    count, last = config.labels.num_classes, rows[-1]
    ids = list(range(count))
    if count > MAX_CLASSES:
        known = [k for k in ids if not math.isnan(last[f"val_iou_{k}"])]
        ids = sorted(known, key=lambda k: last[f"val_iou_{k}"])[:MAX_CLASSES]
    counted = {what: c for what, c in censuses.items() if isinstance(c, ClassCensus)}
    colours = class_colours(count).tolist()
    lines = tuple(
        ClassLine(
            k,
            "rgb({})".format(" ".join(f"{round(255 * part)}" for part in colours[k])),
            tuple(_share(census, k) for census in counted.values()),
            _known(last[f"val_iou_{k}"]),
            _known(last[f"val_dice_{k}"]),
            _known(best[f"val_iou_{k}"]),
        )
        for k in ids
    )
    return ClassTable(tuple(counted), lines, count, int(best["epoch"]))


def settings(config: TrainConfig) -> dict[str, list[Setting]]:
    """Every setting by the heading that it has in --help."""
    choices = ("data", "mode", "num_classes", "loss")
    usual = resolve({name: getattr(config, name) for name in choices})
    found: dict[str, list[Setting]] = {}
    for field in dataclasses.fields(TrainConfig):
        value = getattr(config, field.name)
        before = field.default if field.name in choices else getattr(usual, field.name)
        if field.name == "head_stride":
            before = None if config.model else usual_head_stride(config.image_size)
        meaning = field.metadata["help"]
        entry = Setting(flag_of(field.name), _value(value), meaning, value != before)
        found.setdefault(field.metadata["group"], []).append(entry)
    return found


def _share(census: ClassCensus, k: int) -> str | None:
    counted = sum(census.pixels)
    return f"{100 * census.pixels[k] / counted:.3g}%" if counted else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
