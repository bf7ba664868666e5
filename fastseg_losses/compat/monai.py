"""Losses of `monai.losses`, release 1.6.1."""

from fastseg_losses.compat.monai_combined import DiceCELoss
from fastseg_losses.compat.monai_dice_focal import DiceFocalLoss
from fastseg_losses.compat.monai_generalized import GeneralizedDiceLoss
from fastseg_losses.compat.monai_masked import MaskedDiceLoss
from fastseg_losses.compat.monai_points import FocalLoss
from fastseg_losses.compat.monai_regions import DiceLoss, TverskyLoss
from fastseg_losses.compat.monai_supervision import DeepSupervisionLoss, ds_loss

Dice = DiceLoss
dice_ce = DiceCELoss
dice_focal = DiceFocalLoss
generalized_dice = GeneralizedDiceLoss

__all__ = [
    "Dice",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceLoss",
    "MaskedDiceLoss",
    "TverskyLoss",
    "dice_ce",
    "dice_focal",
    "ds_loss",
    "generalized_dice",
]
