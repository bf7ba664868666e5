"""torchvision: its segmentation models in its own training script, from low-resolution logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fastseg_losses.integrations.low_logits import (
    ask,
    check_criterion,
    install,
    keep_logits,
    remove_fused_loss,
    take,
)
from fastseg_losses.losses import CrossEntropyLoss

# The entries of a model's output, and the heads that they come from.
HEADS = {"out": "classifier", "aux": "aux_classifier"}


class TorchvisionCriterion(nn.Module):
    """`criterion(inputs, target)` as in torchvision's `references/segmentation/train.py`.

    The loss of `inputs["out"]`, plus `aux_weight` times that of `inputs["aux"]` where there is one,
    from logits of any resolution.

    Args:
        criterion: the loss of each, upsampling; None: cross-entropy.
        ignore_index: the ignored label, with criterion=None.
        aux_weight: weight of the auxiliary head's loss.

    Raises:
        TypeError: a criterion that cannot be called.
        ValueError: a loss of this package that does not upsample.

    Example:
        >>> import torch
        >>> inputs = {"out": torch.zeros(1, 3, 2, 2), "aux": torch.zeros(1, 3, 1, 1)}
        >>> TorchvisionCriterion()(inputs, torch.zeros(1, 8, 8, dtype=torch.int64))  # 1.5 log 3
        tensor(1.6479)
    """

    def __init__(
        self,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        ignore_index: int = 255,
        aux_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if criterion is None:
            criterion = CrossEntropyLoss(ignore_index=ignore_index, upsample="bilinear")
        check_criterion(criterion)
        self.criterion = criterion
        self.aux_weight = aux_weight

    def forward(self, inputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The loss of a model's output.

        Args:
            inputs: "out" and optionally "aux", logits (N, C, h, w).
            target: class ids (N, H, W).
        """
        loss = self.criterion(inputs["out"], target)
        if "aux" in inputs:
            loss = loss + self.aux_weight * self.criterion(inputs["aux"], target)
        return loss


def torchvision_criterion(
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    ignore_index: int = 255,
    aux_weight: float = 0.5,
) -> TorchvisionCriterion:
    """Have a model of torchvision put out low-resolution logits in training, and get its loss.

    In training mode the entries of the model's output are its heads' own logits, not upsampled; in
    evaluation mode everything is as before. Copies and pickles of the model take it along.
    `remove_fused_loss(model)` undoes it.

    Args:
        model: DeepLabV3, FCN or LRASPP of `torchvision.models.segmentation`; not a wrapper (DDP) of
            it.
        criterion: the loss of each entry, one of this package with upsample="bilinear", for
            instance; None: cross-entropy, as in torchvision's script.
        ignore_index: the ignored label, with criterion=None.
        aux_weight: weight of the auxiliary head's loss.

    Returns:
        What stands in place of the script's function `criterion`.

    Raises:
        TypeError: no such model, or a criterion that cannot be called.
        ValueError: a loss of this package that does not upsample.
    """
    parts = dict(model.named_children()) if isinstance(model, nn.Module) else {}
    if not {"backbone", "classifier"} <= set(parts):
        raise TypeError(
            "model: expected one of torchvision.models.segmentation, with a backbone and a "
            f"classifier, got {type(model).__name__}"
        )
    result = TorchvisionCriterion(criterion, ignore_index=ignore_index, aux_weight=aux_weight)
    remove_fused_loss(model)
    heads = [parts[name] for name in HEADS.values() if parts.get(name) is not None]
    install(
        model,
        [
            model.register_forward_pre_hook(_ask_heads),
            *(head.register_forward_hook(keep_logits) for head in heads),
            model.register_forward_hook(_put_low_logits),
        ],
    )
    return result


def _ask_heads(model: Any, args: tuple) -> None:
    for name in HEADS.values():
        ask(getattr(model, name, None), hand_on=False if model.training else None)


def _put_low_logits(model: Any, args: tuple, output: Any) -> Any:
    if not model.training:
        return None
    return type(output)((name, take(getattr(model, HEADS[name]))) for name in output)
