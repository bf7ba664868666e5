"""Multiclass mode of the reference: PyTorch's own losses, closed forms, identities, gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from losses_table import ALL_MULTICLASS, MULTICLASS, alphas, ids
from peer_packages import smp_losses

from fastseg_losses import (
    BCELoss,
    CombinedSegmentationLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    TverskyLoss,
    get_loss_function,
    region_sums,
)

WEIGHTS = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0], dtype=torch.float64)


def draw(shape=(2, 5, 6, 7)):
    logits = torch.randn(shape, dtype=torch.float64) * 3
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]))


def soften(logits):
    return torch.softmax(torch.randn_like(logits), 1)


def one_hot(targets, num_classes=5):
    return F.one_hot(targets, num_classes).movedim(-1, 1)


# ---- PyTorch


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_pytorchs(reduction, weights, smoothing):
    logits, targets = draw()
    targets[0, :2] = 255
    ours = CrossEntropyLoss(smoothing, class_weights=weights, reduction=reduction, ignore_index=255)
    expected = F.cross_entropy(
        logits, targets, weights, ignore_index=255, label_smoothing=smoothing, reduction=reduction
    )
    torch.testing.assert_close(ours(logits, targets), expected)
    soft = soften(logits)
    ours = CrossEntropyLoss(smoothing, class_weights=weights, reduction=reduction)
    expected = F.cross_entropy(
        logits, soft, weights, label_smoothing=smoothing, reduction=reduction
    )
    torch.testing.assert_close(ours(logits, soft), expected)


def test_focal_at_gamma_0_is_cross_entropy():
    logits, targets = draw()
    for given in (targets, soften(logits)):
        focal = FocalLoss(alpha=None, gamma=0.0, mode="multiclass", class_weights=WEIGHTS)
        torch.testing.assert_close(
            focal(logits, given), CrossEntropyLoss(class_weights=WEIGHTS)(logits, given)
        )


def test_focal_by_its_formula():
    logits, targets = draw()
    alpha = [0.1, 0.2, 0.3, 0.4, 0.5]
    log_p = torch.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0]
    expected = -torch.tensor(alpha)[targets] * (1 - log_p.exp()) ** 1.5 * log_p
    focal = FocalLoss(alpha=alpha, gamma=1.5, mode="multiclass")
    torch.testing.assert_close(focal(logits, targets), expected.mean())
    torch.testing.assert_close(
        FocalLoss(alpha=alpha, gamma=1.5, mode="multiclass", reduction="none")(logits, targets),
        expected.flatten(1).mean(1),
    )


@pytest.mark.parametrize("batch", [False, True])
def test_regions_by_their_formulas(batch):
    logits, targets = draw()
    p, t = torch.softmax(logits, 1).flatten(2), one_hot(targets).double().flatten(2)
    dims = (0, 2) if batch else 2
    i, a, b = (p * t).sum(dims), p.sum(dims), t.sum(dims)
    shared = {"mode": "multiclass", "batch": batch, "reduction": "none"}
    for criterion, score in (
        (DiceLoss(**shared), (2 * i + 1) / (a + b + 1)),
        (IoULoss(smooth=0.5, **shared), (i + 0.5) / (a + b - i + 0.5)),
        (TverskyLoss(**shared), (i + 1) / (i + 0.3 * (a - i) + 0.7 * (b - i) + 1)),
    ):
        torch.testing.assert_close(criterion(logits, targets), 1 - score)
        without = type(criterion)(include_background=False, smooth=0.5, **shared)
        with_all = type(criterion)(smooth=0.5, **shared)
        torch.testing.assert_close(without(logits, targets), with_all(logits, targets)[..., 1:])


# ---- identities


def test_class_ids_are_one_hot_probabilities():
    logits, targets = draw()
    for row in MULTICLASS:
        criterion = alphas(row, 5).build()
        expected = criterion(logits, targets)
        torch.testing.assert_close(criterion(logits, one_hot(targets)), expected)
        torch.testing.assert_close(criterion(logits, targets[:, None].to(torch.uint8)), expected)


def test_two_classes_are_binary():
    """A softmax over (0, x) is a sigmoid of x."""
    x = torch.randn(2, 1, 6, 7, dtype=torch.float64)
    targets = torch.randint(2, (2, 6, 7))
    logits = torch.cat([torch.zeros_like(x), x], 1)
    torch.testing.assert_close(CrossEntropyLoss()(logits, targets), BCELoss()(x, targets[:, None]))
    torch.testing.assert_close(
        DiceLoss(mode="multiclass", include_background=False)(logits, targets),
        DiceLoss()(x, targets[:, None]),
    )
    focal = FocalLoss(alpha=[0.75, 0.25], mode="multiclass")
    torch.testing.assert_close(focal(logits, targets), FocalLoss()(x, targets[:, None]))


@pytest.mark.parametrize("name", ["bce", "dice", "iou", "tversky", "focal", "combined"])
def test_each_class_against_the_rest_is_multilabel(name):
    logits, targets = draw()
    rest = get_loss_function(name, mode="multiclass", activation="sigmoid", class_weights=WEIGHTS)
    many = get_loss_function(name, mode="multilabel", class_weights=WEIGHTS)
    torch.testing.assert_close(rest(logits, targets), many(logits, one_hot(targets)))
    assert rest.term_names == many.term_names


@pytest.mark.parametrize("row", ALL_MULTICLASS, ids=ids(ALL_MULTICLASS))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_is_left_out_does_not_count(row, reduction):
    """Half-ignored equals the valid half alone, value and gradient; the other half may be NaN."""
    logits, targets = draw((2, 5, 4, 8))
    half = logits[..., :4].clone().requires_grad_()
    whole = torch.cat([logits[..., :4], torch.full_like(logits[..., 4:], torch.nan)], -1)
    whole.requires_grad_()
    marked = targets.clone()
    marked[..., 4:] = -100
    valid = torch.zeros(2, 4, 8, dtype=torch.bool)
    valid[..., :4] = True
    build = alphas(row, 5).build
    expected = build(reduction=reduction)(half, targets[..., :4])
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    for criterion, arguments in (
        (build(reduction=reduction, ignore_index=-100), (marked,)),
        (build(reduction=reduction), (targets, valid)),
    ):
        whole.grad = None
        loss = criterion(whole, *arguments)
        torch.testing.assert_close(loss, expected)
        (loss * weight).sum().backward()
        torch.testing.assert_close(whole.grad[..., :4], half.grad)
        assert (whole.grad[..., 4:] == 0).all()


def test_absent_classes():
    logits, targets = draw()
    targets = targets % 3
    each = DiceLoss(mode="multiclass", reduction="none")(logits, targets)
    skipping = DiceLoss(mode="multiclass", absent="skip")
    torch.testing.assert_close(skipping(logits, targets), each[:, :3].mean())


def test_none_of_a_sample_is_its_mean():
    logits, targets = draw()
    for row in (MULTICLASS[0], MULTICLASS[4], MULTICLASS[5]):
        criterion = alphas(row, 5).build(class_weights=WEIGHTS, reduction="none")
        alone = alphas(row, 5).build(class_weights=WEIGHTS)
        expected = torch.stack([alone(logits[n : n + 1], targets[n : n + 1]) for n in (0, 1)])
        torch.testing.assert_close(criterion(logits, targets), expected)


def test_shapes_of_none():
    logits, targets = draw()

    def shape(name, **arguments):
        criterion = get_loss_function(name, mode="multiclass", reduction="none", **arguments)
        return tuple(criterion(logits, targets).shape)

    assert shape("dice") == (2, 5)
    assert shape("dice", include_background=False) == (2, 4)
    assert shape("dice", batch=True) == (5,)
    assert shape("dice", batch=True, include_background=False) == (4,)
    assert shape("ce") == shape("focal") == shape("combined") == (2,)
    assert shape("ce", batch=True) == (2,)
    assert shape("focal", activation="sigmoid") == (2,)


# ---- gradients, statistics, edges


@pytest.mark.parametrize("row", ALL_MULTICLASS, ids=ids(ALL_MULTICLASS))
@pytest.mark.parametrize("soft", [False, True])
def test_gradients(row, soft):
    logits, targets = draw((2, 3, 4, 2))
    given = soften(logits) if soft else targets
    criterion = alphas(row, 3).build(class_weights=[1.0, 2.0, 0.5])
    assert torch.autograd.gradcheck(lambda x: criterion(x, given), logits.requires_grad_())


def test_statistics_by_counting():
    logits, targets = draw()
    targets[0, 0] = 255
    criterion = CombinedSegmentationLoss(mode="multiclass", ignore_index=255)
    loss, stats = criterion(logits, targets, return_stats=True)
    live = targets != 255
    best, winner = (v[live] for v in torch.softmax(logits, 1).max(1))
    label = targets[live]
    now = stats.cpu()
    assert now.valid == live.sum() and now.tp == (winner == label).sum()
    assert now.fp == now.fn == (winner != label).sum()
    assert now.pred_mean == pytest.approx(float(best.mean()))
    assert now.pred_max == pytest.approx(float(best.max()))
    assert now.pred_positive == pytest.approx(float((best > 0.5).double().mean()))
    assert now.target_mean == now.target_positive == 1
    assert now.loss == pytest.approx(float(loss))
    for c in range(5):
        tp = int(((winner == c) & (label == c)).sum())
        assert now.class_pred[c] == pytest.approx(float((winner == c).double().mean()))
        assert now.class_target[c] == pytest.approx(float((label == c).double().mean()))
        assert now.class_tp[c] == tp
        assert now.class_fp[c] == int((winner == c).sum()) - tp
        assert now.class_fn[c] == int((label == c).sum()) - tp
        union = tp + now.class_fp[c] + now.class_fn[c]
        assert now.class_iou[c] == pytest.approx(tp / union)
        assert float(stats.class_iou[c]) == pytest.approx(tp / union)
        dice = 2 * tp / (union + tp)
        assert now.class_dice[c] == pytest.approx(dice) == pytest.approx(float(stats.class_dice[c]))


def test_a_class_that_is_nowhere_has_no_score():
    logits, targets = draw()
    logits[:, 4] = -100.0
    _, stats = CrossEntropyLoss()(logits, targets % 4, return_stats=True)
    assert torch.isnan(stats.class_iou[4]) and math.isnan(stats.cpu().class_dice[4])


def test_region_sums():
    logits, targets = draw()
    sums = region_sums(logits, targets, mode="multiclass")
    p = torch.softmax(logits, 1)
    torch.testing.assert_close(sums.P, p.flatten(2).sum(-1))
    torch.testing.assert_close(sums.I, (p * one_hot(targets)).flatten(2).sum(-1))
    assert (sums.V == 42).all() and torch.equal(
        sums.T, one_hot(targets).flatten(2).sum(-1).double()
    )


@pytest.mark.parametrize("bad", [5, -1, 255])
def test_ids_out_of_range(bad):
    logits, targets = draw()
    targets[0, 0, 0] = bad
    for row in MULTICLASS:
        with pytest.raises(ValueError, match="^targets: expected class ids from 0 to 4"):
            alphas(row, 5).build()(logits, targets)
    allowed = CrossEntropyLoss(ignore_index=bad)
    torch.testing.assert_close(
        allowed(logits, targets), F.cross_entropy(logits, targets, ignore_index=bad)
    )


def test_a_class_that_is_ruled_out():
    logits, targets = draw()
    logits[:, 4] = -torch.inf
    logits.requires_grad_()
    loss = CombinedSegmentationLoss(mode="multiclass")(logits, targets % 4)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("row", ALL_MULTICLASS, ids=ids(ALL_MULTICLASS))
def test_statistics_change_nothing(row, soft):
    """Without them less is computed, to the same bits."""
    logits, targets = draw()
    targets = soften(logits) if soft else targets
    criterion = alphas(row, 5).build(backend="torch")
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    alone, (loss, _) = criterion(x, targets), criterion(y, targets, return_stats=True)
    alone.backward()
    loss.backward()
    assert torch.equal(alone, loss) and torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("weights", [None, [0.5, 0.0, 2.0, 1.0, 3.0]])
@pytest.mark.parametrize("row", ALL_MULTICLASS, ids=ids(ALL_MULTICLASS))
def test_class_ids_are_probabilities_of_0_and_1(row, weights):
    """Ids take a shorter way, of the target's class alone where the others add 0."""
    logits, targets = draw()
    shared = {"reduction": "sum", "class_weights": weights}  # a mean divides by other sums
    criterion = alphas(row, 5).build(backend="torch", **shared)
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    loss, expected = criterion(x, targets), criterion(y, one_hot(targets))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, y.grad)


