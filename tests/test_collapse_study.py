"""The collapse study: what it draws, its rule, its table, and a small run from end to end."""

import re
from pathlib import Path
from typing import Any

import collapse_data
import collapse_report
import collapse_runs
import collapse_study
import collapse_words
import numpy as np
import pytest
from training.index_files import png, write_index

from fastseg_losses.training.exit_codes import EXIT_REFUSED
from fastseg_losses.training.findings import Cause

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "TRAINING_FIX.md"
SIZE = 48
FAILING = ("bce,100-empty", "bce,100-ignored")
MARKERS = f"above\n{collapse_report.BEGIN}\nold\n{collapse_report.END}\nbelow\n"


def write_blobs(path: Path, rows: int = 16) -> Path:
    """Images with one large and two small bright squares; every mask is right."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for _ in range(rows):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for y, x, side in ((2, 2, 14), (25, 6, 3), (38, 30, 3)):
            mask[y : y + side, x + int(rng.integers(9)) :][:, :side] = 1
        images.append(png((rng.integers(0, 40, (SIZE, SIZE)) + 180 * mask).astype(np.uint8)))
        masks.append(png(mask))
    split = ["val" if row % 4 == 3 else "train" for row in range(rows)]
    return write_index(path, images, masks, [True] * rows, split=split)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    target = folder / "pixels.npz"
    losses = {"bce": {"loss": "bce"}}
    collapse_data.pack(write_blobs(folder / "d.parquet"), target, size=SIZE, losses=losses)
    return target


def row(dice: float | None, *causes: str, **fields: Any) -> dict[str, Any]:
    cell = {"data": "nuclei", "share": 0.6, "reading": "empty", "loss": "bce", "seed": 0}
    names = ("loss", "pred_mean", "target_mean", "pred_positive", "pred_max", "val_recall")
    last = {"step": 50, "val_dice": dice} | dict.fromkeys(names, 0.1)
    findings = [{"step": 50, "cause": c, "is_collapse": c != "a remark", "text": c} for c in causes]
    run = {"exit_code": 0, "last": last, "curve": [last], "findings": findings, "seconds": 1.0}
    return cell | run | fields


def content(*rows: dict[str, Any]) -> dict[str, Any]:
    one = {"train_rows": 4, "val_rows": 2, "train_foreground": 0.1, "train_empty": 0}
    settings = {"size": 8, "widths": [8], "lr": 1e-3, "steps": 50, "batch_size": 2}
    return {
        "machine": {"device": "cpu", "torch": "2"},
        "date": "2000-01-01",
        "settings": settings,
        "sets": {"nuclei": one, "sparse": one},
        "rows": list(rows),
    }


@pytest.mark.parametrize("rows", [7, 438])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_undrawn_rows_are_exact_in_number_and_nested(rows: int, share: float) -> None:
    chosen = collapse_data.undrawn_rows(rows, share, 3)
    assert len(set(chosen.tolist())) == len(chosen) == round(share * rows)
    assert set(chosen) <= set(collapse_data.undrawn_rows(rows, 1.0, 3)) == set(range(rows))
    assert set(chosen) >= set(collapse_data.undrawn_rows(rows, share / 2, 3))


def test_every_row_is_as_likely_to_be_undrawn() -> None:
    # The choice knows the number of rows and the seed, so what a row shows cannot matter; nor may
    # its place, by which a set may be sorted. 400 fair draws of 0.3: sd 0.023.
    counts = np.zeros(20)
    for seed in range(400):
        counts[collapse_data.undrawn_rows(20, 0.3, seed)] += 1
    assert np.abs(counts / 400 - 0.3).max() < 0.1
    first, second = (collapse_data.undrawn_rows(438, 0.3, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_objects_hang_together_by_corners() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    names = collapse_data.components(mask)
    assert sorted(np.bincount(names.ravel())[1:]) == [2, 2, 3]
    assert names[0, 0] == names[1, 1] != names[0, 3]
    assert np.array_equal(names > 0, mask)
    assert np.unique(collapse_data.components(np.ones((3, 3), bool))).tolist() == [1]
    assert collapse_data.small_object(mask, 3.2).sum() == 3
    assert not collapse_data.small_object(mask, 20).any()


def test_the_sparse_set_shows_what_its_masks_say(packed: Path) -> None:
    sets = collapse_data.load(packed).sets
    full, sparse = sets["nuclei"], sets["sparse"]
    assert 0 < sparse.masks.mean() <= 1.5 * collapse_data.SPARSE_SHARE
    assert set(sparse.masks.sum((1, 2, 3)).tolist()) == {0, 9}
    assert sparse.is_val.sum() == full.is_val.sum()
    kept = sparse.masks[:, 0] > 0
    # Background is darker than 40, objects are brighter than 180.
    assert sparse.images.min(1)[kept].min() >= 180
    assert sparse.images.max(1)[~kept].max() < 40


@pytest.mark.parametrize(
    ("only", "count"), [([], 40), (["sparse"], 5), (["60-empty,dice", "bce"], 9), (["x"], 0)]
)
def test_only_what_is_named_runs(only: list[str], count: int) -> None:
    cells = collapse_runs.all_cells(1)
    assert len([cell for cell in cells if collapse_study.is_chosen(cell, only)]) == count


def test_the_rule_does_not_ask_the_monitor() -> None:
    assert collapse_words.is_collapsed(row(0.049))
    assert collapse_words.is_collapsed(row(None)), "nothing predicted, nothing there"
    assert not collapse_words.is_collapsed(row(0.05, "an alarm"))


def test_the_sentences_count_alarms_and_name_what_differs() -> None:
    rows = [
        row(0.0, "an alarm"),
        row(0.01, "a remark", seed=1),
        row(0.8, "an alarm", loss="dice"),
        row(0.9, "a remark", loss="dice", seed=1),
        row(0.7, data="sparse", share=0.0, reading="drawn"),
        row(0.9, share=0.0, reading="drawn"),
    ]
    text = "\n".join(collapse_words.sentences(content(*rows)))
    assert "Of 6 runs 2 collapsed, 4 were sound, 0 in between." in text
    assert "an alarm in 1 of the 2 collapsed runs, the first at step 50 to 50" in text
    silent = "BCE, 60 % undrawn, read as empty, seed 1: Dice .010, under 0.05 since step 50."
    assert f"Without one: {silent}" in text
    assert "the 3 sound runs on the nuclei set, 1 had an alarm" in text
    assert "(a remark: 1). With an alarm: Dice, 60 % undrawn" in text
    assert "the 1 sound runs on the sparse set, 0 had an alarm." in text
    assert "Dice held out here. Not sound, with undrawn masks read as empty: at 60 % 0 of 2" in text


def test_what_is_sound_depends_on_what_drawn_masks_give() -> None:
    drawn = [row(d, share=0.0, reading="drawn", seed=k) for k, d in enumerate((0.2, 0.6, 0.8))]
    for dice, fate in ((0.29, "damaged"), (0.31, "sound"), (0.04, "collapsed")):
        assert collapse_words.fate(row(dice), [row(dice), *drawn]) == fate
    with pytest.raises(ValueError, match="runs on the nuclei set with every mask drawn"):
        collapse_words.fate(row(0.9), [row(0.9)])


def test_a_collapse_is_dated_by_the_check_that_it_began_with() -> None:
    dices = {50: 0.01, 100: 0.4, 150: 0.02, 200: None}
    curve = [{"step": step, "val_dice": dice} for step, dice in dices.items()]
    assert collapse_words.collapsed_since(row(None, curve=curve, last=curve[-1])) == 150


def test_the_table_has_a_line_for_each_condition_and_the_alarms_below() -> None:
    refused = {"share": 1.0, "reading": "ignored", "exit_code": 3, "curve": []}
    rows = [row(0.0, "an alarm", seed=1), row(0.5), row(0.25, loss="dice"), row(None, **refused)]
    assert collapse_report.short_table(rows) == [
        "| training masks | BCE | Dice |",
        "| --- | --- | --- |",
        "| 60 % undrawn, read as empty | .500 / 0 | .250 |",
        "| *alarm at step* | - / 50 | - |",
        "| 100 % undrawn, ignored | refused, exit code 3 |  |",
    ]


def test_the_block_is_replaced_and_nothing_else() -> None:
    once = collapse_report.replaced(MARKERS, "| new |")
    assert once.startswith("above\n") and once.endswith("\nbelow\n")
    assert "| new |" in once and "old" not in once
    assert collapse_report.replaced(once, "| new |") == once


@pytest.mark.parametrize("text", ["", MARKERS * 2, collapse_report.END + collapse_report.BEGIN])
def test_missing_markers_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="once each, in this order"):
        collapse_report.replaced(text, "new")


def test_the_documentation_shows_the_committed_results() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = text.partition(collapse_report.BEGIN)[2].partition(collapse_report.END)[0]
    (name,) = re.findall(r"\(\.\./benchmarks/results/([\w-]+)\.json\)", shown)
    results = ROOT / "benchmarks" / "results" / f"{name}.json"
    made = collapse_report.read(results)
    assert shown.strip() == collapse_report.block(made, name)
    long = results.with_suffix(".md").read_text(encoding="utf-8")
    assert long == collapse_report.long_table(made)


def test_a_study_from_end_to_end(packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(collapse_study, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "TRAINING_FIX.md").write_text(MARKERS)
    output = tmp_path / "small.json"
    options = ["--steps", "20", "--check-every", "4", "--batch-size", "2", "--widths", "8,8"]
    only = ["--seeds", "1", "--only", "bce"]
    command = [str(packed), "--output", str(output), *options]
    # The second call finds what the first has left and trains the rest.
    first = ["--seeds", "1", "--only", "bce,100-empty", "--no-report"]
    assert collapse_study.main([*command, *first]) == 0
    (kept,) = collapse_report.read(output)["rows"]
    assert collapse_study.main([*command, *only]) == 0
    assert kept in collapse_report.read(output)["rows"]
    with pytest.raises(ValueError, match="results of the same settings"):
        collapse_study.main([*command, *only, "--lr", "1"])
    with pytest.raises(ValueError, match="a refusal of each loss"):
        collapse_study.main([*command, "--only", "dice"])
    rows = {collapse_words.condition_of(r): r for r in collapse_report.read(output)["rows"]}
    assert set(rows) == set(collapse_words.CONDITIONS)
    refused = rows.pop(("nuclei", 1.0, "ignored"))
    assert refused["exit_code"] == EXIT_REFUSED and refused["curve"] == []
    assert all([p["step"] for p in r["curve"]] == [4, 8, 12, 16, 20] for r in rows.values())
    undrawn, drawn = (rows["nuclei", s, r] for s, r in ((1.0, "empty"), (0.0, "drawn")))
    (alarm,) = undrawn["findings"]
    assert (alarm["step"], alarm["is_collapse"]) == (20, True)
    assert alarm["cause"] == Cause.NO_FOREGROUND.value
    assert undrawn["last"]["target_mean"] == 0 < drawn["last"]["target_mean"]
    # Rows that are read as empty thin the foreground out; rows that are ignored do not.
    empty, ignored = (rows["nuclei", 0.6, r]["last"]["target_mean"] for r in ("empty", "ignored"))
    assert empty < 0.7 * drawn["last"]["target_mean"]
    assert ignored == pytest.approx(drawn["last"]["target_mean"], rel=0.1)
    assert "| 60 % undrawn, ignored |" in (tmp_path / "docs" / "TRAINING_FIX.md").read_text()
    assert output.with_suffix(".md").exists()
    assert (tmp_path / "docs" / "images" / "collapse-study.png").stat().st_size > 10_000


def test_a_run_that_fails_is_not_swallowed(packed: Path, tmp_path: Path) -> None:
    command = [str(packed), "--output", str(tmp_path / "o.json"), "--no-report", "--seeds", "1"]
    with pytest.raises(RuntimeError, match="1 of 2 runs failed"):
        # What is refused is not trained; the other run cannot be.
        collapse_study.main([*command, "--batch-size", "0", "--only", *FAILING])
    (row,) = collapse_report.read(tmp_path / "o.json")["rows"]
    assert row["exit_code"] == EXIT_REFUSED
