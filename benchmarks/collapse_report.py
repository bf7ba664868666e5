"""From the collapse study's JSON to its table, its sentences and its picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from collapse_words import (
    CONDITIONS,
    NAMES,
    Row,
    alarms,
    condition_of,
    fate,
    first_step,
    score,
    sentences,
    trained,
)

BEGIN = "<!-- collapse study: written by benchmarks/collapse_study.py, do not edit -->"
END = "<!-- end of the collapse study -->"
COLOURS = {
    "bce": "#0072b2",
    "dice": "#e69f00",
    "focal": "#d55e00",
    "dice+bce": "#009e73",
    "combined": "#cc79a7",
}


def write_report(source: Path, root: Path) -> None:
    """Write the table in the documentation, the long one beside the JSON, and the picture."""
    content = read(source)
    document = root / "docs" / "TRAINING_FIX.md"
    text = document.read_text(encoding="utf-8")
    document.write_text(replaced(text, block(content, source.stem)), encoding="utf-8")
    source.with_suffix(".md").write_text(long_table(content), encoding="utf-8")
    draw(root / "docs" / "images" / "collapse-study.png", content)


def read(source: Path) -> Row:
    """The study's results."""
    content: Row = json.loads(source.read_text(encoding="utf-8"))
    return content


def replaced(text: str, new: str) -> str:
    """The text with what stands between the markers replaced.

    Raises:
        ValueError: the markers are not there exactly once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN!r} and {END!r} once each, in this order")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{new.strip()}\n\n{END}{rest.partition(END)[2]}"


def block(content: Row, name: str) -> str:
    """What stands in the documentation."""
    rows = content["rows"]
    paragraphs = [
        setting(content, name),
        "\n".join(short_table(rows)),
        "![training loss and validation Dice](images/collapse-study.png)",
        "\n".join(f"- {text}" for text in sentences(content)),
    ]
    return "\n\n".join(paragraphs)


def setting(content: Row, name: str) -> str:
    """What was run, on what."""
    s, m = content["settings"], content["machine"]
    seeds = len({row["seed"] for row in content["rows"]})
    nuclei, sparse = content["sets"]["nuclei"], content["sets"]["sparse"]
    return (
        f"Measured ({content['date']}, {m['device']}, torch {m['torch']}; "
        f"[all numbers](../benchmarks/results/{name}.md), "
        f"[JSON](../benchmarks/results/{name}.json)): "
        f"{nuclei['train_rows']} training and {nuclei['val_rows']} validation images at "
        f"{s['size']}x{s['size']}, `LightweightUNet` of widths {', '.join(map(str, s['widths']))}, "
        f"AdamW at {s['lr']:g} with warm-up and cosine, {s['steps']} steps of {s['batch_size']}, "
        f"{seeds} seed{'s' * (seeds > 1)}. Undrawn rows are chosen by lot. The numbers: "
        "validation Dice at the end, against the true masks, one for each seed; below it the step "
        "of the monitor's first alarm, where there was one. The sparse set: the same images with "
        "one small nucleus in about half of them and none in the others, all other nuclei painted "
        "over with the image's own background, so that every mask is right; "
        f"{100 * sparse['train_foreground']:.2f} % of its pixels are foreground."
    )


def short_table(rows: Sequence[Row]) -> list[str]:
    """Validation Dice and the first alarm's step, a line or two for each condition."""
    losses = [loss for loss in NAMES if any(r["loss"] == loss for r in rows)]
    lines = [f"| training masks | {' | '.join(NAMES[k] for k in losses)} |"]
    lines.append(f"| --- |{' --- |' * len(losses)}")
    for condition, title in CONDITIONS.items():
        runs = [r for r in rows if condition_of(r) == condition]
        if not runs:
            continue
        cells = [[r for r in runs if r["loss"] == loss] for loss in losses]
        scores = [each(cell, lambda r: score(r["last"]["val_dice"])) for cell in cells]
        lines.append(f"| {title} | {' | '.join(scores)} |")
        if any(alarms(r) for r in runs):
            steps = [each(cell, first_step) for cell in cells]
            lines.append(f"| *alarm at step* | {' | '.join(steps)} |")
    return lines


