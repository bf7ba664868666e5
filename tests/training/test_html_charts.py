import math
import re

import pytest
from training.pages import Page, row
from training.test_html_page import multiclass_row

from fastseg_losses.training.html_charts import MAX_POINTS, draw_charts
from fastseg_losses.training.labels import Labels


def test_a_chart_is_one_svg_without_script_or_link() -> None:
    charts = draw_charts([row(1), row(2, train_loss=0.25)], None, alarms=[1.5])
    assert [chart.title for chart in charts] == [
        "Loss",
        "Validation score",
        "Prediction and target",
        "Learning rate",
    ]
    assert [(curve.label, curve.last) for curve in charts[0].curves] == [
        ("training", 0.25),
        ("validation", 0.5),
    ]
    read = Page("".join(chart.svg for chart in charts))
    assert read.mistakes == []
    assert read.requests() == []
    assert not {"style", "metadata", "script"} & set(read.tags)
    assert sum(len(chart.svg) for chart in charts) < 60_000


def test_every_reference_inside_a_chart_leads_somewhere() -> None:
    svg = "".join(chart.svg for chart in draw_charts([row(1), row(2)], None))
    ids = set(re.findall(r' id="([^"]*)"', svg))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
    assert used and used == ids


def test_colours_come_from_the_page() -> None:
    charts = draw_charts([row(1), row(2)], None, alarms=[1.5])
    for chart in charts:
        assert not re.search(r"#0000|#000000|black", chart.svg)
        assert "var(--bad)" in chart.svg and "var(--line)" in chart.svg
        assert all(f"var({colour})" in chart.svg for colour in ("--muted", "--series-1"))
        assert all(curve.colour in chart.svg for curve in chart.curves)
    assert "var(--bad)" not in draw_charts([row(1)], None)[0].svg


def test_numbers_that_do_not_exist_leave_a_gap_or_their_chart_out() -> None:
    unknown = {"val_loss": math.nan, "val_dice": math.nan, "val_iou": math.inf}
    charts = draw_charts([row(1, **unknown), row(2, **unknown)], None)
    assert "Validation score" not in [chart.title for chart in charts]
    assert [curve.label for curve in charts[0].curves] == ["training"]
    (loss, *_) = draw_charts([row(1), row(2, train_loss=math.nan)], None)
    assert loss.curves[0].last == 0.5
    assert draw_charts([], None) == []


def test_an_alarm_after_the_only_epoch_is_in_the_picture() -> None:
    (loss, *_) = draw_charts([row(1)], None, alarms=[1.8])
    (place,) = re.findall(r'<path d="M ([0-9.]+) [^"]*"[^>]*--bad', loss.svg)
    (clip,) = re.findall(r'<rect x="([0-9.]+)"[^>]* width="([0-9.]+)"', loss.svg)
    left, width = map(float, clip)
    assert left < float(place) < left + width


@pytest.mark.filterwarnings("error")
def test_a_learning_rate_of_zero_alone_has_a_chart() -> None:
    assert "Learning rate" in [chart.title for chart in draw_charts([row(1, lr=0.0)], None)]


def test_clipped_gradients_have_a_chart() -> None:
    charts = draw_charts([row(1, grad_norm=2.0)], None)
    assert charts[-1].title == "Norm of the gradients"


def test_a_loss_that_falls_far_gets_a_logarithmic_axis() -> None:
    def ticks(last: float) -> str:
        (loss, *_) = draw_charts([row(1, val_loss=1.0), row(2, val_loss=last)], None)
        return Page(loss.svg).text

    assert "0.01" not in ticks(0.5)
    assert "0.01 0.1 1" in ticks(1e-3)


def test_classes_have_the_colours_of_the_samples_and_at_most_twenty_curves() -> None:
    charts = {
        chart.title: chart
        for chart in draw_charts([multiclass_row(1, 30), multiclass_row(2, 30)], Labels(30, 255))
    }
    classes = charts["Validation IoU of each class"]
    assert [curve.label for curve in classes.curves] == [f"class {k}" for k in range(20)]
    assert len({curve.colour for curve in classes.curves}) == 20
    assert classes.note == "The first 20 classes; metrics.csv has all."
    assert "Prediction and target" not in charts


def test_long_runs_are_drawn_with_fewer_points_up_to_the_last_epoch() -> None:
    rows = [row(epoch, lr=(epoch % 7 + 1) * 1e-3) for epoch in range(1, 10 * MAX_POINTS)]
    rows[-1]["lr"] = 0.5
    chart = draw_charts(rows, None)[-1]
    (line,) = re.findall(r'<path d="([^"]*)"[^>]*--series-1', chart.svg)
    assert MAX_POINTS / 2 < line.count("L") < MAX_POINTS
    assert chart.curves[0].last == 0.5
    assert len(chart.svg) < 60_000
