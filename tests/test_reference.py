"""The specification, plain PyTorch in float64, against arithmetic, identities and peers."""

import dataclasses
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from losses_table import ALL, ids
from oracle import run
from peer_packages import smp_losses
from torch.testing import assert_close

from fastseg_losses import (
    BCELoss,
    CombinedSegmentationLoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    TverskyLoss,
    get_loss_function,
    reference,
)
from fastseg_losses.spec import PointTerm, RegionTerm

REDUCTIONS = ("mean", "sum", "none")
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
by_row = pytest.mark.parametrize("row", ALL, ids=ids(ALL))


def draw(shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype) * 3, (torch.rand(shape) < 0.4).to(torch.uint8)


def allowed(row, reduction, batch) -> bool:
    """Combined, "none" over the batch is a ValueError: tests/test_losses.py."""
    return not (row.name == "combined" and reduction == "none" and batch)


# ---- terms together


@pytest.mark.parametrize("kind", ["product", "likelihood", "margin"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_terms_that_share_a_cross_entropy_are_what_each_is_alone(kind, smoothing, weighted):
    """A term with a smoothed target, or a weight, has another cross-entropy than the one shared."""
    x = torch.randn(2, 3, 50, dtype=torch.float64) * 3
    t = torch.rand_like(x)  # soft: the kinds of focal loss differ
    pos_weight = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64) if weighted else None
    terms = (
        PointTerm("bce", label_smoothing=smoothing),
        PointTerm("focal", alpha=0.3, gamma=1.5, miss=kind),
    )
    together = reference.point_values(terms, x, t, pos_weight)
    w = 1.0 if pos_weight is None else pos_weight[:, None]
    smooth = t * (1 - smoothing) + smoothing / 2
    p = torch.sigmoid(x)
    bce = -(w * smooth * torch.log(p) + (1 - smooth) * torch.log(1 - p))
    plain = -(t * torch.log(p) + (1 - t) * torch.log(1 - p))
    miss = {
        "product": p + t - 2 * p * t,
        "likelihood": 1 - torch.exp(-plain),
        "margin": torch.sigmoid(x * (1 - 2 * t)),
    }[kind]
    focal = (0.3 * t + 0.7 * (1 - t)) * miss**1.5 * plain
    for value, term, expected in zip(together, terms, (bce, focal), strict=True):
        assert_close(value, expected, rtol=1e-9, atol=1e-12)
        assert_close(reference.point_value(term, x, t, pos_weight), value, rtol=1e-12, atol=0.0)


# ---- what other libraries' variants ask for (see compat): by hand, for one group

SUMS = [torch.tensor([value], dtype=torch.float64) for value in (2.0, 5.0, 3.0)]  # I, P, T


def region(**fields):
    term = {"alpha": 0.5, "beta": 0.5, "smooth": 0.0} | fields
    return reference.region_value(RegionTerm("dice", 1.0, **term), *SUMS).item()


def test_a_denominator_with_a_smooth_of_its_own():
    assert region() == pytest.approx(1 - 2 / 4)
    assert region(smooth=1.0) == pytest.approx(1 - 3 / 5)
    assert region(smooth=1.0, smooth_dr=2.0) == pytest.approx(1 - 3 / 6)
    assert region(smooth=1.0, smooth_dr=0.0) == pytest.approx(1 - 3 / 4)


def test_a_least_denominator():
    assert region(smooth=1.0, floor=0.1) == pytest.approx(1 - 3 / 5)
    assert region(smooth=1.0, floor=0.5) == pytest.approx(1 - 3 / 5)
    assert region(smooth=1.0, floor=8.0) == pytest.approx(1 - 3 / 8)
    zero = torch.zeros(1, dtype=torch.float64)
    for floor, expected in ((0.0, 0.0), (1e-3, 1.0)):  # 0 / 0 is a score of 1, or 0 over the least
        term = RegionTerm("dice", 1.0, 0.5, 0.5, 0.0, floor=floor)
        assert reference.region_value(term, zero, zero, zero).item() == expected


def test_a_least_score_under_a_logarithm():
    assert region(log_loss=True) == pytest.approx(-math.log(0.5))
    assert region(log_loss=True, floor=0.25) == pytest.approx(-math.log(0.5))
    assert region(log_loss=True, floor=0.75) == pytest.approx(-math.log(0.75))
    assert region(log_loss=True, gamma=2.0) == pytest.approx(math.log(0.5) ** 2)
    assert region(gamma=2.0) == pytest.approx(0.25) and region(gamma=0.5) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("absent", "counted"),
    [
        ("keep", [False, True, True]),
        ("skip", [False, False, True]),
        ("zero", [True, True, True]),
        ("all", [True, True, True]),
    ],
)
def test_which_groups_count(absent, counted):
    V, T = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0])
    groups = reference.counted_groups(absent, V, T)
    assert groups.dtype == torch.bool and groups.tolist() == counted


