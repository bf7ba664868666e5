"""The page of a run: everything that ``report.html`` says, from plain values to HTML."""

from __future__ import annotations

import base64
import datetime
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from fastseg_losses.training.census import RowCensus
from fastseg_losses.training.clock import duration
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.findings import Finding
from fastseg_losses.training.html_charts import draw_charts
from fastseg_losses.training.html_findings import alarms, groups, recoveries, silence
from fastseg_losses.training.html_tables import census_card, class_table, settings
from fastseg_losses.training.outputs import rank

# A picture above this many bytes is embedded as JPEG: noisy images would make a page of megabytes.
MAX_PNG = 400_000


@dataclass(frozen=True)
class State:
    """How a run stands.

    Attributes:
        kind: "running", "finished", "stopped" or "failed", which choose the colour.
        title: the same in a few words.
        detail: one sentence more, or nothing.
    """

    kind: str
    title: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What is known about a run at one moment.

    Attributes:
        config: the resolved settings.
        folder: the run's folder, from which samples.png is read.
        state: how it stands.
        rows: the epochs' numbers, by column of metrics.csv.
        findings: all that the monitor said, recoveries included.
        step: optimizer steps done.
        epoch_batches: batches of a whole epoch.
        seconds: since the training started, or went on.
        timed: epochs completed in that time.
        written: when the record was made.
        censuses: by what was counted.
        memory: the most memory held, in bytes, and what was counted; None if not known.
        score: the column that decides which epoch is the best, and its name.
        facts: command, versions, device and so on, by name.
    """

    config: TrainConfig
    folder: Path
    state: State
    rows: Sequence[dict[str, float]]
    findings: Sequence[Finding]
    step: int
    epoch_batches: int
    seconds: float
    timed: int
    written: datetime.datetime
    censuses: Mapping[str, RowCensus]
    memory: tuple[int, str] | None
    score: tuple[str, str]
    facts: Mapping[str, str]


def page(run: RunRecord) -> str:
    """The whole page: one file that asks nothing of any server.

    Whatever is put into the template is escaped by it; only the pictures and the style sheet, which
    this package makes, are not.
    """
    config = run.config
    alarmed = alarms(run.findings)
    places = [finding.step / max(run.epoch_batches, 1) for finding in alarmed]
    return _template().render(
        css=_here("report.css").read_text(encoding="utf-8"),
        run=run,
        name=run.folder.resolve().name,
        written=run.written.isoformat(sep=" ", timespec="seconds"),
        tiles=_tiles(run),
        groups=groups(alarmed, config),
        recoveries=recoveries(run.findings),
        silence=silence(run.step * config.accumulate, config),
        charts=draw_charts(run.rows, config.labels, alarms=places),
        marked=bool(places),
        picture=_picture(run.folder / "samples.png"),
        classes=class_table(run.rows, config, run.censuses, best=_best(run)),
        censuses=[census_card(what, census) for what, census in run.censuses.items()],
        settings=settings(config),
    )


def _best(run: RunRecord) -> dict[str, float] | None:
    """The epoch that best.pt holds."""
    return max(run.rows, key=lambda row: rank(row, run.score[0])) if run.rows else None


def _tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """The numbers at the top: what, its value, one remark."""
    column, name = run.score
    best = _best(run)
    tiles = []
    if best is None:
        tiles.append((f"Best validation {name}", "none", "no epoch is complete"))
    elif math.isnan(best[column]):
        which = "train_loss" if math.isnan(best["val_loss"]) else "val_loss"
        what = "training" if which == "train_loss" else "validation"
        tiles.append((f"Lowest {what} loss", _number(best[which]), f"epoch {best['epoch']:.0f}"))
    else:
        last = run.rows[-1][column]
        remark = f"epoch {best['epoch']:.0f}; last epoch {_number(last)}"
        tiles.append((f"Best validation {name}", _number(best[column]), remark))
    done, epochs = 0, run.config.epochs
    if run.rows:
        row = run.rows[-1]
        done = int(row["epoch"])
        remark = f"validation {_number(row['val_loss'])}"
        tiles.append(("Training loss", _number(row["train_loss"]), remark))
    tiles.append(("Epochs", f"{done} of {epochs}", f"{run.step:,} steps"))
    tiles.append(("Time", duration(run.seconds), _time_left(run, done)))
    if run.rows:
        row = run.rows[-1]
        remark = f"training images per second; {row['data_share']:.0%} of the time waiting for data"
        tiles.append(("Speed", f"{row['images_per_s']:.1f}", remark))
    if run.memory is not None:
        size, what = run.memory
        tiles.append(("Peak memory", f"{size / 2**30:.2f} GiB", what))
    return tiles


def _time_left(run: RunRecord, done: int) -> str:
    if not run.timed:
        return "no epoch is complete"
    each = run.seconds / run.timed
    if run.state.kind != "running" or run.config.max_steps is not None:
        return f"{duration(each)} an epoch"
    return f"about {duration(each * (run.config.epochs - done))} left"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "none"


def _flags(text: str) -> Markup:
    """A text whose options stay in one piece: browsers break lines after each of the dashes."""
    whole = r'<span class="flag">\1</span>'
    return Markup(re.sub(r"(--[a-z][a-z-]*)", whole, str(escape(text))))


def _picture(path: Path) -> str | None:
    """A PNG as a data URI; None if there is no such file."""
    if not path.is_file():
        return None
    content, kind = path.read_bytes(), "png"
    if len(content) > MAX_PNG:
        file = io.BytesIO()
        with Image.open(io.BytesIO(content)) as picture:
            picture.convert("RGB").save(file, format="JPEG", quality=88)
        content, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _here(name: str) -> Path:
    return Path(__file__).with_name(name)


@cache
def _template() -> jinja2.Template:
    # Escaping is the default for every value, not a call that one of them may lack.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "flags": _flags}
    return environment.from_string(_here("report.html.jinja").read_text(encoding="utf-8"))
