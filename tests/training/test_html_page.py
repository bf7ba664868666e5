import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training.pages import Page, census, record, row

from fastseg_losses.training import html_page, report
from fastseg_losses.training.config import resolve
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.html_page import State, page
from fastseg_losses.training.labels import Labels

HOSTILE = (
    "</style></title><script>alert(1)</script><img src=x onerror=\"alert('2')\">{{ 7 * 7 }}&amp;"
)


@pytest.fixture
def charts_in_pages() -> None:
    """Left in."""


def write_samples(folder: Path, *, noise: bool = False) -> None:
    pixels = np.zeros((500, 500, 3), np.uint8)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "samples.png")


def multiclass_row(epoch: int, count: int, **values: float) -> dict[str, float]:
    scores = {name: 0.5 for name in report.columns(Labels(count, 255))}
    return scores | {"epoch": epoch} | values


def test_a_page_is_well_formed_and_requests_nothing(tmp_path: Path) -> None:
    write_samples(tmp_path)
    said = [Finding(Cause.NOT_PREDICTED, 15, "nothing is predicted. Evidence: loss 0.1.")]
    for changes in (
        {},
        {"findings": said, "state": State("failed", "Stopped by a collapse", "why")},
        {"rows": [], "memory": None},
    ):
        html = page(record(tmp_path, **changes))
        read = Page(html)
        assert read.mistakes == []
        assert read.requests() == []
        assert "script" not in read.tags and "link" not in read.tags
        assert len(html) < 300_000
    assert read.tags.count("img") == 1


def test_what_comes_from_outside_is_text_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "<b onclick='x'>\"run&"
    folder.mkdir()
    config = resolve({"data": HOSTILE, "val": HOSTILE, "model": HOSTILE, "output_dir": HOSTILE})
    run = record(
        folder,
        config=config,
        state=State("failed", HOSTILE, HOSTILE),
        findings=[
            Finding(cause, step, f"{HOSTILE} --{HOSTILE} Evidence: {HOSTILE}")
            for step, cause in enumerate([*Cause, Cause.NOT_PREDICTED])
        ],
        censuses={HOSTILE: census(unreadable=1, problems=(HOSTILE,))},
        memory=(1, HOSTILE),
        facts={"Command": HOSTILE, "Device": HOSTILE, HOSTILE: HOSTILE},
    )
    read, plain = Page(page(run)), Page(page(record(folder)))
    assert read.mistakes == []
    assert read.requests() == []
    assert not {"script", "img"} & set(read.tags)
    assert read.css == plain.css
    assert [entry for entry in read.attributes if entry[1].startswith("on")] == []
    seen = " ".join(HOSTILE.split())
    assert read.text.count(seen) > 20
    assert folder.name in read.text and "49" not in read.text


def test_findings_come_before_everything_else_and_say_what_to_do(tmp_path: Path) -> None:
    findings = [
        Finding(Cause.UNDRAWN_MASKS, 400, "a question. Evidence: precision 0.4."),
        Finding(Cause.NOT_PREDICTED, 100, "nothing is predicted. Evidence: loss 0.1."),
        Finding(Cause.RECOVERED, 200, "predictions recovered. Evidence: loss 0.2."),
        Finding(Cause.NOT_PREDICTED, 300, "nothing again. Evidence: loss 0.3."),
    ]
    text = Page(page(record(tmp_path, findings=findings, step=400))).text
    places = [
        text.index(part)
        for part in (
            "What the monitor found",
            Cause.NOT_PREDICTED.value,
            "nothing again.",
            "Evidence at step 300 loss 0.3.",
            "python debug_masks.py set/index.parquet",
            "docs/TRAINING_FIX.md, section",
            "nothing is predicted.",
            Cause.UNDRAWN_MASKS.value,
            "Step 200 predictions recovered.",
            "In numbers",
        )
    ]
    assert places == sorted(places)
    assert "nothing to report" not in text
    assert "where the monitor spoke" in text


