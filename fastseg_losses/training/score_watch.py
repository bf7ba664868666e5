"""Notice that a validation score fell far below its best and stays there."""

from __future__ import annotations

import enum
import math

# A best score below this is noise: half of it says nothing.
BEST_AT_LEAST = 0.1
# Fallen: under half of the best. Recovered: back at 80 % of it; in between, nothing is said.
FALLEN_SHARE = 0.5
RECOVERED_SHARE = 0.8
# Low epochs in a row; short epochs take more of them, see `ScoreWatch`.
FALLEN_EPOCHS = 3


class Turn(enum.Enum):
    """What an epoch's score changes."""

    FELL = "fell"
    RECOVERED = "recovered"


class ScoreWatch:
    """Compares the score of each epoch with the best so far.

    Args:
        batches: training batches that low epochs have to span, so that a few short epochs of an
            unsteady start are no alarm.

    Attributes:
        best: the best score so far; NaN before the first.
        best_epoch: its epoch, from 1.
        streak: the scores since the last one that was not low.
    """

    def __init__(self, batches: int) -> None:
        self.best = math.nan
        self.best_epoch = 0
        self.streak: list[float] = []
        self._batches = batches
        self._epoch = 0
        self._last_good = 0
        self._is_reported = False

    def add(self, score: float, step: int) -> Turn | None:
        """Take in an epoch's score.

        Args:
            score: Dice or mean IoU; NaN, where there is nothing to score, says nothing.
            step: training batches so far.

        Returns:
            What changed; most often nothing.
        """
        self._epoch += 1
        if math.isnan(score):
            return None
        if not score <= self.best:
            self.best, self.best_epoch = score, self._epoch
        if score >= FALLEN_SHARE * self.best or self.best < BEST_AT_LEAST:
            self.streak, self._last_good = [], step
        else:
            self.streak.append(score)
        if self._is_reported:
            if score < RECOVERED_SHARE * self.best:
                return None
            self._is_reported = False
            return Turn.RECOVERED
        if len(self.streak) < FALLEN_EPOCHS or step - self._last_good < self._batches:
            return None
        self._is_reported = True
        return Turn.FELL
