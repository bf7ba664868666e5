"""Fused segmentation losses: every term, its gradient and the statistics in one read."""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

_here = _Path(__file__).parent
if not (
    _here / "kernels"
).is_dir():  # source checkout: kernels/ is a sibling; a wheel carries it inside
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from fastseg_losses.base import SegmentationLoss
    from fastseg_losses.combined import CombinedSegmentationLoss
    from fastseg_losses.functional import region_sums
    from fastseg_losses.losses import (
        BCELoss,
        CrossEntropyLoss,
        DiceLoss,
        FocalLoss,
        IoULoss,
        TverskyLoss,
        get_loss_function,
    )
    from fastseg_losses.stats import SegmentationSnapshot, SegmentationStats

__version__ = "0.1.0"

__all__ = [
    "BCELoss",
    "CombinedSegmentationLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "IoULoss",
    "SegmentationLoss",
    "SegmentationSnapshot",
    "SegmentationStats",
    "TverskyLoss",
    "get_loss_function",
    "region_sums",
]


if not TYPE_CHECKING:  # a checker would take every misspelt name for an attribute

    def __getattr__(name: str) -> object:
        # Imported at first use: `train.py --help` imports this package too; torch takes seconds.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        homes = {
            "CombinedSegmentationLoss": "combined",
            "SegmentationLoss": "base",
            "region_sums": "functional",
            "SegmentationSnapshot": "stats",
            "SegmentationStats": "stats",
        }
        try:
            home = _import_module(f"{__name__}.{homes.get(name, 'losses')}")
        except AttributeError as error:  # of which `from fastseg_losses import ...` says nothing
            raise ImportError(f"{__name__} cannot be imported: {error}") from error
        value = getattr(home, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    # what a user may use: not the helpers above, nor every submodule that was imported meanwhile
    return sorted({name for name in globals() if name.startswith("__")} | {*__all__})
