"""A whole run on data that would like to be code in the page."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from training.index_files import write_index
from training.pages import Page
from training.runs import ROWS, run, small_net, squares

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT, EXIT_OK

# Ends an element, an attribute of either quote, a script, a comment, a CDATA; starts a template's
# expression, an entity, a script in SVG and in a link.
HOSTILE = (
    "</b></title></style></script><script>alert(1)</script><svg onload=alert(2)>"
    '<img src=x onerror="alert(3)">\' onclick=\'alert(4)" onmouseover="alert(5)'
    "--><!-- ]]> {{ 7 * 7 }} {% raw %} &lt;script&gt; javascript:alert(6)"
)


@pytest.fixture
def charts_in_pages() -> None:
    """Left in."""


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def write_hostile(folder: Path) -> Path:
    """An index whose path and texts are hostile; pictures as files beside it."""
    folder.mkdir(parents=True)
    images, masks = squares()
    for row in range(ROWS):
        (folder / f"i{row}.png").write_bytes(images[row])
        (folder / f"m{row}.png").write_bytes(masks[row])
    return write_index(
        folder / "d.parquet",
        [f"i{row}.png" for row in range(ROWS)],
        [f"m{row}.png" for row in range(ROWS)],
        [row > 2 for row in range(ROWS)],
        image_id=[HOSTILE] * ROWS,
        mask_source=[HOSTILE] * ROWS,
        split=["val" if row % 6 == 5 else "train" for row in range(ROWS)],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_on_hostile_data_leaves_a_harmless_page(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "<img src=x onerror='alert(7)'>\"& {{ 7 * 7 }}<"
    data = write_hostile(tmp_path / name / "script>")  # together: </script>
    folder = tmp_path / f"run{name}" / "script>"
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", HOSTILE])

    def damage(report: Any) -> None:
        for row in range(ROWS):
            (data.parent / f"i{row}.png").write_bytes(b"<script>alert(8)</script>")

    settings: dict[str, Any] = {"epochs": 2, "cache_mb": 0}
    if fails:
        monkeypatch.setattr(launching.HtmlReport, "after_epoch", damage)
    assert run(data, folder, **settings) == (EXIT_BAD_INPUT if fails else EXIT_OK)
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.mistakes == [] and page.requests() == []
    assert not {"script", "img", "iframe", "object", "a"} & set(page.tags)
    assert [entry for entry in page.attributes if entry[1].startswith("on")] == []
    assert "49" not in page.css and "alert" not in page.css
    # Not in comments either, which no reader sees: each occurrence is text of the page.
    visible = page.text + " ".join(value for _, _, value in page.attributes)
    assert html.count("alert(") == visible.count("alert(")
    seen = " ".join(HOSTILE[:80].split())
    assert page.text.count(seen) >= (3 if fails else 2)  # command, source of masks, failed row
    assert "script>/d.parquet" in page.text
    # Nothing of it comes back from the settings as something else.
    assert json.loads((folder / "config.json").read_text())["data"] == str(data)
