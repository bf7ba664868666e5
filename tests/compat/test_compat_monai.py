"""MONAI's losses, beside the package itself: any arguments, any targets."""

import copy
import pickle
import warnings

import numpy as np
import peers
import pytest
import torch
from hypothesis import strategies as st
from peers import DTYPES, HALF, check, laid_out, signature, value_and_gradient

from fastseg_losses import compat, ops
from fastseg_losses.compat import fused, monai
from fastseg_losses.kernels.multiclass_plan import ClassPlan

NAMES = [n for n in monai.__all__ if n.endswith("Loss")]
WEIGHTS = [0.0, 0.25, 1.0, 2.0]

pytestmark = pytest.mark.filterwarnings("ignore:single channel", "ignore:`include_background")


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    assert signature(getattr(monai, name)) == signature(getattr(peers.monai(), name))


def squashed(x):
    return torch.tanh(x).abs()


class Drawn:
    """A call that the peer takes: flags, logits or probabilities, targets."""

    def __init__(self, draw, device, activations=("sigmoid", "softmax", "none", "other")):
        self.draw, self.device = draw, device
        self.C = draw(st.integers(1, 4) if device == "cpu" else st.sampled_from([1, 3]))
        N, space = (
            draw(st.integers(1, 3)),
            draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)),
        )
        self.dtype = draw(st.sampled_from(DTYPES[device]))
        g = self.generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
        self.x = (torch.randn((N, self.C, *space), generator=g) * 3).to(self.dtype)
        self.labels = draw(st.booleans()) and self.C > 1
        act = draw(st.sampled_from(activations))
        self.flags = {
            "include_background": draw(st.booleans()),
            "to_onehot_y": self.labels,
        }
        if act == "none" or (act == "softmax" and self.C == 1):
            self.x = self.x.sigmoid()
        if act == "other":
            self.flags["other_act"] = squashed
            if self.dtype in HALF:  # in which PyTorch would compute it
                self.dtype, self.x = torch.float32, self.x.float()
        elif act != "none":
            self.flags[act] = True
        if self.labels:
            kind = draw(st.sampled_from([torch.long, torch.uint8, self.dtype]))
            self.y = torch.randint(0, self.C, (N, 1, *space), generator=g).to(kind)
        elif draw(st.booleans()):
            self.y = torch.rand(self.x.shape, generator=g).to(self.dtype)
        else:
            kind = draw(st.sampled_from([torch.long, torch.uint8, self.dtype]))
            self.y = torch.rand(self.x.shape, generator=g).round().to(kind)
        self.x, self.y = laid_out(draw, self.x), laid_out(draw, self.y)

    @property
    def kept(self):
        """Channels with a loss."""
        return self.C - (not self.flags["include_background"] and self.C > 1)

    def rough(self, tolerance):
        """A tolerance above the dtype's own."""
        return tolerance if self.dtype not in HALF else None

    def reduction(self, *names):
        """By name, or as MONAI's enumeration has it."""
        name = self.pick(*names)
        return name if self.pick(True, False) else peers.monai_utils().LossReduction(name)

    def pick(self, *values):
        return self.draw(st.sampled_from(values))

    def one_hot(self):
        ids = torch.randint(
            0, self.C, (self.x.shape[0], *self.x.shape[2:]), generator=self.generator
        )
        hot = torch.nn.functional.one_hot(ids, self.C).movedim(-1, 1)
        empty = torch.rand(ids.shape, generator=self.generator)[:, None] < 0.2
        return torch.where(empty, 0, hot).to(self.dtype)

    def ignore(self):
        """An ignore_index and targets for it."""
        if self.draw(st.booleans()):
            return None
        if self.C > 1 and not self.labels:
            self.y = self.one_hot()
            return self.pick(0, 1, 255, -1)
        index = self.pick(0, 1, 255, -1)
        if index == -1 and self.y.dtype == torch.uint8:
            self.y = self.y.long()  # there -1 is 255 among bytes
        hidden = torch.rand(self.y.shape, generator=self.generator) < 0.3
        self.y = torch.where(hidden, index, self.y).to(self.y.dtype)
        return index

    def weight(self, number=True):
        every = st.lists(st.sampled_from(WEIGHTS), min_size=self.kept, max_size=self.kept)
        weight = self.draw(st.none() | every | st.sampled_from([0.5, 2.0] if number else [None]))
        return weight if weight is None or self.pick(True, False) else torch.tensor(weight)

    def soft_label(self):
        """Whether soft_label; the peer takes floats for it, and |p| where a p is negative."""
        if not (self.y.is_floating_point() or self.labels) or self.pick(True, False):
            return False
        if "other_act" in self.flags:
            self.flags["other_act"] = torch.sigmoid
        elif not self.flags.get("sigmoid") and not (self.flags.get("softmax") and self.C > 1):
            self.x = self.x.abs().clamp_max(1)
        return True

    def squared(self):
        """Whether squared_pred; the peer takes floats for it."""
        if not self.pick(True, False):
            return False
        if not self.labels:
            self.y = self.y.to(self.dtype)
        return True

    def smooth(self):
        return {"smooth_nr": self.pick(1e-5, 0.5, 0.0), "smooth_dr": self.pick(1e-5, 1.0)}


