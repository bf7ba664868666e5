"""Other libraries' nets, trained on their low-resolution logits.

SegFormer, DeepLab and most nets for semantic segmentation put out logits at 1/4 to 1/16 of the
image's size, upsample them, and take the cross-entropy of the result. The losses of this package
upsample inside; here is what brings the two together: `use_fused_loss` for the models of Hugging
Face transformers, `torchvision_criterion` for those of torchvision. Nothing of either library is
imported here.
"""

from fastseg_losses.integrations.low_logits import remove_fused_loss
from fastseg_losses.integrations.torchvision import TorchvisionCriterion, torchvision_criterion
from fastseg_losses.integrations.transformers import FusedLoss, use_fused_loss

__all__ = [
    "FusedLoss",
    "TorchvisionCriterion",
    "remove_fused_loss",
    "torchvision_criterion",
    "use_fused_loss",
]