@pytest.mark.parametrize("overlap", ["product", "minimum"])
@pytest.mark.parametrize("squared", [False, True])
def test_what_the_region_sums_add_up(overlap, squared):
    spec = dataclasses.replace(DiceLoss().spec, overlap=overlap, squared=squared)
    p = torch.tensor([0.0, 0.25, 0.75, 1.0])
    t = torch.tensor([0.5, 0.5, 0.5, 0.5])
    both, predicted, target = reference.region_parts(spec, p, t)
    expected = {"product": [0.0, 0.125, 0.375, 0.5], "minimum": [0.0, 0.25, 0.5, 0.5]}[overlap]
    assert both.tolist() == expected
    assert predicted.tolist() == ([0.0, 0.0625, 0.5625, 1.0] if squared else p.tolist())
    assert target.tolist() == ([0.25] * 4 if squared else t.tolist())


# ---- gradients


def masked(targets):
    """Every way to ignore pixels, as (targets, valid); the last sample is never valid."""
    N, _, *spatial = targets.shape
    samples = torch.arange(N) < N - 1
    pixels = (torch.rand(N, *spatial) < 0.6) & samples.view(N, 1, 1)
    live = (torch.rand(targets.shape) < 0.6) & samples.view(N, 1, 1, 1)
    return (targets, None), (targets, samples), (targets, pixels), (targets.where(live, -1), None)


@by_reduction
@pytest.mark.parametrize(("mode", "C"), [("binary", 1), ("multilabel", 2)])
@by_row
def test_gradient_is_the_slope(row, mode, C, reduction):
    shape = (3, C, 2, 3)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    targets = torch.where(torch.rand(shape) < 0.5, torch.rand(shape).round(), torch.rand(shape))
    targets[0, 0] = 0  # a class absent from one group
    shared = {"mode": mode, "reduction": reduction, "ignore_index": -1, "backend": "torch"}
    for batch, absent in product((False, True), ("keep", "skip")):
        if not allowed(row, reduction, batch):
            continue
        criterion = row.build(batch=batch, absent=absent, class_weights=[0.5, 2.0][:C], **shared)
        for t, valid in masked(targets.double()):
            torch.autograd.gradcheck(
                lambda x, c=criterion, t=t, v=valid: c(x, t, v),
                logits,
                **{"atol": 1e-7, "rtol": 1e-5, "fast_mode": True, "check_undefined_grad": False},
            )


# ---- closed forms: p = 3/4, 1/4, 1/2, 3/4 against t = 1, 0, 1, 0

log = math.log
LOGITS = torch.tensor([log(3), -log(3), 0.0, log(3)], dtype=torch.float64).view(1, 1, 4)
TARGETS = torch.tensor([1, 0, 1, 0]).view(1, 1, 4)
I, P, T = 0.75 + 0.5, 0.75 + 0.25 + 0.5 + 0.75, 2  # noqa: E741
FP, FN = P - I, T - I
TVERSKY = (I + 1) / (I + 0.3 * FP + 0.7 * FN + 1)
# Pixel by pixel: -log p_t, -log(1 - p_t), 1 - p_t, and alpha_t at alpha = 1/4.
BCE = [log(4 / 3), log(4 / 3), log(2), log(4)]
OTHER = [log(4), log(4), log(2), log(4 / 3)]
MISS = [0.25, 0.25, 0.5, 0.75]
ALPHA = [0.25, 0.75, 0.25, 0.75]


def focal(alphas, gamma) -> float:
    return sum(a * m**gamma * b for a, m, b in zip(alphas, MISS, BCE, strict=True)) / 4


