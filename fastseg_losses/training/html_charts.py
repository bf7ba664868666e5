"""Curves of a run as inline SVG that takes its colours from the page, in light and in dark."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from fastseg_losses.training.labels import Labels
from fastseg_losses.training.report import MAX_CURVES, Row, class_colours

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"

# matplotlib knows no CSS variables: it draws with these placeholders, which are then replaced.
_INK, _LINE, _ALARM = "#000001", "#000002", "#000003"
_SERIES = ("#000004", "#000005", "#000006")
_VARIABLES = {_INK: "--muted", _LINE: "--line", _ALARM: "--bad"} | {
    colour: f"--series-{place}" for place, colour in enumerate(_SERIES, start=1)
}

# Above this ratio of the largest to the smallest value a linear axis shows a flat line only.
_LOG_FROM = 50

# The points of a curve, evenly spread, beyond which the page grows and nobody sees a difference.
MAX_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        colour: CSS, for the legend.
        last: its newest value; NaN if there is none.
    """

    label: str
    colour: str
    last: float


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        title: what it shows.
        svg: the picture, without its legend.
        curves: the legend.
        note: one more sentence, or nothing.
    """

    title: str
    svg: str
    curves: tuple[Curve, ...]
    note: str = ""


def draw_charts(
    rows: Sequence[Row], labels: Labels | None, *, alarms: Sequence[float] = ()
) -> list[Chart]:
    """The charts of a run, those left out of which no value is known.

    Args:
        rows: the epochs' numbers, by column of ``metrics.csv``.
        labels: what the ids mean; None in binary mode.
        alarms: where the monitor spoke, in epochs.
    """
    mean = "" if labels is None else "mean "
    charts = [
        ("Loss", {"train_loss": "training", "val_loss": "validation"}, ""),
        ("Validation score", {"val_dice": f"{mean}Dice", "val_iou": f"{mean}IoU"}, ""),
    ]
    if labels is None:
        shares = {
            "pred_mean": "pred_mean",
            "target_mean": "target_mean",
            "pred_positive": "pred_positive",
        }
        note = "On training batches. Compare pred_mean with target_mean: neither says much alone."
        charts.append(("Prediction and target", shares, note))
    else:
        shown = min(labels.num_classes, MAX_CURVES)
        classes = {f"val_iou_{k}": f"class {k}" for k in range(shown)}
        note = "" if shown == labels.num_classes else f"The first {shown} classes; metrics.csv has"
        charts.append(("Validation IoU of each class", classes, note and f"{note} all."))
    charts += [
        ("Learning rate", {"lr": "lr"}, ""),
        ("Norm of the gradients", {"grad_norm": "before clipping"}, ""),
    ]
    drawn = (_draw(title, names, note, rows, alarms) for title, names, note in charts)
    return [chart for chart in drawn if chart is not None]


def _draw(
    title: str, names: dict[str, str], note: str, rows: Sequence[Row], alarms: Sequence[float]
) -> Chart | None:
    kept = _spread(rows)
    known = {
        column: values
        for column in names
        if any(map(math.isfinite, values := [_finite(row.get(column)) for row in kept]))
    }
    if not known:
        return None
    colours: Sequence[str] = _SERIES
    if len(names) > len(_SERIES):
        colours = [_hex(colour) for colour in class_colours(len(names)).tolist()]
    by_column = dict(zip(names, colours, strict=False))
    figure = _figure()
    axes = figure.add_axes((0.13, 0.135, 0.85, 0.825))
    epochs = [row["epoch"] for row in kept]
    for column, values in known.items():
        mark = {"marker": "o", "markersize": 3.5} if len(kept) <= 40 else {}
        axes.plot(epochs, values, color=by_column[column], linewidth=1.8, **mark)
    for place in alarms:
        axes.axvline(place, color=_ALARM, linewidth=1, linestyle=(0, (3, 3)))
    _dress(axes, title, [value for values in known.values() for value in values], epochs, alarms)
    curves = tuple(
        Curve(
            names[column],
            _in_css(by_column[column]),
            next((value for value in reversed(values) if math.isfinite(value)), math.nan),
        )
        for column, values in known.items()
    )
    return Chart(title, _inline(figure, title), curves, note)


def _dress(
    axes: Any,
    title: str,
    values: Sequence[float],
    epochs: Sequence[float],
    alarms: Sequence[float],
) -> None:
    """Everything around the lines."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    axes.locator_params(axis="y", nbins=5)
    if title == "Learning rate":  # mostly constant, which has no height to scale to
        # One epoch under a schedule that falls to 0 ends with 0 alone: no height either.
        axes.set_ylim(0, 1.1 * max(finite) or 1)
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    if title.startswith("Validation"):
        axes.set_ylim(0, 1.02)
    if title == "Loss" and min(finite) > 0 and max(finite) > _LOG_FROM * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(set(epochs)) == 1:  # a single point has no width to scale to
        axes.set_xlim(epochs[0] - 0.5, max(epochs[0], *alarms, 0) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, which="both", length=0, labelsize=10, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_LINE)
    axes.patch.set_visible(False)


def _figure() -> Any:
    # As in report.py: a bare Figure, without pyplot, imported when it is needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.6))
    figure.patch.set_visible(False)
    return figure


def _inline(figure: Any, title: str) -> str:
    """The figure as an ``<svg>`` element that can stand in a page beside others of its kind."""
    import matplotlib

    file = io.StringIO()
    # Text as text: a tenth of the size of outlines, in the page's font. The salt makes the ids
    # of clip paths and markers those of this chart alone, and the same every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(file.getvalue())
    used = {
        value.partition("#")[2].rstrip(")")
        for element in root.iter()
        for value in element.attrib.values()
        if "#" in value
    }
    for element in list(root.iter()):
        # A page has each id once, and a <style> in it applies to all of it.
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for child in list(element):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                element.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _in_css(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _spread(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, or `MAX_POINTS` of them with the first and the last."""
    if len(rows) <= MAX_POINTS:
        return rows
    step = (len(rows) - 1) / (MAX_POINTS - 1)
    return [rows[round(step * place)] for place in range(MAX_POINTS)]
