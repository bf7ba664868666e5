"""The Python of docs/trainer.md runs as it stands, and its tables are complete."""

import re
from pathlib import Path
from typing import Any

import pytest
from training.runs import run, squares

from fastseg_losses.training import outputs, report
from fastseg_losses.training.findings import Cause
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.labels import Labels

DOC = Path(__file__).parents[2] / "docs" / "trainer.md"
TEXT = DOC.read_text(encoding="utf-8")


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)
    monkeypatch.chdir(tmp_path)
    images, masks = squares(8)
    for name, pictures in (("images", images), ("masks", masks[:7])):
        (tmp_path / "my_set" / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            (tmp_path / "my_set" / name / f"{i}.png").write_bytes(picture)
    index, prediction, monitor = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)

    names: dict[str, Any] = {}
    exec(compile(index, str(DOC), "exec"), names)
    data = tmp_path / "my_set" / "index.parquet"
    assert IndexTable(data).has_segmentation.tolist() == [True] * 7 + [False]

    assert run(data, Path("runs/train-001"), max_steps=1) == 0
    (tmp_path / "photo.png").write_bytes(images[0])
    exec(compile(prediction, str(DOC), "exec"), names)
    assert names["mask"].shape == (32, 32)

    capsys.readouterr()
    exec(compile(monitor, str(DOC), "exec"), names)
    assert capsys.readouterr().out.startswith("step 50: collapse, cause (a), the data")


def test_every_column_and_message_is_explained() -> None:
    columns = set(report.columns(Labels(1 + 1, 255), clipped=True))
    assert [name for name in columns if not name.endswith("_1") and f"`{name}`" not in TEXT] == []
    special = {Cause.RARE_CLASS_MISSING}  # said beside the class that is never predicted
    assert [cause.value for cause in set(Cause) - special if cause.value not in TEXT] == []


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert targets and all((DOC.parent / target).exists() for target in targets)