CLOSED_FORMS = [
    ("bce", {}, sum(BCE) / 4),
    ("bce", {"pos_weight": 3.0}, (3 * log(4 / 3) + log(4 / 3) + 3 * log(2) + log(4)) / 4),
    ("bce", {"label_smoothing": 0.2}, (0.9 * sum(BCE) + 0.1 * sum(OTHER)) / 4),
    ("dice", {}, 1 - (2 * I + 1) / (P + T + 1)),
    ("dice", {"smooth": 0.0}, 1 - 2 * I / (P + T)),
    ("dice", {"log_loss": True}, -log((2 * I + 1) / (P + T + 1))),
    ("iou", {}, 1 - (I + 1) / (P + T - I + 1)),
    ("iou", {"smooth": 0.0}, 1 - I / (P + T - I)),
    ("iou", {"log_loss": True, "smooth": 2.0}, -log((I + 2) / (P + T - I + 2))),
    ("tversky", {}, 1 - TVERSKY),
    ("tversky", {"smooth": 0.0, "alpha": 0.9, "beta": 0.2}, 1 - I / (I + 0.9 * FP + 0.2 * FN)),
    ("tversky", {"gamma": 0.75}, (1 - TVERSKY) ** 0.75),
    ("tversky", {"log_loss": True}, -log(TVERSKY)),
    ("tversky", {"log_loss": True, "gamma": 4 / 3}, (-log(TVERSKY)) ** (4 / 3)),
    ("focal", {}, focal(ALPHA, 2)),
    ("focal", {"gamma": 0.5}, focal(ALPHA, 0.5)),
    ("focal", {"alpha": None, "gamma": 3.0}, focal([1] * 4, 3)),
    ("focal", {"alpha": 1.0, "gamma": 1.0}, focal([1, 0, 1, 0], 1)),
    ("combined", {"focal_weight": 0.0}, 0.4 * sum(BCE) / 4 + 0.4 * (1 - (2 * I + 1) / (P + T + 1))),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), CLOSED_FORMS, ids=str)
def test_closed_forms(name, arguments, expected):
    loss = get_loss_function(name, backend="torch", **arguments)(LOGITS, TARGETS)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_extremes_of_the_region_losses():
    """p = 0 or 1 exactly; without smoothing an empty group scores 1, a false alarm on it 0."""
    one, zero = torch.full((1, 1, 4), 1e4), torch.full((1, 1, 4), -1e4)
    filled, empty = torch.ones(1, 1, 4), torch.zeros(1, 1, 4)
    for name, smooth in product(("dice", "iou", "tversky"), (0.0, 1.0)):
        criterion = get_loss_function(name, smooth=smooth, backend="torch")
        assert criterion(one, filled) == criterion(zero, empty) == 0
        in_log = get_loss_function(name, smooth=0.0, log_loss=True, backend="torch")
        assert in_log(one, filled) == in_log(zero, empty) == 0
        assert float(in_log(zero, filled)) == pytest.approx(-log(1e-7))  # floored
    dice = DiceLoss(backend="torch")
    assert float(dice(one, empty)) == pytest.approx(1 - 1 / 5)
    assert float(dice(zero, filled)) == pytest.approx(1 - 1 / 5)
    assert DiceLoss(smooth=0.0, backend="torch")(one, empty) == 1


@pytest.mark.parametrize("pos_weight", [None, 2.5, [0.5, 2.0, 4.0]], ids=str)
def test_bce_is_that_of_pytorch(pos_weight):
    logits, targets = torch.randn(4, 3, 5, 7, dtype=torch.float64), torch.rand(4, 3, 5, 7).double()
    weight = None if pos_weight is None else torch.tensor(pos_weight).view(-1, 1, 1)
    for reduction in REDUCTIONS:
        criterion = BCELoss(pos_weight, mode="multilabel", reduction=reduction, backend="torch")
        ours = criterion(logits, targets)
        peer = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weight, reduction=reduction
        )
        assert_close(ours, peer if reduction != "none" else peer.mean((2, 3)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 1.0])
def test_focal_is_that_of_torchvision(alpha, gamma):
    logits, targets = torch.randn(3, 1, 5, 7, dtype=torch.float64), torch.rand(3, 1, 5, 7).double()
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = ce * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if alpha is not None:
        expected = (alpha * targets + (1 - alpha) * (1 - targets)) * expected
    assert_close(FocalLoss(alpha, gamma, backend="torch")(logits, targets), expected.mean())


# ---- identities


