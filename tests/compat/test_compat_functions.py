"""torchvision's and SAM 2's loss functions: their values, gradients, shapes and signatures."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseg_losses import compat
from fastseg_losses.compat import sam2, torchvision

# ---- the peers' formulas, from their papers, as they compute them: probabilities, then the power


def focal_of_each(x, t, alpha, gamma):
    p = torch.sigmoid(x)
    p_t = p * t + (1 - p) * (1 - t)
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none") * (1 - p_t) ** gamma
    return loss if alpha < 0 else (alpha * t + (1 - alpha) * (1 - t)) * loss


def dice_of_each(x, t):
    p = torch.sigmoid(x)
    return 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)


def hard_iou(x, t):
    predicted, actual = (x > 0).double(), (t > 0).double()
    overlap = (predicted * actual).sum(-1)
    union = predicted.sum(-1) + actual.sum(-1) - overlap
    return overlap / union.clamp_min(1)


def differentiated(function, x):
    """Value and gradient under a random upstream gradient, the same for equal shapes."""
    x = x.clone().requires_grad_()
    value = function(x)
    upstream = torch.cos(torch.arange(value.numel(), dtype=torch.float64, device=x.device))
    value.backward(upstream.reshape(value.shape).to(value))
    return value.detach().double(), x.grad.double()


def check(ours, theirs, x, tolerance):
    for mine, exact in zip(
        differentiated(ours, x), differentiated(theirs, x.double()), strict=True
    ):
        torch.testing.assert_close(mine, exact, rtol=tolerance, atol=tolerance)


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
alphas = st.sampled_from([-1.0, 0.0, 0.25, 0.7, 1.0, 2.0])
gammas = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7])
dtypes = st.sampled_from([(torch.float64, 1e-9), (torch.float32, 2e-5)])
reductions = st.sampled_from(["none", "mean", "sum"])
seeds = st.integers(0, 9999)


def drawn_masks(shape, soft, seed):
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.randn(shape, generator=generator) * 3, torch.rand(shape, generator=generator)
    return x, t if soft else t.round()


@settings(max_examples=150, deadline=None)
@given(shapes, alphas, gammas, dtypes, reductions, st.booleans(), seeds)
def test_torchvision_focal(shape, alpha, gamma, dtype, reduction, soft, seed):
    dtype, tolerance = dtype
    x, t = drawn_masks(shape, soft, seed)
    x = x.to(dtype)
    reduce = {"none": lambda v: v, "mean": torch.mean, "sum": torch.sum}[reduction]
    check(
        lambda x: torchvision.sigmoid_focal_loss(x, t.to(x), alpha, gamma, reduction),
        lambda x: reduce(focal_of_each(x, t.to(x), alpha, gamma)),
        x,
        tolerance,
    )


@settings(max_examples=150, deadline=None)
@given(
    *(st.tuples(*[st.integers(1, 6)] * 4), alphas, gammas, dtypes, st.booleans(), st.booleans()),
    seeds,
)
def test_sam2(shape, alpha, gamma, dtype, multimask, soft, seed):
    dtype, tolerance = dtype
    x, t = (each.to(dtype) for each in drawn_masks(shape, soft, seed))
    if not multimask:
        x, t = x.flatten(1), t.flatten(1)

    def flat(v):
        return v.flatten(2) if multimask else v

    def reduce(v):
        return (v if multimask else v.sum()) / 3

    check(
        lambda x: sam2.dice_loss(x, t.to(x), 3, multimask),
        lambda x: reduce(dice_of_each(flat(x), flat(t.to(x)))),
        x,
        tolerance,
    )
    check(
        lambda x: sam2.sigmoid_focal_loss(x, t.to(x), torch.tensor(3.0), alpha, gamma, multimask),
        lambda x: reduce(focal_of_each(flat(x), flat(t.to(x)), alpha, gamma).mean(-1)),
        x,
        tolerance,
    )


@pytest.mark.parametrize("l1", [False, True])
@pytest.mark.parametrize("multimask", [False, True])
def test_sam2_iou(multimask, l1):
    x, t = torch.randn(2, 3, 5, 7), torch.rand(2, 3, 5, 7).round()
    t[0, 0] = x[0, 0] = -1.0  # empty against empty: 0 of a union that counts as 1
    predicted = torch.rand(2, 3)

    def theirs(p):
        loss = p.double() - hard_iou(x.flatten(2), t.flatten(2))
        loss = loss.abs() if l1 else loss**2
        return (loss if multimask else loss.sum()) / 4

    check(lambda p: sam2.iou_loss(x, t, p, 4, multimask, l1), theirs, predicted, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_kernels(dtype, device):
    """The same calls through the kernels, masks of every object shared as SAM 2 does it."""
    with compat.backend("triton"):
        check_on_the_kernels(dtype, device)


def check_on_the_kernels(dtype, device):
    x = (torch.randn(2, 3, 6, 7, device=device) * 3).to(dtype)
    t = torch.rand(2, 1, 6, 7, device=device).round().to(dtype).expand_as(x)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    check(
        lambda x: sam2.dice_loss(x, t.to(x), 2, True),
        lambda x: dice_of_each(x.flatten(2), t.to(x).flatten(2)) / 2,
        x,
        tolerance,
    )
    check(
        lambda x: sam2.sigmoid_focal_loss(x.flatten(1), t.to(x).flatten(1), 2),
        lambda x: focal_of_each(x.flatten(1), t.to(x).flatten(1), 0.25, 2).mean(-1).sum() / 2,
        x,
        tolerance,
    )
    for reduction in ("mean", "sum"):
        check(
            lambda x, r=reduction: torchvision.sigmoid_focal_loss(x, t.to(x), reduction=r),
            lambda x, r=reduction: getattr(focal_of_each(x, t.to(x), 0.25, 2), r)(),
            x,
            tolerance * (x.numel() if reduction == "sum" else 1),
        )


def parameters_of(function):
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


def test_signatures():
    none = inspect.Parameter.empty
    expected = [("inputs", none), ("targets", none), ("alpha", 0.25), ("gamma", 2)]
    expected.append(("reduction", "none"))
    assert parameters_of(torchvision.sigmoid_focal_loss) == expected
    first = [("inputs", none), ("targets", none)]
    last = ("loss_on_multimask", False)
    assert parameters_of(sam2.dice_loss) == [*first, ("num_objects", none), last]
    middle = [("num_objects", none), ("alpha", 0.25), ("gamma", 2)]
    assert parameters_of(sam2.sigmoid_focal_loss) == [*first, *middle, last]
    middle = [("pred_ious", none), ("num_objects", none)]
    assert parameters_of(sam2.iou_loss) == [*first, *middle, last, ("use_l1_loss", False)]


def test_against_torchvision_itself():
    peer = pytest.importorskip("torchvision.ops", exc_type=(ImportError, RuntimeError))
    theirs = peer.sigmoid_focal_loss
    assert parameters_of(theirs) == parameters_of(torchvision.sigmoid_focal_loss)
    x, t = torch.randn(2, 3, 8, 9), torch.rand(2, 3, 8, 9)
    for reduction in ("none", "mean", "sum"):
        check(
            lambda x, r=reduction: torchvision.sigmoid_focal_loss(x, t.to(x), reduction=r),
            lambda x, r=reduction: theirs(x, t.to(x), reduction=r),
            x,
            2e-5,
        )


def test_nothing_to_average():
    x = torch.randn(0, 4, requires_grad=True)
    assert torchvision.sigmoid_focal_loss(x, x.detach(), reduction="mean").isnan()
    assert torchvision.sigmoid_focal_loss(x, x.detach(), reduction="sum") == 0
    assert torchvision.sigmoid_focal_loss(x, x.detach()).shape == (0, 4)


def test_bad_arguments():
    x = torch.randn(2, 6)
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', got 'max'"):
        torchvision.sigmoid_focal_loss(x, x.sigmoid(), reduction="max")
    with pytest.raises(ValueError, match=r"inputs: expected \(N, M, H, W\), got \(2, 6\)"):
        sam2.dice_loss(x, x.sigmoid(), 1, loss_on_multimask=True)
    with pytest.raises(ValueError, match="gamma: expected a number of at least 0, got -1.0"):
        sam2.sigmoid_focal_loss(x, x.sigmoid(), 1, gamma=-1)
    for reduction in ("none", "mean"):
        with pytest.raises(ValueError, match="gamma"):
            torchvision.sigmoid_focal_loss(x, x.sigmoid(), gamma=-1, reduction=reduction)
        with pytest.raises(ValueError, match=r"targets: expected the inputs' shape \(2, 6\)"):
            torchvision.sigmoid_focal_loss(x, x[:, :1].sigmoid(), reduction=reduction)
    with pytest.raises(TypeError, match="requires grad"):
        sam2.sigmoid_focal_loss(x, x.sigmoid(), 1, gamma=torch.tensor(2.0, requires_grad=True))


def test_masks_that_are_not_flattened():
    """SAM 2's focal loss is a mean over dimension 1, whatever comes after."""
    x, t = torch.randn(3, 4, 5), torch.rand(3, 4, 5).round()
    check(
        lambda x: sam2.sigmoid_focal_loss(x, t.to(x), 3),
        lambda x: focal_of_each(x, t.to(x), 0.25, 2).mean(1).sum() / 3,
        x,
        2e-5,
    )


def test_one_mask_for_all():
    x, t = torch.randn(3, 20), torch.rand(1, 20).round()
    ours, theirs = (
        partial(sam2.dice_loss, targets=t, num_objects=2),
        lambda x: dice_of_each(x, t.to(x)).sum() / 2,
    )
    check(ours, theirs, x, 2e-5)


def test_numbers_that_are_not_pythons():
    x, t = torch.randn(2, 6), torch.rand(2, 6).round()
    plain = torchvision.sigmoid_focal_loss(x, t, 0.5, 2.0, "mean")
    for kind in (np.float32, torch.tensor):
        same = torchvision.sigmoid_focal_loss(x, t, kind(0.5), kind(2.0), "mean")
        assert torch.equal(same, plain)
