"""Sums over 10^9 pixels of one group, which are added up in float32: their error, measured.

The truth is float64, in slices: first what every slice adds to the sums, then, with the
derivatives of the loss with respect to the sums, each slice's gradient. Offsets past 2^31 elements
are tested in test_gpu.py (multilabel, whose kernels are those of binary mode),
test_gpu_multiclass.py and test_gpu_upsampled.py, and here once more: two classes of 2^30 pixels.
"""

import pytest
import torch
import torch.nn.functional as F
from drawn_check import TOLERANCE, Errors, Record

from fastseg_losses import CombinedSegmentationLoss, region_sums

PIXELS, SLICE = 1 << 30, 1 << 25
# float16 is left out: the slope of a mean over 10^9 pixels is below its smallest number, 6e-8
DTYPES = [torch.float32, torch.bfloat16]
WEIGHTS = {"bce": 0.4, "dice": 0.4, "focal": 0.2, "iou": 0.3}


def fill(C: int, pixels: int, slice_: int, dtype, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, C, P) whose mean wanders from slice to slice, labels (1, P) below max(2, C)."""
    logits = torch.empty(1, C, pixels, dtype=dtype, device=device)
    labels = torch.empty(1, pixels, dtype=torch.uint8, device=device)
    for k, start in enumerate(range(0, pixels, slice_)):
        part = logits[..., start : start + slice_]
        part.copy_(torch.randn(part.shape, device=device) * 2 + (k % 5 - 3))
        # the first class most often
        label = torch.rand(part.shape[2], device=device) ** 4 * max(2, C)
        labels[:, start : start + slice_] = label.to(torch.uint8)
    return logits, labels


def parts(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What pixels add to the sums: I, P, T of each class, cross-entropy, focal; x is (C, P)."""
    C = len(x)
    if C == 1:
        t = labels.to(x)
        p = torch.sigmoid(x)
        nll = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        missed = t * torch.sigmoid(-x) + (1 - t) * p
        focal = (0.25 * t + 0.75 * (1 - t)) * missed**2 * nll
    else:
        t = F.one_hot(labels[0].long(), C).T.to(x)
        log_p = torch.log_softmax(x, 0)
        p, nll = log_p.exp(), -(t * log_p).sum(0)
        focal = torch.expm1(-nll) ** 2 * nll
    points = torch.stack([nll.sum(), focal.sum()])
    return torch.cat([(p * t).sum(1), p.sum(1), t.sum(1), points])


def loss_of(sums: torch.Tensor, C: int, pixels: int) -> torch.Tensor:
    """The combined loss of the sums."""
    hit, predicted, drawn = sums[: 3 * C].reshape(3, C)
    dice = 1 - (2 * hit + 1) / (predicted + drawn + 1)
    iou = 1 - (hit + 1) / (predicted + drawn - hit + 1)
    regions = WEIGHTS["dice"] * dice.mean() + WEIGHTS["iou"] * iou.mean()
    return (WEIGHTS["bce"] * sums[-2] + WEIGHTS["focal"] * sums[-1]) / pixels + regions


def slices(logits: torch.Tensor, labels: torch.Tensor, slice_: int):
    """(where, logits in float64, labels) of each slice."""
    for start in range(0, labels.shape[1], slice_):
        at = slice(start, start + slice_)
        yield at, logits[0, :, at].detach().double(), labels[:, at]


def check(C: int, pixels: int, slice_: int, dtype, device, backend: str) -> dict[str, Errors]:
    """Errors of the loss, of the sums and of the gradient, within the tolerance."""
    mode = "binary" if C == 1 else "multiclass"
    logits, labels = fill(C, pixels, slice_, dtype, device)
    criterion = CombinedSegmentationLoss(
        mode=mode, backend=backend, **{f"{name}_weight": w for name, w in WEIGHTS.items()}
    )
    targets = labels[:, None] if C == 1 else labels
    loss = criterion(logits.requires_grad_(), targets)
    (slopes,) = torch.autograd.grad(loss, logits)
    found = region_sums(logits.detach(), targets, mode=mode, backend=backend)

    totals = sum(parts(x, t) for _, x, t in slices(logits, labels, slice_)).requires_grad_()
    exact = loss_of(totals, C, pixels)
    (coefficients,) = torch.autograd.grad(exact, totals)
    exact, totals = exact.detach(), totals.detach()
    wrong = rounded = scale = 0.0
    for at, x, t in slices(logits, labels, slice_):
        x.requires_grad_()
        (slope,) = torch.autograd.grad((coefficients * parts(x, t)).sum(), x)
        scale += float(slope.square().sum())
        wrong += float((slopes[0, :, at].double() - slope).square().sum())
        rounded += float((slope.to(dtype).double() - slope).square().sum())
    sums = torch.stack(found[:3]).reshape(-1).double()
    errors = {
        "loss": float((loss.detach().double() - exact).abs() / exact),
        "sums": float(((sums - totals[: 3 * C]).abs() / totals[: 3 * C]).max()),
        "gradient": (wrong / scale) ** 0.5,
    }
    assert found.V.eq(pixels).all()
    peer = {"gradient": (rounded / scale) ** 0.5}  # what storing it in its dtype costs at least
    tolerance = TOLERANCE[torch.float32]
    return {
        what: Errors(error, peer.get(what, 0.0), error / (peer.get(what, 0.0) + tolerance))
        for what, error in errors.items()
    }


@pytest.mark.gpu
@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("C", [1, 2])
def test_a_group_of_a_billion_pixels(C, dtype, cuda, record_property):
    torch.cuda.empty_cache()
    errors = check(C, PIXELS, SLICE, dtype, cuda, "triton")
    record = Record()
    for what, error in errors.items():
        key = (str(dtype).removeprefix("torch."), "binary" if C == 1 else "multiclass", what)
        record.note(key, {"cases": 1, **error._asdict()})
        record_property(what, error.ours)
    record.write("10^9 pixels")
    assert all(error.ratio <= 1 for error in errors.values()), errors


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("C", [1, 2, 3])
def test_slices_add_up_to_the_whole(C, dtype):
    """The measure itself, on what one slice could hold."""
    errors = check(C, 5000, 700, dtype, torch.device("cpu"), "torch")
    assert all(error.ratio <= 1 for error in errors.values()), errors
    if dtype == torch.float64:
        assert all(error.ours < 1e-12 for error in errors.values()), errors


def test_a_pixel_that_counts_twice_is_found(monkeypatch):
    once = parts

    def twice(x, labels):
        return once(torch.cat([x, x[:, :1]], 1), torch.cat([labels, labels[:, :1]], 1))

    monkeypatch.setitem(globals(), "parts", twice)
    errors = check(1, 5000, 5000, torch.float32, torch.device("cpu"), "torch")
    assert all(error.ratio > 1 for error in errors.values()), errors
