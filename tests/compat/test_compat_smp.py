"""segmentation_models_pytorch's losses, beside the package itself: any arguments, any targets."""

import copy
import pickle

import numpy as np
import peers
import pytest
import torch
from hypothesis import strategies as st
from peers import DTYPES, check, laid_out, signature, value_and_gradient

from fastseg_losses import compat, ops
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
    space = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)))
    N = draw(st.integers(1, 3))
    C = 1 if mode == "binary" else draw(st.integers(1, 5) if device == "cpu" else st.just(3))
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
    x, y = laid_out(draw, x), laid_out(draw, y)
    return mode, C, x.to(device), y.to(device), ignore


def probabilities(mode, x):
    return torch.softmax(x, 1) if mode == "multiclass" else torch.sigmoid(x)


def weights_of(draw, C):
    every = st.sampled_from([0.25, 0.5, 1.0, 2.0])
    return draw(st.none() | st.lists(every, min_size=C, max_size=C))


def quarters(shape, generator):
    """Weights that every dtype holds."""
    return (torch.rand(shape, generator=generator) * 8).round() / 4 + 0.25


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
        arguments["gamma"] = draw(st.sampled_from([0.5, 1.0, 2.0]))
    if not arguments["from_logits"]:
        x = probabilities(mode, x)
    ours, theirs = (getattr(m, name)(mode, **arguments) for m in (smp, peers.smp()))
    if arguments.get("gamma") == 0.5 and float(theirs(x.double(), y)) < 1e-3:
        ours.gamma = theirs.gamma = 2.0  # the slope is infinite at 0, and NaN of a negative number
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
        "eps": draw(st.sampled_from([1e-7, 1e-2])),
        "reduction": draw(st.sampled_from(["mean", "sum", "batchwise_mean", "none", None])),
        "normalized": draw(st.booleans()),
        "reduced_threshold": draw(st.sampled_from([None, 0.5])),
        "ignore_index": ignore,
    }
    if mode != "binary" and arguments["reduction"] in ("mean", "sum"):
        arguments["class_weights"] = weights_of(draw, C)
    if ignore is not None and bool((y == ignore).all()):
        y[(0,) * y.dim()] = 0  # NaN in the peer; y may be expanded
    if not arguments["from_logits"]:
        x = probabilities(mode, x)
        # Of half precision some are 1: less 1 - 1e-7 that is 1.2e-7 in float32. Normalised by a sum
        # of powers of 1 - p_t, which for 1e-5 is 0.6 % rounding in anybody's float32.
        if x.dtype.itemsize == 2 or arguments["normalized"]:
            x = x.clamp(2**-7, 1 - 2**-7)
    ours, theirs = (m.FocalLoss(mode, **arguments) for m in (smp, peers.smp()))
    check(ours, theirs, x, y, tolerance=1e-4 if x.dtype == torch.float32 else None)


