"""What a call may pass, and what it is told when it passes something else."""

import warnings

import pytest
import torch

from fastseg_losses import BCELoss, CrossEntropyLoss, FocalLoss
from fastseg_losses.inputs import Sizes, canonical_strides, check_inputs, live_pixels, pixel_stride

# Mode, logits' shape, targets' shape, sizes.
ACCEPTED = [
    ("binary", (4, 7), (4, 7), (4, 1, 7)),
    ("binary", (4, 1, 7), (4, 7), (4, 1, 7)),
    ("binary", (4, 7), (4, 1, 7), (4, 1, 7)),
    ("binary", (4, 5, 6), (4, 5, 6), (4, 1, 30)),
    ("binary", (4, 1, 5, 6), (4, 5, 6), (4, 1, 30)),
    ("binary", (4, 5, 6), (4, 1, 5, 6), (4, 1, 30)),
    ("binary", (4, 1, 5, 6), (4, 1, 5, 6), (4, 1, 30)),
    ("binary", (2, 1, 3, 4, 5), (2, 3, 4, 5), (2, 1, 60)),
    ("binary", (5,), (5,), (5, 1, 1)),
    ("binary", (0, 1, 5, 6), (0, 5, 6), (0, 1, 30)),
    ("multilabel", (4, 3), (4, 3), (4, 3, 1)),
    ("multilabel", (4, 3, 7), (4, 3, 7), (4, 3, 7)),
    ("multilabel", (4, 3, 5, 6), (4, 3, 5, 6), (4, 3, 30)),
    ("multilabel", (2, 3, 4, 5, 6), (2, 3, 4, 5, 6), (2, 3, 120)),
    ("multilabel", (4, 1, 5, 6), (4, 1, 5, 6), (4, 1, 30)),
    ("multilabel", (4, 3, 0, 6), (4, 3, 0, 6), (4, 3, 0)),
    ("multiclass", (4, 3), (4,), (4, 3, 1)),
    ("multiclass", (4, 3, 5, 6), (4, 5, 6), (4, 3, 30)),
    ("multiclass", (4, 3, 5, 6), (4, 1, 5, 6), (4, 3, 30)),
    ("multiclass", (4, 3, 5, 6), (4, 3, 5, 6), (4, 3, 30)),
    ("multiclass", (2, 3, 4, 5, 6), (2, 4, 5, 6), (2, 3, 120)),
]

INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
TARGET_DTYPES = [*INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check(mode="multilabel", logits=None, targets=None, valid=None, weights=None, pos=None):
    logits = torch.zeros(4, 3, 5, 6) if logits is None else logits
    targets = torch.zeros(4, 3, 5, 6) if targets is None else targets
    return check_inputs(mode, logits, targets, valid, weights, pos)


@pytest.mark.parametrize(("mode", "logits", "targets", "sizes"), ACCEPTED)
def test_accepted_shapes(mode, logits, targets, sizes):
    ids = mode == "multiclass" and targets != logits
    given = torch.zeros(targets, dtype=torch.int64 if ids else torch.float32)
    assert check(mode, torch.zeros(logits), given) == Sizes(*sizes)
    if mode == "multiclass":
        return  # tests/test_reference_multiclass.py
    x, t = torch.randn(sizes), torch.rand(sizes)
    criterion = BCELoss(mode=mode, backend="torch")
    assert torch.equal(criterion(x.view(logits), t.view(targets)), criterion(x, t))


def test_volumes_without_a_channel_are_told_from_classes():
    """(N, D, H, W) is a volume in binary mode; (N, C, H, W) by mistake would give a wrong loss."""
    x, t = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    with pytest.warns(UserWarning, match="needs mode='multilabel' or 'multiclass'"):
        loss = BCELoss()(x, t)
    assert torch.equal(loss, BCELoss()(x[:, None], t[:, None]))


WRONG_MULTICLASS = [
    ((4, 3, 5, 6), (4, 5, 7), torch.int64, ValueError, "expected class ids of shape (4, 5, 6)"),
    ((4, 3, 5, 6), (4, 2, 5, 6), torch.int64, ValueError, "or probabilities of the logits' shape"),
    ((4, 3, 5, 6), (4, 5, 6), torch.float32, TypeError, "expected class ids of an integer dtype"),
    ((4, 1, 5, 6), (4, 5, 6), torch.int64, ValueError, "with C of at least 2"),
]


@pytest.mark.parametrize(("logits", "targets", "dtype", "error", "expected"), WRONG_MULTICLASS)
def test_wrong_multiclass_calls(logits, targets, dtype, error, expected):
    with pytest.raises(error) as caught:
        check("multiclass", torch.zeros(logits), torch.zeros(targets, dtype=dtype))
    assert expected in str(caught.value)


def test_soft_targets_have_no_ignore_index():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="^ignore_index: 255 names a class id"):
        CrossEntropyLoss(ignore_index=255)(x, torch.softmax(x, 1))


