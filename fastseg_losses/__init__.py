"""Fused segmentation losses: every term, its gradient and the prediction statistics in one read of the tensors."""

from pathlib import Path

_here = Path(__file__).parent
if not (_here / "kernels").is_dir():  # source checkout: kernels/ is a sibling; a wheel carries it inside
    __path__.append(str(_here.parent))

from fastseg_losses.functional import region_sums  # noqa: E402
from fastseg_losses.losses import (  # noqa: E402
    BCELoss,
    CombinedSegmentationLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    TverskyLoss,
    get_loss_function,
)
from fastseg_losses.stats import SegmentationSnapshot, SegmentationStats  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "BCELoss",
    "CombinedSegmentationLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "IoULoss",
    "SegmentationSnapshot",
    "SegmentationStats",
    "TverskyLoss",
    "get_loss_function",
    "region_sums",
]
