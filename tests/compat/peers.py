"""The peers as installed, and how a compat loss is compared with one."""

import importlib
import importlib.util
import inspect
import sys
import types

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st


def smp():
    """`segmentation_models_pytorch.losses`, without the encoders that its package imports."""
    name = "segmentation_models_pytorch"
    if name not in sys.modules:
        found = importlib.util.find_spec(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        # timm and torchvision are not needed for losses, and the latter's wheel does not import
        # beside a CPU build of torch
        package = types.ModuleType(name)
        package.__path__ = list(found.submodule_search_locations)
        sys.modules[name] = package
    return importlib.import_module(f"{name}.losses")


def monai():
    return pytest.importorskip("monai.losses")


def signature(cls):
    parameters = inspect.signature(cls).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def value_and_gradient(criterion, x, *rest):
    """Under a fixed upstream gradient, the same for equal shapes."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = criterion(x, *rest)
    upstream = torch.cos(torch.arange(value.numel(), dtype=torch.float64, device=x.device))
    value.backward(upstream.reshape(value.shape).to(value))
    return value.detach(), x.grad


TOLERANCES = {torch.float64: 1e-9, torch.float32: 3e-5, torch.bfloat16: 2e-2}


def check(ours, theirs, x, *rest, exact=None, tolerance=None):
    """Ours as the peer's in float64 (`exact`: another x for it), within a dtype's tolerance."""
    tolerance = (
        tolerance or {torch.float64: 1e-9, torch.float32: 3e-5, torch.bfloat16: 2e-2}[x.dtype]
    )
    rest64 = [r.double() if r is not None and r.is_floating_point() else r for r in rest]
    value, gradient = value_and_gradient(ours, x, *rest)
    expected, slope = value_and_gradient(theirs, (x if exact is None else exact).double(), *rest64)
    assert value.shape == expected.shape
    # what cancels in a gradient leaves rounding of the size of 1 in it
    least = float(slope.abs().max()) * tolerance + min(tolerance / 100, 1e-6)
    close = {"rtol": tolerance, "check_dtype": False}
    torch.testing.assert_close(value.double(), expected.double(), atol=tolerance, **close)
    torch.testing.assert_close(gradient.double(), slope.double(), atol=least, **close)


DTYPES = {"cpu": [torch.float64, torch.float32], "cuda": [torch.float32, torch.bfloat16]}


def drawn(case, examples, device="cpu", start=None):
    """Run `case(draw, device)` on drawn arguments; from the seed `start`, else from a new one."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data):
        case(data.draw, device)

    (run if start is None else seed(start)(run))()


def on_gpu(cases, name):
    """A test of the cases through the kernels; in parts, because each example compiles its own."""

    @pytest.mark.gpu
    @pytest.mark.parametrize("part", range(5))
    @pytest.mark.parametrize("case", cases, ids=lambda case: case.__name__)
    def test(case, part):
        drawn(case, 8, "cuda", part)

    test.__name__ = test.__qualname__ = name
    return test
