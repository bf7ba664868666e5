"""The net as the trainer calls it: compiled, in lower precision, on several devices, averaged."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.distributed import World


class Net:
    """The user's net and the ways to run it.

    Attributes:
        model: the net itself, whose state is saved.
        average: its exponential moving average with ``--ema``, else None.
        precision: what its forward computes in, None for float32.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, device: torch.device, world: World
    ) -> None:
        self.model = model.to(device)
        # Not channels_last: convolutions gain, GroupNorm loses more. 1,210 images/s in place of
        # 1,390 (LightweightUNet in bfloat16 on an H100, benchmarks/results/h100-trainer.txt).
        self.precision = pick_precision(config.amp, device)
        self.average = None if config.ema is None else Average(self.model, config.ema)
        self._device = device
        self._parallel: DistributedDataParallel | None = None
        forward: Callable[..., Any] = self.model
        if world.size > 1:
            devices = [device] if device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self.model, device_ids=devices)
            forward = self._parallel
        self._forward = torch.compile(forward) if config.compile else forward

    def __call__(self, images: Tensor) -> Tensor:
        """Logits for training; in bfloat16 or float16 where that is the precision."""
        with self._autocast():
            logits: Tensor = self._forward(images)
            return logits

    def predict(self, images: Tensor) -> Tensor:
        """Logits of the net that is saved as the result: the average where there is one."""
        with self._autocast():
            logits: Tensor = self.result(images)
            return logits

    @property
    def result(self) -> nn.Module:
        """The net that is validated."""
        return self.model if self.average is None else self.average.module

    def train(self) -> None:
        """Training mode, the average excepted."""
        self.model.train()

    def evaluate(self) -> None:
        """Evaluation mode of the net that is validated."""
        self.result.eval()

    def share_buffers(self, world: World) -> None:
        """Give all processes the main one's buffers (batch statistics), which are saved."""
        models = [self.model] if self.average is None else [self.model, self.average.module]
        for model in models:
            for buffer in model.buffers():
                world.copy_from_main(buffer)

    def without_exchange(self, active: bool) -> contextlib.AbstractContextManager[Any]:
        """A backward whose gradients stay on this device for now: another is to be added."""
        if active and self._parallel is not None:
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self.precision)


class Average:
    """The exponential moving average of a net's weights and buffers.

    After t updates the average keeps min(decay, (1 + t) / (10 + t)) of itself: the first weights,
    which are random, are forgotten at once. (torch's AveragedModel copies its count to the device
    at each update, for which the host waits.)

    Args:
        model: the net, on its device.
        decay: share that is kept at each update in the long run.

    Attributes:
        module: the averaged net.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the net's weights after an optimizer step; launches only, no wait."""
        self._updates += 1
        keep = min(self._decay, (1 + self._updates) / (10 + self._updates))
        averages, current = [], []
        for a, c in zip(_tensors(self.module), _tensors(model), strict=True):
            if a.is_floating_point():
                averages.append(a)
                current.append(c)
            else:  # a count of batches, for instance
                a.copy_(c)
        torch._foreach_lerp_(averages, current, 1 - keep)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and how often they were updated."""
        return {"model": self.module.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.module.load_state_dict(state["model"])
        self._updates = state["updates"]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in model.parameters()), *model.buffers()]


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """What ``--amp`` means on a device.

    Args:
        name: "auto" (bfloat16 on CUDA devices that compute in it), "off", "bf16" or "fp16".
        device: where the net is.
    """
    if name == "auto":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if capable else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
