import pytest
from training.pages import census

from fastseg_losses.training.census import ClassCensus
from fastseg_losses.training.config import TrainConfig, resolve
from fastseg_losses.training.html_tables import census_card, class_table, settings
from fastseg_losses.training.labels import Labels


def class_census(**counts: object) -> ClassCensus:
    usual: dict = {
        "rows": 10,
        "annotated": 7,
        "unannotated": 2,
        "unreadable": 1,
        "mask_values": (0, 1, 255),
        "problems": ("row 3: broken",),
        "labels": Labels(3, 255),
        "pixels": (300, 100, 0),
        "class_rows": (6, 4, 0),
        "alone_rows": (2, 0, 0),
        "several_rows": 4,
        "ignored": 12,
        "ignored_rows": 1,
    }
    return ClassCensus(**(usual | counts))


def test_a_census_is_a_bar_of_all_rows() -> None:
    card = census_card("training", census(unreadable=1, rows=11, annotated=9))
    assert [(part.label, part.count) for part in card.parts] == [
        ("with foreground", 6),
        ("annotated and empty", 2),
        ("not annotated", 2),
        ("unreadable", 1),
    ]
    assert sum(part.share for part in card.parts) == pytest.approx(1)
    assert card.tone == "asks" and card.verdict.startswith("1 of 11 rows cannot be read")
    lines = dict(card.lines)
    assert lines["Samples with segmentation"] == "9 / 11"
    assert lines["Foreground share of a mask"] == "mean 10.00%, median 8.00%"
    assert not {"Rows", "Verdict"} & set(lines)


def test_a_census_of_classes_is_a_bar_of_all_rows() -> None:
    card = census_card("training", class_census())
    counts = {part.label: part.count for part in card.parts}
    assert counts == {
        "several classes": 4,
        "a single class": 2,
        "all ignored": 1,
        "not annotated": 2,
        "unreadable": 1,
    }
    assert sum(part.share for part in card.parts) == pytest.approx(1)
    assert card.tone == "asks"


@pytest.mark.parametrize(("empty", "tone"), [(1, "good"), (7, "asks"), (8, "bad")])
def test_the_verdict_has_a_tone(empty: int, tone: str) -> None:
    drawn = tuple(range(8 - empty))
    assert census_card("training", census(empty=empty, foreground_rows=drawn)).tone == tone


def test_a_census_of_nothing_has_no_bar() -> None:
    none = {"rows": 0, "annotated": 0, "unannotated": 0, "foreground_rows": (), "empty": 0}
    card = census_card("training", census(**none))
    assert card.parts == () and card.tone == "bad"


def test_classes_stand_beside_their_share_of_the_pixels() -> None:
    config = resolve({"data": "d", "mode": "multiclass", "num_classes": 3})
    nan = float("nan")
    last = {f"val_{score}_{k}": v for score in ("iou", "dice") for k, v in enumerate((0.5, 0, nan))}
    best = {"epoch": 4.0} | {name: value + 0.25 for name, value in last.items()}
    counted = {"training": class_census(), "validation": class_census(pixels=(0, 0, 0))}
    table = class_table([best, last], config, counted, best=best)
    assert table is not None and table.counted == ("training", "validation")
    assert [line.shares for line in table.lines] == [("75%", None), ("25%", None), ("0%", None)]
    assert [line.iou for line in table.lines] == [0.5, 0, None]
    assert [line.best_iou for line in table.lines] == [0.75, 0.25, None]
    assert class_table([last], TrainConfig(), {}, best=best) is None
    assert class_table([], config, counted, best=None) is None


def test_settings_say_which_are_not_the_default() -> None:
    def changed(config: TrainConfig) -> dict[str, str]:
        entries = [entry for group in settings(config).values() for entry in group]
        assert all(entry.meaning for entry in entries)
        return {entry.flag: entry.value for entry in entries if entry.changed}

    assert changed(resolve({})) == {}
    assert changed(resolve({"data": "d"})) == {"--data": "d"}
    given = {"data": "d", "lr": 0.5, "profile": True, "loss": "bce", "max_steps": 7}
    assert changed(resolve(given)) == {
        "--data": "d",
        "--lr": "0.5",
        "--loss": "bce",
        "--max-steps": "7",
        "--profile": "yes",
    }
    many = {"data": "d", "mode": "multiclass", "num_classes": 3, "ignore_index": 7}
    assert list(changed(resolve(many))) == ["--data", "--mode", "--num-classes", "--ignore-index"]
