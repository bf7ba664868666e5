"""nnU-Net's losses against their formulas: scores, labels, masks, ranks."""

import inspect
from functools import partial

import peers
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import strategies as st
from peers import DTYPES, HALF, check, laid_out

from fastseg_losses import compat
from fastseg_losses.compat import nnunet

# ---- the peer's formulas: one-hot masks, activated predictions, sums over axes


def one_hot(x, y):
    if y.dim() == x.dim() - 1:
        y = y[:, None]
    if y.shape == x.shape:
        return y.to(x)
    return torch.zeros_like(x).scatter_(1, y.long(), 1)


def soft_dice(x, y, mask, nonlin, batch_dice, do_bg, smooth, clip_tp=None):
    p = x if nonlin is None else nonlin(x)
    t = one_hot(x, y)
    m = 1 if mask is None else mask.to(x)
    axes = ([0] if batch_dice else []) + list(range(2, x.dim()))
    tp, fp, fn = (v.sum(axes) for v in (p * t * m, p * (1 - t) * m, (1 - p) * t * m))
    if clip_tp is not None:
        tp = tp.clip(min=clip_tp)
    dc = (2 * tp + smooth) / (2 * tp + fp + fn + smooth).clip(min=1e-8)
    if not do_bg:
        dc = dc[1:] if batch_dice else dc[:, 1:]
    return -dc.mean()


def dc_and_ce(x, y, dice, ce, weight_ce, weight_dice, ignore):
    mask = None if ignore is None else y != ignore
    labels = y if mask is None else torch.where(mask, y, 0)
    loss = weight_dice * soft_dice(x, labels, mask, lambda v: torch.softmax(v, 1), **dice)
    if ignore is not None and not mask.any():
        return loss
    ce = ce if ignore is None else {**ce, "ignore_index": ignore}
    return loss + weight_ce * F.cross_entropy(x, y[:, 0].long(), **ce)


def dc_and_bce(x, y, dice, weight_ce, weight_dice, ignore, reduction="mean", **weights):
    y, mask = (y[:, :-1], 1 - y[:, -1:]) if ignore else (y, None)
    each = F.binary_cross_entropy_with_logits(x, y.to(x), reduction="none", **weights)
    bce = each.sum() if reduction == "sum" else each.mean()
    if mask is not None:
        bce = (each * mask).sum() / mask.sum().clip(min=1e-8)
    return weight_ce * bce + weight_dice * soft_dice(x, y, mask, torch.sigmoid, **dice)


def test_signatures():
    def parameters(cls):
        return [(p.name, p.default) for p in inspect.signature(cls).parameters.values()]

    first = [("apply_nonlin", None), ("batch_dice", False), ("do_bg", True), ("smooth", 1.0)]
    efficient = [*first, ("ddp", True)]
    assert parameters(nnunet.MemoryEfficientSoftDiceLoss) == efficient
    assert parameters(nnunet.SoftDiceLoss) == [*efficient, ("clip_tp", None)]
    none, weights = inspect.Parameter.empty, [("weight_ce", 1), ("weight_dice", 1)]
    kwargs = [("soft_dice_kwargs", none), ("ce_kwargs", none)]
    last = [("ignore_label", None), ("dice_class", nnunet.SoftDiceLoss)]
    assert parameters(nnunet.DC_and_CE_loss) == [*kwargs, *weights, *last]
    kwargs = [("bce_kwargs", none), ("soft_dice_kwargs", none)]
    last = [("use_ignore_label", False), ("dice_class", nnunet.MemoryEfficientSoftDiceLoss)]
    assert parameters(nnunet.DC_and_BCE_loss) == [*kwargs, *weights, *last]
    expected = [("loss", none), ("weight_factors", None)]
    assert parameters(nnunet.DeepSupervisionWrapper) == expected


