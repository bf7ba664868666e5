"""`segmentation_models_pytorch.losses`, release 0.6.0, without Lovasz and MCC."""

from fastseg_losses.compat.smp_entropies import SoftBCEWithLogitsLoss, SoftCrossEntropyLoss
from fastseg_losses.compat.smp_focal import FocalLoss
from fastseg_losses.compat.smp_inputs import BINARY_MODE, MULTICLASS_MODE, MULTILABEL_MODE
from fastseg_losses.compat.smp_regions import DiceLoss, JaccardLoss, TverskyLoss
from fastseg_losses.compat.smp_sum import SumLoss

__all__ = [
    "BINARY_MODE",
    "MULTICLASS_MODE",
    "MULTILABEL_MODE",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "SoftBCEWithLogitsLoss",
    "SoftCrossEntropyLoss",
    "SumLoss",
    "TverskyLoss",
]
