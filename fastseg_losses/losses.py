"""Segmentation losses as `torch.nn.Module`s; the mathematics is in `reference.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastseg_losses import spec as specs
from fastseg_losses.base import SegmentationLoss, weight_vector
from fastseg_losses.combined import CombinedSegmentationLoss
from fastseg_losses.signatures import SharedArguments, Unpack, Weights, shows_shared


@shows_shared()
class BCELoss(SegmentationLoss):
    """Binary cross-entropy with logits: mean over valid elements of softplus(x) - x t.

    Args:
        pos_weight: scalar or (C,) weight of the positive class, as in `torch.nn.BCEWithLogitsLoss`.
        label_smoothing: e in [0, 1]; the target becomes t (1 - e) + e / 2.
        **shared: see `SharedArguments`.

    Example:
        >>> import torch
        >>> BCELoss()(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
        tensor(0.6931)
    """

    def __init__(
        self,
        pos_weight: Weights = None,
        label_smoothing: float = 0.0,
        **shared: Unpack[SharedArguments],
    ) -> None:
        if specs.is_softmax(**shared):
            raise ValueError(
                "mode: expected 'binary' or 'multilabel' for BCELoss, or activation='sigmoid' "
                "(CrossEntropyLoss serves a softmax), got 'multiclass'"
            )
        super().__init__(
            [specs.bce_term(1.0, label_smoothing)], [], pos_weight=pos_weight, **shared
        )


@shows_shared(mode="multiclass")
class CrossEntropyLoss(SegmentationLoss):
    """Softmax cross-entropy: sum of w_y (-log p_y) / sum of w_y over the valid pixels.

    As `torch.nn.CrossEntropyLoss`; with soft targets, the sum over the classes of w_c t_c (-log
    p_c), divided by the number of valid pixels. Its mode is "multiclass", by default too.

    Args:
        label_smoothing: e in [0, 1]; the target becomes t (1 - e) + e / C.
        **shared: see `SharedArguments`.

    Example:
        >>> import torch
        >>> x, y = torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
        >>> expected = torch.nn.functional.cross_entropy(x, y)
        >>> torch.allclose(CrossEntropyLoss()(x, y), expected)
        True
    """

    def __init__(self, label_smoothing: float = 0.0, **shared: Unpack[SharedArguments]) -> None:
        mode = shared.setdefault("mode", "multiclass")
        if mode != "multiclass":
            raise ValueError(
                "mode: expected 'multiclass' for CrossEntropyLoss (BCELoss serves the others), "
                f"got {mode!r}"
            )
        if shared.get("activation") is not None:
            raise ValueError(
                "activation: expected None for CrossEntropyLoss (BCELoss serves a sigmoid for each "
                f"class), got {shared['activation']!r}"
            )
        super().__init__([specs.bce_term(1.0, label_smoothing)], [], **shared)


@shows_shared()
class DiceLoss(SegmentationLoss):
    """Dice: mean over groups of 1 - (2I + s) / (P + T + s).

    Source: Milletari et al. 2016, V-Net, with plain in place of squared sums.

    Args:
        smooth: s, at least 0; at 0 an empty group scores 1 when nothing is predicted.
        log_loss: True takes -log of the score (floored at 1e-7) in place of 1 - score.
        **shared: see `SharedArguments`.

    Example:
        >>> import torch
        >>> DiceLoss()(torch.full((1, 1, 2, 2), 100.0), torch.ones(1, 1, 2, 2))
        tensor(0.)
    """

    def __init__(
        self, smooth: float = 1.0, log_loss: bool = False, **shared: Unpack[SharedArguments]
    ) -> None:
        super().__init__([], [specs.dice_term(1.0, smooth, log_loss)], **shared)


@shows_shared()
class IoULoss(SegmentationLoss):
    """IoU (Jaccard): mean over groups of 1 - (I + s) / (P + T - I + s).

    Args:
        smooth: s, at least 0.
        log_loss: True takes -log of the score (floored at 1e-7) in place of 1 - score.
        **shared: see `SharedArguments`.

    Example:
        >>> import torch
        >>> IoULoss(smooth=0.0)(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        tensor(0.5000)
    """

    def __init__(
        self, smooth: float = 1.0, log_loss: bool = False, **shared: Unpack[SharedArguments]
    ) -> None:
        super().__init__([], [specs.iou_term(1.0, smooth, log_loss)], **shared)


@shows_shared()
class TverskyLoss(SegmentationLoss):
    """Tversky: mean over groups of (1 - (I + s) / (I + alpha FP + beta FN + s)) ** gamma.

    Source: Salehi et al. 2017, Tversky loss; Abraham et al. 2019, its focal form.

    Args:
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
        smooth: s, at least 0.
        gamma: exponent per group, above 0 (focal Tversky).
        log_loss: True takes -log of the score (floored at 1e-7), before gamma.
        **shared: see `SharedArguments`.

    Example:
        >>> import torch
        >>> x, t = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8).round()
        >>> dice = TverskyLoss(alpha=0.5, beta=0.5, smooth=0.5)
        >>> torch.allclose(dice(x, t), DiceLoss(smooth=1.0)(x, t))
        True
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1.0,
        gamma: float = 1.0,
        log_loss: bool = False,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(
            [], [specs.tversky_term(1.0, alpha, beta, smooth, gamma, log_loss)], **shared
        )


@shows_shared()
class FocalLoss(SegmentationLoss):
    """Focal loss: mean over valid elements of alpha_t (1 - p_t)**gamma bce.

    In multiclass mode: mean over valid pixels of alpha_y (1 - p_y)**gamma (-log p_y), with soft
    targets the expectation of that over the target's classes.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, eq. 5.

    Args:
        alpha: weight of the positive class in [0, 1] (1 - alpha for the negative), or None for no
            balance. In multiclass mode a sequence of C values of at least 0, or None, which is
            the default there.
        gamma: exponent, at least 0; 0 with alpha None is BCE, or cross-entropy.
        **shared: see `SharedArguments`.

    Example:
        >>> import torch
        >>> x, t = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8).round()
        >>> torch.allclose(FocalLoss(alpha=None, gamma=0.0)(x, t), BCELoss()(x, t))
        True
    """

    def __init__(
        self,
        alpha: float | Sequence[float] | None = specs.BINARY_ALPHA,
        gamma: float = 2.0,
        **shared: Unpack[SharedArguments],
    ) -> None:
        one, each = specs.split_alpha(alpha, shared)
        super().__init__(
            [specs.focal_term(1.0, one, gamma)],
            [],
            class_alpha=weight_vector("alpha", each),
            **shared,
        )


LOSSES: dict[str, type[SegmentationLoss]] = {
    "bce": BCELoss,
    "ce": CrossEntropyLoss,
    "dice": DiceLoss,
    "iou": IoULoss,
    "tversky": TverskyLoss,
    "focal": FocalLoss,
    "combined": CombinedSegmentationLoss,
}


def get_loss_function(name: str, **arguments: Any) -> SegmentationLoss:
    """Build a loss by name.

    Args:
        name: "bce", "ce", "dice", "iou", "tversky", "focal" or "combined".
        **arguments: the class's own arguments and the shared ones.

    Returns:
        The module.

    Raises:
        ValueError: an unknown name.
        TypeError: an argument that the loss does not take.

    Example:
        >>> get_loss_function("dice", smooth=1.0)
        DiceLoss(1 dice(smooth=1); mode='binary', reduction='mean', backend='auto')
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if name not in LOSSES:
        raise ValueError(f"name: expected one of {', '.join(map(repr, LOSSES))}, got {name!r}")
    return LOSSES[name](**arguments)
