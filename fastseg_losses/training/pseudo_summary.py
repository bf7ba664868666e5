"""What was filled with pseudo-masks, and what about it should make one look twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fastseg_losses.training.predictor import Prediction
from fastseg_losses.training.training_options import TrainingOptions

# Problems kept as text; further ones are only counted.
MAX_PROBLEMS = 5

# Share of sure pixels, of foreground or of the rest, below which a threshold leaves too little.
# Seen on nuclei: where the smaller share was 0 to 40 %, the pseudo-masks cost 0.02 to 0.08 of
# Dice in each of five trainings; where it was 89 % and more, 0.02 at most.
LEAST_SURE = 0.5


@dataclass
class Summary:
    """Counts of one pass over an index.

    Attributes:
        out: The file written.
        source: What `mask_source` holds.
        multiclass: Whether masks hold class ids.
        unannotated: Rows with has_segmentation false.
        validation: Those of them marked 'val', which get no mask.
        without_boxes: Rows without a mask because their box cell is null.
        unreadable: Rows without a mask because their image or box cannot be read.
        problems: What is wrong with the first few of these.
        filled: Rows with a pseudo-mask.
        single: Rows whose mask shows one value alone.
        pixels: Pixels of all masks.
        nonzero: Those with another value than 0.
        sure: Pixels with at least the confidence that `--pseudo-confidence` has by default.
        sure_nonzero: Those of them with another value than 0.
        confidence: Sum of the rows' mean confidences.
    """

    out: str
    source: str
    multiclass: bool
    unannotated: int
    validation: int
    without_boxes: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    filled: int = 0
    single: int = 0
    pixels: int = 0
    nonzero: int = 0
    sure: int = 0
    sure_nonzero: int = 0
    confidence: float = 0.0
    _shown: set[int] = field(default_factory=set)

    def add(self, prediction: Prediction) -> None:
        """Count a row's pseudo-mask."""
        mask, confidence = prediction
        shown = np.unique(mask).tolist()
        self._shown.update(shown)
        self.filled += 1
        self.single += len(shown) == 1
        self.pixels += mask.size
        sure = confidence >= TrainingOptions.pseudo_confidence
        self.nonzero += int(np.count_nonzero(mask))
        self.sure += int(sure.sum())
        self.sure_nonzero += int(np.count_nonzero(mask[sure]))
        self.confidence += float(confidence.mean(dtype=np.float64))

    def add_problem(self, text: str) -> None:
        """Count a row that cannot be read."""
        self.unreadable += 1
        if self.unreadable <= MAX_PROBLEMS:
            self.problems.append(text)

    def warnings(self) -> list[str]:
        """What should be looked at before anybody trains on the masks."""
        texts = list(self.problems)
        if self.unreadable > len(texts):
            texts.append(f"... {self.unreadable} rows cannot be read")
        if self.filled and len(self._shown) == 1:
            texts.append(
                f"all {self.filled} pseudo-masks show the value {self._shown.copy().pop()} alone, "
                "which is what a collapsed net predicts: do not train on them unseen"
            )
        return texts + self._unsure()

    def _unsure(self) -> list[str]:
        """Whether the usual threshold leaves little of the foreground, or of the rest."""
        zero, sure_zero = self.pixels - self.nonzero, self.sure - self.sure_nonzero
        if not self.nonzero or not zero:
            return []
        if min(self.sure_nonzero / self.nonzero, sure_zero / zero) >= LEAST_SURE:
            return []
        names = ("the other classes", "class 0") if self.multiclass else ("foreground", "the rest")
        return [
            f"a confidence of {TrainingOptions.pseudo_confidence} leaves "
            f"{_percent(self.sure_nonzero, self.nonzero)} of {names[0]} and "
            f"{_percent(sure_zero, zero)} of {names[1]}, a one-sided sample: take a lower "
            "--pseudo-confidence, or masks of a net that was trained longer"
        ]

    def lines(self) -> list[str]:
        """The counts as lines of text."""
        left = (
            f"marked 'val': {self.validation}, unreadable: {self.unreadable}, "
            f"without boxes: {self.without_boxes}"
        )
        lines = [f"Rows filled: {self.filled} of {self.unannotated} without annotation ({left})"]
        if self.filled:
            one = "one class alone" if self.multiclass else "nothing, or nothing but foreground"
            other = "another class than 0" if self.multiclass else "foreground"
            these = _percent(self.sure_nonzero, self.nonzero)
            rest = _percent(self.sure - self.sure_nonzero, self.pixels - self.nonzero)
            lines += [
                f"Source: {self.source}",
                f"Pixels of {other}: {100 * self.nonzero / self.pixels:.2f}%; masks that show "
                f"{one}: {self.single}",
                # Apart, since a threshold that leaves only one of the two teaches nothing good.
                f"Mean confidence: {self.confidence / self.filled:.3f}; it is at least "
                f"{TrainingOptions.pseudo_confidence} in {these} of them and {rest} of the rest",
            ]
        return [*lines, f"Written: {self.out}"]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "none"
