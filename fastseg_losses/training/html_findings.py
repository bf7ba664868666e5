"""What the monitor said, sorted for a reader: one entry a cause, the gravest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.remedies import GUIDE, Remedy, remedy


@dataclass(frozen=True)
class Said:
    """One message.

    Attributes:
        step: when it was said.
        text: what it says.
        evidence: the numbers behind it; empty if it has none apart.
    """

    step: int
    text: str
    evidence: str


@dataclass(frozen=True)
class Group:
    """All messages about one cause.

    Attributes:
        title: the cause, in words.
        grave: whether the run cannot be trusted; else it is a question or a remark.
        last: the newest message.
        earlier: those before it.
        remedy: what to do.
        more: where to read on.
    """

    title: str
    grave: bool
    last: Said
    earlier: tuple[Said, ...]
    remedy: Remedy
    more: str


def alarms(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that are no recovery."""
    return [finding for finding in findings if finding.cause is not Cause.RECOVERED]


def recoveries(findings: Sequence[Finding]) -> list[Said]:
    """The messages that something is well again."""
    return [_said(finding) for finding in findings if finding.cause is Cause.RECOVERED]


def groups(findings: Sequence[Finding], config: TrainConfig) -> list[Group]:
    """The findings by cause; what can stop a run comes first, then the newest.

    Args:
        findings: in the order in which they came, without recoveries.
        config: for the commands in the advice.
    """
    by_cause: dict[Cause, list[Finding]] = {}
    for finding in findings:
        by_cause.setdefault(finding.cause, []).append(finding)
    order = sorted(by_cause.values(), key=lambda same: (same[-1].is_collapse, same[-1].step))
    return [_group(same, config) for same in reversed(order)]


def silence(batches: int, config: TrainConfig) -> str:
    """What to say where there is no finding: how much the monitor has seen."""
    if batches < config.check_every:
        return (
            f"The monitor has not judged anything yet: its first check comes after "
            f"{config.check_every} batches."
        )
    return (
        f"The monitor has nothing to report after {batches:,} batches, with a check every "
        f"{config.check_every}."
    )


def _group(same: Sequence[Finding], config: TrainConfig) -> Group:
    cause = same[0].cause
    advice = remedy(cause, config)
    said = [_said(finding) for finding in same]
    more = f"{GUIDE}, section “{advice.section}”"
    grave = same[-1].is_collapse
    return Group(cause.value, grave, said[-1], tuple(said[:-1]), advice, more)


def _said(finding: Finding) -> Said:
    text, _, evidence = finding.message.partition(" Evidence: ")
    return Said(finding.step, text, evidence)
