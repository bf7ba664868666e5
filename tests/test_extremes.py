"""Logits of +-1e4, +-inf and NaN: every loss, mode and dtype.

What is large is computed as accurately as anything else; what is not finite is counted in the
statistics and makes the loss non-finite where PyTorch's is, that of its own group or sample alone;
what does not count may hold anything.
"""

import math

import pytest
import torch
from losses_table import ALL, ALL_MULTICLASS, Row, alphas
from plain_losses import plain_loss

MODES = ("binary", "multilabel", "multiclass")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = ["torch", pytest.param("triton", marks=pytest.mark.gpu)]  # interpreted: tests/test_ops*
CLASSES = 4

CASES = [(mode, row) for mode in MODES[:2] for row in ALL]
CASES += [("multiclass", alphas(row, CLASSES)) for row in ALL_MULTICLASS]
every_loss = pytest.mark.parametrize(
    ("mode", "row"), CASES, ids=[f"{mode}-{row.label}" for mode, row in CASES]
)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def place(backend):
    return torch.device("cpu" if backend == "torch" else "cuda")


def draw(mode: str, dtype: torch.dtype, place: torch.device):
    """Logits (3, C, 9, 11) and targets; every class is somewhere in every sample."""
    C = 1 if mode == "binary" else CLASSES
    logits = (2 * torch.randn(3, C, 9, 11)).to(dtype)
    if mode == "multiclass":
        targets = torch.arange(3 * 99).reshape(3, 9, 11) % CLASSES
    else:
        targets = (torch.rand(3, C, 9, 11) < 0.4).to(torch.int64)
    return logits.to(place), targets.to(place)


def plain(row: Row, mode: str, reduction: str, x, targets, valid=None):
    shared = {"mode": mode, "reduction": reduction}
    name = "ce" if mode == "multiclass" and row.name == "bce" else row.name
    return plain_loss(name, row.arguments, shared, x, targets, valid)


def build(row: Row, mode: str, backend: str, place: torch.device, **shared):
    return row.build(**{"mode": mode, **shared}, backend=backend).to(place)


def call(criterion, x, targets, valid=None):
    x = x.detach().requires_grad_()
    loss, stats = criterion(x, targets, valid, return_stats=True)
    (slope,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    return loss.detach(), slope, stats


@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_are_like_any_other(mode, row, dtype, backend, place):
    """One sample of nothing else, one with a few, one without: each as accurate as in float64."""
    criterion = build(row, mode, backend, place, reduction="none")
    digits = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for value in (1e4, -1e4):
        logits, targets = draw(mode, dtype, place)
        logits[0], logits[1, :, 2] = value, value
        logits[0, 0, 0] = -value  # in multiclass mode all classes alike but there
        loss, slope, stats = call(criterion, logits, targets)
        x = logits.double().requires_grad_()
        exact = plain(row, mode, "none", x, targets)
        (exact_slope,) = torch.autograd.grad(exact, x, torch.ones_like(exact))
        assert stats.nonfinite == 0
        torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-5, atol=1e-5)
        scale = float(exact_slope.abs().amax())
        torch.testing.assert_close(slope.double(), exact_slope, rtol=digits, atol=digits * scale)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_spoils_its_own_sample_alone(mode, row, dtype, backend, place):
    logits, targets = draw(mode, dtype, place)
    logits[1, 0, 3, 4] = math.nan
    criterion = build(row, mode, backend, place, reduction="none")
    loss, slope, stats = call(criterion, logits, targets)
    clean, clean_slope, _ = call(criterion, logits.nan_to_num(), targets)
    assert stats.nonfinite == 1
    assert loss[1].isnan().any() and slope[1, 0, 3, 4].isnan()
    for other in (0, 2):
        assert torch.equal(loss[other], clean[other])
        assert torch.equal(slope[other], clean_slope[other])
    if mode == "multilabel":  # and its own class
        assert torch.equal(loss[1, 1:], clean[1, 1:])
        assert torch.equal(slope[1, 1:], clean_slope[1, 1:])


@every_loss
def test_nan_is_seen_in_a_mean_and_a_sum(mode, row, backend, place):
    logits, targets = draw(mode, torch.float32, place)
    logits[1, 0, 3, 4] = math.nan
    for reduction in ("mean", "sum"):
        criterion = build(row, mode, backend, place, reduction=reduction)
        loss, slope, _ = call(criterion, logits, targets)
        assert loss.isnan() and slope[1, 0, 3, 4].isnan()


INFINITE = [(value, right) for value in (math.inf, -math.inf) for right in (True, False)]


@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_logits(mode, row, dtype, backend, place):
    """The loss is finite where PyTorch's is, and then the same; other samples are untouched."""
    criterion = build(row, mode, backend, place, reduction="none")
    for value, right in INFINITE:
        logits, targets = draw(mode, dtype, place)
        logits[1, 0, 3, 4] = value
        drawn = (value > 0) == right
        if mode == "multiclass":
            targets[1, 3, 4] = 0 if drawn else 1
        else:
            targets[1, 0, 3, 4] = int(drawn)
        loss, slope, stats = call(criterion, logits, targets)
        exact = plain(row, mode, "none", logits.double(), targets)
        seen = exact.isfinite()
        assert stats.nonfinite == 1
        assert torch.equal(loss.isfinite(), seen)
        assert slope[1].isfinite().all() or not seen[1].all()
        torch.testing.assert_close(loss[seen].double(), exact[seen], rtol=1e-5, atol=1e-6)
        clean_loss, clean_slope, _ = call(criterion, logits.nan_to_num(0.0, 0.0, 0.0), targets)
        for other in (0, 2):
            assert torch.equal(loss[other], clean_loss[other])
            assert torch.equal(slope[other], clean_slope[other])


@every_loss
@pytest.mark.parametrize("kind", ["sample", "pixel", "ignore_index"])
def test_what_does_not_count_may_hold_anything(mode, row, kind, backend, place):
    logits, targets = draw(mode, torch.float32, place)
    valid, shared = None, {}
    if kind == "sample":
        dead = torch.zeros(3, 1, 9, 11, dtype=torch.bool, device=place)
        dead[1] = True
        valid = ~dead[:, 0, 0, 0]
    else:
        dead = torch.rand(3, 1, 9, 11, device=place) < 0.4
        if kind == "pixel":
            valid = ~dead
        else:
            shared["ignore_index"] = -100
            targets = torch.where(dead if targets.dim() == 4 else dead[:, 0], -100, targets)
    dead = dead.expand_as(logits)
    criterion = build(row, mode, backend, place, **shared)
    loss, slope, stats = call(criterion, logits, targets, valid)
    assert loss.isfinite() and (slope[dead] == 0).all()
    for value in (math.nan, math.inf, -math.inf, 1e4):
        again = call(criterion, logits.masked_fill(dead, value), targets, valid)
        assert torch.equal(again[0], loss) and torch.equal(again[1], slope)
        assert torch.equal(again[2].tensor, stats.tensor)
        assert again[2].nonfinite == 0


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_nan_shows_through_a_logarithm_in_the_kernels(mode, device):
    """Interpreted too: a maximum of NaN and a floor is the floor, whose loss is a finite 16.1."""
    logits, targets = draw(mode, torch.float32, device)
    logits[1, 0, 3, 4] = math.nan
    row = Row("dice", {"log_loss": True}, "log-dice")
    assert build(row, mode, "triton", device)(logits, targets).isnan()
