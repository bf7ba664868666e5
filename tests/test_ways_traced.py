"""Under what looks at operators in place of values: compilers, exporters, transforms, fake tensors.

A launch takes addresses, so whoever traces must see the operators of ops.py, or get an error. On
the device of the session; more of torch.compile: test_ops*.py and test_gpu*.py.
"""

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, region_sums
from fastseg_losses.compat.monai import GeneralizedDiceLoss
from fastseg_losses.functional import predict_mask

BACKENDS = ["torch", "triton"]
# torch.jit is deprecated, and Dynamo warns of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def draw(shape, device):
    logits = torch.randn(shape, device=device)
    return logits, torch.rand(shape, device=device) < 0.3


def gradient(criterion, logits, targets):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(criterion(leaf, targets), leaf)[0]


# ---- compilers


@pytest.mark.parametrize("backend", BACKENDS)
def test_twenty_shapes_compile_twice(backend, device):
    """Once for the first shape and once for any: nothing that is kept by shape is a guard."""
    torch._dynamo.reset()
    criterion, counts = DiceLoss(backend=backend), []
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(criterion, fullgraph=True, backend=counter)
    for k in range(20):
        logits, targets = draw((2 + k % 3, 1, 3 + k, 4 + k % 7), device)
        leaf = logits.requires_grad_()
        (found,) = torch.autograd.grad(step(leaf, targets), leaf)
        if k in (0, 1, 19):
            torch.testing.assert_close(found, gradient(criterion, logits.detach(), targets))
        counts.append(counter.frame_count)
    assert 0 < counts[0] < counts[1] and counts[1] == counts[-1], counts


# inductor's C++ of the whole reference takes half a minute
@pytest.mark.parametrize("backend", [pytest.param("torch", marks=pytest.mark.slow), "triton"])
def test_inductor_for_any_shape(backend, device):
    torch._dynamo.reset()
    criterion, counts = CombinedSegmentationLoss(backend=backend), []
    counter = CompileCounterWithBackend("inductor")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def step(x, t):
        loss, stats = criterion(2 * x, t, return_stats=True)
        return 3 * loss, stats.pred_mean

    for size in (6, 9, 13):
        logits, targets = draw((2, 1, size, size + 2), device)
        leaf, twin = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss, mean = step(leaf, targets)
        loss.backward()
        eager, stats = criterion(2 * twin, targets, return_stats=True)
        (3 * eager).backward()
        torch.testing.assert_close((loss, mean), (3 * eager, stats.pred_mean))
        torch.testing.assert_close(leaf.grad, twin.grad)
        counts.append(counter.frame_count)
    assert 0 < counts[0] == counts[-1], counts


class Scored(nn.Module):
    """A net with its loss, as one exports it to train elsewhere."""

    def __init__(self, criterion):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.criterion = criterion

    def forward(self, logits, targets):
        return self.criterion(self.scale * logits, targets)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_exported_saved_and_loaded(strict, backend, device):
    model = Scored(CombinedSegmentationLoss(backend=backend)).to(device)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    example = draw((2, 1, 6, 7), device)
    program = torch.export.export(model, example, dynamic_shapes=(sizes, sizes), strict=strict)
    operators = [str(node.target) for node in program.graph.nodes]
    assert ("fastseg_losses.loss_forward.default" in operators) == (backend == "triton")
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = draw((3, 1, 5, 9), device)
    loss, expected = loaded(*other), model(*other)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loaded.scale.grad, model.scale.grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode, backend, device):
    criterion = DiceLoss(backend=backend)
    graph = make_fx(lambda x, t: criterion(x, t), tracing_mode=mode)(*draw((2, 1, 6, 7), device))
    other = draw((2, 1, 6, 7), device)
    torch.testing.assert_close(graph(*other), criterion(*other))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes become constants
@pytest.mark.parametrize("backend", BACKENDS)
def test_jit_trace_keeps_the_launch(backend, device):
    """Without the operator the graph would hold the output's allocation and nothing else."""
    criterion = DiceLoss(backend=backend)
    traced = torch.jit.trace(criterion, draw((2, 1, 6, 7), device), check_trace=False)
    assert ("fastseg_losses::loss_forward" in str(traced.graph)) == (backend == "triton")
    logits, targets = draw((2, 1, 6, 7), device)
    torch.testing.assert_close(traced(logits, targets), criterion(logits, targets))
    assert torch.equal(gradient(traced, logits, targets), gradient(criterion, logits, targets))


def test_jit_script_says_what_can():
    for module in (DiceLoss(), nn.Sequential(nn.Conv2d(1, 1, 1), DiceLoss())):
        with pytest.raises(NotImplementedError, match=r"^DiceLoss: torch\.jit\.script cannot"):
            torch.jit.script(module)


# ---- transforms of torch.func, forward mode


def per_sample(criterion, transform):
    """`transform` of the loss of one sample, for a batch."""
    return torch.func.vmap(transform(lambda x, t: criterion(x[None], t[None])))


