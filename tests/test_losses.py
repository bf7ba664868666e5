"""The modules: what they take, what they refuse, and what they are as `nn.Module`s."""

import copy
import pickle

import numpy as np
import pytest
import torch
from losses_table import ALL, DEFAULTS, ids

import fastseg_losses
from fastseg_losses import (
    BCELoss,
    CombinedSegmentationLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    SegmentationStats,
    TverskyLoss,
    get_loss_function,
)

CLASSES = {
    "bce": BCELoss,
    "dice": DiceLoss,
    "iou": IoULoss,
    "tversky": TverskyLoss,
    "focal": FocalLoss,
    "combined": CombinedSegmentationLoss,
}


def draw(shape=(2, 3, 5, 7), dtype=torch.float32):
    return (torch.randn(shape) * 3).to(dtype), (torch.rand(shape) < 0.4).to(torch.uint8)


# ---- by name


@pytest.mark.parametrize("name", CLASSES)
def test_get_loss_function(name):
    criterion = get_loss_function(name, mode="multilabel", class_weights=[1.0, 2.0, 3.0])
    assert type(criterion) is CLASSES[name]
    assert getattr(fastseg_losses, type(criterion).__name__) is CLASSES[name]
    inputs = draw()
    direct = CLASSES[name](mode="multilabel", class_weights=[1.0, 2.0, 3.0])
    assert criterion.spec == direct.spec
    assert torch.equal(criterion(*inputs), direct(*inputs))


def test_get_loss_function_hands_arguments_on():
    assert get_loss_function("dice", smooth=0.0).spec == DiceLoss(smooth=0.0).spec
    with pytest.raises(TypeError, match="^DiceLoss: unexpected argument 'smoothing'"):
        get_loss_function("dice", smoothing=1.0)


@pytest.mark.parametrize("name", ["lovasz", "Dice", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError) as caught:
        get_loss_function(name)
    names = "'bce', 'ce', 'dice', 'iou', 'tversky', 'focal', 'combined'"
    assert str(caught.value) == f"name: expected one of {names}, got {name!r}"


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match=r"name: expected a string, got \['dice'\]"):
        get_loss_function(["dice"])


# ---- what constructors refuse

WEIGHTS = "expected finite numbers of at least 0"
WRONG = [
    ("bce", {"label_smoothing": 1.5}, ValueError, "at least 0 and at most 1"),
    ("bce", {"pos_weight": -1.0}, ValueError, WEIGHTS),
    ("bce", {"pos_weight": [1.0, float("nan")]}, ValueError, WEIGHTS),
    ("dice", {"smooth": -1.0}, ValueError, "expected a finite number at least 0"),
    ("dice", {"smooth": "1"}, TypeError, "expected a number"),
    ("dice", {"log_loss": "mean"}, TypeError, "expected a bool"),
    ("iou", {"log_loss": 1}, TypeError, "expected a bool"),
    ("tversky", {"log_loss": None}, TypeError, "expected a bool"),
    ("iou", {"smooth": float("inf")}, ValueError, "expected a finite number at least 0"),
    ("tversky", {"alpha": -0.5}, ValueError, "expected a finite number at least 0"),
    ("tversky", {"beta": True}, TypeError, "expected a number"),
    ("tversky", {"gamma": 0.0}, ValueError, "expected a finite number above 0"),
    ("focal", {"alpha": 2.0}, ValueError, "at least 0 and at most 1"),
    ("focal", {"alpha": [0.2, 0.8]}, TypeError, "(one value per class) is for mode='multiclass'"),
    ("focal", {"gamma": -1.0}, ValueError, "expected a finite number at least 0"),
    ("combined", {"iou_weight": -1.0}, ValueError, "expected a finite number at least 0"),
    ("combined", {"dice_weight": None}, TypeError, "expected a number"),
    ("dice", {"mode": "rgb"}, ValueError, "one of 'binary', 'multilabel', 'multiclass'"),
    ("dice", {"reduction": "avg"}, ValueError, "one of 'mean', 'sum', 'none'"),
    ("dice", {"reduction": "sums"}, ValueError, "one of 'mean', 'sum', 'none'"),
    ("dice", {"absent": "drop"}, ValueError, "one of 'keep', 'skip'"),
    ("dice", {"backend": "cuda"}, ValueError, "one of 'auto', 'triton', 'torch'"),
    ("dice", {"activation": "softmax"}, ValueError, "None or 'sigmoid' in mode 'binary'"),
    ("dice", {"ignore_index": 1.5}, TypeError, "expected an int or None"),
    ("dice", {"ignore_index": True}, TypeError, "expected an int or None"),
    ("dice", {"batch": 1}, TypeError, "expected a bool"),
    ("dice", {"include_background": "no"}, TypeError, "expected a bool"),
    ("dice", {"class_weights": [1.0, -2.0]}, ValueError, WEIGHTS),
    ("dice", {"class_weights": []}, ValueError, WEIGHTS),
    ("ce", {"mode": "binary"}, ValueError, "expected 'multiclass' for CrossEntropyLoss"),
    ("ce", {"label_smoothing": -1}, ValueError, "at least 0 and at most 1"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "expected"), WRONG, ids=str)
