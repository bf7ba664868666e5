"""What the numbers of the collapse study say: the rule, the rates, the sentences.

The sentences are made from the numbers, so that text and table cannot drift apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]

# A run is collapsed if its Dice on the validation set, all of it drawn, ends below this. The
# monitor has no part in it: it sees training batches, with the masks that the run was given, and
# never the truth. Dice and not the share found, so that scattered dots do not count as found.
COLLAPSED_DICE = 0.05
# Below this share of what is usual with every mask drawn, a run is no witness against an alarm: a
# net that finds 4 % of the foreground has been let down by its masks as well.
SOUND_SHARE = 0.5
FATES = ("collapsed", "damaged", "sound")
NAMES = {
    "bce": "BCE",
    "dice": "Dice",
    "focal": "focal",
    "dice+bce": "Dice + BCE",
    "combined": "combined",
}
# What is compared: set, share of the training rows without a mask, what those are taken for.
CONDITIONS = {
    ("nuclei", 0.0, "drawn"): "every mask drawn",
    ("nuclei", 0.3, "empty"): "30 % undrawn, read as empty",
    ("nuclei", 0.6, "empty"): "60 % undrawn, read as empty",
    ("nuclei", 1.0, "empty"): "100 % undrawn, read as empty",
    ("nuclei", 0.3, "ignored"): "30 % undrawn, ignored",
    ("nuclei", 0.6, "ignored"): "60 % undrawn, ignored",
    ("nuclei", 1.0, "ignored"): "100 % undrawn, ignored",
    ("sparse", 0.0, "drawn"): "sparse set, every mask drawn",
}


def is_collapsed(row: Row) -> bool:
    """Whether a trained run ended with (next to) nothing of the truth; see `COLLAPSED_DICE`."""
    dice = row["last"]["val_dice"]
    return dice is None or dice < COLLAPSED_DICE


def alarms(row: Row) -> list[Row]:
    """The findings that --on-collapse stop would have ended the run for, in order."""
    return [finding for finding in row["findings"] if finding["is_collapse"]]


def trained(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """The runs that were trained and whose fields are these."""
    return [r for r in rows if r["curve"] and all(r[k] == v for k, v in fields.items())]


def condition_of(row: Row) -> tuple[str, float, str]:
    """What a run is compared with."""
    return row["data"], row["share"], row["reading"]


def recovered(row: Row) -> bool:
    """Whether the monitor took an alarm back."""
    return any(f["text"].startswith("predictions recovered") for f in row["findings"])


def score(value: float | None) -> str:
    """A Dice in three digits."""
    return "-" if value is None else f"{value:.3f}".removeprefix("0") if value else "0"


def first_step(row: Row) -> str:
    """When the monitor first raised an alarm."""
    return str(alarms(row)[0]["step"]) if alarms(row) else "-"


def sentences(content: Row) -> list[str]:
    """What the numbers say, a sentence or two each."""
    rows = content["rows"]
    texts = [fates(rows), *(cure(rows, loss) for loss in NAMES if loss != "bce")]
    texts += [ignoring(rows), pred_mean_hides(rows), damage(rows)]
    texts += [heard(rows), *(unheard(rows, data) for data in content["sets"])]
    return [text for text in texts if text]


def fates(rows: Sequence[Row]) -> str:
    """The rule, and the gap that it lies in."""
    runs = trained(rows)
    fallen, damaged, sound = (by_fate(runs, rows, name) for name in FATES)
    text = (
        f"A run counts as collapsed if its validation Dice ends below {COLLAPSED_DICE:g}, as sound "
        f"if it ends at {100 * SOUND_SHARE:.0f} % or more of the median of the runs on the same "
        "set with every mask drawn; the monitor has no say in that. Of "
        f"{len(runs)} runs {len(fallen)} collapsed, {len(sound)} were sound, {len(damaged)} in "
        "between."
    )
    return text + listed("In between", damaged)


def cure(rows: Sequence[Row], loss: str) -> str:
    """Whether a loss keeps what BCE loses, for each share that is read as empty."""
    parts, lost = [], False
    for share in sorted({r["share"] for r in trained(rows, reading="empty", loss=loss)}):
        own, bce = (trained(rows, share=share, reading="empty", loss=k) for k in (loss, "bce"))
        failed = len(own) - len(by_fate(own, rows, "sound"))
        lost = lost or failed > 0
        beside = f" (BCE: {len(bce) - len(by_fate(bce, rows, 'sound'))})" if bce else ""
        parts.append(f"at {100 * share:.0f} % {failed} of {len(own)}{beside}")
    if not parts:
        return ""
    verdict = "is no cure for undrawn masks" if lost else "held out here"
    name = NAMES[loss][0].upper() + NAMES[loss][1:]
    return f"{name} {verdict}. Not sound, with undrawn masks read as empty: {', '.join(parts)}."


def ignoring(rows: Sequence[Row]) -> str:
    """What it costs to leave the undrawn rows out."""
    ignored = trained(rows, reading="ignored")
    full = trained(rows, data="nuclei", reading="drawn")
    if not (ignored and full):
        return ""
    return (
        f"With the undrawn rows ignored, {len(by_fate(ignored, rows, 'sound'))} of {len(ignored)} "
        f"runs were sound; their Dice is {span(ignored, 'val_dice')}, with every mask drawn it is "
        f"{span(full, 'val_dice')}."
    )


def pred_mean_hides(rows: Sequence[Row]) -> str:
    """How many collapsed runs look healthy by their mean probability."""
    fallen = by_fate(trained(rows), rows, "collapsed")
    fallen = [r for r in fallen if r["last"]["target_mean"]]
    high = [r for r in fallen if r["last"]["pred_mean"] >= r["last"]["target_mean"]]
    if not fallen:
        return ""
    return (
        f"`pred_mean` alone does not tell: in {len(high)} of the {len(fallen)} collapsed runs "
        "whose masks had foreground, it ended above the mean of these masks"
        + (f" ({', '.join(sorted({NAMES[r['loss']] for r in high}))})." if high else ".")
    )


def damage(rows: Sequence[Row]) -> str:
    """What the training loss of a run that survived shows."""
    lived = by_fate(trained(rows, share=0.6, reading="empty", loss="dice"), rows, "sound")
    others = trained(rows, share=0.6, reading="ignored", loss="dice")
    if not (lived and others):
        return ""
    return (
        "A run that survives shows the damage in training: the loss of Dice with 60 % read as "
        f"empty ends at {span(lived, 'loss')}, with the same rows ignored at "
        f"{span(others, 'loss')}; it predicts {span(lived, 'pred_positive')} of the pixels, where "
        f"its masks say {span(lived, 'target_mean')}."
    )


def heard(rows: Sequence[Row]) -> str:
    """The monitor's alarms among the collapsed runs; those without one are named."""
    fallen = by_fate(trained(rows), rows, "collapsed")
    if not fallen:
        return ""
    loud = [r for r in fallen if alarms(r)]
    causes = Counter(alarms(r)[0]["cause"] for r in loud)
    counts = ", ".join(f"{cause}: {n}" for cause, n in causes.most_common())
    steps = sorted(alarms(r)[0]["step"] for r in loud)
    first = f", the first at step {steps[0]} to {steps[-1]} ({counts})" if loud else ""
    return (
        f"The monitor raised an alarm in {len(loud)} of the {len(fallen)} collapsed runs{first}."
        + listed("Without one", [r for r in fallen if not alarms(r)])
    )


