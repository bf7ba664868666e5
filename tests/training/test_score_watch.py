import math

import pytest

from fastseg_losses.training.score_watch import ScoreWatch, Turn


def turns(scores: list[float], *, per_epoch: int = 50, batches: int = 100) -> list[Turn | None]:
    watch = ScoreWatch(batches)
    return [watch.add(score, per_epoch * (i + 1)) for i, score in enumerate(scores)]


def test_a_fall_is_noticed_in_its_third_epoch_and_said_once() -> None:
    assert turns([0.8, 0.3, 0.2, 0.1, 0.0, 0.3]) == [None, None, None, Turn.FELL, None, None]


def test_the_streak_starts_anew_after_a_good_epoch() -> None:
    assert turns([0.8, 0.3, 0.2, 0.41, 0.3, 0.2]) == [None] * 6


def test_short_epochs_have_to_span_as_many_batches() -> None:
    told = turns([0.8, *[0.1] * 9], per_epoch=12)
    assert told.index(Turn.FELL) == 9  # 108 batches after the good one
    assert told.count(Turn.FELL) == 1


def test_a_recovery_is_said_and_the_next_fall_too() -> None:
    low = [0.1] * 3
    told = [turn for turn in turns([0.8, *low, 0.5, 0.7, *low, 0.8]) if turn]
    assert told == [Turn.FELL, Turn.RECOVERED, Turn.FELL, Turn.RECOVERED]


@pytest.mark.parametrize(
    "scores",
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.3, 0.5, 0.6],
        [0.05, 0.01, 0.0, 0.01, 0.0, 0.01, 0.02],
        [0.5, 0.2, 0.2, 0.55, 0.7, 0.72, 0.6, 0.71],
        [0.7, *[math.nan] * 8],
    ],
    ids=["slow start", "noise before anything is learned", "unsteady start", "nothing to score"],
)
def test_healthy_runs_are_left_alone(scores: list[float]) -> None:
    assert set(turns(scores)) == {None}


def test_the_best_and_the_streak_are_kept_for_the_message() -> None:
    watch = ScoreWatch(1)
    for step, score in enumerate((0.2, 0.9, math.nan, 0.1, 0.2)):
        watch.add(score, step)
    assert (watch.best, watch.best_epoch, watch.streak) == (0.9, 2, [0.1, 0.2])