def each(cell: Sequence[Row], text: Callable[[Row], str]) -> str:
    """One number for each seed; or that the trainer refused."""
    if any(not r["curve"] for r in cell):
        return f"refused, exit code {cell[0]['exit_code']}"
    return " / ".join(text(r) for r in sorted(cell, key=lambda r: r["seed"]))


def long_table(content: Row) -> str:
    """Every run's last numbers and what the monitor said."""
    columns = ("loss", "pred_mean", "pred_positive", "pred_max", "val_dice", "val_recall")
    lines = [
        "# Collapse study",
        "",
        ", ".join(f"{k} {v}" for k, v in content["machine"].items() if v) + f", {content['date']}.",
        "",
        "Settings: " + ", ".join(f"{k} {v}" for k, v in content["settings"].items()) + ".",
        "Sets: "
        + "; ".join(
            f"{name}: {s['train_rows']} + {s['val_rows']} rows, foreground "
            f"{s['train_foreground']:.2%} of the training pixels, {s['train_empty']} empty masks"
            for name, s in content["sets"].items()
        )
        + ".",
        "",
        "loss, `pred_mean`, `pred_positive`, `pred_max`: training, since the check before the "
        "last. Dice, recall: validation, true masks. Monitor: step and cause of each finding.",
        "",
        "| training masks | loss function | seed | loss | pred_mean | pred_positive | pred_max | "
        "Dice | recall | fate | monitor |",
        "| --- | --- |" + " ---: |" * 7 + " --- | --- |",
    ]
    order = list(CONDITIONS)
    ranked = sorted(
        content["rows"],
        key=lambda r: (order.index(condition_of(r)), list(NAMES).index(r["loss"]), r["seed"]),
    )
    for row in ranked:
        head = f"| {CONDITIONS[condition_of(row)]} | {NAMES[row['loss']]} | {row['seed']} |"
        if not row["curve"]:
            code = row["exit_code"]
            lines.append(f"{head}{' |' * 6} | refused before the first step, exit code {code} |")
            continue
        values = (row["last"][name] for name in columns)
        cells = " | ".join("" if v is None else f"{v:.4f}" for v in values)
        said = "; ".join(f"{f['step']}: {f['cause']}" for f in row["findings"])
        lines.append(f"{head} {cells} | {fate(row, content['rows'])} | {said} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, content: Row) -> None:
    """Training loss and validation Dice over the steps, a column for each condition."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [c for c in CONDITIONS if any(condition_of(r) == c for r in trained(content["rows"]))]
    figure = Figure(figsize=(2.6 * len(shown), 5.4), dpi=100, layout="constrained")
    panels = figure.subplots(2, len(shown), sharex=True, sharey="row", squeeze=False)
    for (above, below), condition in zip(panels.T, shown, strict=True):
        for row in trained(content["rows"]):
            if condition_of(row) != condition:
                continue
            colour, at = COLOURS[row["loss"]], [point["step"] for point in row["curve"]]
            losses = [point["loss"] for point in row["curve"]]
            dice = [point["val_dice"] or 0.0 for point in row["curve"]]
            above.plot(at, losses, color=colour, linewidth=1)
            below.plot(at, dice, color=colour, linewidth=1)
            for alarm in alarms(row):
                height = dice[at.index(alarm["step"])]
                below.plot(alarm["step"], height, "x", color=colour, markersize=7, clip_on=False)
        above.set_yscale("log")
        above.set_title(CONDITIONS[condition].replace(", ", ",\n"), fontsize=9)
        below.set_ylim(-0.02, 1)
        below.set_xlabel("step")
        for axes in (above, below):
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("training loss")
    panels[1, 0].set_ylabel("validation Dice")
    handles = [Line2D([], [], color=COLOURS[k], label=NAMES[k]) for k in NAMES]
    handles.append(Line2D([], [], color="black", marker="x", linestyle="", label="alarm"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