def unheard(rows: Sequence[Row], data: str) -> str:
    """The monitor's alarms among the sound runs of a set, each of them named."""
    lived = by_fate(trained(rows, data=data), rows, "sound")
    if not lived:
        return ""
    loud = [r for r in lived if alarms(r)]
    remarks = Counter(
        cause for r in lived if not alarms(r) for cause in {f["cause"] for f in r["findings"]}
    )
    counts = ", ".join(f"{cause}: {n}" for cause, n in remarks.most_common())
    return (
        f"Of the {len(lived)} sound runs on the {data} set, {len(loud)} had an alarm"
        + (f"; others had remarks, which never stop a run ({counts})" if remarks else "")
        + "."
        + listed("With an alarm", loud)
    )


def listed(what: str, rows: Sequence[Row]) -> str:
    """The runs in which monitor and rule differ, one by one."""
    if not rows:
        return ""
    texts = []
    for row in rows:
        text = f"{named(row)}, seed {row['seed']}: Dice {score(row['last']['val_dice'])}"
        if is_collapsed(row):
            text += f", under {COLLAPSED_DICE:g} since step {collapsed_since(row)}"
        if alarms(row):
            alarm = alarms(row)[0]
            then = next(p["val_dice"] for p in row["curve"] if p["step"] >= alarm["step"])
            text += f", alarm at step {alarm['step']} ({alarm['cause']}; Dice {score(then)} then)"
        if recovered(row):
            text += ", taken back later"
        texts.append(text)
    return f" {what}: {'; '.join(texts)}."


def collapsed_since(row: Row) -> int:
    """The first check of the collapse that a run ended with."""
    since = row["last"]["step"]
    for point in reversed(row["curve"]):
        if (point["val_dice"] or 0.0) >= COLLAPSED_DICE:
            break
        since = point["step"]
    return int(since)


def named(row: Row) -> str:
    """Loss and condition of a run."""
    return f"{NAMES[row['loss']]}, {CONDITIONS[condition_of(row)]}"


def by_fate(runs: Sequence[Row], rows: Sequence[Row], name: str) -> list[Row]:
    """The runs with this fate."""
    return [run for run in runs if fate(run, rows) == name]


def fate(run: Row, rows: Sequence[Row]) -> str:
    """Whether a run is collapsed, damaged or sound.

    Args:
        run: a trained run.
        rows: the study, for what is reached on the same set with every mask drawn.

    Raises:
        ValueError: the study has no such run, so that there is nothing to compare with.
    """
    if is_collapsed(run):
        return "collapsed"
    drawn = [r["last"]["val_dice"] or 0.0 for r in trained(rows, data=run["data"], reading="drawn")]
    if not drawn:
        raise ValueError(f"rows: expected runs on the {run['data']} set with every mask drawn")
    return "damaged" if run["last"]["val_dice"] < SOUND_SHARE * median(drawn) else "sound"


def span(rows: Sequence[Row], key: str) -> str:
    """The smallest and the largest of the runs' last values."""
    low, high = (f"{pick(r['last'][key] for r in rows):.3f}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"