def compare(name, arguments, drawn, *rest, tolerance=None, kind=None, lambdas=()):
    theirs = getattr(peers.monai(), name)(**arguments)
    # each of two losses alone
    parts = [
        getattr(peers.monai(), name)(**arguments | {other: 0.0}).to(drawn.device)
        for other in lambdas
    ]
    if drawn.labels and drawn.dtype == torch.float64:
        tolerance = tolerance or 1e-6  # the peer's one-hot targets are float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = getattr(monai, name)(**arguments).to(drawn.device)
        tensors = (each.to(drawn.device) for each in (drawn.x, drawn.y, *rest))
        check(ours, theirs.to(drawn.device), *tensors, tolerance=tolerance, kind=kind, parts=parts)


def dice(draw, device):
    d = Drawn(draw, device)
    arguments = {
        **d.smooth(),
        "squared_pred": d.squared(),
        "jaccard": d.pick(True, False),
        "reduction": d.reduction("mean", "sum", "none"),
        "batch": d.pick(True, False),
        "soft_label": d.soft_label(),
        "weight": d.weight(),
        "ignore_index": d.ignore(),
    }
    arguments |= d.flags  # what is drawn may change them
    compare("DiceLoss", arguments, d)


def masked_dice(draw, device):
    d = Drawn(draw, device)
    arguments = {
        **d.smooth(),
        "squared_pred": d.squared(),
        "jaccard": d.pick(True, False),
        "soft_label": d.soft_label(),
        "reduction": d.reduction("mean", "sum", "none"),
        "batch": d.pick(True, False),
        "weight": d.weight(),
    }
    arguments |= d.flags  # what is drawn may change them
    shape = (d.pick(1, d.x.shape[0]), 1, *d.x.shape[2:])
    mask = (torch.rand(shape, generator=d.generator) < 0.6).to(d.pick(torch.float32, torch.long))
    compare("MaskedDiceLoss", arguments, d, mask)


def tversky(draw, device):
    d = Drawn(draw, device)
    arguments = {
        **d.smooth(),
        "alpha": d.pick(0.0, 0.3, 1.0),
        "beta": d.pick(0.2, 0.7),
        "reduction": d.reduction("mean", "sum", "none"),
        "batch": d.pick(True, False),
        "soft_label": d.soft_label(),
        "ignore_index": d.ignore(),
    }
    arguments |= d.flags  # what is drawn may change them
    compare("TverskyLoss", arguments, d)


