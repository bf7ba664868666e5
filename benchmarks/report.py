"""From a benchmark's JSON to a table and a picture: python benchmarks/report.py FILE.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS = ("GPU time", "wall time", "launches", "memory", "of copy bandwidth", "over the floor")
PICTURED = (  # loss, shape, logits, targets
    ("combined", "32x1x1024x1024", "float32", "float32"),
    ("combined", "32x1x1024x1024", "bfloat16", "uint8"),
    ("combined", "8x1x512x512", "float32", "float32"),
    ("ce+dice", "8x19x512x1024", "float32", "int64"),
    ("ce+dice", "8x19x512x1024", "bfloat16", "uint8"),
    ("ce+dice", "1x118x128x128x128", "float32", "int64"),
)
TITLES = {"combined": "BCE + Dice + focal", "ce+dice": "softmax, CE + Dice"}
COLOURS = {"ours": "#0072b2"}


def read_rows(path: Path) -> tuple[Row, list[Row]]:
    """The machine and every benchmark's figures."""
    content = json.loads(path.read_text())
    return content["machine"] | {"date": content["date"]}, content["rows"]


def group_of(row: Row) -> tuple[str, str, str, str, bool]:
    """Rows with the same work stand in one table."""
    return row["loss"], row["shape"], row["logits"], row["targets"], row["backward"]


def speed(row: Row) -> float:
    """What rows are ordered by: GPU time, else wall time."""
    return float(row.get("gpu_us", row.get("wall_us", 0.0)))


def line_of(row: Row, ours: float | None) -> str:
    """One row of a table."""
    times = f" ({speed(row) / ours:.1f}x)" if ours and row["implementation"] != "ours" else ""
    cells = [
        f"{row['gpu_us']:.1f} us{times}" if "gpu_us" in row else "",
        f"{row['wall_us']:.0f} us" if "wall_us" in row else "",
        f"{row['launches']:.0f}" if "launches" in row else "",
        f"+{row['peak_mb']:.1f} MB" if "peak_mb" in row else "",
        f"{row['bandwidth_share']:.0%}" if "bandwidth_share" in row else "",
        f"{row['floor_ratio']:.2f}" if "floor_ratio" in row else "",
    ]
    return f"| {row['implementation']} | {' | '.join(cells)} |"


def tables(rows: list[Row]) -> list[str]:
    """A markdown table for each work, ours first."""
    lines: list[str] = []
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row)
    for (loss, shape, logits, targets, backward), members in groups.items():
        way = "forward + backward" if backward else "forward"
        lines += [f"### {loss}, {shape}, {logits} / {targets}, {way}", ""]
        lines += [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
        ours = next((speed(r) for r in members if r["implementation"] == "ours"), None)
        members.sort(key=lambda r: (r["implementation"] != "ours", speed(r)))
        lines += [line_of(row, ours) for row in members] + [""]
    return lines


def describe(machine: Row) -> str:
    """The device and the versions."""
    names = ("device", "cuda", "torch", "triton", "date")
    return ", ".join(f"{name} {machine[name]}" for name in names if name in machine)


def write_markdown(path: Path, machine: Row, rows: list[Row]) -> None:
    """All tables."""
    text = """GPU time: the kernels' own (profiler), without gaps between them. Wall time: a loop of
calls through the module and autograd. Memory: peak above the inputs, the gradient included. The
floor: the forward reads logits and targets once, the backward reads them again and writes the
gradient, at the measured bandwidth of a device-to-device copy."""
    head = ["# Benchmarks", "", f"{describe(machine)}.", "", text, ""]
    path.write_text("\n".join(head + tables(rows)))


def write_picture(path: Path, machine: Row, rows: list[Row]) -> None:
    """GPU time and memory of the combinations, ours beside the peers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    works = [
        (work, [r for r in rows if group_of(r) == (*work, True) and "peak_mb" in r])
        for work in PICTURED
    ]
    works = [(w, found) for w, found in works if len({r["implementation"] for r in found}) > 1]
    if not works:
        return
    figure, axes = plt.subplots(len(works), 2, figsize=(10, 2.6 * len(works)), squeeze=False)
    for (work, members), pair in zip(works, axes, strict=True):
        shown = sorted(members, key=lambda r: -speed(r))
        aside = ("autograd alone", "ours, no statistics")
        shown = [r for r in shown if r["implementation"] not in aside]
        names = [r["implementation"] for r in shown]
        bars = (("gpu_us", "GPU time, us"), ("peak_mb", "peak memory above the inputs, MB"))
        for axis, (key, label) in zip(pair, bars, strict=True):
            colours = [COLOURS.get(name.split(",")[0], "#bbbbbb") for name in names]
            drawn = axis.barh(names, [r[key] for r in shown], color=colours)
            axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
            axis.set_xticks([])  # the bars say their values
            axis.margins(x=0.15)
            axis.set_xlabel(label)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
        loss, shape, logits, targets = work
        title = f"{TITLES[loss]}, {shape}, {logits} logits, {targets} targets"
        pair[0].set_title(title, loc="left", fontsize=10)
    figure.suptitle(f"Forward and backward, statistics included ({machine.get('device')})")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write FILE.md and FILE.png beside FILE.json."""
    source = Path(sys.argv[1])
    machine, rows = read_rows(source)
    write_markdown(source.with_suffix(".md"), machine, rows)
    write_picture(source.with_suffix(".png"), machine, rows)


if __name__ == "__main__":
    main()