def test_silence_is_said_with_how_much_was_judged(tmp_path: Path) -> None:
    for step, words in (
        (20, "has not judged anything yet: its first check comes after 50 batches"),
        (1200, "nothing to report after 1,200 batches, with a check every 50"),
    ):
        assert words in Page(page(record(tmp_path, step=step))).text


def test_the_numbers_at_the_top(tmp_path: Path) -> None:
    text = Page(page(record(tmp_path))).text
    for part in (
        "Best validation Dice 0.7500 epoch 2; last epoch 0.7500",
        "Training loss 0.5000 validation 0.5000",
        "Epochs 2 of 50 20 steps",
        "Time 30 s about 12 min 0 s left",
        "Speed 0.5 training images per second; 50% of the time waiting for data",
        "Peak memory 3.00 GiB held by the process",
        "Written 2026-01-02 03:04:05",
    ):
        assert part in text
    best_first = [row(1, val_dice=0.8), row(2, val_dice=0.6)]
    done = State("finished", "Finished", "early stop")
    text = Page(page(record(tmp_path, rows=best_first, state=done))).text
    assert "Best validation Dice 0.8000 epoch 1; last epoch 0.6000" in text
    assert "15 s an epoch" in text and "left" not in text
    resumed = record(tmp_path, timed=1)
    assert "Time 30 s about 24 min 0 s left" in Page(page(resumed)).text
    unknown = [row(1, val_dice=math.nan, val_loss=0.2), row(2, val_dice=math.nan, val_loss=0.3)]
    text = Page(page(record(tmp_path, rows=unknown))).text
    assert "Lowest validation loss 0.2000 epoch 1" in text
    alone = [row(1, val_dice=math.nan, val_loss=math.nan)]
    assert "Lowest training loss 0.5000" in Page(page(record(tmp_path, rows=alone))).text
    text = Page(page(record(tmp_path, rows=[]))).text
    assert "Best validation Dice none no epoch is complete Epochs 0 of 50" in text


def test_classes_have_a_table_and_a_chart(tmp_path: Path) -> None:
    config = resolve({"mode": "multiclass"})
    rows = [
        multiclass_row(1, 5, val_miou=0.9, val_iou_1=0.875, val_iou_4=math.nan),
        multiclass_row(2, 5, val_miou=0.5, val_iou_1=0.25, val_iou_4=math.nan),
    ]
    run = record(tmp_path, config=config, rows=rows, score=("val_miou", "mean IoU"), censuses={})
    read = Page(page(run))
    assert read.mistakes == []
    assert "IoU, best epoch (1)" in read.text
    assert "1 0.2500 0.5000 0.8750" in read.text
    assert "4 not in the validation masks" in read.text
    assert "Validation IoU of each class" in read.text
    assert "Prediction and target" not in read.text


def test_noisy_samples_do_not_make_the_page_heavy(tmp_path: Path) -> None:
    write_samples(tmp_path, noise=True)
    assert (tmp_path / "samples.png").stat().st_size > html_page.MAX_PNG
    html = page(record(tmp_path))
    assert 'src="data:image/jpeg;base64,' in html
    assert len(html) < 1_000_000
    write_samples(tmp_path)
    assert 'src="data:image/png;base64,' in page(record(tmp_path))


def test_a_long_run_of_many_classes_stays_small(tmp_path: Path) -> None:
    config = resolve({"data": "d", "mode": "multiclass", "num_classes": 1000})
    wide = [multiclass_row(epoch, 1000) for epoch in (1, 2)]
    run = record(tmp_path, config=config, rows=wide, score=("val_miou", "mean IoU"), censuses={})
    html = page(run)
    assert len(html) < 500_000
    assert "The 200 classes with the lowest IoU, of 1000" in Page(html).text
    long = [row(epoch, train_loss=1 / epoch) for epoch in range(1, 5001)]
    assert len(page(record(tmp_path, rows=long))) < 500_000