def generalized_dice(draw, device):
    d = Drawn(draw, device)
    arguments = {
        "smooth_nr": d.pick(1e-5, 0.5),
        "smooth_dr": d.pick(1e-5, 1.0),
        "w_type": d.pick("square", "simple", "uniform"),
        "reduction": d.reduction("mean", "sum", "none"),
        "batch": d.x.dim() == 2 or d.pick(True, False),  # an IndexError there
        "soft_label": d.soft_label(),
    }
    arguments |= d.flags  # what is drawn may change them
    compare("GeneralizedDiceLoss", arguments, d, tolerance=d.rough(1e-5))  # its weights are float32


def focal(draw, device):
    d = Drawn(draw, device, activations=("none",))
    d.x = (torch.randn(d.x.shape, generator=d.generator) * 3).to(d.dtype)
    softmax = d.pick(True, False)
    kept = d.kept
    alphas = [None, 0.25, 1.0, torch.tensor(0.25)]
    alphas += [[0.25 + 0.125 * c for c in range(kept)]] if kept > 1 else []
    weight = d.weight() if kept > 1 else d.pick(None, 2.0)
    arguments = {
        "gamma": d.pick(0.0, 1.0, 1.5, 2.0, 5.0),
        "alpha": d.pick(*alphas),
        "weight": weight,
        "reduction": d.reduction("mean", "sum", "none"),
        "use_softmax": softmax,
        "ignore_index": d.ignore(),
    }
    arguments |= d.flags  # what is drawn may change them
    # there a mask made of a one-hot target has the target's dtype
    kind = torch.float32 if arguments["ignore_index"] is not None else None
    tolerance = d.rough(1e-4)  # float32 inside, whatever comes
    compare("FocalLoss", arguments, d, tolerance=tolerance, kind=kind)


def dice_ce(draw, device):
    d = Drawn(draw, device)
    if not d.labels and d.C > 1:
        d.y = d.one_hot()  # what cross-entropy means by probabilities adds up to 1
    full = [st.sampled_from([0.25, 1.0, 2.0])] * d.C
    weight = d.draw(st.none() | st.tuples(*full)) if d.C > 1 else d.pick(None, (2.0,))
    arguments = {
        **d.smooth(),
        "squared_pred": d.squared(),
        "jaccard": d.pick(True, False),
        "reduction": d.pick("mean", "sum"),
        "batch": d.pick(True, False),
        "weight": None if weight is None else torch.tensor(weight, dtype=torch.float64),
        "lambda_dice": d.pick(0.0, 0.5, 1.0),
        "lambda_ce": d.pick(0.0, 0.3, 1.0),
        "label_smoothing": d.pick(0.0, 0.1),
    }
    arguments |= d.flags  # what is drawn may change them
    compare("DiceCELoss", arguments, d, lambdas=("lambda_dice", "lambda_ce"))


def dice_focal(draw, device):
    d = Drawn(draw, device)
    weight = d.weight() if d.kept > 1 else d.pick(None, 2.0)
    arguments = {
        **d.smooth(),
        "squared_pred": d.squared(),
        "jaccard": d.pick(True, False),
        "reduction": d.reduction("mean", "sum", "none"),
        "batch": d.pick(True, False),
        "gamma": d.pick(1.0, 2.0),
        "weight": weight,
        "lambda_dice": d.pick(0.5, 1.0),
        "lambda_focal": d.pick(0.3, 1.0),
        "alpha": d.pick(None, 0.25),
    }
    arguments |= d.flags  # what is drawn may change them
    lambdas = ("lambda_dice", "lambda_focal")
    compare("DiceFocalLoss", arguments, d, tolerance=d.rough(1e-4), lambdas=lambdas)


DRAWN = [dice, masked_dice, tversky, generalized_dice, focal, dice_ce, dice_focal]


@pytest.mark.parametrize("case", DRAWN, ids=lambda case: case.__name__)
def test_drawn_arguments(case):
    peers.drawn(case, 250)


test_drawn_arguments_on_the_gpu = peers.on_gpu(DRAWN, "test_drawn_arguments_on_the_gpu")


