"""The optimizer's side of a step: AdamW, scaled and clipped gradients, the learning rate."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fastseg_losses.training.config import TrainConfig

LOGGER = logging.getLogger("fastseg_losses.training")

POLY_POWER = 0.9  # nnU-Net's


class Updates:
    """Updates a net's weights from their gradients.

    On CUDA a step neither waits for the device nor reads from it: the gradients' norms are summed
    there until they are asked for.

    Args:
        config: the resolved settings.
        model: the net, on its device already.
        steps_per_epoch: so that the schedule ends with the run.
        scaled: whether the loss is scaled up so that float16 holds its gradients; a step whose
            gradients overflow all the same is left out, and the scale halved.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, steps_per_epoch: int, *, scaled: bool = False
    ) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        on_cuda = bool(self._parameters) and self._parameters[0].is_cuda
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=on_cuda,  # one launch instead of a dozen, and no wait for a float16 overflow
        )
        self._scaler = torch.amp.GradScaler("cuda" if on_cuda else "cpu", enabled=scaled)
        steps = max(1, config.epochs * steps_per_epoch)
        if config.max_steps is not None:
            steps = min(steps, config.max_steps)
        if config.warmup_steps >= steps:
            LOGGER.warning(
                "--warmup-steps %d: the run has %d steps, so the learning rate never reaches %g",
                config.warmup_steps,
                steps,
                config.lr,
            )
        self._schedule = schedule(self.optimizer, config, steps)
        self._most = config.clip_grad
        self._norms: Tensor | None = None
        self._count: Tensor | None = None

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those that are there."""
        self._scaler.scale(loss).backward()

    def step(self) -> None:
        """Clip, update, forget the gradients, move on in the schedule."""
        if self._most is not None:
            self._scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self._parameters, self._most)
            # A step that float16 overflow leaves out has no norm.
            counted = torch.isfinite(norm)
            norm = torch.where(counted, norm, 0.0)
            self._norms = norm if self._norms is None else self._norms + norm
            self._count = counted.float() if self._count is None else self._count + counted
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._schedule.step()

    def take_grad_norm(self) -> float:
        """Mean norm of the gradients before clipping, since last asked; NaN where none is known.

        Waits for the device.
        """
        if self._norms is None or self._count is None:
            return math.nan
        count = float(self._count)
        mean = float(self._norms) / count if count else math.nan
        self._norms = self._count = None
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Everything that the coming steps depend on."""
        steps = self._schedule.last_epoch
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "steps": steps,
            "norms": self._norms,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the rates are this run's, at the step of the other."""
        group = self.optimizer.state_dict()["param_groups"][0]
        self.optimizer.load_state_dict(state["optimizer"])
        for mine in self.optimizer.param_groups:
            mine |= {name: group[name] for name in ("lr", "initial_lr", "weight_decay", "fused")}
        if state["scaler"]:  # empty where the loss was not scaled
            self._scaler.load_state_dict(state["scaler"])
        device = self._parameters[0].device
        self._norms, self._count = (
            None if state[name] is None else state[name].to(device) for name in ("norms", "count")
        )
        self._schedule.last_epoch = state["steps"]
        factor = self._schedule.lr_lambdas[0](state["steps"])
        for mine in self.optimizer.param_groups:
            mine["lr"] = mine["initial_lr"] * factor


def schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> lr_scheduler.LambdaLR:
    """What the learning rate is multiplied by at each of so many steps.

    constant: 1. cosine: (1 + cos(pi step / steps)) / 2. poly: (1 - step / steps)**0.9. With a
    warm-up of w steps also (step + 1) / (w + 1) while that is below 1. A function of the step
    alone, so that a resumed run may be longer than the one before.
    """

    def factor(step: int) -> float:
        done = min(step / steps, 1.0)
        rate = 1.0
        if config.schedule == "cosine":
            rate = (1 + math.cos(math.pi * done)) / 2
        elif config.schedule == "poly":
            rate = (1 - done) ** POLY_POWER
        return rate * min(1.0, (step + 1) / (config.warmup_steps + 1))

    return lr_scheduler.LambdaLR(optimizer, factor)