def test_wrong_arguments(name, arguments, error, expected):
    """The argument, what was expected, what came."""
    ((argument, value),) = arguments.items()
    with pytest.raises(error) as caught:
        get_loss_function(name, **arguments)
    message = str(caught.value)
    assert message.removeprefix("focal ").startswith(f"{argument}: ")
    assert expected in message
    assert message.endswith(f"got {value!r}")


def test_some_term_must_have_a_weight():
    names = ["bce_weight", "dice_weight", "focal_weight", "iou_weight", "tversky_weight"]
    with pytest.raises(ValueError) as caught:
        CombinedSegmentationLoss(**dict.fromkeys(names, 0.0))
    assert str(caught.value) == f"{', '.join(names)}: expected at least one above 0, got all 0"


def test_only_multiclass_has_a_background():
    with pytest.raises(ValueError, match="^include_background: False is for mode='multiclass'"):
        DiceLoss(include_background=False)


@pytest.mark.parametrize("name", CLASSES)
def test_upsample_is_checked(name):
    with pytest.raises(
        ValueError, match="^upsample: expected None or one of 'bilinear', 'nearest'"
    ):
        get_loss_function(name, upsample="bicubic")
    with pytest.raises(ValueError, match="^align_corners: True is for upsample='bilinear'"):
        get_loss_function(name, upsample="nearest", align_corners=True)
    with pytest.raises(TypeError, match="^align_corners: expected a bool"):
        get_loss_function(name, upsample="bilinear", align_corners=1)


def test_what_a_softmax_refuses():
    softmax = {"mode": "multiclass"}
    with pytest.raises(ValueError, match="^mode: .*CrossEntropyLoss serves a softmax"):
        BCELoss(**softmax)
    with pytest.raises(ValueError, match="^activation: expected None for CrossEntropyLoss"):
        CrossEntropyLoss(activation="sigmoid")
    for wrong in (0.25, 0.5, 1, np.float32(0.25)):
        with pytest.raises(ValueError, match="^alpha: expected a sequence, one value per class"):
            FocalLoss(alpha=wrong, **softmax)
        with pytest.raises(ValueError, match="^focal_alpha: expected a sequence"):
            CombinedSegmentationLoss(focal_alpha=wrong, **softmax)
    with pytest.raises(TypeError, match="^alpha: a sequence"):
        FocalLoss(alpha=[0.5, 0.5], activation="sigmoid", **softmax)
    with pytest.raises(ValueError, match="^bce_pos_weight: expected None with a softmax"):
        CombinedSegmentationLoss(bce_pos_weight=2.0, **softmax)
    with pytest.raises(TypeError, match="^CrossEntropyLoss: unexpected argument 'pos_weight'"):
        CrossEntropyLoss(pos_weight=2.0)
    with pytest.raises(ValueError, match="^activation: expected None or 'sigmoid'"):
        DiceLoss(activation="softmax", **softmax)


@pytest.mark.parametrize("argument", ["alpha", "pos_weight", "class_alpha", "smoth"])
def test_arguments_that_a_loss_does_not_have(argument):
    for mode in ("binary", "multiclass"):
        with pytest.raises(TypeError, match=f"^DiceLoss: unexpected argument '{argument}'"):
            DiceLoss(mode=mode, **{argument: torch.ones(3)})


def test_names_of_multiclass_terms():
    names = ("ce", "focal", "dice")
    assert CombinedSegmentationLoss(mode="multiclass").term_names == names
    rest = CombinedSegmentationLoss(mode="multiclass", activation="sigmoid")
    assert rest.term_names == ("bce", "focal", "dice")
    assert CrossEntropyLoss().spec == CrossEntropyLoss(mode="multiclass").spec
    assert FocalLoss(mode="multiclass").spec == FocalLoss(alpha=None, mode="multiclass").spec
    assert CrossEntropyLoss().stats_size(19) == 13 + 5 * 19