def volume(draw, device):
    N, C = draw(st.integers(1, 3)), draw(st.integers(1, 4) if device == "cpu" else st.just(3))
    space = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=3)))
    dtype = draw(st.sampled_from(DTYPES[device]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    x = (torch.randn((N, C, *space), generator=generator) * 3).to(dtype)
    return x, generator


def dice_kwargs(draw):
    return {
        "batch_dice": draw(st.booleans()),
        "do_bg": draw(st.booleans()),
        "smooth": draw(st.sampled_from([1e-5, 1.0, 0.0])),
    }


def quarters(shape, generator):
    """Weights that every dtype holds."""
    return (torch.rand(shape, generator=generator) * 8).round() / 4 + 0.25


def squashed(x):
    return torch.tanh(x).abs()


def soft_dice_case(draw, device):
    x, generator = volume(draw, device)
    kwargs = dice_kwargs(draw)
    choices = [torch.sigmoid, nnunet.softmax_helper_dim1, None, squashed]
    nonlin = draw(st.sampled_from(choices))
    if x.shape[1] == 1:
        kwargs["do_bg"] = True
    labels = draw(st.booleans()) and x.shape[1] > 1
    if labels:
        y = torch.randint(0, x.shape[1], (x.shape[0], 1, *x.shape[2:]), generator=generator)
        y = y.to(draw(st.sampled_from([torch.long, torch.float32, torch.uint8])))
        y = y[:, 0] if draw(st.booleans()) else laid_out(draw, y)
    else:
        y = torch.rand(x.shape, generator=generator).round().to(torch.uint8)
    mask = None
    if draw(st.booleans()):
        mask = torch.rand((x.shape[0], 1, *x.shape[2:]), generator=generator) < 0.5
        mask = mask.float() if draw(st.booleans()) else mask
    if nonlin is None:
        x = x.sigmoid()
    if nonlin is squashed and x.dtype in HALF:  # in which PyTorch would compute it
        x = x.float()
    efficient = nnunet.MemoryEfficientSoftDiceLoss(nonlin, **kwargs)
    theirs = partial(soft_dice, nonlin=nonlin, **kwargs)
    tensors = [None if each is None else each.to(device) for each in (x, y, mask)]
    check(efficient, theirs, *tensors)
    kwargs["clip_tp"] = draw(st.sampled_from([None, 0.5]))
    check(nnunet.SoftDiceLoss(nonlin, **kwargs), partial(theirs, **kwargs), *tensors)


def dc_and_ce_case(draw, device):
    x, generator = volume(draw, device)
    if x.shape[1] == 1:
        x = torch.cat([x, -x], 1)
    dice = dice_kwargs(draw)
    weights = {
        "weight_ce": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "weight_dice": draw(st.sampled_from([0.0, 0.3, 1.0])),
    }
    if weights["weight_ce"] == weights["weight_dice"] == 0.0:
        weights["weight_dice"] = 1.0  # else there is no graph
    ce = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "reduction": draw(st.sampled_from(["mean", "sum"])),
    }
    if draw(st.booleans()):
        ce["weight"] = quarters(x.shape[1:2], generator)
    shape = (x.shape[0], 1, *x.shape[2:])
    y = torch.randint(0, x.shape[1], shape, generator=generator).float()
    ignore = draw(st.sampled_from([None, x.shape[1], 0]))
    if ignore is None and draw(st.booleans()):
        ce["ignore_index"] = draw(st.sampled_from([-1, 0]))
        y[(0,) * y.dim()] = 1  # a mean of nothing is NaN there
    if ignore is not None:
        share = draw(st.sampled_from([0.3, 1.1]))  # all of them, too
        y[torch.rand(shape, generator=generator) < share] = ignore
    ours = nnunet.DC_and_CE_loss(dice, dict(ce), ignore_label=ignore, **weights)

    def theirs(x, y):
        cast = {k: v.to(x) if isinstance(v, torch.Tensor) else v for k, v in ce.items()}
        return dc_and_ce(x, y, dice, cast, ignore=ignore, **weights)

    check(ours.to(device), theirs, x.to(device), y.to(device))


def dc_and_bce_case(draw, device):
    x, generator = volume(draw, device)
    dice = dice_kwargs(draw)
    dice["do_bg"] = dice["do_bg"] or x.shape[1] == 1
    ignore = draw(st.booleans())
    weights = {
        "weight_ce": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "weight_dice": draw(st.sampled_from([0.0, 0.7])),
    }
    shape = (x.shape[0], x.shape[1] + ignore, *x.shape[2:])
    y = torch.rand(shape, generator=generator).round()
    bce = {"reduction": draw(st.sampled_from(["mean", "sum"]))}
    if draw(st.booleans()):
        bce["pos_weight"] = quarters((x.shape[1], *(1,) * (x.dim() - 2)), generator)
    if draw(st.booleans()):
        bce["weight"] = quarters(x.shape[-1:], generator)
    ours = nnunet.DC_and_BCE_loss(dict(bce), dice, use_ignore_label=ignore, **weights)
    if "pos_weight" in bce or "weight" in bce:
        ours = ours.to(x.dtype)
        if x.dtype in HALF:  # in which PyTorch would compute it
            x, ours = x.float(), ours.float()

    def theirs(x, y):
        cast = {k: v.to(x) if isinstance(v, torch.Tensor) else v for k, v in bce.items()}
        return dc_and_bce(x, y, dice, ignore=ignore, **weights, **cast)

    check(ours.to(device), theirs, x.to(device), y.to(device))


def robust_ce_case(draw, device):
    x, generator = volume(draw, device)
    y = torch.randint(0, x.shape[1], (x.shape[0], 1, *x.shape[2:]), generator=generator)
    y = y.to(draw(st.sampled_from([torch.long, torch.float32, torch.uint8])))
    arguments = {
        "ignore_index": draw(st.sampled_from([-100, 0, 255])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
    }
    if x.shape[1] == 1 or arguments["reduction"] == "none":
        x = x.float() if x.dtype in HALF else x  # in which PyTorch would compute it
    if draw(st.booleans()):
        arguments["weight"] = quarters(x.shape[1:2], generator)
    if arguments["ignore_index"] == 255:
        y[torch.rand(y.shape, generator=generator) < 0.3] = 255
    flat = draw(st.booleans())
    y = y[:, 0] if flat else laid_out(draw, y)
    if arguments["reduction"] == "mean" and (y == arguments["ignore_index"]).all():
        arguments["ignore_index"] = -100  # a mean of nothing is NaN there
        y = torch.zeros_like(y)

    def theirs(x, y):
        cast = {k: v.to(x) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        return F.cross_entropy(x, (y if flat else y[:, 0]).long(), **cast)

    ours = nnunet.RobustCrossEntropyLoss(**arguments).to(x.dtype)
    check(ours.to(device), theirs, laid_out(draw, x).to(device), y.to(device))


DRAWN = [robust_ce_case, soft_dice_case, dc_and_ce_case, dc_and_bce_case]


@pytest.mark.parametrize("case", DRAWN, ids=lambda case: case.__name__)
def test_drawn_arguments(case):
    peers.drawn(case, 200)


test_drawn_arguments_on_the_gpu = peers.on_gpu(DRAWN, "test_drawn_arguments_on_the_gpu")


def test_deep_supervision():
    outputs = [torch.randn(2, 3, s, s) for s in (8, 4, 2)]
    labels = [torch.randint(0, 3, (2, 1, s, s)) for s in (8, 4, 2)]
    inner = nnunet.DC_and_CE_loss({"batch_dice": True, "do_bg": False, "smooth": 1e-5}, {})
    each = [inner(x, y) for x, y in zip(outputs, labels, strict=True)]
    wrapped = nnunet.DeepSupervisionWrapper(inner, (0.6, 0.4, 0.0))(outputs, labels)
    torch.testing.assert_close(wrapped, 0.6 * each[0] + 0.4 * each[1])
    torch.testing.assert_close(nnunet.DeepSupervisionWrapper(inner)(outputs, labels), sum(each))
    with pytest.raises(IndexError):
        nnunet.DeepSupervisionWrapper(inner, (0.6, 0.4))(outputs, labels)
    with pytest.raises(AssertionError, match="weight factor"):
        nnunet.DeepSupervisionWrapper(inner, (0.0, 0.0))
    with pytest.raises(AssertionError, match="tuple or list"):
        nnunet.DeepSupervisionWrapper(inner)(outputs[0], labels)
    with pytest.raises(AssertionError, match="one hot"):
        nnunet.DC_and_CE_loss({}, {}, ignore_label=3)(outputs[0], outputs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignore", [None, 4])
def test_on_the_kernels(dtype, ignore, device):
    x = (torch.randn(2, 4, 5, 6, 7, device=device) * 3).to(dtype)
    y = torch.randint(0, 4 if ignore is None else 5, (2, 1, 5, 6, 7), device=device).float()
    dice = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}
    ours = nnunet.DC_and_CE_loss(dice, {}, ignore_label=ignore)
    theirs = partial(dc_and_ce, dice=dice, ce={}, weight_ce=1, weight_dice=1, ignore=ignore)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    with compat.backend("triton"):
        check(ours, theirs, x, y, tolerance=tolerance)
    regions = torch.rand(2, 4 + (ignore is not None), 5, 6, 7, device=device).round()
    dice = {"batch_dice": False, "do_bg": True, "smooth": 1e-5}
    ours = nnunet.DC_and_BCE_loss({}, dice, use_ignore_label=ignore is not None)
    theirs = partial(dc_and_bce, dice=dice, weight_ce=1, weight_dice=1, ignore=bool(ignore))
    with compat.backend("triton"):
        check(ours, theirs, x, regions, tolerance=tolerance)


class Twice(nnunet.SoftDiceLoss):
    def forward(self, x, y, loss_mask=None):
        return 2 * super().forward(x, y, loss_mask)


class Foreign(torch.nn.Module):
    def __init__(self, apply_nonlin, **_):
        super().__init__()

    def forward(self, x, y, loss_mask=None):
        return x.mean()


class Scaled(nnunet.RobustCrossEntropyLoss):
    def forward(self, input, target):
        return 3 * super().forward(input, target)


def test_parts_of_the_caller():
    """What the caller subclassed, replaced or hooked is called."""
    x, labels = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    regions = torch.rand(2, 3, 5, 5).round()
    entropy = F.cross_entropy(x, labels[:, 0])
    bce = F.binary_cross_entropy_with_logits(x, regions)
    softmax = nnunet.SoftDiceLoss(nnunet.softmax_helper_dim1)(x, labels)
    sigmoid = nnunet.SoftDiceLoss(torch.sigmoid)(x, regions)
    close = torch.testing.assert_close
    for part, own in ((Twice, 2 * softmax), (Foreign, x.mean())):
        close(nnunet.DC_and_CE_loss({}, {}, dice_class=part)(x, labels), entropy + own)
    for part, own in ((Twice, 2 * sigmoid), (Foreign, x.mean())):
        close(nnunet.DC_and_BCE_loss({}, {}, dice_class=part)(x, regions), bce + own)
    loss = nnunet.DC_and_CE_loss({}, {})
    loss.ce = Scaled()
    close(loss(x, labels), 3 * entropy + softmax)
    loss.ce = torch.nn.CrossEntropyLoss()
    loss.dc.register_forward_hook(lambda module, inputs, result: result - 1)
    close(loss(x, labels[:, :]), entropy + softmax - 1)
    loss = nnunet.DC_and_BCE_loss({}, {}, weight_ce=torch.tensor(0.5, requires_grad=True))
    loss(x, regions).backward()
    close(loss.weight_ce.grad, bce)


def test_where_there_is_nothing(recwarn):
    x, y = torch.randn(0, 3, 4, 4, requires_grad=True), torch.zeros(0, 1, 4, 4)
    assert nnunet.RobustCrossEntropyLoss()(x, y).isnan()
    assert nnunet.RobustCrossEntropyLoss(reduction="sum")(x, y) == 0
    assert F.cross_entropy(x, y[:, 0].long()).isnan()
    # as docs/compat.md lists it
    ignored = torch.full((2, 1, 4, 4), 7)
    assert nnunet.RobustCrossEntropyLoss(ignore_index=7)(torch.randn(2, 3, 4, 4), ignored) == 0


# ---- batch Dice over ranks


def rank(number, port, results):
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=number, world_size=2)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (4, 1, 6, 6), generator=generator)
    own = slice(0, 1) if number == 0 else slice(1, 4)
    part = x[own].clone().requires_grad_()
    kwargs = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}
    loss = nnunet.DC_and_CE_loss(kwargs, {}, weight_ce=0)(part, y[own])
    loss.backward()
    results[number] = (loss.detach(), part.grad)
    dist.destroy_process_group()


def test_batch_dice_over_two_ranks():
    """Every rank has the loss of the joined batch; gradients add up to twice its own."""
    with mp.Manager() as manager:
        results = manager.dict()
        port = 29000 + torch.randint(0, 900, ()).item()
        mp.spawn(rank, (port, results), nprocs=2)
        found = [results[0], results[1]]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 3, (4, 1, 6, 6), generator=generator)
    kwargs = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}
    joined = soft_dice(x, y, None, lambda v: torch.softmax(v, 1), **kwargs)
    joined.backward()
    for loss, _ in found:
        torch.testing.assert_close(loss, joined.detach())
    # as in nnU-Net: DDP's mean over two ranks makes the joined batch's gradient of it
    torch.testing.assert_close(torch.cat([g for _, g in found]), 2 * x.grad)
