"""What a census found, and what that means in words: for binary masks and for class ids."""

from __future__ import annotations

from dataclasses import dataclass

from fastseg_losses.training.checks import one_line
from fastseg_losses.training.decode import describe_values
from fastseg_losses.training.labels import Labels

# Above this share of annotated masks that are all zero (or show one and the same class alone), the
# verdict asks whether they were really annotated. It asks only: in a set of defect images most may
# well be empty.
EMPTY_SHARE_ASKED = 0.5

# Sources of pseudo-masks that are listed by name.
SOURCES_SHOWN = 3

# What cameras and scanners store in 16-bit files.
IMAGE_BITS = (8, 10, 12, 14, 16)


@dataclass(frozen=True, kw_only=True)
class RowCensus:
    """What the censuses of binary masks and of class ids have in common.

    Attributes:
        rows: All rows.
        annotated: Rows with has_segmentation true, unreadable ones included.
        unannotated: Rows with has_segmentation false; their masks were not read.
        unreadable: Rows that training could not read.
        mask_values: The values stored in the annotated masks.
        problems: What is wrong with each unreadable row.
        deep_images: Images that are 16-bit grey PNGs, of the annotated rows at least.
        deep_largest: The largest value in those; 0 without any.
        pseudo: Unannotated rows with a pseudo-mask; those were not read either.
        pseudo_sources: Where the pseudo-masks come from.
        pseudo_confidence: Mean of their rows' confidences, 0 to 1; None where nobody noted one.
    """

    rows: int
    annotated: int
    unannotated: int
    unreadable: int
    mask_values: tuple[int, ...]
    problems: tuple[str, ...]
    deep_images: int = 0
    deep_largest: int = 0
    pseudo: int = 0
    pseudo_sources: tuple[str, ...] = ()
    pseudo_confidence: float | None = None

    @property
    def image_bits(self) -> int | None:
        """The fewest of 8, 10, 12, 14, 16 bits that hold every 16-bit image; None without any."""
        if not self.deep_images:
            return None
        return next(bits for bits in IMAGE_BITS if self.deep_largest < 2**bits)

    @property
    def learnable(self) -> bool:
        """Whether a net can learn anything from the rows."""
        raise NotImplementedError

    @property
    def verdict(self) -> str:
        """What the counts mean, in words."""
        parts = []
        if self.unreadable:
            parts.append(
                f"{self.unreadable} of {self.rows} rows cannot be read and would stop training: "
                "repair or remove them."
            )
        if not self.rows:
            parts.append("Nothing to learn from: there are no rows.")
        elif not self.annotated:
            parts.append(
                f"Nothing to learn from: none of the {self.rows} rows is annotated "
                "(has_segmentation is false everywhere)."
            )
        else:
            parts.append(self._lesson())
        return " ".join(parts)

    def lines(self, *, problems: bool = True) -> list[str]:
        """The census as lines of text, the verdict last.

        Args:
            problems: Whether to list what is wrong with unreadable rows.
        """
        listed = [f"  {problem}" for problem in self.problems] if problems else []
        values = describe_values(list(self.mask_values)) if self.mask_values else "none"
        return [
            f"Rows: {self.rows}",
            f"Samples with segmentation: {self.annotated} / {self.rows}",
            *self._state_lines(),
            f"Not annotated (mask never read): {self.unannotated}",
            *self._pseudo_lines(),
            f"Unreadable: {self.unreadable}",
            *listed,
            *self._deep_image_lines(),
            *self._share_lines(f"Mask values found: {values}"),
            f"Verdict: {self.verdict}",
        ]

    def _pseudo_lines(self) -> list[str]:
        if not self.pseudo:
            return []
        sources = [one_line(source) for source in self.pseudo_sources[:SOURCES_SHOWN]]
        if len(self.pseudo_sources) > len(sources):
            sources.append(f"... ({len(self.pseudo_sources)} sources)")
        sure = self.pseudo_confidence
        return [
            f"Rows with a pseudo-mask (not annotated, read with --pseudo-weight only): "
            f"{self.pseudo} ({100 * self.pseudo / self.rows:.1f}% of all rows), from "
            f"{', '.join(sources)}, mean confidence {'unknown' if sure is None else f'{sure:.3f}'}"
        ]

    def _deep_image_lines(self) -> list[str]:
        if not self.deep_images:
            return []
        return [
            f"16-bit images: {self.deep_images}, largest value {self.deep_largest}, which takes "
            f"{self.image_bits} bits"
        ]

    def _lesson(self) -> str:
        """What the annotated rows, of which there are some, can teach."""
        raise NotImplementedError

    def _state_lines(self) -> list[str]:
        """The states of annotated rows."""
        raise NotImplementedError

    def _share_lines(self, values: str) -> list[str]:
        """What the masks hold, around the line about their values."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Census(RowCensus):
    """The census of binary masks.

    Attributes:
        foreground_rows: Annotated rows whose mask has a non-zero value, sorted.
        empty: Annotated rows whose mask is all zero.
        nonzero_share: Share of the readable masks that have a non-zero value; 0 if there is none.
        foreground_mean: Mean foreground share of the readable masks, empty ones included.
        foreground_median: Its median.
    """

    foreground_rows: tuple[int, ...]
    empty: int
    nonzero_share: float
    foreground_mean: float
    foreground_median: float

    @property
    def foreground(self) -> int:
        """How many annotated rows have a mask with a non-zero value."""
        return len(self.foreground_rows)

    @property
    def learnable(self) -> bool:
        """Whether at least one annotated row has foreground."""
        return self.foreground > 0

    def _lesson(self) -> str:
        if not self.learnable and self.empty:
            return (
                f"Nothing to learn from: all {self.empty} readable annotated masks are empty, so a "
                "net that predicts nothing is right about each of them. Were these masks ever "
                "drawn? If not, has_segmentation should be false."
            )
        if not self.learnable:
            return "Nothing to learn from: no annotated row can be read."
        if self.empty > EMPTY_SHARE_ASKED * (self.empty + self.foreground):
            return (
                f"{self.empty} of {self.empty + self.foreground} annotated masks are all zero. "
                "Looks like missing annotation: check. Are these images really free of foreground, "
                "or did nobody annotate them? If nobody did, has_segmentation should be false."
            )
        return f"Something to learn from: {self.foreground} annotated rows with foreground."

    def _state_lines(self) -> list[str]:
        return [
            f"Annotated with foreground: {self.foreground}",
            f"Annotated and empty: {self.empty}",
        ]

    def _share_lines(self, values: str) -> list[str]:
        return [
            f"Masks with non-zero values: {100 * self.nonzero_share:.1f}%",
            values,
            f"Foreground share of a mask: mean {100 * self.foreground_mean:.2f}%, "
            f"median {100 * self.foreground_median:.2f}%",
        ]


@dataclass(frozen=True, kw_only=True)
class ClassCensus(RowCensus):
    """The census of masks that hold class ids; counts are of readable masks.

    Attributes:
        labels: What the values mean.
        pixels: Pixels of each class.
        class_rows: Rows in which each class occurs.
        alone_rows: Rows in which each class is the only one.
        several_rows: Rows with two or more classes.
        ignored: Pixels that hold the ignored value.
        ignored_rows: Rows in which every pixel does.
    """

    labels: Labels
    pixels: tuple[int, ...]
    class_rows: tuple[int, ...]
    alone_rows: tuple[int, ...]
    several_rows: int
    ignored: int
    ignored_rows: int

    @property
    def occurring(self) -> tuple[int, ...]:
        """The classes that occur."""
        return tuple(k for k, count in enumerate(self.pixels) if count)

    @property
    def missing(self) -> tuple[int, ...]:
        """The classes that never occur, other than the ignored one."""
        ids = range(self.labels.num_classes)
        return tuple(k for k in ids if not self.pixels[k] and k != self.labels.ignore_index)

    @property
    def readable(self) -> int:
        """Annotated rows whose mask could be read."""
        return self.several_rows + sum(self.alone_rows) + self.ignored_rows

    @property
    def learnable(self) -> bool:
        """Whether there are at least two classes to tell apart."""
        return len(self.occurring) > 1

    def _lesson(self) -> str:
        if not self.readable:
            return "Nothing to learn from: no annotated row can be read."
        if not self.occurring:
            return (
                f"Nothing to learn from: every pixel of the {self.readable} readable annotated "
                f"masks is ignored ({self.labels.ignore_index})."
            )
        if not self.learnable:
            return (
                f"Nothing to learn from: all {self.readable} readable annotated masks show class "
                f"{self.occurring[0]} only, so a net that always predicts it is right everywhere. "
                "Were these masks ever drawn? If not, has_segmentation should be false."
            )
        most = max(self.alone_rows)
        if most > EMPTY_SHARE_ASKED * self.readable:
            lesson = (
                f"{most} of {self.readable} annotated masks show class "
                f"{self.alone_rows.index(most)} alone. Looks like missing annotation: check. Do "
                "these images really show nothing else, or did nobody annotate them? If nobody "
                "did, has_segmentation should be false."
            )
        else:
            lesson = (
                f"Something to learn from: {len(self.occurring)} of {self.labels.num_classes} "
                f"classes in {self.readable - self.ignored_rows} annotated rows."
            )
        if self.missing:
            lesson += (
                f" No pixel shows {_classes(self.missing)}, which a net cannot learn: is the "
                "number of classes right?"
            )
        return lesson

    def _state_lines(self) -> list[str]:
        return [
            f"Annotated with several classes: {self.several_rows}",
            f"Annotated with a single class: {sum(self.alone_rows)}",
            f"Annotated and all ignored: {self.ignored_rows}",
        ]

    def _share_lines(self, values: str) -> list[str]:
        counted = sum(self.pixels)
        everything = max(counted + self.ignored, 1)
        return [
            values,
            f"Ignored pixels (value {self.labels.ignore_index}): "
            f"{100 * self.ignored / everything:.1f}%",
            *(
                f"Class {k}: {self.pixels[k]:,} pixels ({100 * self.pixels[k] / counted:.2f}%), "
                f"in {self.class_rows[k]} of {self.readable} rows"
                for k in self.occurring
            ),
            f"Classes that never occur: {describe_values(list(self.missing)) or 'none'}",
        ]


def _classes(ids: tuple[int, ...]) -> str:
    return f"class{'es' if len(ids) > 1 else ''} {describe_values(list(ids))}"
