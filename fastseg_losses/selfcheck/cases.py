"""What the self-check computes: every loss in every mode, and one of each library in `compat`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastseg_losses import compat, get_loss_function
from fastseg_losses.base import SegmentationLoss
from fastseg_losses.compat.monai import DiceCELoss
from fastseg_losses.compat.nnunet import DC_and_CE_loss
from fastseg_losses.compat.sam2 import dice_loss
from fastseg_losses.compat.smp import DiceLoss
from fastseg_losses.compat.torchvision import sigmoid_focal_loss
from fastseg_losses.selfcheck import formulas

LOSSES = ("bce", "dice", "iou", "tversky", "focal", "combined")
MODES = ("binary", "multilabel", "multiclass")
HALVES = (torch.float16, torch.bfloat16)

# (N, C, H, W) by mode. On a GPU enough to fill it, on the CPU what takes milliseconds, interpreted
# (a kernel's program takes about 10 ms) what a few programs cover.
Shapes = dict[str, tuple[int, int, int, int]]
GPU_SHAPES: Shapes = {
    "binary": (16, 1, 512, 512),
    "multilabel": (4, 4, 512, 512),
    "multiclass": (4, 8, 256, 512),
}
CPU_SHAPES: Shapes = {
    "binary": (4, 1, 128, 128),
    "multilabel": (4, 3, 64, 128),
    "multiclass": (4, 8, 64, 64),
}
INTERPRETED_SHAPES: Shapes = {
    "binary": (2, 1, 24, 32),
    "multilabel": (3, 2, 24, 32),
    "multiclass": (2, 5, 24, 32),
}


@dataclass(frozen=True)
class Inputs:
    """One call's tensors; masks, or class ids in multiclass mode."""

    logits: Tensor
    targets: Tensor
    valid: Tensor | None


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        mode: "binary", "multilabel" or "multiclass"; of `compat` the mode it comes closest to.
        loss: what the row is called.
        dtype: of the logits.
        build: makes our loss for a backend, a function of `Inputs`.
        formula: the same in plain PyTorch, of logits in float32 or float64.
        criterion: makes the module that has statistics; None in `compat`.
        ragged: whether some of the input does not count.
    """

    mode: str
    loss: str
    dtype: torch.dtype
    build: Callable[[str], Callable[[Inputs], Tensor]]
    formula: Callable[[Inputs], Tensor]
    criterion: Callable[[str], SegmentationLoss] | None = None
    ragged: bool = True

    @property
    def name(self) -> str:
        """Mode, loss and dtype."""
        return f"{self.mode} {self.loss} {str(self.dtype).removeprefix('torch.')}"


def all_cases(quick: bool = False) -> list[Case]:
    """The rows.

    Args:
        quick: float32 alone, without `compat`.
    """
    cases = []
    for mode in MODES:
        for loss in LOSSES:
            dtypes = [torch.float32]
            if loss == "combined" and not quick:
                dtypes += [*HALVES, torch.float64]  # float64 always runs on the torch backend
            cases += [_own(mode, loss, dtype) for dtype in dtypes]
        if not quick and mode != "multilabel":
            # a power that is no product has its own code in the kernels
            cases.append(_own(mode, "focal", torch.float32, gamma=1.5))
    return cases if quick else cases + _foreign()


def draw(case: Case, shapes: Shapes, device: torch.device) -> Inputs:
    """The case's inputs, the same on every machine.

    Binary: every pixel counts. Multilabel: the last sample does not, and holds NaN. Multiclass:
    one eighth of the ids are `formulas.IGNORED`.
    """
    generator = torch.Generator().manual_seed(0)
    N, C, H, W = shapes[case.mode]
    x = (torch.randn((N, C, H, W), generator=generator) * 3).to(case.dtype)
    valid = None
    if case.mode == "multiclass":
        targets = torch.randint(C, (N, H, W), generator=generator, dtype=torch.uint8)
        if case.ragged:
            targets[:, : H // 8] = formulas.IGNORED
    else:
        targets = torch.rand((N, C, H, W), generator=generator) < 0.3
        if case.mode == "binary":
            targets = targets.float()  # with float32 logits: what one launch may serve
        elif case.ragged:
            valid = torch.arange(N) < N - 1
            x[-1] = float("nan")
    valid = None if valid is None else valid.to(device)
    return Inputs(x.to(device), targets.to(device), valid)


def _own(mode: str, loss: str, dtype: torch.dtype, gamma: float = 2.0) -> Case:
    name = "ce" if mode == "multiclass" and loss == "bce" else loss
    arguments: dict[str, Any] = {"mode": mode}
    if mode == "multiclass":
        arguments["ignore_index"] = formulas.IGNORED
    if gamma != 2.0:
        arguments["gamma"] = gamma

    def criterion(backend: str) -> SegmentationLoss:
        return get_loss_function(name, backend=backend, **arguments)

    def build(backend: str) -> Callable[[Inputs], Tensor]:
        made = criterion(backend)
        return lambda i: made(i.logits, i.targets, i.valid)

    def formula(i: Inputs) -> Tensor:
        return formulas.plain_loss(name, mode, i.logits, i.targets, i.valid, gamma)

    label = name if gamma == 2.0 else f"{name} {gamma:g}"
    return Case(mode, label, dtype, build, formula, criterion)


def _foreign() -> list[Case]:
    smp, monai = DiceLoss("multiclass"), DiceCELoss(to_onehot_y=True, softmax=True)
    nnunet = DC_and_CE_loss({"batch_dice": True, "do_bg": False, "smooth": 1.0, "ddp": False}, {})
    table: list[tuple[str, str, Callable[..., Tensor], Callable[..., Tensor]]] = [
        ("multiclass", "smp Dice", lambda x, y: smp(x, y.long()), formulas.smp_dice),
        ("multiclass", "monai DiceCE", lambda x, y: monai(x, y[:, None]), formulas.monai_dice_ce),
        ("multiclass", "nnunet DC+CE", lambda x, y: nnunet(x, y[:, None]), formulas.nnunet_dice_ce),
        (
            "binary",
            "torchvision focal",
            lambda x, t: sigmoid_focal_loss(x, t, reduction="mean"),
            formulas.torchvision_focal,
        ),
        (
            "binary",
            "sam2 dice",
            lambda x, t: dice_loss(x[:, 0], t[:, 0], x.shape[0]),
            formulas.sam2_dice,
        ),
    ]
    return [_compat(*row) for row in table]


def _compat(
    mode: str, label: str, ours: Callable[..., Tensor], formula: Callable[..., Tensor]
) -> Case:
    def build(backend: str) -> Callable[[Inputs], Tensor]:
        def loss(i: Inputs) -> Tensor:
            with compat.backend(backend):
                return ours(i.logits, i.targets)

        return loss

    def plain(i: Inputs) -> Tensor:
        return formula(i.logits, i.targets)

    return Case(mode, label, torch.float32, build, plain, ragged=False)
