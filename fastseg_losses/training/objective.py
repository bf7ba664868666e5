"""What a training step minimises: the loss of the annotated rows, and of pseudo-masks if asked."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastseg_losses.base import SegmentationLoss


class Objective:
    """The loss of a batch.

    Args:
        criterion: a loss of this package.
        pseudo_weight: weight of the loss of the rows with a pseudo-mask; None leaves them out.
    """

    def __init__(self, criterion: SegmentationLoss, pseudo_weight: float | None = None) -> None:
        self.criterion = criterion
        self.pseudo_weight = pseudo_weight

    def __call__(self, logits: Tensor, batch: Mapping[str, Tensor], stats_out: Tensor) -> Tensor:
        """L(annotated rows) + pseudo_weight * L(rows with a pseudo-mask).

        Two calls of the loss and not one with a weight for each row: the statistics, which the
        monitor judges, must see the annotated rows alone, and each part stays a mean of its own,
        however many rows of either kind a batch happens to hold.

        Args:
            logits: (N, C, H, W), C = 1 in binary mode.
            batch: `mask` (N, 1, H, W), `valid` bool (N,), and with a pseudo_weight `pseudo` bool
                (N,); on the device of the logits.
            stats_out: the statistics row to fill, of the annotated rows.

        Returns:
            The loss, a scalar.
        """
        masks = batch["mask"]
        loss: Tensor
        loss, _ = self.criterion(
            logits, masks, batch["valid"], return_stats=True, stats_out=stats_out
        )
        if self.pseudo_weight is None:
            return loss
        pseudo: Tensor = self.criterion(logits, masks, batch["pseudo"])
        return loss + self.pseudo_weight * pseudo
