"""Makes pages of runs for the tests, and reads them."""

import datetime
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fastseg_losses.training import report
from fastseg_losses.training.census import Census
from fastseg_losses.training.config import resolve
from fastseg_losses.training.html_page import RunRecord, State

VOID = {"br", "hr", "img", "input", "link", "meta"}


def row(epoch: int, **values: float) -> dict[str, float]:
    return {name: 0.5 for name in report.COLUMNS} | {"epoch": epoch} | values


def census(**counts: Any) -> Census:
    usual: dict[str, Any] = {
        "rows": 10,
        "annotated": 8,
        "unannotated": 2,
        "unreadable": 0,
        "mask_values": (0, 255),
        "problems": (),
        "foreground_rows": (0, 1, 2, 3, 4, 5),
        "empty": 2,
        "nonzero_share": 0.75,
        "foreground_mean": 0.1,
        "foreground_median": 0.08,
    }
    return Census(**(usual | counts))


def record(folder: Path, **changes: Any) -> RunRecord:
    """A run after two of fifty epochs, with whatever differs."""
    values: dict[str, Any] = {
        "config": resolve({"data": "set/index.parquet"}),
        "folder": folder,
        "state": State("running", "Running"),
        "rows": [row(1, val_dice=0.25), row(2, val_dice=0.75)],
        "findings": [],
        "step": 20,
        "epoch_batches": 10,
        "seconds": 30.0,
        "timed": 2,
        "written": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "censuses": {"training": census(), "validation": census(rows=3)},
        "memory": (3 * 2**30, "held by the process"),
        "score": ("val_dice", "Dice"),
        "facts": {"Command": "python train.py", "Device": "cpu"},
    }
    return RunRecord(**(values | changes))


class Page(HTMLParser):
    """A page, read tag by tag.

    Attributes:
        tags: every element's name.
        attributes: every attribute's element, name and value.
        text: what a reader sees, without the style sheet; its white space as single blanks.
        mistakes: what is not well-formed.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.mistakes: list[str] = []
        self.css = ""
        self._open: list[str] = []
        self._parts: list[str] = []
        self.feed(html)
        self.close()
        self.mistakes += [f"<{tag}> is never closed" for tag in self._open]
        ids = [value for _, name, value in self.attributes if name == "id"]
        self.mistakes += [f"id {value} twice" for value in set(ids) if ids.count(value) > 1]
        self.text = " ".join(" ".join(self._parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.mistakes.append(f"<{tag}> has an attribute twice")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.mistakes.append(f"</{tag}> on line {self.getpos()[0]} closes something else")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.css += data
        else:
            self._parts.append(data)

    def requests(self) -> list[str]:
        """Whatever a browser would fetch, or follow."""
        found = re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", self.css)
        places = [part for pair in found for part in pair if part]
        for tag, name, value in self.attributes:
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                places.append(value)
            places += re.findall(r"url\(([^)]*)\)", value)
            if (tag, name) == ("meta", "http-equiv") and value.lower() == "refresh":
                places.append("refresh")
        return [place for place in places if not place.startswith(("#", "data:image/"))]