def test_alpha_of_another_length():
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="^alpha: expected 3 values for 3 classes, got 2"):
        FocalLoss(alpha=[0.5, 0.5], mode="multiclass")(x, y)


@pytest.mark.parametrize("dtype", TARGET_DTYPES)
def test_accepted_target_dtypes(dtype):
    x, t = torch.randn(2, 3, 7), torch.rand(2, 3, 7) < 0.5
    assert check(logits=x, targets=t.to(dtype)) == (2, 3, 7)
    criterion = BCELoss(mode="multilabel", backend="torch")
    assert torch.equal(criterion(x, t.to(dtype)), criterion(x, t.float()))


@pytest.mark.parametrize(
    ("mode", "logits", "valid"),
    [
        ("multilabel", (4, 3, 5, 6), (4,)),
        ("multilabel", (4, 3, 5, 6), (4, 5, 6)),
        ("multilabel", (4, 3, 5, 6), (4, 1, 5, 6)),
        ("multilabel", (4, 3, 4), (4, 4)),
        ("multilabel", (2, 3, 4, 5, 6), (2, 1, 4, 5, 6)),
        ("multilabel", (4, 3), (4, 1)),
        ("binary", (4, 1, 5, 6), (4,)),
        ("binary", (4, 1, 5, 6), (4, 5, 6)),
        ("binary", (4, 1, 5, 6), (4, 1, 5, 6)),
        ("binary", (4, 5, 6), (4,)),
        ("binary", (4, 5, 6), (4, 5, 6)),
        ("binary", (4, 5, 6), (4, 1, 5, 6)),
    ],
)
def test_accepted_masks(mode, logits, valid):
    mask = torch.rand(valid) < 0.5
    x, t = torch.randn(logits), torch.rand(logits)
    sizes = check(mode, x, t, mask)
    per_pixel = mask.view(sizes.N, 1, -1).expand(sizes)
    live = live_pixels(sizes, t.view(sizes), mask, None)
    assert torch.equal(live.expand(sizes), per_pixel)


@pytest.mark.parametrize(
    ("mode", "logits", "targets", "message"),
    [
        ("multilabel", (4, 3, 5, 6), (4, 5, 6), "(4, 3, 5, 6) in mode 'multilabel', got (4, 5, 6)"),
        ("multilabel", (4, 3, 5, 6), (4, 1, 5, 6), "got (4, 1, 5, 6)"),
        ("multilabel", (4, 3, 5, 6), (4, 3, 6, 5), "got (4, 3, 6, 5)"),
        ("multilabel", (4, 1, 5, 6), (4, 5, 6), "got (4, 5, 6)"),
        ("binary", (4, 1, 5, 6), (4, 6, 5), "(4, 1, 5, 6) in mode 'binary', got (4, 6, 5)"),
        ("binary", (4, 1, 5, 6), (3, 1, 5, 6), "got (3, 1, 5, 6)"),
        ("binary", (4, 5, 6), (4, 2, 5, 6), "got (4, 2, 5, 6)"),
        ("binary", (4, 5, 6), (), "got ()"),
    ],
)
def test_targets_of_another_shape(mode, logits, targets, message):
    with pytest.raises(ValueError) as caught:
        check(mode, torch.zeros(logits), torch.zeros(targets))
    assert str(caught.value).startswith("targets: expected the logits' shape (4, ")
    assert str(caught.value).endswith(message)


