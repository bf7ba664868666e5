"""The statistics row: what its numbers are, and how they are read."""

import math

import pytest
import torch
from torch.testing import assert_close

from fastseg_losses import BCELoss, CombinedSegmentationLoss, DiceLoss
from fastseg_losses.stats import FIELDS, SegmentationSnapshot, SegmentationStats, decode, row_size

LOG3 = math.log(3)
# Probabilities 3/4, 1/4, 1/2, 3/4, 1/4 against targets 1, 1, 1, 0, 0; p = 1/2 is not positive.
LOGITS = torch.tensor([LOG3, -LOG3, 0.0, LOG3, -LOG3]).reshape(1, 1, 5)
TARGETS = torch.tensor([1, 1, 1, 0, 0], dtype=torch.uint8).reshape(1, 1, 5)
CRITERION = CombinedSegmentationLoss(
    bce_weight=0.5, dice_weight=2.0, focal_weight=0.0, iou_weight=1.0, backend="torch"
)


def check(snapshot: SegmentationSnapshot, **expected):
    terms = expected.pop("terms")
    assert snapshot.terms.keys() == terms.keys()
    for name, value in terms.items():
        assert snapshot.terms[name] == pytest.approx(value, rel=1e-6), name
    assert set(expected) == set(FIELDS)
    for name, value in expected.items():
        assert getattr(snapshot, name) == pytest.approx(value, rel=1e-6), name


def test_every_number_of_an_example():
    loss, stats = CRITERION(LOGITS, TARGETS, return_stats=True)
    # I = 3/4 + 1/4 + 1/2 = 3/2, P = 5/2, T = 3
    bce = -(math.log(0.75) + math.log(0.25) + math.log(0.5) + math.log(0.25) + math.log(0.75)) / 5
    dice = 1 - (2 * 1.5 + 1) / (2.5 + 3 + 1)
    iou = 1 - (1.5 + 1) / (2.5 + 3 - 1.5 + 1)
    check(
        stats.cpu(),
        loss=0.5 * bce + 2.0 * dice + iou,
        pred_mean=0.5,
        target_mean=0.6,
        pred_max=0.75,
        pred_positive=0.4,
        target_positive=0.6,
        tp=1,
        fp=1,
        fn=2,
        valid=5,
        nonfinite=0,
        bad_targets=0,
        terms={"bce": bce, "dice": dice, "iou": iou},
    )
    assert_close(loss, stats.loss)


def test_every_number_of_an_example_with_a_mask():
    """The third class is valid in no pixel, and pixels under the mask hold anything."""
    logits = LOGITS.repeat(1, 3, 1)
    logits[0, 0, 3], logits[0, 1, 4], logits[0, 2] = math.inf, math.nan, 50.0
    targets = TARGETS.repeat(1, 3, 1)
    targets[0, 0, 3] = targets[0, 1, 3:] = targets[0, 2] = 255
    valid = torch.tensor([[True, True, False, True, True]])
    criterion = CombinedSegmentationLoss(
        bce_weight=1.0, focal_weight=0.0, mode="multilabel", ignore_index=255, backend="torch"
    )
    loss, stats = criterion(logits, targets, valid, return_stats=True)
    # first class: p 3/4, 1/4, 1/4 against 1, 1, 0; second: p 3/4, 1/4 against 1, 1
    bce = -(3 * math.log(0.75) + 2 * math.log(0.25)) / 5
    dice = 1 - ((2 * 1.0 + 1) / (1.25 + 2 + 1) + (2 * 1.0 + 1) / (1.0 + 2 + 1)) / 2
    check(
        stats.cpu(),
        loss=bce + 0.4 * dice,
        pred_mean=2.25 / 5,
        target_mean=0.8,
        pred_max=0.75,
        pred_positive=0.4,
        target_positive=0.8,
        tp=2,
        fp=0,
        fn=2,
        valid=5,
        nonfinite=0,
        bad_targets=0,
        terms={"bce": bce, "dice": dice},
    )
    assert_close(loss, stats.loss)


def test_soft_targets_count_above_one_half():
    targets = torch.tensor([0.5, 0.6, 0.4, 1.0, 0.0]).reshape(1, 1, 5)
    stats = DiceLoss(backend="torch")(LOGITS, targets, return_stats=True)[1].cpu()
    assert stats.target_mean == pytest.approx(0.5)
    assert stats.target_positive == pytest.approx(0.4)
    assert (stats.tp, stats.fp, stats.fn) == (1, 1, 1)


def test_loss_and_terms_are_means_under_every_reduction():
    logits, targets = torch.randn(3, 2, 7), torch.rand(3, 2, 7) < 0.5
    rows = []
    for reduction in ("mean", "sum", "none"):
        criterion = CombinedSegmentationLoss(
            mode="multilabel", reduction=reduction, backend="torch"
        )
        rows.append(criterion(logits, targets, return_stats=True)[1].tensor)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert_close(rows[0][0], CombinedSegmentationLoss(mode="multilabel")(logits, targets))