def test_alpha_is_a_buffer_of_its_own():
    criterion = FocalLoss(alpha=[0.1, 0.2, 0.7], mode="multiclass")
    assert criterion.alpha.tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert not criterion.state_dict() and criterion.half().alpha.dtype == torch.float32


def test_shared_arguments_are_keyword_only():
    with pytest.raises(TypeError, match="positional argument"):
        DiceLoss(1.0, False, "binary")


def test_reduction_none_over_the_batch():
    """Region terms are (C,), pointwise ones (N, C): together they have no shape."""
    message = "reduction: 'none' with batch=True has no common shape"
    with pytest.raises(ValueError, match=message):
        CombinedSegmentationLoss(reduction="none", batch=True)
    inputs = draw()
    shared = {"mode": "multilabel", "reduction": "none", "batch": True}
    alone = CombinedSegmentationLoss(bce_weight=0, focal_weight=0, iou_weight=1, **shared)
    assert alone(*inputs).shape == (3,)
    assert DiceLoss(**shared)(*inputs).shape == (3,)
    assert BCELoss(**shared)(*inputs).shape == (2, 3)
    for reduction in ("mean", "sum"):
        criterion = CombinedSegmentationLoss(mode="multilabel", reduction=reduction, batch=True)
        assert criterion(*inputs).shape == ()


def test_terms_of_weight_zero_are_left_out():
    criterion = CombinedSegmentationLoss(
        bce_weight=0, bce_pos_weight=2.0, focal_weight=0, dice_weight=0, tversky_weight=0.5
    )
    assert criterion.term_names == ("tversky",)
    assert criterion.pos_weight is None  # nothing is left that it weighs
    stats = criterion(*draw((2, 5)), return_stats=True)[1]
    assert list(stats.terms) == ["tversky"]
    assert stats.tensor.shape == (criterion.stats_size(),)
    default = CombinedSegmentationLoss()
    assert default.term_names == ("bce", "focal", "dice")
    assert [term.weight for term in default.spec.terms] == [0.4, 0.2, 0.4]


# ---- as modules


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda v: torch.tensor(v).double()])
def test_weights_are_buffers_that_no_checkpoint_holds(kind):
    weights = kind([1.0, 2.0, 3.0])
    criterion = BCELoss(pos_weight=weights, class_weights=weights, mode="multilabel")
    assert dict(criterion.named_buffers()).keys() == {"class_weights", "pos_weight"}
    assert criterion.state_dict() == {}
    criterion.load_state_dict({})
    assert list(criterion.parameters()) == []
    for buffer in criterion.buffers():
        assert buffer.dtype == torch.float32
        assert buffer.tolist() == [1.0, 2.0, 3.0]
    assert all(buffer.is_meta for buffer in criterion.to("meta").buffers())


def test_weights_are_copies():
    weights = torch.ones(3)
    criterion = DiceLoss(class_weights=weights, mode="multilabel")
    weights.zero_()
    assert criterion.class_weights.tolist() == [1.0, 1.0, 1.0]
    assert DiceLoss().class_weights is None
    assert BCELoss(pos_weight=2).pos_weight.tolist() == [2.0]


@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
def test_copies_compute_the_same(row):
    criterion = row.build(mode="multilabel", class_weights=[1.0, 0.5, 2.0], ignore_index=255)
    inputs = draw()
    expected = criterion(*inputs)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert twin.spec == criterion.spec
        assert twin.backend == criterion.backend
        assert twin.class_weights.data_ptr() != criterion.class_weights.data_ptr()
        assert torch.equal(twin(*inputs), expected)


def test_repr():
    criterion = CombinedSegmentationLoss(iou_weight=0.25, mode="multilabel", reduction="sum")
    terms = "0.4 bce + 0.2 focal(alpha=0.25, gamma=2) + 0.4 dice(smooth=1) + 0.25 iou(smooth=1)"
    rest = "mode='multilabel', reduction='sum', backend='auto'"
    assert repr(criterion) == f"CombinedSegmentationLoss({terms}; {rest})"
    criterion = TverskyLoss(0.5, 0.5, mode="multiclass", ignore_index=255, class_weights=[1, 2])
    text = repr(criterion)
    assert "1 tversky(alpha=0.5, beta=0.5, smooth=1, gamma=1); mode='multiclass'" in text
    assert "ignore_index=255, class_weights of 2)" in text


