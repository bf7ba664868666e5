"""The trainer: parquet data, census, model, collapse monitor, training loop and report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastseg_losses.training.extras import missing_extras

if TYPE_CHECKING:
    from fastseg_losses.training.audit import take_census
    from fastseg_losses.training.class_monitor import ClassMonitor
    from fastseg_losses.training.config import TrainConfig
    from fastseg_losses.training.data import (
        DataError,
        ParquetSegmentation,
        make_loader,
        normalised,
        open_index,
    )
    from fastseg_losses.training.findings import Cause, Finding
    from fastseg_losses.training.index import IndexTable
    from fastseg_losses.training.labels import Labels
    from fastseg_losses.training.model import LightweightUNet
    from fastseg_losses.training.monitor import CollapseMonitor
    from fastseg_losses.training.prediction import TrainedModel, load_model
    from fastseg_losses.training.tally import Tally

_HOMES = {
    "Cause": "findings",
    "ClassMonitor": "class_monitor",
    "CollapseMonitor": "monitor",
    "DataError": "data",
    "Finding": "findings",
    "IndexTable": "index",
    "Labels": "labels",
    "LightweightUNet": "model",
    "ParquetSegmentation": "data",
    "Tally": "tally",
    "TrainConfig": "config",
    "TrainedModel": "prediction",
    "load_model": "prediction",
    "make_loader": "data",
    "normalised": "data",
    "open_index": "data",
    "take_census": "audit",
}

__all__ = [
    "Cause",
    "ClassMonitor",
    "CollapseMonitor",
    "DataError",
    "Finding",
    "IndexTable",
    "Labels",
    "LightweightUNet",
    "ParquetSegmentation",
    "Tally",
    "TrainConfig",
    "TrainedModel",
    "load_model",
    "make_loader",
    "normalised",
    "open_index",
    "take_census",
]


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `train.py --help` does not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        missing = missing_extras()
        if missing is None:
            raise
        raise ImportError(missing) from error
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