def test_nonfinite_logits_are_counted():
    logits = torch.tensor([math.nan, math.inf, -math.inf, 1.0, -1.0, 0.0]).reshape(1, 1, 6)
    targets = torch.zeros(1, 1, 6)
    stats = BCELoss(backend="torch")(logits, targets, return_stats=True)[1]
    assert stats.nonfinite == 3
    assert stats.pred_max == 1.0  # of +inf; NaN is left out
    valid = torch.tensor([[False, True, False, True, True, True]])
    stats = BCELoss(backend="torch")(logits, targets, valid, return_stats=True)[1]
    assert stats.nonfinite == 1


# ---- reading


def row(*, terms=(0.25, 0.5), **values) -> list[float]:
    return [values.get(name, 0.0) for name in FIELDS] + list(terms)


def test_decode():
    assert row_size(("bce", "dice")) == len(FIELDS) + 2
    assert row_size(("ce",), 19) == len(FIELDS) + 1 + 5 * 19
    snapshot = decode(row(loss=3.0, tp=7.0, pred_max=0.5), ("bce", "dice"))
    assert (snapshot.loss, snapshot.tp, snapshot.pred_max, snapshot.fp) == (3.0, 7.0, 0.5, 0.0)
    assert snapshot.terms == {"bce": 0.25, "dice": 0.5}
    with pytest.raises(ValueError, match=rf"^values: expected {len(FIELDS) + 1} floats .*'dice'"):
        decode(row(), ("dice",))


def test_ratios():
    counts = row(tp=6.0, fp=2.0, fn=4.0)
    names = ("bce", "dice")
    expected = {"iou": 6 / 12, "dice": 12 / 18, "precision": 6 / 8, "recall": 6 / 10}
    for name, value in expected.items():
        assert getattr(decode(counts, names), name) == pytest.approx(value)
        ratio = getattr(SegmentationStats(torch.tensor(counts), names), name)
        assert_close(ratio, torch.tensor(value))


def test_ratios_of_nothing_are_no_number():
    """Neither 0 nor 1: an average over batches must be able to leave them out."""
    for stats in (decode(row(), ("bce", "dice")), SegmentationStats(torch.zeros(14), ("a", "b"))):
        assert all(math.isnan(getattr(stats, n)) for n in ("iou", "dice", "precision", "recall"))
    missed = decode(row(fn=3.0), ("bce", "dice"))
    assert missed.recall == missed.iou == missed.dice == 0.0
    assert math.isnan(missed.precision)


def test_attributes_are_views_of_the_row():
    tensor = torch.arange(float(len(FIELDS) + 2))
    stats = SegmentationStats(tensor, ["bce", "dice"])
    for i, name in enumerate(FIELDS):
        value = getattr(stats, name)
        assert value.shape == ()
        assert value == i
        assert value.data_ptr() == tensor[i].data_ptr()
    assert list(stats.terms) == ["bce", "dice"]
    assert stats.terms["dice"].shape == ()
    assert stats.terms["dice"].data_ptr() == tensor[-1].data_ptr()


def test_unknown_attributes():
    stats = SegmentationStats(torch.zeros(13), ("dice",))
    for name in ("accuracy", "__deepcopy__", "_tensor"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(stats, name)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("class_iou", "iou"),
        ("class_dice", "dice"),
        ("class_tp", "tp"),
        ("class_pred", "pred_positive"),
    ],
)
def test_what_belongs_to_classes_is_in_multiclass_mode_alone(name, instead):
    stats = SegmentationStats(torch.zeros(13), ("dice",))
    with pytest.raises(AttributeError, match=f"'{name}' only in mode='multiclass'; '{instead}' is"):
        getattr(stats, name)
    assert name not in dir(stats) and instead in dir(stats)
    classes = SegmentationStats(torch.zeros(13 + 5 * 3), ("dice",), 3)
    assert name in dir(classes) and getattr(classes, name).shape == (3,)


def test_a_meta_tensor_cannot_be_read():
    x = torch.zeros(2, 1, 4, 4, device="meta", requires_grad=True)
    loss, stats = CombinedSegmentationLoss()(x, x.detach(), return_stats=True)
    loss.backward()
    assert x.grad.shape == x.shape
    with pytest.raises(ValueError, match="^stats: a tensor on device 'meta' holds no values"):
        stats.cpu()


def test_repr_names_the_device_and_the_terms():
    text = repr(SegmentationStats(torch.zeros(13), ("dice",)))
    assert text == "SegmentationStats(on cpu, terms=('dice',); .cpu() reads it)"


def test_reading_tells_of_targets_outside_the_unit_interval():
    stats = SegmentationStats(torch.tensor(row(bad_targets=17.0)), ("bce", "dice"))
    assert stats.bad_targets == 17
    with pytest.raises(ValueError, match=r"^targets: expected values in \[0, 1\], got 17 .*255"):
        stats.cpu()


def test_no_gradient_reaches_the_statistics():
    logits = LOGITS.clone().requires_grad_()
    loss, stats = CRITERION(logits, TARGETS, return_stats=True)
    assert loss.requires_grad
    assert not stats.tensor.requires_grad
    assert stats.tensor.dtype == torch.float32
