"""segmentation_models_pytorch as tests and benchmarks use it: its losses alone."""

import importlib
import importlib.util
import sys
import types

NAME = "segmentation_models_pytorch"


def smp_losses() -> types.ModuleType:
    """`segmentation_models_pytorch.losses`, without the encoders that its package imports.

    Those need timm and torchvision, which losses do not, and torchvision's wheel on PyPI does not
    import beside a CPU build of torch.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    if NAME not in sys.modules:
        found = importlib.util.find_spec(NAME)
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {NAME!r}", name=NAME)
        package = types.ModuleType(NAME)
        package.__path__ = list(found.submodule_search_locations)
        sys.modules[NAME] = package
    return importlib.import_module(f"{NAME}.losses")
