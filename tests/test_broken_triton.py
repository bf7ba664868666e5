"""Triton that is missing, too old or broken; a kernel cache that cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The installed Triton under another version: torch itself needs more of it than a name.
RENAMED = """
import pathlib, sys
sys.path.remove(str(pathlib.Path(__file__).parents[1]))
del sys.modules["triton"]
import triton
triton.__version__ = {!r}
"""

# What `import triton` finds, and what our messages must say of it.
TRITONS = {
    "missing": ("raise ModuleNotFoundError(\"No module named 'triton'\")", "No module named"),
    "broken": ("raise ImportError('libtriton.so: undefined symbol')", "undefined symbol"),
    "old": (RENAMED.format("3.1.0"), "Triton 3.1.0 is older than 3.4"),
}

# A CPU tensor that says it is on a CUDA device takes the same way as far as Triton's import.
FALLS_BACK = """
import warnings
import torch

class Pretended(torch.Tensor):
    is_cuda = True

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, region_sums
from fastseg_losses.functional import predict_mask

here = torch.cuda.is_available()
logits = torch.randn(2, 1, 8, 8, device="cuda" if here else "cpu")
targets = (logits > 1).to(torch.uint8)
given = logits if here else logits.as_subclass(Pretended)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for loss in (CombinedSegmentationLoss, DiceLoss, DiceLoss):
        x, y = given.clone().requires_grad_(), logits.clone().requires_grad_()
        value, plain = loss()(x, targets), loss(backend="torch")(y, targets)
        value.backward(), plain.backward()
        assert float(value) == float(plain) and torch.equal(x.grad, y.grad)
    region_sums(given, targets)
    predict_mask(given, (16, 16), mode="binary")
ours = [w for w in seen if "fastseg_losses" in str(w.message)]
assert len(ours) == 1, [str(w.message) for w in seen]
print("warned:", ours[0].category.__name__, ours[0].message)
try:
    DiceLoss(backend="triton")(logits, targets)
except RuntimeError as error:
    print("refused:", error)
"""


def python(code, path="", **variables):
    """Run code in a process of its own that sees this tree, `path` before it."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    places = os.pathsep.join(filter(None, [str(path), str(ROOT)]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, "PYTHONPATH": places, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", TRITONS)
def test_auto_falls_back_with_one_warning_and_triton_names_the_cause(kind, device, tmp_path):
    source, cause = TRITONS[kind]
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(source)
    ran = python(FALLS_BACK, tmp_path)
    assert ran.returncode == 0, ran.stderr
    warned, refused = ran.stdout.splitlines()
    assert warned.startswith("warned: RuntimeWarning fastseg_losses falls back to plain PyTorch: ")
    assert refused.startswith("refused: backend='triton': ") and "use backend='torch'" in refused
    assert cause in warned and cause in refused


def test_a_triton_that_breaks_torch_itself_is_named(tmp_path):
    (tmp_path / "triton.py").write_text("__version__ = '3.1.0'")
    ran = python("from fastseg_losses import DiceLoss", tmp_path)
    assert ran.returncode == 1
    assert "module 'triton' has no attribute 'language'" in ran.stderr.splitlines()[-1]


# Compiles for a GPU that need not be there: a loss comes as far as Triton's cache.
COMPILES = """
import resource, signal, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from fastseg_losses import DiceLoss, backends

class Sm90:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

if not torch.cuda.is_available():
    driver.set_active(Sm90())
    backends.find_trouble = lambda *_: ""
driver.active.get_current_target()  # what Triton builds for it goes into the cache too
logits = torch.randn(2, 1, 8, 8, device="cuda" if torch.cuda.is_available() else "cpu")
first = triton.knobs.cache.dir
for folder, limit in ("/dev/null/cache", -1), (first, 1000), (first, 1000):
    triton.knobs.cache.dir = folder
    # of a file's size, by the system: writing more is an error, as on a full disk
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        DiceLoss(backend="triton")(logits, logits > 1)
    except OSError as error:
        print(error)
"""


def test_a_kernel_cache_that_cannot_be_written_is_named(device, tmp_path):
    ran = python(COMPILES, TRITON_CACHE_DIR=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    no_folder, *full = ran.stdout.splitlines()
    assert "keep kernels in /dev/null/cache ([Errno 20] Not a directory: '/dev" in no_folder
    assert len(full) == 2  # each time anew
    for line in full:
        assert f"keep kernels in {tmp_path} ([Errno 27] File too large" in line
        assert line.endswith("TRITON_CACHE_DIR names another folder")


# On a GPU: the same process goes on when there is room, and a warm cache is never written.
FULL_THEN_NOT = """
import resource, signal
import torch
from fastseg_losses import DiceLoss
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def step(backend):
    x = logits.clone().requires_grad_()
    loss = DiceLoss(backend=backend)(x, targets)
    loss.backward()
    return float(loss), x.grad

logits = torch.randn(2, 1, 64, 64, device="cuda")
targets = (logits > 1).to(torch.uint8)
if WARM:
    limit(0)
else:
    step("triton")
    limit(1000)
    logits = logits.half()  # other kernels
    for backend in ("auto", "triton"):
        try:
            step(backend)
            raise SystemExit("compiled without room")
        except OSError as error:
            assert "TRITON_CACHE_DIR" in str(error), error
    limit(resource.RLIM_INFINITY)
ours, plain = step("triton"), step("torch")
assert abs(ours[0] - plain[0]) < 1e-5
torch.testing.assert_close(ours[1], plain[1], rtol=2e-3, atol=1e-7)
if not WARM:
    logits = logits.float()
    step("triton")
"""


@pytest.mark.gpu
def test_a_full_cache_is_no_lasting_harm_and_a_warm_one_needs_no_room(tmp_path):
    for warm in (False, True):
        code = f"WARM = {warm}\n{FULL_THEN_NOT}"
        ran = python(code, TRITON_CACHE_DIR=str(tmp_path))
        assert ran.returncode == 0, ran.stdout + ran.stderr


NO_DRIVER = """
import warnings
import torch
from fastseg_losses import DiceLoss
logits = torch.randn(2, 1, 64, 64, device="cuda")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    losses = [float(DiceLoss(backend=b)(logits, logits > 1)) for b in ("auto", "auto", "torch")]
assert len(set(losses)) == 1
print(*[w.message for w in seen])
try:
    DiceLoss(backend="triton")(logits, logits > 1)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({"TRITON_CACHE_DIR": "/dev/null/cache"}, "TRITON_CACHE_DIR names another folder"),
        ({"CC": "/no/such/compiler"}, "No such file or directory: '/no/such/compiler'"),
    ],
    ids=["cache", "compiler"],
)
def test_a_driver_that_cannot_be_built_makes_auto_fall_back(variables, cause, tmp_path):
    ran = python(NO_DRIVER, **{"TRITON_CACHE_DIR": str(tmp_path), **variables})
    assert ran.returncode == 0, ran.stderr
    warned, refused = ran.stdout.splitlines()
    for line in (warned, refused):
        assert "Triton's driver cannot be set up" in line and cause in line
