"""The peers as installed, and how a compat loss is compared with one."""

import copy
import inspect

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from peer_packages import smp_losses


def smp():
    try:
        return smp_losses()
    except ModuleNotFoundError as error:
        pytest.skip(f"segmentation_models_pytorch is not installed ({error})")


def monai():
    return pytest.importorskip("monai.losses")


def monai_utils():
    return pytest.importorskip("monai.utils")


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


HALF = (torch.float16, torch.bfloat16)
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 3e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def result_dtype(theirs, expected, x, *rest):
    if x.dtype == torch.float64:
        return expected.dtype
    if x.dtype in HALF:
        return torch.float32
    if isinstance(theirs, torch.nn.Module):  # its weights may be float64
        theirs = copy.deepcopy(theirs).to(x.dtype)
    return theirs(x, *rest).dtype


def check(ours, theirs, x, *rest, exact=None, tolerance=None, kind=None, parts=()):
    """Ours as the peer's in float64 (`exact`: another x for it), within a dtype's tolerance.

    The result's dtype is the peer's for this x, or `kind`; for one of half precision it is float32.
    `parts`: the peers of losses whose gradients may be added, each rounded to x's dtype.
    """
    tolerance = tolerance or TOLERANCES[x.dtype]
    rest64 = [r.double() if r is not None and r.is_floating_point() else r for r in rest]
    value, gradient = value_and_gradient(ours, x, *rest)
    expected, slope = value_and_gradient(theirs, (x if exact is None else exact).double(), *rest64)
    assert value.shape == expected.shape
    kind = kind or result_dtype(theirs, expected, x, *rest)
    assert value.dtype == kind, f"{value.dtype}, {kind} there"
    # what cancels in a gradient leaves rounding of the size of 1 in it
    least = (float(slope.abs().max()) if slope.numel() else 0.0) * tolerance + min(
        tolerance / 100, 1e-6
    )
    if x.dtype.itemsize == 2:
        for part in parts:
            size = value_and_gradient(part, x.double(), *rest64)[1].abs().nan_to_num(0.0, 0.0)
            least += float(size.max()) * torch.finfo(x.dtype).eps / 2 if size.numel() else 0.0
    slope = slope.to(x.dtype) if x.dtype == torch.float16 else slope  # infinite beyond 65504
    close = {"rtol": tolerance, "check_dtype": False}
    torch.testing.assert_close(value.double(), expected.double(), atol=tolerance, **close)
    torch.testing.assert_close(gradient.double(), slope.double(), atol=least, **close)


DTYPES = {
    "cpu": [torch.float64, torch.float32, torch.float16],
    "cuda": [torch.float32, torch.bfloat16],
}


def laid_out(draw, x):
    """The same values elsewhere in memory: as they are, with channels last, with gaps, expanded."""
    layout = draw(st.sampled_from(["as it is", "last", "gaps", "expanded"]))
    if layout == "last" and x.dim() > 1:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "expanded" and x.shape[0] > 1:
        return x[:1].expand_as(x)
    return x


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
