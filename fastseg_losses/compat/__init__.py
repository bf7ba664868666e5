"""Other libraries' losses under their names and signatures, computed by this library's kernels.

One module a library: `smp`, `monai`, `nnunet`, `torchvision` and `sam2`. Change the import, keep
the call; docs/compat.md says what is fused and where results differ.
"""

from fastseg_losses.compat.fused import backend

__all__ = ["backend"]