@pytest.mark.parametrize("mode", ["same", "exp", "two", "odd"])
def test_deep_supervision(mode):
    levels = [torch.randn(2, 3, s, s) for s in (8, 4, 2)]
    y = torch.randint(0, 3, (2, 1, 8, 8)).float()
    weights = [0.3, 0.2, 0.1] if mode == "odd" else None
    both = []
    for m in (monai, peers.monai()):
        inner = m.DiceLoss(to_onehot_y=True, softmax=True)
        leaves = [x.clone().requires_grad_() for x in levels]
        value = m.DeepSupervisionLoss(inner, mode, weights)(leaves, y)
        value.backward()
        both.append((value, *[leaf.grad for leaf in leaves], inner(leaves[1], y[..., ::2, ::2])))
        torch.testing.assert_close(m.DeepSupervisionLoss(inner)(leaves[0], y), inner(leaves[0], y))
        with pytest.raises(ValueError, match="None"):
            m.DeepSupervisionLoss(inner)(None, y)
    torch.testing.assert_close(both[0], both[1])


FUSED = [
    ("DiceLoss", {"sigmoid": True, "squared_pred": True}, "hot"),
    ("DiceLoss", {"softmax": True, "to_onehot_y": True, "include_background": False}, "ids"),
    ("DiceLoss", {"softmax": True, "soft_label": True}, "soft"),
    ("DiceLoss", {"sigmoid": True, "to_onehot_y": True, "jaccard": True, "batch": True}, "ids"),
    ("DiceLoss", {"to_onehot_y": True}, "ids"),
    ("TverskyLoss", {"sigmoid": True, "alpha": 0.3, "reduction": "none"}, "hot"),
    ("FocalLoss", {"alpha": 0.25}, "soft"),
    ("FocalLoss", {"to_onehot_y": True, "include_background": False}, "ids"),
    ("FocalLoss", {"to_onehot_y": True, "use_softmax": True, "alpha": 0.25}, "ids"),
    ("DiceCELoss", {"to_onehot_y": True, "softmax": True, "weight": torch.arange(1.0, 5)}, "ids"),
    ("DiceFocalLoss", {"to_onehot_y": True, "sigmoid": True, "weight": [0.5, 1, 2, 3]}, "ids"),
    ("DiceFocalLoss", {"to_onehot_y": True, "softmax": True}, "ids"),
    ("GeneralizedDiceLoss", {"to_onehot_y": True, "softmax": True}, "ids"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "arguments", "kind"), FUSED)
def test_on_the_kernels(name, arguments, kind, dtype, device):
    x = torch.randn(2, 4, 6, 7, device=device) * 3
    activated = "Focal" in name or arguments.keys() & {"sigmoid", "softmax"}
    x = (x if activated else x.sigmoid()).to(dtype)
    y = torch.randint(0, 4, (2, 1, 6, 7), device=device, dtype=torch.uint8)
    if kind == "hot":
        y = torch.rand(x.shape, device=device).round().to(dtype)
    elif kind == "soft":
        y = torch.rand(x.shape, device=device).to(dtype)
    ours, theirs = (getattr(m, name)(**arguments).to(device) for m in (monai, peers.monai()))
    theirs = theirs.double() if name == "DiceCELoss" else theirs
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    with compat.backend("triton"):
        check(ours, theirs, x, y, tolerance=tolerance)