TRANSFORMS = {
    "grad": lambda c, x, t: torch.func.grad(c)(x, t),
    "jacrev": lambda c, x, t: torch.func.jacrev(c)(x, t),
    "jacfwd": lambda c, x, t: torch.func.jacfwd(c)(x, t),
    "vjp": lambda c, x, t: torch.func.vjp(lambda v: c(v, t), x)[1](torch.ones_like(c(x, t)))[0],
    "a sample's grad": lambda c, x, t: per_sample(c, torch.func.grad)(x, t) / len(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_is_right_on_the_torch_backend(name, device):
    logits, targets = draw((2, 1, 5, 6), device)
    criterion = DiceLoss(backend="torch")
    found = TRANSFORMS[name](criterion, logits, targets)
    # a tangent times a Python number is float64 in PyTorch's forward mode
    torch.testing.assert_close(found.float(), gradient(criterion, logits, targets))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_is_refused_by_the_kernels(name, device):
    logits, targets = draw((2, 1, 5, 6), device)
    criterion = DiceLoss(backend="triton")
    criterion(logits, targets)  # a plan that is kept must not be taken unseen
    with pytest.raises(RuntimeError, match=r"torch\.func .*; use backend='torch'$"):
        TRANSFORMS[name](criterion, logits, targets)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_what_a_transform_leaves_behind_is_refused(transform, device):
    """A wrapper without memory, in its transform or after it: `_Step` leaves it as it is."""
    left = []
    transform(lambda x: left.append(x) or x.sum())(torch.randn(2, 1, 5, 6, device=device))
    with pytest.raises(RuntimeError, match="storage"):
        DiceLoss(backend="triton")(left[0].requires_grad_(), draw((2, 1, 5, 6), device)[1])


def test_vmap_of_losses(device):
    logits, targets = draw((3, 1, 5, 6), device)
    plain = per_sample(DiceLoss(backend="torch"), lambda f: f)(logits, targets)
    expected = DiceLoss(reduction="none", backend="torch")(logits, targets)[:, 0]
    torch.testing.assert_close(plain, expected)
    with pytest.raises(RuntimeError, match="use backend='torch'$"):
        per_sample(DiceLoss(backend="triton"), lambda f: f)(logits, targets)


def test_forward_mode(device):
    """The kernels know no tangents: without an error the derivative would be none, in silence."""
    logits, targets = draw((2, 1, 5, 6), device)
    tangent = torch.randn_like(logits)
    plain, fused = DiceLoss(backend="torch"), DiceLoss(backend="triton")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, tangent)
        found = forward_ad.unpack_dual(plain(dual, targets)).tangent
        with pytest.raises(RuntimeError, match="forward-mode derivatives; use backend='torch'$"):
            fused(dual, targets)
        torch.testing.assert_close(fused(logits, targets), plain(logits, targets))
    expected = (gradient(plain, logits, targets) * tangent).sum()
    torch.testing.assert_close(found.float(), expected)


# ---- tensors without values, modes that watch


def low_resolution(logits, targets, backend):
    masks = targets.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return DiceLoss(upsample="bilinear", backend=backend)(logits, masks)


CALLS = {
    "mean": lambda x, t, b: CombinedSegmentationLoss(backend=b)(x, t),
    "none": lambda x, t, b: DiceLoss(mode="multilabel", reduction="none", backend=b)(x, t),
    "stats": lambda x, t, b: DiceLoss(backend=b)(x, t, return_stats=True)[1].tensor,
    "multiclass": lambda x, t, b: DiceLoss(mode="multiclass", backend=b)(x.repeat(1, 3, 1, 1), t),
    "sums": lambda x, t, b: region_sums(x, t, backend=b).I,
    "low resolution": low_resolution,
    "mask": lambda x, t, b: predict_mask(x, (9, 9), mode="binary", backend=b),
    "generalised": lambda x, t, b: GeneralizedDiceLoss(sigmoid=True)(x, t),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors_have_the_shapes_of_real_ones(name, backend, device):
    """Their address is 0: a kernel on a GPU would read and write there."""
    logits, targets = draw((2, 1, 6, 7), device)
    targets = targets.long()
    real = CALLS[name](logits, targets, "torch")
    mode = FakeTensorMode()
    x, t = mode.from_tensor(logits).requires_grad_(), mode.from_tensor(targets)
    with mode:
        fake = CALLS[name](x, t, backend)
        if fake.requires_grad:
            fake.sum().backward()
            assert (x.grad.shape, x.grad.device) == (logits.shape, logits.device)
    assert type(fake) is type(x)
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)


def test_meta_tensors(device):
    logits, targets = draw((2, 3, 6, 7), "meta")
    leaf = logits.requires_grad_()
    loss = DiceLoss(mode="multilabel", reduction="none")(leaf, targets)
    loss.sum().backward()
    assert loss.is_meta and loss.shape == (2, 3) and leaf.grad.shape == leaf.shape
    with pytest.raises(RuntimeError, match="^backend='triton': .*use backend='torch' or 'auto'$"):
        DiceLoss(mode="multilabel", backend="triton")(leaf, targets)


def test_a_dispatch_mode_sees_the_operator(device):
    """What counts or records operators (FlopCounterMode, debuggers) finds the loss among them."""

    class Record(TorchDispatchMode):
        names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    logits, targets = draw((2, 1, 5, 6), device)
    criterion = DiceLoss(backend="triton")
    expected = gradient(criterion, logits, targets)
    with Record():
        found = gradient(criterion, logits, targets)
    torch.testing.assert_close(found, expected)
    assert {f"fastseg_losses.loss_{way}.default" for way in ("forward", "backward")} <= {
        *Record.names
    }
