"""The weighted sum of all terms as one loss; the single ones are in `losses.py`."""

from __future__ import annotations

from collections.abc import Sequence

from fastseg_losses import spec as specs
from fastseg_losses.arguments import check_weight
from fastseg_losses.base import SegmentationLoss, weight_vector
from fastseg_losses.signatures import SharedArguments, Unpack, Weights, shows_shared


@shows_shared()
class CombinedSegmentationLoss(SegmentationLoss):
    """The weighted sum of BCE, Dice, focal, IoU and Tversky from one read of the tensors.

    A term of weight 0 is left out. The terms' own parameters carry the term's name as a prefix.

    Args:
        bce_weight: weight of BCE (cross-entropy in multiclass), at least 0; and so for the other
            terms.
        dice_weight: see bce_weight.
        focal_weight: see bce_weight.
        iou_weight: see bce_weight.
        tversky_weight: see bce_weight.
        bce_pos_weight: see `BCELoss`.
        bce_label_smoothing: see `BCELoss`.
        dice_smooth: see `DiceLoss`.
        dice_log_loss: see `DiceLoss`.
        focal_alpha: see `FocalLoss`.
        focal_gamma: see `FocalLoss`.
        iou_smooth: see `IoULoss`.
        iou_log_loss: see `IoULoss`.
        tversky_alpha: see `TverskyLoss`.
        tversky_beta: see `TverskyLoss`.
        tversky_smooth: see `TverskyLoss`.
        tversky_gamma: see `TverskyLoss`.
        tversky_log_loss: see `TverskyLoss`.
        **shared: see `SharedArguments`.

    Example:
        >>> import torch
        >>> criterion = CombinedSegmentationLoss(bce_weight=0.5, dice_weight=0.5, focal_weight=0.0)
        >>> x, t = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
        >>> loss, stats = criterion(x, t, return_stats=True)
        >>> sorted(stats.cpu().terms)
        ['bce', 'dice']
    """

    def __init__(
        self,
        bce_weight: float = 0.4,
        dice_weight: float = 0.4,
        focal_weight: float = 0.2,
        iou_weight: float = 0.0,
        tversky_weight: float = 0.0,
        bce_pos_weight: Weights = None,
        bce_label_smoothing: float = 0.0,
        dice_smooth: float = 1.0,
        dice_log_loss: bool = False,
        focal_alpha: float | Sequence[float] | None = specs.BINARY_ALPHA,
        focal_gamma: float = 2.0,
        iou_smooth: float = 1.0,
        iou_log_loss: bool = False,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        tversky_smooth: float = 1.0,
        tversky_gamma: float = 1.0,
        tversky_log_loss: bool = False,
        **shared: Unpack[SharedArguments],
    ) -> None:
        weights = {
            "bce_weight": bce_weight,
            "dice_weight": dice_weight,
            "focal_weight": focal_weight,
            "iou_weight": iou_weight,
            "tversky_weight": tversky_weight,
        }
        bce, dice, focal, iou, tversky = (check_weight(k, v) for k, v in weights.items())
        if not any((bce, dice, focal, iou, tversky)):
            raise ValueError(f"{', '.join(weights)}: expected at least one above 0, got all 0")
        one, each = specs.split_alpha(focal_alpha, shared, prefix="focal_")
        points = [
            specs.bce_term(bce, bce_label_smoothing, prefix="bce_"),
            specs.focal_term(focal, one, focal_gamma, prefix="focal_"),
        ]
        regions = [
            specs.dice_term(dice, dice_smooth, dice_log_loss, prefix="dice_"),
            specs.iou_term(iou, iou_smooth, iou_log_loss, prefix="iou_"),
            specs.tversky_term(
                tversky,
                tversky_alpha,
                tversky_beta,
                tversky_smooth,
                tversky_gamma,
                tversky_log_loss,
                prefix="tversky_",
            ),
        ]
        pos_weight = weight_vector("bce_pos_weight", bce_pos_weight)
        if pos_weight is not None and specs.is_softmax(**shared):
            raise ValueError(
                "bce_pos_weight: expected None with a softmax over the classes (class_weights "
                f"weigh them), got {bce_pos_weight!r}"
            )
        super().__init__(
            [term for term in points if term.weight],
            [term for term in regions if term.weight],
            pos_weight=pos_weight if bce else None,
            class_alpha=weight_vector("focal_alpha", each) if focal else None,
            **shared,
        )
