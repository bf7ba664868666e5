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
from peers import DTYPES, check

from fastseg_losses import ops
from fastseg_losses.compat import fused, nnunet

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
    index = -100 if ignore is None else ignore
    return loss + weight_ce * F.cross_entropy(x, y[:, 0].long(), ignore_index=index, **ce)


def dc_and_bce(x, y, dice, weight_ce, weight_dice, ignore, pos_weight):
    y, mask = (y[:, :-1], 1 - y[:, -1:]) if ignore else (y, None)
    each = F.binary_cross_entropy_with_logits(x, y.to(x), pos_weight=pos_weight, reduction="none")
    bce = each.mean() if mask is None else (each * mask).sum() / mask.sum().clip(min=1e-8)
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
        nonlin = torch.sigmoid
    labels = draw(st.booleans()) and x.shape[1] > 1
    if labels:
        y = torch.randint(0, x.shape[1], (x.shape[0], 1, *x.shape[2:]), generator=generator)
        y = y.to(draw(st.sampled_from([torch.long, torch.float32, torch.uint8])))
    else:
        y = torch.rand(x.shape, generator=generator).round().to(torch.uint8)
    mask = None
    if draw(st.booleans()):
        mask = torch.rand((x.shape[0], 1, *x.shape[2:]), generator=generator) < 0.5
    if nonlin is None:
        x = x.sigmoid()
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
        "weight_ce": draw(st.sampled_from([0.5, 1.0])),
        "weight_dice": draw(st.sampled_from([0.3, 1.0])),
    }
    ce = {"label_smoothing": draw(st.sampled_from([0.0, 0.1]))}
    if draw(st.booleans()):
        ce["weight"] = quarters(x.shape[1:2], generator)
    shape = (x.shape[0], 1, *x.shape[2:])
    y = torch.randint(0, x.shape[1], shape, generator=generator).float()
    ignore = draw(st.sampled_from([None, x.shape[1], 0]))
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
    weights = {"weight_ce": draw(st.sampled_from([0.5, 1.0])), "weight_dice": 0.7}
    shape = (x.shape[0], x.shape[1] + ignore, *x.shape[2:])
    y = torch.rand(shape, generator=generator).round()
    pos_weight = None
    if draw(st.booleans()):
        pos_weight = quarters((x.shape[1], *(1,) * (x.dim() - 2)), generator)
    bce = {} if pos_weight is None else {"pos_weight": pos_weight}
    ours = nnunet.DC_and_BCE_loss(bce, dice, use_ignore_label=ignore, **weights)
    if ours.ce.pos_weight is not None:
        ours = ours.to(x.dtype)

    def theirs(x, y):
        positive = None if pos_weight is None else pos_weight.to(x)
        return dc_and_bce(x, y, dice, ignore=ignore, pos_weight=positive, **weights)

    check(ours.to(device), theirs, x.to(device), y.to(device))


DRAWN = [soft_dice_case, dc_and_ce_case, dc_and_bce_case]


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
    with pytest.raises(AssertionError, match="weight factor"):
        nnunet.DeepSupervisionWrapper(inner, (0.0, 0.0))
    with pytest.raises(AssertionError, match="tuple or list"):
        nnunet.DeepSupervisionWrapper(inner)(outputs[0], labels)
    with pytest.raises(AssertionError, match="one hot"):
        nnunet.DC_and_CE_loss({}, {}, ignore_label=3)(outputs[0], outputs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignore", [None, 4])
def test_on_the_kernels(dtype, ignore, device, monkeypatch):
    triton = partial(ops.segmentation_loss, backend="triton")
    monkeypatch.setattr(fused, "segmentation_loss", triton)
    x = (torch.randn(2, 4, 5, 6, 7, device=device) * 3).to(dtype)
    y = torch.randint(0, 4 if ignore is None else 5, (2, 1, 5, 6, 7), device=device).float()
    dice = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}
    ours = nnunet.DC_and_CE_loss(dice, {}, ignore_label=ignore)
    theirs = partial(dc_and_ce, dice=dice, ce={}, weight_ce=1, weight_dice=1, ignore=ignore)
    check(ours, theirs, x, y, tolerance={torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype])
    regions = torch.rand(2, 4 + (ignore is not None), 5, 6, 7, device=device).round()
    dice = {"batch_dice": False, "do_bg": True, "smooth": 1e-5}
    ours = nnunet.DC_and_BCE_loss({}, dice, use_ignore_label=ignore is not None)
    theirs = partial(
        *(dc_and_bce,), dice=dice, weight_ce=1, weight_dice=1, ignore=bool(ignore), pos_weight=None
    )
    check(ours, theirs, x, regions, tolerance={torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype])


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
