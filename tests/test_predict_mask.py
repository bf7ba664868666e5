"""Masks are those of `F.interpolate` and arg max, or of a threshold: prediction.py.

Not test_prediction.py, which is the trainer's: modules of tests need names of their own.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg_losses.prediction as prediction
from fastseg_losses import CombinedSegmentationLoss
from fastseg_losses.functional import predict_mask

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
SPACES = [((7,), (19,)), ((5, 6), (20, 23)), ((5, 6), (3, 11)), ((2, 3, 4), (5, 7, 9))]


def upsampled(x: Tensor, size: tuple[int, ...], upsample: str, align_corners: bool) -> Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    if upsample == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=align_corners)


@pytest.mark.parametrize(
    ("upsample", "align_corners"), [("bilinear", False), ("bilinear", True), ("nearest", False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("low", "size"), SPACES)
def test_masks_are_those_of_interpolate(low, size, dtype, upsample, align_corners):
    x = torch.randn(3, 4, *low, generator=torch.Generator().manual_seed(0)).to(dtype)
    options = {"upsample": upsample, "align_corners": align_corners}
    full = upsampled(x, size, upsample, align_corners)
    classes = predict_mask(x, size, **options)
    assert classes.dtype == torch.uint8 and torch.equal(classes, full.argmax(1).byte())
    several = predict_mask(x, size, mode="multilabel", **options)
    assert several.dtype == torch.uint8 and torch.equal(several, (full > 0).byte())
    expected = (full[:, 0] > math.log(0.3 / 0.7)).byte()
    for one in (x[:, :1], x[:, 0]):
        mask = predict_mask(one, size, mode="binary", threshold=0.3, **options)
        assert mask.shape == (3, *size) and torch.equal(mask, expected)


def test_without_a_size_the_logits_are_taken_as_they_are():
    x = torch.tensor([[[0.0, -math.inf]], [[0.0, -1.0]]]).movedim(0, 1)  # (1, 2, 2)
    assert predict_mask(x).tolist() == [[0, 1]]  # of equal classes the first; no NaN from -inf
    assert predict_mask(x, (2,)).tolist() == [[0, 1]]
    assert predict_mask(x[:, 1:], mode="binary").tolist() == [[0, 0]]


def test_more_than_256_classes_take_int16():
    x = torch.full((1, 300, 2), -1.0)
    x[0, 299] = 1
    assert predict_mask(x[:, :256]).dtype == torch.uint8
    for upsample in ("bilinear", "nearest"):
        mask = predict_mask(x, (5,), upsample=upsample)
        assert mask.dtype == torch.int16 and mask.eq(299).all()


def test_size_tells_a_channel_from_a_row_in_binary_mode():
    x = torch.randn(2, 1, 6)
    assert predict_mask(x, (12,), mode="binary").shape == (2, 12)
    assert predict_mask(x, (3, 12), mode="binary").shape == (2, 3, 12)
    assert predict_mask(torch.zeros(1, 3, 4, 4), mode="binary").shape == (1, 3, 4, 4)  # volumes


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_losses_take_the_mask_for_a_target(mode):
    x = torch.randn(2, 1 if mode == "binary" else 3, 4, 4, requires_grad=True)
    mask = predict_mask(x, (8, 8), mode=mode)
    assert not mask.requires_grad
    loss = CombinedSegmentationLoss(mode=mode, upsample="bilinear")(x, mask)
    assert torch.isfinite(loss)


def test_one_sample_is_upsampled_at_a_time(monkeypatch):
    sizes = []

    def watched(x, size, *args, **options):
        sizes.append(len(x))
        return interpolate(x, size, *args, **options)

    interpolate = prediction.interpolate
    monkeypatch.setattr(prediction, "interpolate", watched)
    predict_mask(torch.randn(3, 2, 4, 4), (8, 8))
    assert sizes == [1, 1, 1]
    predict_mask(torch.randn(3, 2, 4, 4), (8, 8), upsample="nearest")
    assert sizes == [1, 1, 1]


def test_an_empty_batch_gives_an_empty_mask():
    assert predict_mask(torch.randn(0, 3, 4, 4), (8, 8)).shape == (0, 8, 8)


X = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: predict_mask([1.0]), TypeError, "^logits: expected a torch.Tensor, got list"),
        (lambda: predict_mask(X.long()), TypeError, "^logits: expected float32"),
        (lambda: predict_mask(X[:, :1]), ValueError, "^logits: .*C of at least 2, .*multiclass"),
        (lambda: predict_mask(X, (8, 8), mode="binary"), ValueError, "^logits: .*mode 'binary'"),
        (lambda: predict_mask(X[0, 0, 0]), ValueError, "^logits: "),
        (lambda: predict_mask(X[0, 0, 0], (3, 3), mode="binary"), ValueError, "^logits: "),
        (lambda: predict_mask(torch.zeros(1, 40000, 1)), ValueError, "^logits: .*32768 classes"),
        (lambda: predict_mask(X, (8,)), ValueError, "^size: expected 2 numbers"),
        (lambda: predict_mask(X, 8), TypeError, "^size: expected a sequence"),
        (lambda: predict_mask(X, (8, 2.5)), TypeError, "^size: expected whole numbers"),
        (lambda: predict_mask(X, (8, 0)), ValueError, "^size: expected numbers of at least 1"),
        (lambda: predict_mask(X, mode="soft"), ValueError, "^mode: expected one of"),
        (lambda: predict_mask(X, upsample=None), ValueError, "^upsample: expected one of"),
        (lambda: predict_mask(X, align_corners=1), TypeError, "^align_corners: expected a bool"),
        (
            lambda: predict_mask(X, upsample="nearest", align_corners=True),
            ValueError,
            "^align_corners: True is for",
        ),
        (lambda: predict_mask(X, threshold=0.3), ValueError, "^threshold: .*multiclass"),
        (lambda: predict_mask(X, mode="multilabel", threshold=1), ValueError, "^threshold: "),
        (lambda: predict_mask(X, mode="multilabel", threshold=0), ValueError, "^threshold: "),
        (lambda: predict_mask(X, mode="multilabel", threshold="a"), TypeError, "^threshold: "),
        (lambda: predict_mask(X, backend="cuda"), ValueError, "^backend: expected one of"),
        (
            lambda: predict_mask(torch.zeros(1, 2, 2, 2, 2), backend="triton"),
            ValueError,
            "^logits: backend='triton' makes masks in 2-D",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("mode", "low", "size"),
    [
        ("multiclass", (2, 5, 3, 4), (12, 16)),
        ("multiclass", (1, 300, 2, 2), (5, 3)),
        ("multiclass", (2, 3, 4, 5), (4, 5)),
        ("binary", (2, 3, 4), (7, 9)),
        ("multilabel", (2, 3, 3, 4), (6, 8)),
    ],
)
@pytest.mark.parametrize("how", [{}, {"align_corners": True}, {"upsample": "nearest"}])
def test_kernel_makes_the_same_masks(device, mode, low, size, how):
    logits = torch.randn(low, device=device)
    threshold = {} if mode == "multiclass" else {"threshold": 0.4}
    options = {"mode": mode, **how, **threshold}
    expected = predict_mask(logits, size, **options, backend="torch")
    found = predict_mask(logits, size, **options, backend="triton")
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    # random logits tie within a rounding in next to no pixel
    assert (found != expected).sum() <= (0 if mode == "multiclass" and how.get("upsample") else 1)


def test_kernel_takes_the_first_of_equal_classes(device):
    mask = predict_mask(torch.zeros(1, 4, 2, 2, device=device), (8, 8), backend="triton")
    assert mask.count_nonzero() == 0
