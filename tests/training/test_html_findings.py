import pytest

from fastseg_losses.training.config import resolve
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.html_findings import Said, alarms, groups, recoveries

CONFIG = resolve({"data": "d.parquet"})


def test_one_entry_a_cause_and_the_gravest_first() -> None:
    findings = [
        Finding(Cause.NOT_PREDICTED, 100, "first. Evidence: a 1."),
        Finding(Cause.VALIDATION_FELL, 500, "fell."),
        Finding(Cause.NOT_PREDICTED, 300, "second. Evidence: a 2."),
        Finding(Cause.ALL_FOREGROUND, 200, "everything."),
        Finding(Cause.UNDRAWN_MASKS, 400, "a question."),
    ]
    found = groups(findings, CONFIG)
    assert [(group.title, group.grave) for group in found] == [
        (Cause.NOT_PREDICTED.value, True),
        (Cause.ALL_FOREGROUND.value, True),
        (Cause.VALIDATION_FELL.value, False),
        (Cause.UNDRAWN_MASKS.value, False),
    ]
    assert found[0].last == Said(300, "second.", "a 2.")
    assert found[0].earlier == (Said(100, "first.", "a 1."),)
    assert found[2].last.evidence == ""


@pytest.mark.parametrize("cause", Cause)
def test_a_recovery_is_no_alarm(cause: Cause) -> None:
    finding = Finding(cause, 1, "text")
    recovered = cause is Cause.RECOVERED
    assert alarms([finding]) == ([] if recovered else [finding])
    assert recoveries([finding]) == ([Said(1, "text", "")] if recovered else [])