@by_reduction
def test_identities(reduction):
    logits, targets = draw((3, 2, 5, 7))
    soft = torch.rand(logits.shape, dtype=torch.float64)
    shared = {"mode": "multilabel", "reduction": reduction, "backend": "torch"}
    for s, log_loss in product((0.0, 1.0, 3.0), (False, True)):
        half = TverskyLoss(0.5, 0.5, smooth=s / 2, log_loss=log_loss, **shared)
        whole = TverskyLoss(1.0, 1.0, smooth=s, log_loss=log_loss, **shared)
        for t in (targets, soft):
            assert_close(half(logits, t), DiceLoss(s, log_loss, **shared)(logits, t))
            assert_close(whole(logits, t), IoULoss(s, log_loss, **shared)(logits, t))
    for t in (targets, soft):
        bce = BCELoss(**shared)(logits, t)
        assert_close(FocalLoss(None, 0.0, **shared)(logits, t), bce)
        smoothed = t * (1 - 0.3) + 0.3 / 2
        assert_close(
            BCELoss(2.0, label_smoothing=0.3, **shared)(logits, t),
            BCELoss(2.0, **shared)(logits, smoothed),
        )


@by_reduction
@pytest.mark.parametrize("batch", [False, True])
def test_combined_is_the_weighted_sum_of_its_terms(batch, reduction):
    if batch and reduction == "none":
        pytest.skip("a ValueError: tests/test_losses.py")
    logits, targets = draw((3, 2, 5, 7))
    valid = torch.rand(3, 5, 7) < 0.7
    own = {
        "bce": {"pos_weight": 2.0, "label_smoothing": 0.1},
        "dice": {"smooth": 2.0, "log_loss": True},
        "focal": {"alpha": 0.6, "gamma": 1.5},
        "iou": {"smooth": 0.5, "log_loss": False},
        "tversky": {"alpha": 0.2, "beta": 0.6, "smooth": 3.0, "gamma": 0.8, "log_loss": True},
    }
    weights = dict(zip(own, (0.1, 0.7, 1.3, 0.4, 2.0), strict=True))
    shared = {"mode": "multilabel", "batch": batch, "class_weights": [1.0, 3.0]}
    shared |= {"reduction": reduction, "backend": "torch"}
    together = CombinedSegmentationLoss(
        **{f"{name}_weight": weight for name, weight in weights.items()},
        **{f"{name}_{key}": value for name in own for key, value in own[name].items()},
        **shared,
    )
    expected = sum(
        weights[name] * get_loss_function(name, **own[name], **shared)(logits, targets, valid)
        for name in own
    )
    loss, stats = together(logits, targets, valid, return_stats=True)
    assert_close(loss, expected)
    for name in own:  # reported unweighted, as means
        alone = get_loss_function(name, **own[name], **(shared | {"reduction": "mean"}))
        assert_close(stats.terms[name], alone(logits, targets, valid).float())


# ---- reductions


def mean_dice(x, t, live, w, batch, absent):
    """The three reductions of Dice, written out; w weighs the classes."""
    dims = (0, 2, 3) if batch else (2, 3)
    inter, p, t, v = (
        (q * live).sum(dims) for q in (x.sigmoid() * t, x.sigmoid(), t, live.double())
    )
    loss = 1 - (2 * inter + 1) / (p + t + 1)
    w = w * (v > 0) * ((t > 0) | (absent == "keep"))
    return {"mean": (w * loss).sum() / w.sum(), "sum": (w * loss).sum(), "none": w * loss}


def mean_bce(x, t, live, w):
    each = F.binary_cross_entropy_with_logits(x, t, reduction="none") * live
    total, v = each.sum((2, 3)), live.sum((2, 3))
    mean = (w * total).sum() / (w * v).sum()
    return {"mean": mean, "sum": (w * total).sum(), "none": w * total / v.clamp_min(1)}


@by_reduction
@pytest.mark.parametrize("weights", [None, [1.0, 3.0], [0.0, 2.0]], ids=str)
def test_reductions(weights, reduction):
    logits, targets = draw((4, 2, 5, 7))
    targets[0, 1] = targets[1, 0] = 0
    live = torch.rand(4, 1, 5, 7) < 0.6
    live[3] = False  # a sample without a valid pixel leaves the means
    w = torch.tensor(weights or [1.0, 1.0], dtype=torch.float64)
    shared = {"mode": "multilabel", "class_weights": weights, "reduction": reduction}
    arguments = (logits, targets.double(), live.expand(targets.shape), w)
    bce = BCELoss(**shared, backend="torch")(logits, targets, live)
    assert_close(bce, mean_bce(*arguments)[reduction])
    for batch, absent in product((False, True), ("keep", "skip")):
        dice = DiceLoss(batch=batch, absent=absent, backend="torch", **shared)
        expected = mean_dice(*arguments, batch, absent)[reduction]
        assert_close(dice(logits, targets, live), expected)


# ---- what is not valid


