"""Losses of `monai.losses`, release 1.6.1."""

from fastseg_losses.compat.monai_combined import (
    DeepSupervisionLoss,
    DiceCELoss,
    DiceFocalLoss,
    ds_loss,
)
from fastseg_losses.compat.monai_generalized import GeneralizedDiceLoss
from fastseg_losses.compat.monai_points import FocalLoss
from fastseg_losses.compat.monai_regions import DiceLoss, MaskedDiceLoss, TverskyLoss

__all__ = [
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceLoss",
    "MaskedDiceLoss",
    "TverskyLoss",
    "ds_loss",
]