def test_errors_as_there():
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    for m in (monai, peers.monai()):
        for name in ("DiceLoss", "TverskyLoss", "GeneralizedDiceLoss"):
            loss = getattr(m, name)
            with pytest.raises(ValueError, match="Incompatible values"):
                loss(sigmoid=True, softmax=True)
            with pytest.raises(TypeError, match="other_act"):
                loss(other_act=1)
            with pytest.raises(ValueError, match="median"):
                loss(reduction="median")
            with pytest.raises(AssertionError, match="shape"):
                loss()(x, y)
        with pytest.raises(ValueError, match="shape"):
            m.FocalLoss()(x, y)
        with pytest.raises(ValueError, match="weight"):
            m.DiceLoss(weight=[1.0, 2.0])(x, x)
        with pytest.raises(ValueError, match="channels"):
            m.DiceCELoss()(x, torch.zeros(2, 2, 4, 4))
        with pytest.raises(ValueError, match="dimensions"):
            m.DiceFocalLoss()(x, y[:, 0])
        with pytest.raises(ValueError, match="lambda_ce"):
            m.DiceCELoss(lambda_ce=-1.0)
        with pytest.raises(ValueError, match="single-channel"):
            m.FocalLoss(weight=[1.0, 2.0])(x[:, :1], y)
        with pytest.warns(UserWarning, match="`softmax=True` ignored"):
            m.DiceLoss(softmax=True)(x[:, :1], y)


WEIGHTED = [
    ("DiceLoss", {"sigmoid": True, "weight": [1.0, 2.0]}),
    ("MaskedDiceLoss", {"weight": [1.0, 2.0]}),
    ("TverskyLoss", {"softmax": True}),
    ("GeneralizedDiceLoss", {"sigmoid": True}),
    ("FocalLoss", {"weight": [1.0, 2.0]}),
    ("DiceFocalLoss", {"sigmoid": True, "weight": [1.0, 2.0]}),
    ("DiceCELoss", {"softmax": True, "weight": torch.tensor([1.0, 2.0])}),
    ("DiceCELoss", {"sigmoid": True}),
]


@pytest.mark.parametrize(("name", "arguments"), WEIGHTED)
def test_attributes_and_copies(name, arguments):
    ours, theirs = (getattr(m, name)(**arguments) for m in (monai, peers.monai()))
    public = {k: v for k, v in vars(theirs).items() if not k.startswith("_")}
    for key, value in public.items():
        assert str(getattr(ours, key)) == str(value), key
    modules = {"spatial_weighted"}  # see docs/compat.md
    assert dict(ours.named_children()).keys() == dict(theirs.named_children()).keys() - modules
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    changed = {key: value + 1 for key, value in expected.items()}
    for loss in (ours, theirs):
        loss.load_state_dict(changed)
    x, y = torch.randn(2, 2, 4, 4), torch.rand(2, 2, 4, 4).round()
    rest = (torch.ones(2, 1, 4, 4),) if name == "MaskedDiceLoss" else ()
    torch.testing.assert_close(ours(x, y, *rest), theirs(x, y, *rest))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), ours.float()):
        assert torch.equal(other(x, y, *rest), ours(x, y, *rest))


class Twice:
    """A subclass of a loss of either package."""

    @staticmethod
    def of(cls):
        def forward(self, input, target):
            return 2 * cls.forward(self, input, target)

        return type("Twice", (cls,), {"forward": forward})


def changed_losses(m):
    """What callers do with a loss that they made."""
    focal = m.DiceFocalLoss(sigmoid=True)
    focal.to_onehot_y = True
    yield focal
    focal = m.DiceFocalLoss(sigmoid=True, to_onehot_y=True)
    focal.dice = m.TverskyLoss(sigmoid=True)
    yield focal
    focal = m.DiceFocalLoss(softmax=True, to_onehot_y=True, weight=[1.0, 2.0, 3.0])
    focal.focal = Twice.of(m.FocalLoss)(weight=[1.0, 2.0, 3.0])
    yield focal
    focal = m.DiceFocalLoss(sigmoid=True, to_onehot_y=True, weight=[1.0, 2.0, 3.0])
    focal.dice.class_weight = torch.tensor([3.0, 1.0, 1.0])
    yield focal
    yield m.DiceFocalLoss(sigmoid=True, to_onehot_y=True, lambda_dice=torch.tensor(0.5))
    labels = {"softmax": True, "to_onehot_y": True}
    both = m.DiceCELoss(**labels)
    both.dice = Twice.of(m.DiceLoss)(**labels)
    yield both
    both = m.DiceCELoss(**labels)
    both.cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=0.5)
    yield both
    both = m.DiceCELoss(**labels)
    both.cross_entropy.reduction = "sum"
    yield both
    both = m.DiceCELoss(**labels)
    both.ce = lambda input, target: input.mean()
    yield both
    both = m.DiceCELoss(**labels)
    both.dice.register_forward_hook(lambda module, inputs, result: result + 1)
    yield both
    both = m.DiceCELoss(**labels, weight=torch.tensor([1.0, 2.0, 3.0]).double())
    both.cross_entropy.weight = torch.tensor([3.0, 1.0, 1.0]).double()
    yield both
    yield m.DiceCELoss(**labels, lambda_ce=np.float32(0.5), batch=np.bool_(True))
    yield m.DiceLoss(**labels, ignore_index=np.int64(1))
    yield m.FocalLoss(to_onehot_y=True, gamma=np.float32(2.0), ignore_index=torch.tensor(1))