def test_what_was_meant_is_said():
    def message(mode, logits, targets):
        with warnings.catch_warnings(), pytest.raises((TypeError, ValueError)) as caught:
            warnings.simplefilter("ignore")  # binary: volumes of one class?
            check(mode, logits, targets)
        return str(caught.value)

    labels = torch.zeros(2, 6, 6, dtype=torch.int64)
    for mode in ("binary", "multilabel"):
        for targets in (labels, labels[:, None]):
            text = message(mode, torch.zeros(2, 5, 6, 6), targets)
            assert text.endswith("; for class ids of 5 classes pass mode='multiclass'")
    text = message("multiclass", torch.zeros(5, 6, 6), labels[0])
    assert text.endswith("got (6, 6); is the batch dimension missing?")
    text = message("binary", torch.zeros(2, 1, 6, 6, dtype=torch.uint8), torch.zeros(2, 1, 6, 6))
    assert text.endswith("got torch.uint8; are logits and targets swapped?")


@pytest.mark.parametrize(
    ("mode", "shape", "message"),
    [
        ("multilabel", (5,), r"\(N, C, \*spatial\) in mode 'multilabel', got \(5,\)"),
        ("multilabel", (), r"\(N, C, \*spatial\) in mode 'multilabel', got \(\)"),
        ("binary", (), r"\(N, 1, \*spatial\) or \(N, \*spatial\), got a 0-d tensor"),
    ],
)
def test_logits_of_too_few_dimensions(mode, shape, message):
    with pytest.raises(ValueError, match=f"^logits: expected shape {message}$"):
        check(mode, torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
def test_logits_of_another_dtype(dtype):
    logits = torch.zeros(4, 3, 5, 6).to(dtype)
    with pytest.raises(TypeError, match=f"^logits: expected float32, .*sigmoid.*, got {dtype}$"):
        check(logits=logits, targets=torch.zeros(4, 3, 5, 6, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_targets_of_another_dtype(dtype):
    targets = torch.zeros(4, 3, 5, 6).to(dtype)
    with pytest.raises(TypeError, match=f"^targets: expected bool, an integer .*, got {dtype}$"):
        check(targets=targets)


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match="^logits: expected a torch.Tensor, got list$"):
        check(logits=[0.0])
    with pytest.raises(TypeError, match="^targets: expected a torch.Tensor, got float$"):
        check(targets=0.5)
    with pytest.raises(TypeError, match="^valid: expected a bool torch.Tensor or None, got list$"):
        check(valid=[True] * 4)


def test_targets_that_require_grad():
    targets = torch.zeros(4, 3, 5, 6, requires_grad=True)
    with pytest.raises(ValueError, match=r"^targets: .*not require grad; pass targets.detach\(\)$"):
        check(targets=targets)
    check(targets=targets.detach())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mask_of_another_dtype(dtype):
    with pytest.raises(TypeError, match=rf"^valid: expected dtype torch.bool \(.*\), got {dtype}$"):
        check(valid=torch.ones(4, dtype=dtype))


@pytest.mark.parametrize(
    ("mode", "logits", "valid"),
    [
        ("multilabel", (4, 3, 5, 6), (3,)),
        ("multilabel", (4, 3, 5, 6), (4, 3)),
        ("multilabel", (4, 3, 5, 6), (4, 3, 5, 6)),
        ("multilabel", (4, 3, 5, 6), (5, 6)),
        ("multilabel", (4, 3, 5, 6), (4, 6, 5)),
        ("multilabel", (4, 3, 5, 6), (1, 5, 6)),
        ("multilabel", (4, 3, 5, 6), ()),
        ("binary", (4, 1, 5, 6), (5, 6)),
        ("binary", (4, 5, 6), (5, 6)),
        ("binary", (4, 5, 6), (4, 6)),
        ("binary", (4, 5, 6), (4, 1, 6)),
    ],
)
def test_mask_of_another_shape(mode, logits, valid):
    pattern = r"^valid: expected shape \(4,\) for whole samples or \(4, .* for pixels, got "
    with pytest.raises(ValueError, match=pattern) as caught:
        check(mode, torch.zeros(logits), torch.zeros(logits), torch.ones(valid, dtype=torch.bool))
    assert str(caught.value).endswith(f"got {valid}")


def test_weights_of_another_length():
    for n in (1, 2, 4):
        with pytest.raises(ValueError) as caught:
            check(weights=torch.ones(n))
        assert str(caught.value) == f"class_weights: expected 3 values for 3 classes, got {n}"
    for n in (2, 4):
        with pytest.raises(ValueError) as caught:
            check(pos=torch.ones(n))
        assert str(caught.value) == f"pos_weight: expected 1 or 3 values for 3 classes, got {n}"
    binary = torch.zeros(4, 5, 6)
    with pytest.raises(ValueError, match="^pos_weight: expected 1 values for 1 classes, got 3$"):
        check("binary", binary, binary, pos=torch.ones(3))
    check(weights=torch.ones(3), pos=torch.ones(1))
    check(pos=torch.ones(3))
    check("binary", binary, binary, weights=torch.ones(1), pos=torch.ones(1))


@pytest.mark.parametrize(
    ("name", "argument", "tensor"),
    [
        ("targets", "targets", torch.zeros(4, 3, 5, 6)),
        ("valid", "valid", torch.ones(4, dtype=torch.bool)),
        ("class_weights", "weights", torch.ones(3)),
        ("pos_weight", "pos", torch.ones(1)),
    ],
)
def test_tensors_on_another_device(name, argument, tensor):
    with pytest.raises(ValueError) as caught:
        check(**{argument: tensor.to("meta")})
    assert str(caught.value) == f"{name}: expected device cpu as the logits', got meta"


# ---- which pixels count


def test_every_pixel_counts_by_default():
    assert live_pixels(Sizes(4, 3, 30), torch.zeros(4, 3, 30), None, None) is None


@pytest.mark.parametrize(
    ("index", "dtypes"),
    [
        (255, [torch.uint8, torch.int16, torch.int64, torch.float32, torch.bfloat16]),
        (-100, [torch.int8, torch.int64, torch.float16, torch.float32, torch.float64]),
        (2, [torch.uint8, torch.int64, torch.float32]),
    ],
)
def test_ignore_index(index, dtypes):
    drawn = torch.rand(4, 3, 30) < 0.3
    for dtype in dtypes:
        targets = torch.where(drawn, index, 1).to(dtype)
        assert torch.equal(live_pixels(Sizes(4, 3, 30), targets, None, index), ~drawn), dtype


def test_an_ignore_index_that_the_dtype_cannot_hold_ignores_nothing():
    """-100 in uint8 would wrap to 156, and 255 in int8 to -1."""
    for dtype, index in ((torch.uint8, -100), (torch.int8, 255), (torch.bool, 255)):
        targets = torch.arange(256).view(1, 1, 256).to(dtype)
        assert live_pixels(Sizes(1, 1, 256), targets, None, index).all(), dtype
    large = torch.tensor([2**24, 2**24 + 1], dtype=torch.int64).view(1, 1, 2)  # equal in float32
    assert live_pixels(Sizes(1, 1, 2), large, None, 2**24).tolist() == [[[False, True]]]


def test_ignore_index_and_mask_together():
    targets = torch.where(torch.rand(4, 3, 30) < 0.3, 255, 0)
    for valid in (torch.rand(4) < 0.5, torch.rand(4, 5, 6) < 0.5, torch.rand(4, 1, 5, 6) < 0.5):
        live = live_pixels(Sizes(4, 3, 30), targets, valid, 255)
        assert torch.equal(live, (targets != 255) & valid.view(4, 1, -1))


# ---- strides


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((), (), 1),
        ((7,), (3,), 3),
        ((4, 5), (5, 1), 1),
        ((4, 5), (15, 3), 3),
        ((4, 5), (1, 4), None),
        ((4, 5), (8, 1), None),
        ((2, 4, 5), (20, 5, 1), 1),
        ((2, 4, 5), (40, 5, 1), None),
        ((1, 5), (999, 2), 2),
        ((5, 1), (2, 999), 2),
        ((4, 1, 5), (10, 999, 2), 2),
        ((1, 1), (999, 7), 1),
    ],
)
def test_pixel_stride(shape, strides, expected):
    assert pixel_stride(shape, strides) == expected


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


