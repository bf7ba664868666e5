"""Region losses over the batches of all processes, with ``--batch-dice`` under torchrun."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fastseg_losses.arguments import Mode, Upsample
from fastseg_losses.base import SegmentationLoss
from fastseg_losses.functional import region_sums
from fastseg_losses.reference import Sums, region_values
from fastseg_losses.training.distributed import World


class JointRegions:
    """A loss whose Dice, IoU and Tversky are those of all processes' batches together.

    A ratio of sums is no mean of ratios, so the processes add up I, P, T and V before the formula.
    Its value is then the same everywhere, and each process has the gradient of its own part.

    Args:
        criterion: a loss with region terms and ``batch=True``.
        world: the processes; each calls this once a micro-batch.
    """

    def __init__(self, criterion: SegmentationLoss, world: World) -> None:
        spec = criterion.spec
        assert spec.batch and spec.regions
        self._spec = spec
        self._mode = cast(Mode, spec.mode)
        self._upsample = cast(Upsample, spec.upsample)
        self._world = world
        self._points: SegmentationLoss | None = None
        if spec.points:
            self._points = SegmentationLoss(
                spec.points,
                (),
                mode=self._mode,
                ignore_index=spec.ignore_index,
                upsample=self._upsample,
                align_corners=spec.align_corners,
            )

    def __call__(
        self, logits: Tensor, masks: Tensor, valid: Tensor, share: Tensor | None
    ) -> Tensor:
        """The part of the loss whose gradients, averaged over the processes, are the loss's own.

        Args:
            logits: (N, C, H, W), or smaller where the criterion upsamples.
            masks: (N, 1, H, W).
            valid: bool (N,).
            share: factor of the pointwise terms, from `ValidShares`.
        """
        spec, world = self._spec, self._world
        sums = region_sums(
            logits,
            masks,
            valid,
            mode=self._mode,
            ignore_index=spec.ignore_index,
            upsample=self._upsample,
            align_corners=spec.align_corners,
        )
        mine = torch.stack(sums).sum(1, keepdim=True)  # (4, 1, C)
        total = mine + (world.add_up(mine.detach().clone()) - mine.detach())
        I, P, T, V = total.unbind(0)  # noqa: E741
        values = region_values(spec, Sums(I, P, T, V), torch.ones_like(V[0]), "mean")
        weighted = [term.weight * v for term, v in zip(spec.regions, values, strict=True)]
        loss = world.size * torch.stack(weighted).sum()
        if self._points is None:
            return loss
        points: Tensor = self._points(logits, masks, valid)
        return loss + (points if share is None else points * share)