@pytest.mark.parametrize("how", ["samples", "pixels", "ignore_index"])
@by_reduction
@by_row
def test_half_ignored_equals_the_valid_half_alone(row, reduction, how):
    clean, targets = draw((4, 3, 5, 6))
    samples, columns = torch.tensor([True, False, True, False]), torch.rand(6).argsort() < 3
    half = samples if how == "samples" else (..., columns)
    valid = {"samples": samples, "pixels": columns.expand(4, 5, 6)}.get(how)
    logits = torch.full_like(clean, torch.nan)  # what is ignored may hold anything
    logits[half] = clean[half]
    if how == "ignore_index":
        targets[..., ~columns] = 255
    ignored = logits.isnan()
    shared = {"mode": "multilabel", "ignore_index": 255, "class_weights": [1.0, 0.5, 2.0]}
    for batch in (False, True):
        if not allowed(row, reduction, batch):
            continue
        criterion = row.build(reduction=reduction, batch=batch, backend="torch", **shared)
        dloss = torch.randn_like(criterion(logits, targets, valid))
        rows = samples if how == "samples" and dloss.dim() == 2 else ...
        whole = run(criterion, logits, targets, valid, dloss)
        alone = run(criterion, clean[half], targets[half], None, dloss[rows])
        assert_close(whole.loss[rows], alone.loss)
        assert_close(whole.dlogits[half], alone.dlogits)
        assert_close(whole.stats, alone.stats)
        assert (whole.dlogits[ignored] == 0).all()
        assert rows is ... or (whole.loss[~samples] == 0).all()


@by_reduction
@by_row
def test_nothing_valid_is_zero_with_a_live_graph(row, reduction):
    logits = torch.full((3, 2, 5, 7), torch.nan)
    ones = torch.ones(logits.shape, dtype=torch.uint8)
    shared = {"mode": "multilabel", "reduction": reduction, "ignore_index": 255}
    nothing = [(ones, torch.zeros(shape, dtype=torch.bool)) for shape in ((3,), (3, 5, 7))]
    for batch, (targets, valid) in product((False, True), (*nothing, (ones * 255, None))):
        if allowed(row, reduction, batch):
            criterion = row.build(batch=batch, backend="torch", **shared)
            result = run(criterion, logits, targets, valid)
            assert all((value == 0).all() for value in result)


@pytest.mark.parametrize("shape", [(0, 2, 5, 7), (3, 2, 0, 7), (3, 2, 5, 0)], ids=str)
@by_reduction
@by_row
def test_nothing_at_all_is_zero_with_a_live_graph(row, reduction, shape):
    logits, targets = draw(shape, torch.float32)
    for backend in ("torch", "triton"):  # there is nothing to launch
        criterion = row.build(mode="multilabel", reduction=reduction, backend=backend)
        result = run(criterion, logits, targets)
        assert result.loss.shape == (shape[:2] if reduction == "none" else ())
        assert result.dlogits.shape == shape
        assert all((value == 0).all() for value in result)


# ---- extreme logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_at_saturated_logits(gamma, dtype):
    """A right answer costs nothing; a wrong one alpha_t |x|, and pulls by alpha_t."""
    logits = torch.tensor([1e4, 1e4, -1e4, -1e4], dtype=dtype).view(4, 1, 1)
    targets = torch.tensor([1, 0, 1, 0]).view(4, 1, 1)
    result = run(FocalLoss(0.25, gamma, reduction="none", backend="torch"), logits, targets)
    assert result.loss.flatten().tolist() == [0.0, 7500.0, 2500.0, 0.0]
    assert result.dlogits.flatten().tolist() == [0.0, 0.75, -0.25, 0.0]


@by_row
def test_every_loss_at_saturated_logits(row):
    for value, t in product((1e4, -1e4), (torch.zeros(2, 1, 9), torch.ones(2, 1, 9))):
        result = run(row.build(backend="torch"), torch.full((2, 1, 9), value), t)
        assert torch.isfinite(result.loss)
        assert torch.isfinite(result.dlogits).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@by_reduction
@by_row
def test_nonfinite_logits_show(row, reduction, bad):
    logits, targets = draw((2, 1, 5, 7))
    logits[0, 0, 3, 4] = bad
    criterion = row.build(reduction=reduction, backend="torch")
    loss, stats = criterion(logits, targets, return_stats=True)
    assert stats.nonfinite == 1
    if math.isnan(bad) or criterion.spec.points:
        assert not torch.isfinite(loss).all()
    else:  # to a region loss an infinite logit is p = 0 or 1, as in PyTorch
        logits[0, 0, 3, 4] = math.copysign(1e4, bad)
        assert torch.equal(loss, criterion(logits, targets))


