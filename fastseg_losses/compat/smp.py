"""`segmentation_models_pytorch.losses`, release 0.6.0, without Lovasz and MCC."""

from fastseg_losses.compat.smp_points import (
    FocalLoss,
    SoftBCEWithLogitsLoss,
    SoftCrossEntropyLoss,
)
from fastseg_losses.compat.smp_regions import (
    BINARY_MODE,
    MULTICLASS_MODE,
    MULTILABEL_MODE,
    DiceLoss,
    JaccardLoss,
    TverskyLoss,
)

__all__ = [
    "BINARY_MODE",
    "MULTICLASS_MODE",
    "MULTILABEL_MODE",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "SoftBCEWithLogitsLoss",
    "SoftCrossEntropyLoss",
    "TverskyLoss",
]