LAYOUTS = [
    ("contiguous", (2, 3, 4, 5), lambda x: x, (60, 20, 1)),
    ("channels_last", (2, 3, 4, 5), channels_last, (60, 1, 3)),
    ("channels sliced", (2, 5, 4, 5), lambda x: x[:, 1:4], (100, 20, 1)),
    ("every other sample", (4, 3, 4, 5), lambda x: x[::2], (120, 20, 1)),
    ("columns sliced", (2, 3, 4, 9), lambda x: x[..., 2:7], None),
    ("every other column", (2, 3, 4, 10), lambda x: x[..., ::2], (120, 40, 2)),
    ("transposed", (2, 3, 5, 4), lambda x: x.transpose(2, 3), None),
    ("batch last", (3, 4, 5, 2), lambda x: x.permute(3, 0, 1, 2), (1, 40, 2)),
    ("expanded", (2, 1, 4, 5), lambda x: x.expand(2, 3, 4, 5), (20, 0, 1)),
    ("one row", (2, 3, 9, 5), lambda x: x[:, :, 3:4], (135, 45, 1)),
    ("one sample", (2, 3, 4, 5), lambda x: x[:1], (0, 20, 1)),
    ("one class", (2, 3, 4, 5), lambda x: x[:, 1:2], (60, 0, 1)),
    ("no space", (2, 3), lambda x: x, (3, 1, 1)),
]


