"""The optimizer's side of a step: AdamW, clipped gradients, the learning rate's schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fastseg_losses.training.config import TrainConfig

POLY_POWER = 0.9  # nnU-Net's


class Updates:
    """Updates a net's weights from their gradients.

    On CUDA a step neither waits for the device nor reads from it: the gradients' norms are summed
    there until they are asked for.

    Args:
        config: the resolved settings.
        model: the net, on its device already.
        steps_per_epoch: so that the schedule ends with the run.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, steps_per_epoch: int) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.lr,
            weight_decay=config.weight_decay,
            # one launch instead of a dozen
            fused=bool(self._parameters) and self._parameters[0].is_cuda,
        )
        steps = max(1, config.epochs * steps_per_epoch)
        if config.max_steps is not None:
            steps = min(steps, config.max_steps)
        self._schedules = schedules(self.optimizer, config, steps)
        self._most = config.clip_grad
        self._norms: Tensor | None = None
        self._count = 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Clip, update, forget the gradients, move on in the schedule."""
        if self._most is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, self._most)
            self._norms = norm if self._norms is None else self._norms + norm
            self._count += 1
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for schedule in self._schedules:
            schedule.step()

    def take_grad_norm(self) -> float:
        """Mean norm of the gradients before clipping, since last asked; NaN where none is known.

        Waits for the device.
        """
        if self._norms is None:
            return math.nan
        mean = float(self._norms) / self._count
        self._norms, self._count = None, 0
        return mean


def schedules(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> list[lr_scheduler.LRScheduler]:
    """What the learning rate is multiplied by at each of so many steps: the product of the list.

    constant: 1. cosine: (1 + cos(pi step / steps)) / 2. poly: (1 - step / steps)**0.9. With a
    warm-up of w steps also (step + 1) / (w + 1) while that is below 1.
    """
    factors: list[lr_scheduler.LRScheduler] = []
    if config.warmup_steps:
        first = 1 / (config.warmup_steps + 1)
        factors.append(
            lr_scheduler.LinearLR(optimizer, first, 1.0, total_iters=config.warmup_steps)
        )
    if config.schedule == "cosine":
        factors.append(lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps))
    elif config.schedule == "poly":
        factors.append(lr_scheduler.PolynomialLR(optimizer, steps, POLY_POWER))
    return factors