# ---- calls


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("row", DEFAULTS, ids=ids(DEFAULTS))
def test_dtypes_of_losses(row, reduction):
    criterion = row.build(mode="multilabel", reduction=reduction, class_weights=[1.0, 2.0, 3.0])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        logits, targets = draw(dtype=dtype)
        logits.requires_grad_()
        loss = criterion(logits, targets)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, criterion(logits.float(), targets))  # summed in float32, not half
        loss.sum().backward()
        assert logits.grad.dtype == dtype
    loss, stats = criterion(logits.double(), targets, return_stats=True)
    assert loss.dtype == torch.float64
    assert stats.tensor.dtype == torch.float32


def test_return_stats():
    criterion, inputs = CombinedSegmentationLoss(mode="multilabel"), draw()
    alone = criterion(*inputs)
    assert isinstance(alone, torch.Tensor)
    loss, stats = criterion(*inputs, return_stats=True)
    assert torch.equal(loss, alone)
    assert type(stats) is SegmentationStats
    assert stats.term_names == criterion.term_names
    assert stats.tensor.shape == (criterion.stats_size(),)


@pytest.mark.parametrize("return_stats", [False, True])
def test_stats_out_is_written(return_stats):
    criterion, inputs = CombinedSegmentationLoss(mode="multilabel", backend="torch"), draw()
    expected = criterion(*inputs, return_stats=True)[1].tensor
    ring = torch.full((3, criterion.stats_size()), -7.0)
    result = criterion(*inputs, return_stats=return_stats, stats_out=ring[1])
    assert torch.equal(ring[1], expected)
    assert (ring[::2] == -7.0).all()
    if return_stats:
        assert result[1].tensor.data_ptr() == ring[1].data_ptr()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_wrong_stats_out(backend, device):
    criterion = DiceLoss(backend=backend)
    size, row = criterion.stats_size(), torch.zeros(criterion.stats_size(), device=device)
    logits, targets = (v.to(device) for v in draw((2, 1, 5, 7)))
    for wrong, came in (
        (row.new_zeros(size + 1), f"torch.float32 ({size + 1},) on "),
        (row[None], f"torch.float32 (1, {size}) on "),
        (row.double(), f"torch.float64 ({size},) on "),
        (row.to("meta"), f"torch.float32 ({size},) on meta"),
        (row.repeat(2)[::2], f"torch.float32 ({size},) on "),
    ):
        with pytest.raises(ValueError) as caught:
            criterion(logits, targets, stats_out=wrong)
        message = f"stats_out: expected a contiguous float32 tensor of shape ({size},) on "
        assert str(caught.value).startswith(message)
        assert f", got {came}" in str(caught.value)


def test_calls_check_their_tensors():
    logits, targets = draw()
    criterion = DiceLoss(mode="multilabel", class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="^class_weights: expected 3 values for 3 classes, got 2"):
        criterion(logits, targets)
    with pytest.raises(ValueError, match="^targets: expected the logits' shape"):
        DiceLoss(mode="multilabel")(logits, targets[:, 0])


def test_masks_of_0_and_255_are_named():
    logits, targets = draw((2, 1, 5, 7))
    with pytest.raises(ValueError, match=r"^targets: expected values in \[0, 1\], got values"):
        DiceLoss(backend="torch")(logits, torch.full_like(targets, 255))
    ignoring = torch.where(torch.rand(targets.shape) < 0.5, 255, targets)
    assert torch.isfinite(DiceLoss(ignore_index=255, backend="torch")(logits, ignoring))
    barely = targets.float() * (1 + 2**-11)  # a rounding of float16 is no mistake
    assert torch.isfinite(DiceLoss(backend="torch")(logits, barely))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_weights_stay_float32_when_the_module_is_cast(cast):
    """A criterion inside a net that is cast: 0.3 rounded to bfloat16 would be another weight."""
    criterion = CombinedSegmentationLoss(bce_pos_weight=[0.3], class_weights=[0.7])
    expected = criterion.pos_weight.clone(), criterion.class_weights.clone()
    getattr(torch.nn.Sequential(torch.nn.Linear(2, 2), criterion), cast)()
    for found, before in zip(
        (criterion.pos_weight, criterion.class_weights), expected, strict=True
    ):
        assert found.dtype == torch.float32 and torch.equal(found, before)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"focal_alpha": 2.0}, "focal_alpha"),
        ({"tversky_gamma": 0.0}, "tversky_gamma"),
        ({"dice_smooth": -1.0}, "dice_smooth"),
        ({"bce_pos_weight": -2.0}, "bce_pos_weight"),
        ({"bce_weight": 0.0, "bce_pos_weight": -2.0}, "bce_pos_weight"),
    ],
)
def test_the_combination_names_its_own_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        CombinedSegmentationLoss(**arguments)