@pytest.mark.parametrize(("name", "shape", "view", "expected"), LAYOUTS, ids=lambda v: str(v)[:20])
def test_canonical_strides(name, shape, view, expected):
    memory = torch.randperm(torch.Size(shape).numel()).view(shape)
    tensor = view(memory)
    N, C, *spatial = tensor.shape
    sizes = Sizes(N, C, torch.Size(spatial).numel())
    assert canonical_strides("multilabel", sizes, tensor) == expected
    if expected is None:
        return
    assert torch.equal(
        tensor.as_strided(sizes, expected, tensor.storage_offset()), tensor.reshape(sizes)
    )


def test_canonical_strides_without_a_channel():
    tensor = torch.zeros(4, 5, 6)
    assert canonical_strides("binary", Sizes(4, 1, 30), tensor) == (30, 0, 1)
    assert canonical_strides("binary", Sizes(4, 1, 30), tensor[:, None]) == (30, 0, 1)
    assert canonical_strides("binary", Sizes(4, 1, 20), tensor[..., :5][:, :4]) is None


def test_binary_shapes_mix_where_the_height_is_one():
    assert check("binary", torch.zeros(2, 1, 5), torch.zeros(2, 1, 1, 5)) == (2, 1, 5)
    assert check("binary", torch.zeros(5, 1), torch.zeros(5)) == (5, 1, 1)


def test_binary_space_has_at_most_three_sizes():
    with pytest.raises(ValueError, match="at most 3-D space, in mode 'binary'"):
        check("binary", torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 3, 4, 5, 6))