def test_changed_losses():
    x, y = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    for ours, theirs in zip(changed_losses(monai), changed_losses(peers.monai()), strict=True):
        check(ours, theirs, x, y, tolerance=1e-4)


def test_what_goes_together_takes_one_call(monkeypatch):
    calls = []

    def counted(*inputs, **rest):
        calls.append(inputs)
        return ops.segmentation_loss(*inputs, **rest)

    monkeypatch.setattr(fused, "segmentation_loss", counted)
    x, y = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    weight = torch.tensor([1.0, 2.0, 3.0])
    labels = {"to_onehot_y": True}
    monai.DiceCELoss(softmax=True, weight=weight, **labels).double().float()(x, y)
    monai.DiceFocalLoss(sigmoid=True, weight=weight, **labels)(x, y)
    monai.DiceCELoss(sigmoid=True)(x[:, :1], (y[:, :1] > 0).float())
    assert len(calls) == 3


def test_two_activations_share_a_gradient(device, monkeypatch):
    """Dice of a softmax, focal with sigmoids: the second backward launch adds to the first's."""
    calls, add = [], ClassPlan.add_backward
    monkeypatch.setattr(
        ClassPlan, "add_backward", lambda self, *a: (calls.append(1), add(self, *a))[1]
    )
    x = torch.randn(2, 3, 9, 8, device=device)
    y = torch.randint(0, 3, (2, 1, 9, 8), device=device)
    for more in ({}, {"reduction": "sum", "weight": [1.0, 2.0]}, {"gamma": 1.5, "lambda_focal": 3}):
        more = {"include_background": "weight" not in more, **more}
        results = []
        for m in (peers.monai(), monai):
            criterion = m.DiceFocalLoss(softmax=True, to_onehot_y=True, **more).to(device)
            with compat.backend("triton"):
                results.append(value_and_gradient(lambda t, loss=criterion: loss(t, y), x))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert calls == [1, 1, 1]
    named = x.as_subclass(Named)
    with compat.backend("triton"):
        found = value_and_gradient(lambda t: criterion(t, y), named)
    assert calls == [1, 1, 1, 1]
    torch.testing.assert_close(found[1].as_subclass(torch.Tensor), results[1][1])


class Named(torch.Tensor):
    """A subclass in name, as MONAI's MetaTensor."""


LOSSES = [
    ("DiceLoss", {"sigmoid": True}),
    ("DiceLoss", {"softmax": True, "soft_label": True}),
    ("TverskyLoss", {"sigmoid": True, "alpha": 0.3}),
    ("FocalLoss", {}),
    ("FocalLoss", {"use_softmax": True, "alpha": 0.3}),
    ("DiceCELoss", {"softmax": True}),
    ("DiceFocalLoss", {"sigmoid": True}),
    ("GeneralizedDiceLoss", {"sigmoid": True, "w_type": "uniform"}),
]


