"""segmentation_models_pytorch's losses, beside the package itself: any arguments, any targets."""

import copy
import pickle
from functools import partial

import peers
import pytest
import torch
from hypothesis import strategies as st
from peers import DTYPES, check, signature

from fastseg_losses import ops
from fastseg_losses.compat import fused, smp

NAMES = [n for n in smp.__all__ if n.endswith("Loss") and n != "SumLoss"]
MODES = ["binary", "multilabel", "multiclass"]
IGNORED = [None, 1, 255, -100]


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    assert signature(getattr(smp, name)) == signature(getattr(peers.smp(), name))


def batch(draw, device, modes=MODES):
    """A mode, C, logits and targets of a shape and dtype that the peer takes in it."""
    mode = draw(st.sampled_from(modes))
    space = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    N = draw(st.integers(1, 3))
    C = 1 if mode == "binary" else draw(st.integers(2, 5) if device == "cpu" else st.just(3))
    dtype = draw(st.sampled_from(DTYPES[device]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    x = (torch.randn((N, C, *space), generator=generator) * 3).to(dtype)
    ignore = draw(st.sampled_from(IGNORED))
    if mode == "multiclass":
        y = torch.randint(0, C, (N, *space), generator=generator)
        y = y[:, None] if draw(st.booleans()) else y
    else:
        soft = draw(st.booleans())
        y = torch.rand(x.shape, generator=generator)
        y = y if soft else y.round()
        kind = draw(st.sampled_from([dtype, torch.long, torch.uint8]))
        y = y.to(dtype if soft else kind)
        if draw(st.booleans()):
            y[:, 0] = 0  # a class without a target
    fits = not (y.dtype == torch.uint8 and ignore == -100)
    if ignore is not None and ignore != 1 and fits and draw(st.booleans()):
        y = torch.where(torch.rand(y.shape, generator=generator) < 0.3, ignore, y)
    elif ignore is not None and mode == "multiclass" and ignore != 1:
        ignore = None
    return mode, C, x.to(device), y.to(device), ignore


def probabilities(mode, x):
    return torch.softmax(x, 1) if mode == "multiclass" else torch.sigmoid(x)


def weights_of(draw, C):
    every = st.sampled_from([0.25, 0.5, 1.0, 2.0])
    return draw(st.none() | st.lists(every, min_size=C, max_size=C))


def regions(draw, device):
    mode, C, x, y, ignore = batch(draw, device)
    name = draw(st.sampled_from(["DiceLoss", "JaccardLoss", "TverskyLoss"]))
    arguments = {
        "log_loss": draw(st.booleans()),
        "from_logits": draw(st.booleans()),
        "smooth": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "eps": draw(st.sampled_from([1e-7, 1e-3])),
        "ignore_index": ignore,
    }
    if mode != "binary":
        subsets = st.lists(st.integers(0, C - 1), min_size=1, max_size=C)
        arguments["classes"] = draw(st.none() | subsets)
        arguments["class_weights"] = weights_of(draw, C)
    if name == "TverskyLoss":
        arguments["alpha"] = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
        # with both 0 the score is always 1, and rounding all that is left of its gradient
        arguments["beta"] = draw(st.sampled_from([0.3, 0.5, 1.0]))
        arguments["gamma"] = draw(st.sampled_from([1.0, 2.0]))
    if not arguments["from_logits"]:
        x = probabilities(mode, x)
    ours, theirs = (getattr(m, name)(mode, **arguments) for m in (smp, peers.smp()))
    check(ours, theirs, x, y)


def focal(draw, device):
    mode, C, x, y, ignore = batch(draw, device)
    if mode == "multilabel":
        y, ignore = torch.where(y == ignore, 0, y) if ignore else y, None  # IndexError in the peer
    if mode == "multiclass" and y.dim() == x.dim():
        y = y[:, 0]  # the peer broadcasts (N, 1, ...) against (N, ...)
    arguments = {
        "alpha": draw(st.sampled_from([None, 0.0, 0.25, 1.0])),
        "gamma": draw(st.sampled_from([0.0, 1.0, 1.5, 2.0, 5.0])),
        "from_logits": draw(st.booleans()),
        "reduction": draw(st.sampled_from(["mean", "sum", "batchwise_mean", "none", None])),
        "normalized": draw(st.booleans()),
        "reduced_threshold": draw(st.sampled_from([None, 0.5])),
        "ignore_index": ignore,
    }
    if mode != "binary" and arguments["reduction"] in ("mean", "sum"):
        arguments["class_weights"] = weights_of(draw, C)
    if ignore is not None and bool((y == ignore).all()):
        y.view(-1)[0] = 0  # NaN in the peer
    if not arguments["from_logits"]:
        x = probabilities(mode, x)
    ours, theirs = (m.FocalLoss(mode, **arguments) for m in (smp, peers.smp()))
    check(ours, theirs, x, y, tolerance=1e-4 if x.dtype == torch.float32 else None)


def soft_bce(draw, device):
    mode, C, x, y, ignore = batch(draw, device, ["binary", "multilabel"])
    positive = draw(st.sampled_from([None, (1,), (C, *(1,) * (x.dim() - 2))]))
    weight = draw(st.sampled_from([None, x.shape[-1:]]))
    arguments = {
        "weight": None if weight is None else torch.rand(weight).double(),
        "ignore_index": ignore,
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "smooth_factor": draw(st.sampled_from([None, 0.0, 0.1, 0.5, 0.8])),
        "pos_weight": None if positive is None else torch.rand(positive).double() + 0.5,
    }
    y = y.to(x.dtype)  # the peer takes nothing else
    both = (m.SoftBCEWithLogitsLoss(**arguments).to(device) for m in (smp, peers.smp()))
    check(*both, x, y)


def soft_ce(draw, device):
    mode, C, x, y, ignore = batch(draw, device, ["multiclass"])
    arguments = {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "smooth_factor": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "ignore_index": ignore,
    }
    ours, theirs = (m.SoftCrossEntropyLoss(**arguments) for m in (smp, peers.smp()))
    check(ours, theirs, x, y)
    last = {"dim": -1, **arguments}
    ours, theirs = (m.SoftCrossEntropyLoss(**last) for m in (smp, peers.smp()))
    y = y[:, 0] if y.dim() == x.dim() else y
    check(ours, theirs, x.movedim(1, -1), y)


def several(draw, device):
    """Losses at once against the sum of the peer's."""
    mode, C, x, y, ignore = batch(draw, device)
    if mode == "multilabel":
        y, ignore = torch.where(y == ignore, 0, y) if ignore else y, None  # IndexError in the peer
    if mode == "multiclass" and y.dim() == x.dim():
        y = y[:, 0]
    if ignore is not None and bool((y == ignore).all()):
        y.view(-1)[0] = 0  # NaN in the peer
    names = draw(st.lists(st.sampled_from(NAMES[:-2]), min_size=1, max_size=4))
    names = [n for n in names if not n.startswith("Soft")] or ["FocalLoss"]
    weights = [draw(st.sampled_from([0.25, 1.0])) for _ in names]
    more = {"smooth": 1.0} if draw(st.booleans()) else {}
    both = []
    for m in (smp, peers.smp()):
        losses = []
        for name in names:
            arguments = {"alpha": 0.3} if name in ("FocalLoss", "TverskyLoss") else {}
            arguments |= more if name != "FocalLoss" else {}
            losses.append(getattr(m, name)(mode, ignore_index=ignore, **arguments))
        both.append(losses)
    ours = smp.SumLoss(*both[0], weights=weights)

    def theirs(x, y):
        return sum(w * loss(x, y) for w, loss in zip(weights, both[1], strict=True))

    check(ours, theirs, x, y, tolerance=1e-4 if x.dtype == torch.float32 else None)


DRAWN = [regions, focal, soft_bce, soft_ce, several]


@pytest.mark.parametrize("case", DRAWN, ids=lambda case: case.__name__)
def test_drawn_arguments(case):
    peers.drawn(case, 250)


test_drawn_arguments_on_the_gpu = peers.on_gpu(DRAWN, "test_drawn_arguments_on_the_gpu")

FUSED = [
    (name, mode, arguments)
    for mode in MODES
    for name, arguments in [
        ("DiceLoss", {}),
        ("JaccardLoss", {"log_loss": True}),
        ("TverskyLoss", {"alpha": 0.3, "beta": 0.7, "from_logits": False}),
        ("FocalLoss", {"alpha": 0.25}),
        ("FocalLoss", {"reduction": "sum", "gamma": 1.5}),
    ]
] + [
    ("SoftBCEWithLogitsLoss", "multilabel", {"smooth_factor": 0.1}),
    ("SoftCrossEntropyLoss", "multiclass", {"smooth_factor": 0.1}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "mode", "arguments"), FUSED)
def test_on_the_kernels(name, mode, arguments, dtype, device, monkeypatch):
    triton = partial(ops.segmentation_loss, backend="triton")
    monkeypatch.setattr(fused, "segmentation_loss", triton)
    C = 1 if mode == "binary" else 4
    x = torch.randn(2, C, 6, 7, device=device) * 3
    if not arguments.get("from_logits", True):
        x = probabilities(mode, x)
    x = x.to(dtype)
    if mode == "multiclass":
        targets = [torch.randint(1, C, (2, 6, 7), device=device)]
    else:
        soft = torch.rand(x.shape, device=device).to(dtype)
        targets = [soft, soft.round().to(torch.long), soft.round().float()]
    given = () if name.startswith("Soft") else (mode,)
    for y in targets:
        if name == "SoftBCEWithLogitsLoss":
            y = y.to(dtype)
        theirs = getattr(peers.smp(), name)(*given, **arguments)
        check(getattr(smp, name)(*given, **arguments), theirs, x, y)


def test_sums_that_agree_take_one_call(monkeypatch):
    calls = []

    def counted(*inputs, **rest):
        calls.append(inputs)
        return ops.segmentation_loss(*inputs, **rest)

    monkeypatch.setattr(fused, "segmentation_loss", counted)
    x, y = torch.randn(2, 1, 4, 4), torch.rand(2, 1, 4, 4).round()
    smp.SumLoss(smp.DiceLoss("binary"), smp.FocalLoss("binary"), smp.JaccardLoss("binary"))(x, y)
    assert len(calls) == 1
    smp.SumLoss(smp.DiceLoss("binary"), smp.TverskyLoss("binary", gamma=2.0))(x, y)
    assert len(calls) == 3
    with pytest.raises(ValueError, match="weights: expected one for each of 1 losses, got 2"):
        smp.SumLoss(smp.DiceLoss("binary"), weights=(1.0, 2.0))


class Largest(smp.DiceLoss):
    """A subclass as the peer allows it."""

    def aggregate_loss(self, loss):
        return loss.max()


def test_subclass_hook():
    x, y = torch.randn(2, 4, 5, 5), torch.randint(0, 3, (2, 5, 5))
    each = [smp.DiceLoss("multiclass", classes=[c])(x, y) for c in range(4)]
    assert torch.equal(Largest("multiclass")(x, y), torch.stack(each).max())
    assert torch.equal(Largest("multiclass", classes=[1])(x, y), each[1])


def test_errors_as_there():
    for module in (smp, peers.smp()):
        for name in ("DiceLoss", "JaccardLoss", "TverskyLoss", "FocalLoss"):
            with pytest.raises(AssertionError):
                getattr(module, name)("both")
            with pytest.raises(ValueError, match="class_weights"):
                getattr(module, name)("binary", class_weights=[1.0])
        with pytest.raises(AssertionError):
            module.DiceLoss("binary", classes=[0])
        with pytest.raises(AssertionError):
            module.DiceLoss("binary")(torch.zeros(2, 1, 3), torch.zeros(3, 1, 3))
        with pytest.raises(ValueError, match="size|shape"):
            module.SoftBCEWithLogitsLoss()(torch.zeros(2, 3), torch.zeros(2, 4))


def test_attributes_and_copies():
    ours, theirs = (
        m.TverskyLoss("multiclass", classes=[0, 2], class_weights=[1.0, 2, 3])
        for m in (smp, peers.smp())
    )
    for name in ("mode", "from_logits", "smooth", "eps", "log_loss", "ignore_index", "alpha"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert torch.equal(ours.classes, theirs.classes)
    assert torch.equal(ours.class_weights, theirs.class_weights)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, y = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x, y), ours(x, y))
    ours.smooth = theirs.smooth = 2.0  # attributes may be set
    check(ours, theirs, x, y)


def test_where_the_peer_has_no_result():
    """As docs/compat.md lists it."""
    x, y = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    assert smp.FocalLoss("multiclass", ignore_index=9)(x, torch.full_like(y, 9)) == 0  # NaN there
    assert smp.DiceLoss("multiclass", class_weights=[0, 0, 0])(x, y) == 0  # NaN there
    smp.FocalLoss("multilabel", ignore_index=255)(x, torch.ones_like(x))  # IndexError there
    plain = smp.SoftCrossEntropyLoss()(x, y)  # TypeError there
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(x, y))