# ---- the peers' packages


def test_smp():
    try:
        smp = smp_losses()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    logits, targets = (v.float() if v.is_floating_point() else v for v in draw())
    ours = DiceLoss(mode="multiclass", batch=True, absent="skip", smooth=0.0)
    theirs = smp.DiceLoss("multiclass", smooth=0.0)(logits, targets)
    torch.testing.assert_close(ours(logits, targets), theirs, rtol=1e-4, atol=1e-6)


def test_monai():
    monai = pytest.importorskip("monai.losses")
    logits, targets = (v.float() if v.is_floating_point() else v for v in draw())
    theirs = monai.DiceLoss(
        to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, include_background=False
    )
    ours = DiceLoss(mode="multiclass", include_background=False)
    torch.testing.assert_close(
        ours(logits, targets), theirs(logits, targets[:, None]), rtol=1e-4, atol=1e-6
    )


# ---- what mutants of the reference had survived


@pytest.mark.parametrize("name", ["ce", "dice", "iou", "tversky", "focal", "combined"])
def test_soft_targets_of_pixels_that_do_not_count_are_not_read(name):
    logits, _ = draw((1, 5, 6, 7))
    soft, valid = soften(logits), torch.rand(1, 6, 7) < 0.6
    broken = torch.where(valid[:, None], soft, math.nan)
    criterion = get_loss_function(name, mode="multiclass")
    kept = (logits[0, :, valid[0]][None, :, :, None], soft[0, :, valid[0]][None, :, :, None])
    torch.testing.assert_close(criterion(logits, broken, valid), criterion(*kept))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_ruled_out_class_costs_nothing_beside_soft_targets(gamma):
    logits, _ = draw()
    soft = soften(logits)
    soft[:, 3] = 0
    soft = soft / soft.sum(1, keepdim=True)
    others = [0, 1, 2, 4]
    ruled_out = logits.clone()
    ruled_out[:, 3] = -math.inf
    for criterion in (CrossEntropyLoss(), FocalLoss(gamma=gamma, mode="multiclass")):
        expected = criterion(logits[:, others], soft[:, others])
        torch.testing.assert_close(criterion(ruled_out, soft), expected)
        asked_for = torch.full_like(soft, 0.2)
        assert float(criterion(ruled_out, asked_for)) == math.inf


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_each_class_against_the_rest_with_ignored_pixels_and_weights(weights):
    logits, targets = draw()
    targets[0, :2] = 255
    shared = {"activation": "sigmoid", "ignore_index": 255, "class_weights": weights}
    pos_weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    ours = BCELoss(pos_weight, mode="multiclass", **shared)(logits, targets)
    kept = targets != 255
    masks = one_hot(torch.where(kept, targets, 0)).double()
    each = F.binary_cross_entropy_with_logits(
        logits, masks, pos_weight=pos_weight.view(-1, 1, 1), reduction="none"
    )
    w = torch.ones(5, dtype=torch.float64) if weights is None else weights
    expected = (each * w.view(-1, 1, 1) * kept[:, None]).sum() / (kept.sum() * w.sum())
    torch.testing.assert_close(ours, expected)
