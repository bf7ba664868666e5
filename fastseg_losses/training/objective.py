"""What a training step minimises: the loss of the annotated rows, and of pseudo-masks if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg_losses.base import SegmentationLoss
from fastseg_losses.training.joint_regions import JointRegions
from fastseg_losses.training.valid_shares import ValidShares


class Factors(NamedTuple):
    """A micro-batch's part of its step, for each of the two losses; None for 1."""

    valid: Tensor | None = None
    pseudo: Tensor | None = None


class Objective:
    """The loss of a step, micro-batch by micro-batch.

    Args:
        criterion: a loss of this package.
        shares: what part of a step a micro-batch is.
        pseudo_weight: weight of the loss of the rows with a pseudo-mask; None leaves them out.

    Attributes:
        needs: the entries of a batch that have to be on the device.
    """

    def __init__(
        self, criterion: SegmentationLoss, shares: ValidShares, pseudo_weight: float | None = None
    ) -> None:
        self.criterion = criterion
        self.pseudo_weight = pseudo_weight
        self.needs = ("image", "mask", "valid", *(() if pseudo_weight is None else ("pseudo",)))
        self._shares = shares
        spec, world = criterion.spec, shares.world
        joined = world.size > 1 and spec.batch and spec.regions
        self._joint = JointRegions(criterion, world) if joined else None

    def factors(self, batches: Sequence[dict[str, Any]]) -> list[Factors]:
        """What the losses of a step's micro-batches, still on the host, are multiplied with."""
        valid = self._shares.of(batches)
        if self.pseudo_weight is None:
            return [Factors(share) for share in valid]
        return [*map(Factors, valid, self._shares.of(batches, "pseudo"))]

    def __call__(
        self,
        logits: Tensor,
        batch: Mapping[str, Tensor],
        stats_out: Tensor,
        factors: Factors = Factors(),  # noqa: B008 - immutable
    ) -> Tensor:
        """L(annotated rows) + pseudo_weight * L(rows with a pseudo-mask).

        Two calls of the loss and not one with a weight for each row: the statistics, which the
        monitor judges, must see the annotated rows alone, and each part stays a mean of its own,
        however many rows of either kind a batch happens to hold.

        Args:
            logits: (N, C, H, W), C = 1 in binary mode; smaller where the criterion upsamples.
            batch: `mask` (N, 1, H, W), `valid` bool (N,), and with a pseudo_weight `pseudo` bool
                (N,); on the device of the logits.
            stats_out: the statistics row to fill, of the annotated rows.
            factors: from `factors`.

        Returns:
            The loss, a scalar.
        """
        masks, valid = batch["mask"], batch["valid"]
        loss: Tensor
        if self._joint is None:
            loss, _ = self.criterion(logits, masks, valid, return_stats=True, stats_out=stats_out)
            loss = loss if factors.valid is None else loss * factors.valid
        else:
            with torch.no_grad():  # the statistics stay those of this process
                self.criterion(logits, masks, valid, return_stats=True, stats_out=stats_out)
            loss = self._joint(logits, masks, valid, factors.valid)
        if self.pseudo_weight is None:
            return loss
        pseudo: Tensor
        if self._joint is None:
            pseudo = self.criterion(logits, masks, batch["pseudo"])
            pseudo = pseudo if factors.pseudo is None else pseudo * factors.pseudo
        else:
            pseudo = self._joint(logits, masks, batch["pseudo"], factors.pseudo)
        return loss + self.pseudo_weight * pseudo