@pytest.mark.parametrize(("name", "arguments"), LOSSES)
def test_targets_that_require_grad(name, arguments):
    x, hot = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    if "soft_label" not in arguments:  # there a norm of T, with no slope where a target is 0
        hot[0] = torch.nn.functional.one_hot(torch.randint(0, 3, (4, 4)), 3).movedim(-1, 0)
    results = []
    for m in (monai, peers.monai()):
        criterion = getattr(m, name)(**arguments)
        results.append(value_and_gradient(lambda t, loss=criterion: loss(x, t), hot))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("name", "arguments"), LOSSES)
def test_second_derivatives(name, arguments):
    x, hot = torch.randn(1, 2, 2, 2), torch.rand(1, 2, 2, 2)
    with compat.backend("torch"):
        ours = torch.func.hessian(getattr(monai, name)(**arguments))(x, hot)
    v = torch.randn_like(x)
    if name == "GeneralizedDiceLoss":  # which changes its tensors in place
        return
    theirs = torch.autograd.functional.hvp(
        lambda x: getattr(peers.monai(), name)(**arguments)(x, hot), x, v
    )[1]
    product = (ours.reshape(8, 8) @ v.reshape(8)).reshape(x.shape)
    torch.testing.assert_close(product, theirs, rtol=1e-4, atol=1e-5)


def test_meta_tensors(device):
    MetaTensor = pytest.importorskip("monai.data").MetaTensor
    x = torch.randn(2, 3, 4, 4, device=device)
    hot = torch.rand(2, 3, 4, 4, device=device).round()
    for name, arguments in LOSSES:
        criterion = getattr(monai, name)(**arguments)
        with compat.backend("triton"):
            plain = value_and_gradient(criterion, x, hot)
            for a, b in ((MetaTensor(x), hot), (x, MetaTensor(hot)), (MetaTensor(x),) * 2):
                if b is a:
                    b = MetaTensor(hot)
                value, gradient = value_and_gradient(criterion, a, b)
                assert torch.equal(value, plain[0]), name
                assert torch.equal(gradient.as_subclass(torch.Tensor), plain[1]), name


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("name", "arguments"), LOSSES)
def test_empty_batches(name, arguments, reduction):
    x = torch.randn(0, 3, 4, 4)
    losses = [getattr(m, name)(**arguments, reduction=reduction) for m in (monai, peers.monai())]
    ours, theirs = (value_and_gradient(loss, x, torch.rand(x.shape)) for loss in losses)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def warned(criterion, *tensors):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        criterion(*tensors)
    return {str(w.message) for w in caught}


def test_warnings():
    x, y = torch.randn(2, 1, 4, 4), torch.rand(2, 1, 4, 4).round()
    flags = {"to_onehot_y": True, "include_background": False}
    cases = [
        ("DiceLoss", {**flags, "softmax": True}),
        ("TverskyLoss", {**flags, "softmax": True}),
        ("GeneralizedDiceLoss", {**flags, "softmax": True}),
        ("MaskedDiceLoss", {**flags, "softmax": True}),
        ("DiceFocalLoss", {**flags, "sigmoid": True}),
        ("DiceCELoss", {**flags, "softmax": True}),
        ("FocalLoss", {**flags, "use_softmax": True, "alpha": 0.25}),
        ("FocalLoss", {**flags, "use_softmax": True, "alpha": torch.tensor(0.25)}),
        ("FocalLoss", flags),
        ("DiceLoss", {"sigmoid": True}),
    ]
    for name, arguments in cases:
        ours, theirs = (warned(getattr(m, name)(**arguments), x, y) for m in (monai, peers.monai()))
        assert ours == theirs, name


def test_what_is_not_called():
    class Own(monai.GeneralizedDiceLoss):
        def w_func(self, grnd):
            return grnd

    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(NotImplementedError, match=r"Own\.w_func is not called"):
        Own()(x, x)
    for m in (monai, peers.monai()):
        with pytest.raises(IndexError):
            m.GeneralizedDiceLoss()(x[..., 0, 0], x[..., 0, 0])