def soft_bce(draw, device):
    mode, C, x, y, ignore = batch(draw, device, ["binary", "multilabel"])
    g = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    each = (C, *(1,) * (x.dim() - 2))
    positive = draw(st.sampled_from([None, (), (1,), each, x.shape[-1:], x.shape[1:]]))
    weight = draw(st.sampled_from([None, x.shape[-1:], x.shape]))
    arguments = {
        "weight": None if weight is None else quarters(weight, g),
        "ignore_index": ignore,
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "smooth_factor": draw(st.sampled_from([None, 0.0, 0.1, 0.5, 0.8])),
        "pos_weight": None if positive is None else quarters(positive, g),
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
        y[(0,) * y.dim()] = 0  # NaN in the peer; y may be expanded
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
def test_on_the_kernels(name, mode, arguments, dtype, device):
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
        with compat.backend("triton"):
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


def subclassed(m):
    """What callers make of a loss of either package."""

    class Largest(m.DiceLoss):
        def aggregate_loss(self, loss):
            return loss.max()

    class Twice(m.FocalLoss):
        def forward(self, y_pred, y_true):
            return 2 * super().forward(y_pred, y_true)

    single = m.TverskyLoss("multiclass", gamma=2.0)
    single.aggregate_loss = torch.sum
    return [Largest("multiclass"), Largest("multiclass", classes=[1, 2]), single], Twice


def test_subclass_hooks():
    x, y = torch.randn(2, 4, 5, 5), torch.randint(0, 3, (2, 5, 5))
    (ours, OurTwice), (theirs, TheirTwice) = subclassed(smp), subclassed(peers.smp())
    for own, peer in zip(ours, theirs, strict=True):
        check(own, peer, x, y)
        check(smp.SumLoss(own, smp.DiceLoss("multiclass")), both(peer), x, y)
    hot = torch.rand(2, 4, 5, 5).round()
    mixed = smp.SumLoss(smp.DiceLoss("multilabel"), OurTwice("multilabel"))
    check(mixed, both(TheirTwice("multilabel"), "multilabel"), x, hot)

    class Score(smp.DiceLoss):
        def compute_score(self, output, target, smooth=0.0, eps=1e-7, dims=None):
            return output.mean(dims)

    with pytest.raises(NotImplementedError, match="Score.compute_score is not called"):
        Score("binary")(x, hot)


def both(loss, mode="multiclass"):
    dice = peers.smp().DiceLoss(mode)
    return lambda x, y: loss(x, y) + dice(x, y)


def test_weights_and_classes_as_the_peer_reads_them():
    x, y = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    cases = [{"class_weights": w} for w in ([2.0], 2.0, np.array([1, 2, 3]), torch.ones(3))]
    cases += [{"classes": c} for c in (1, [-1], (0, 0, 2), np.array([1]), [True, False])]
    for arguments in cases:
        names = ["DiceLoss", "JaccardLoss"] + (["FocalLoss"] if "classes" not in arguments else [])
        for name in names:
            check(*(getattr(m, name)("multiclass", **arguments) for m in (smp, peers.smp())), x, y)
    ours, theirs = (m.DiceLoss("multiclass") for m in (smp, peers.smp()))
    ours.classes = theirs.classes = [0, 1]
    check(ours, theirs, x, y)
    for module in (smp, peers.smp()):
        for classes in ([5], [-4]):
            with pytest.raises(IndexError):
                module.DiceLoss("multiclass", classes=classes)(x, y)
        with pytest.raises(RuntimeError):
            module.DiceLoss("multiclass", class_weights=[1.0, 2.0])(x, y)


def test_gradients_of_targets_and_weights():
    x, y = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    soft = torch.rand(2, 3, 5, 5)
    for name in ("DiceLoss", "JaccardLoss", "TverskyLoss", "FocalLoss"):
        results = []
        for m in (smp, peers.smp()):
            weights = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
            getattr(m, name)("multiclass", class_weights=weights)(x, y).backward()
            loss = getattr(m, name)("multilabel")
            results.append((weights.grad, *value_and_gradient(lambda t, f=loss: f(x, t), soft)))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", [np.int64, np.float64, torch.tensor])
def test_numbers_that_are_not_pythons(kind):
    x, y = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    y[0, 0] = 255
    for make in (
        lambda m: m.DiceLoss("multiclass", ignore_index=kind(255), smooth=kind(1)),
        lambda m: m.FocalLoss("multiclass", ignore_index=kind(255), gamma=kind(2)),
        lambda m: m.SoftCrossEntropyLoss(ignore_index=kind(255), smooth_factor=0.1),
    ):
        check(make(smp), make(peers.smp()), x, y, tolerance=1e-4)


def test_specs_are_bounded(monkeypatch):
    monkeypatch.setattr(fused, "MAX_SPECS", 8)
    x, y = torch.randn(2, 1, 4, 4), torch.rand(2, 1, 4, 4).round()
    for step in range(20):
        smp.DiceLoss("binary", smooth=step / 7)(x, y)
    assert len(fused._SPECS) <= 8


def test_backend():
    with pytest.raises(ValueError, match="backend: expected one of"), compat.backend("cuda"):
        pass
    with compat.backend("torch"):
        assert fused.chosen_backend() == "torch"
    assert fused.chosen_backend() == "auto"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empty_batches(reduction):
    x, y, hot = torch.randn(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.long), torch.rand(0, 3, 4)
    for make, inputs in (
        (lambda m: m.FocalLoss("multiclass", reduction=reduction), (x, y)),
        (lambda m: m.FocalLoss("binary", reduction=reduction), (x, x)),
        (lambda m: m.SoftCrossEntropyLoss(reduction, 0.1), (x, y)),
        (lambda m: m.SoftBCEWithLogitsLoss(reduction=reduction), (hot, hot)),
    ):
        results = (value_and_gradient(make(m), *inputs) for m in (smp, peers.smp()))
        torch.testing.assert_close(*results, equal_nan=True)


def test_focal_flattens_everything():
    x, y = torch.randn(1, 1, 2, 3), torch.rand(2, 3).round()
    check(*(m.FocalLoss("binary") for m in (smp, peers.smp())), x, y)
    for module in (smp, peers.smp()):
        with pytest.raises(ValueError, match=r"size|elements"):
            module.FocalLoss("binary")(x, torch.rand(5))
        with pytest.raises(ValueError, match=r"size|elements"):
            module.FocalLoss("multiclass")(torch.randn(2, 3, 4), torch.zeros(3, 4))


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


def test_state_dicts():
    w = torch.rand(4)
    for make in (
        lambda m: m.SoftBCEWithLogitsLoss(weight=w, pos_weight=w),
        lambda m: m.SoftBCEWithLogitsLoss(),
        lambda m: m.FocalLoss("multiclass", class_weights=[1.0, 2.0]),
    ):
        ours, theirs = make(smp), make(peers.smp())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())


def test_where_the_peer_has_no_result():
    """As docs/compat.md lists it."""
    x, y = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    ours, theirs = smp, peers.smp()
    ignored = torch.full_like(y, 9)
    assert theirs.FocalLoss("multiclass", ignore_index=9)(x, ignored).isnan()
    assert ours.FocalLoss("multiclass", ignore_index=9)(x, ignored) == 0
    assert theirs.DiceLoss("multiclass", class_weights=[0, 0, 0])(x, y).isnan()
    assert ours.DiceLoss("multiclass", class_weights=[0, 0, 0])(x, y) == 0
    with pytest.raises(IndexError):
        theirs.FocalLoss("multilabel", ignore_index=255)(x, torch.ones_like(x))
    assert ours.FocalLoss("multilabel", ignore_index=255)(x, torch.ones_like(x)).isfinite()
    with pytest.raises(ValueError, match="size"):
        theirs.FocalLoss("multiclass")(x, y[:, None])
    plain = ours.FocalLoss("multiclass")
    assert torch.equal(plain(x, y[:, None]), plain(x, y))
    with pytest.raises(TypeError):
        theirs.SoftCrossEntropyLoss()(x, y)
    expected = torch.nn.functional.cross_entropy(x, y)
    torch.testing.assert_close(ours.SoftCrossEntropyLoss()(x, y), expected)
    missed = {"eps": 0.0, "log_loss": True}
    far = torch.where(torch.nn.functional.one_hot(y, 3).movedim(-1, 1) > 0, -200.0, 200.0)
    assert theirs.DiceLoss("multiclass", **missed)(far, y).isinf()
    assert ours.DiceLoss("multiclass", **missed)(far, y).isfinite()