@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
@by_reduction
def test_statistics_change_nothing(row, reduction):
    """Without them less is computed, to the same bits."""
    logits, targets = draw((2, 1, 5, 7))
    criterion = row.build(reduction=reduction, backend="torch")
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    alone, (loss, _) = criterion(x, targets), criterion(y, targets, return_stats=True)
    alone.sum().backward()
    loss.sum().backward()
    assert torch.equal(alone, loss) and torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_focal_has_finite_derivatives_where_the_miss_is_0(gamma):
    x = torch.tensor([[[-1e4, 1e4, 0.0, -200.0, 200.0]]], requires_grad=True)
    t = torch.tensor([[[0.0, 1.0, 1.0, 0.0, 1.0]]])
    loss = FocalLoss(gamma=gamma, backend="torch")(x, t)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    assert torch.isfinite(slope).all() and torch.isfinite(curve).all()


# ---- peers, where they compute the same


def agree(ours, peer, dtype=torch.float64):
    logits, targets = draw((4, 1, 9, 13), dtype)
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    loss, expected = ours(x, targets), peer(y, targets.to(dtype))
    assert_close(loss, expected.view_as(loss))
    dloss = torch.randn_like(loss)
    loss.backward(dloss)
    expected.backward(dloss.view_as(expected))
    assert_close(x.grad, y.grad)


def test_segmentation_models_pytorch():
    try:
        smp = smp_losses()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    agree(
        BCELoss(2.5, label_smoothing=0.2),  # t = 0.1 and 0.9: there, a factor of 0.1
        smp.SoftBCEWithLogitsLoss(smooth_factor=0.1, pos_weight=torch.tensor([2.5])),
    )
    for log_loss in (False, True):
        arguments = {"mode": "binary", "log_loss": log_loss}
        # Always over the batch; and releases differ in what Dice's smooth means, except at 0.
        agree(DiceLoss(0.0, log_loss, batch=True), smp.DiceLoss(smooth=0.0, **arguments))
        agree(IoULoss(2.0, log_loss, batch=True), smp.JaccardLoss(smooth=2.0, **arguments))
        ours = TverskyLoss(0.3, 0.7, 2.0, 1.5, log_loss, batch=True)
        agree(ours, smp.TverskyLoss(alpha=0.3, beta=0.7, smooth=2.0, gamma=1.5, **arguments))
    for alpha in (None, 0.3):
        agree(FocalLoss(alpha, 2.0), smp.FocalLoss("binary", alpha=alpha, gamma=2.0))


@by_reduction
def test_monai(reduction):
    monai = pytest.importorskip("monai.losses")
    own, shared = {"reduction": reduction}, {"reduction": reduction, "sigmoid": True}
    smooth = {"smooth_nr": 0.5, "smooth_dr": 0.5}
    for batch in (False, True):
        agree(DiceLoss(0.5, batch=batch, **own), monai.DiceLoss(batch=batch, **smooth, **shared))
        agree(
            TverskyLoss(0.3, 0.7, 0.5, batch=batch, **own),
            monai.TverskyLoss(alpha=0.3, beta=0.7, batch=batch, **smooth, **shared),
        )
    twice = {"smooth_nr": 1.0, "smooth_dr": 1.0}  # its Jaccard smooths 2I / 2(P + T - I)
    agree(IoULoss(0.5, **own), monai.DiceLoss(jaccard=True, **twice, **shared))
    if reduction == "mean":  # its sum is over means
        for alpha in (None, 0.3):
            agree(FocalLoss(alpha, 2.0), monai.FocalLoss(gamma=2.0, alpha=alpha), torch.float32)


def test_what_is_missed_by_its_three_formulas():
    """Two of them only compat asks for; the likelihood has another form on each side of bce 0.5."""
    x, t = torch.linspace(-8, 8, 33, dtype=torch.float64), torch.rand(33, dtype=torch.float64)
    p = torch.sigmoid(x)
    nll = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    assert (nll < 0.5).any() and (nll > 0.5).any()
    assert_close(reference.missed(x, t, "product"), p + t - 2 * p * t)
    assert_close(reference.missed(x, t, "likelihood"), 1 - torch.exp(-nll))
    assert_close(reference.missed(x, t, "margin"), torch.sigmoid(x - 2 * x * t))
