import subprocess
import sys

import pytest

from fastseg_losses import training


def test_every_exported_name_is_there() -> None:
    for name in training.__all__:
        assert getattr(training, name).__name__ == name
    assert set(training.__all__) <= set(dir(training))
    assert set(training.__all__) == set(training._HOMES)


def test_without_the_extra_the_missing_packages_are_named() -> None:
    code = "import sys; sys.modules['PIL'] = None; from fastseg_losses.training import load_model"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    last = result.stderr.splitlines()[-1]
    assert last == "ImportError: the trainer needs pillow: pip install '.[train]'"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = training.nothing
