"""Each example runs and learns; those that need a package which is not installed are skipped."""

import importlib.util
import math
import warnings
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Other packages' own warnings at import; an error here is only what this one raises.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def need(name: str) -> None:
    """Skip unless the package can be imported, and say why it cannot."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")
    except RuntimeError as error:
        # torchvision's wheel on PyPI beside a CPU build of torch.
        if "torchvision::" not in str(error):
            raise
        pytest.skip(f"{name} cannot be imported, its torchvision does not fit torch: {error}")


def test_every_example_has_a_test_and_a_line() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = {name[len("test_") :] for name in globals() if name.startswith("test_")}
    assert names and names <= tested
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"({name}.py)" not in text] == []


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    dice, findings = load("plain_loop").main()
    assert dice > 0.8
    assert findings == []
    assert "step 40: loss" in capsys.readouterr().out


def test_lightning_module() -> None:
    need("lightning")
    assert load("lightning_module").main() > 0.8


def test_hf_trainer() -> None:
    need("transformers")
    need("accelerate")
    losses = load("hf_trainer").main()
    assert len(losses) == 3 and losses[-1] < 0.7 * losses[0]


def test_segformer() -> None:
    need("transformers")
    assert load("segformer").main() > 0.8


def test_smp_model() -> None:
    need("torchvision")
    need("timm")
    need("segmentation_models_pytorch")
    losses = load("smp_model").main()
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.8 * losses[0]
