"""Several losses of the same logits: one gradient, equal to the sum of theirs."""

import weakref

import pytest
import torch
from oracle import rms_error

from fastseg_losses import CombinedSegmentationLoss, DiceLoss, FocalLoss
from fastseg_losses.kernels.multiclass_plan import ClassPlan
from fastseg_losses.ops_relay import Relay

IGNORED = 3


@pytest.fixture
def added(monkeypatch):
    """How often a launch has added to a gradient."""
    calls, add = [], ClassPlan.add_backward
    monkeypatch.setattr(
        ClassPlan, "add_backward", lambda self, *a: (calls.append(1), add(self, *a))[1]
    )
    return calls


def criteria(**options):
    """Dice of a softmax and focal with sigmoids, on the way that takes kernels, and in float64."""
    shared = {"mode": "multiclass", **options}
    return [
        (DiceLoss(**shared, backend=b), FocalLoss(**shared, activation="sigmoid", backend=b))
        for b in ("triton", "torch")
    ]


def draw(device, size=(2, 5, 12, 16), dtype=torch.float32):
    logits = (torch.randn(size, device=device) * 2).to(dtype)
    return logits, torch.randint(size[1], (size[0], *size[2:]), device=device)


def relayed(losses, logits, targets, valid=None, relay=None):
    """The losses' values; each takes the logits that the one before has left."""
    relay = relay or Relay(logits)
    values = []
    for loss in losses:
        vector = loss._buffers["alpha" if loss.spec.softmax else "pos_weight"]
        inputs = (relay.logits, targets, valid, loss._buffers["class_weights"], vector)
        values.append(relay.loss(loss.spec, inputs, loss.backend))
    return values


def weighted(values):
    """One number of them all, with other weights and signs than 1."""
    return sum(w * v.sum() for w, v in zip((0.7, -1.3, 2.0), values, strict=False))


CASES = {
    "plain": {},
    "background left out": {"include_background": False},
    "class weights": {"class_weights": [1.0, 0.5, 0.0, 2.0, 1.0]},
    "ignored": {"ignore_index": IGNORED},
    "none": {"reduction": "none"},
    "samples": {"valid": "samples"},
    "pixels": {"valid": "pixels"},
    "bfloat16": {"dtype": torch.bfloat16},
    "channels_last": {"layout": torch.channels_last},
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradient(case, device, added):
    options = dict(CASES[case])
    masked, dtype = options.pop("valid", None), options.pop("dtype", torch.float32)
    layout = options.pop("layout", torch.contiguous_format)
    logits, targets = draw(device, dtype=dtype)
    logits = logits.to(memory_format=layout)
    valid = None
    if masked == "samples":
        valid = torch.tensor([False, True], device=device)
    elif masked == "pixels":
        valid = torch.rand(2, 12, 16, device=device) < 0.7
    ours, exact = criteria(**options)
    x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
    values = relayed([loss.to(device) for loss in ours], x, targets, valid)
    for loss, value in zip(ours, values, strict=True):
        assert torch.equal(value, loss(x, targets, valid))
    (dlogits,) = torch.autograd.grad(weighted(values), x)
    assert added == [1]
    expected = [loss.to(device)(y, targets, valid) for loss in exact]
    (slopes,) = torch.autograd.grad(weighted(expected), y)
    assert dlogits.dtype == dtype and dlogits.stride() == logits.stride()
    if dtype == torch.float32:
        assert rms_error(dlogits, slopes) < 2e-6
    elif device.type == "cpu":
        assert rms_error(dlogits, slopes) < 1e-2  # the interpreter cuts off where devices round
    else:  # rounded twice, where autograd's sum of two gradients is rounded three times
        apart = weighted([loss(x, targets, valid) for loss in ours])
        (added_up,) = torch.autograd.grad(apart, x)
        assert rms_error(dlogits, slopes) <= 1.05 * rms_error(added_up, slopes)


def test_backward_twice_and_what_came_first_is_left_alone(device, added):
    logits, targets = draw(device)
    x = logits.requires_grad_()
    total = weighted(relayed(criteria()[0], x, targets))
    (first,) = torch.autograd.grad(total, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(2 * total, x)
    assert torch.equal(first, kept) and rms_error(second, 2 * kept) < 1e-6
    assert added == [1, 1]


@pytest.mark.parametrize("which", [0, 1])
def test_one_loss_alone(which, device):
    """Of one that nobody differentiates there is no gradient, also where it is the later one's."""
    logits, targets = draw(device)
    x = logits.requires_grad_()
    ours = criteria()[0]
    values = relayed(ours, x, targets)
    (dlogits,) = torch.autograd.grad(values[which], x)
    (expected,) = torch.autograd.grad(ours[which](x, targets), x)
    assert torch.equal(dlogits, expected)


def test_three_losses_and_a_net_before_them(device, added):
    """Logits that a net has made, which somebody else reads too."""
    logits, targets = draw(device)
    leaf = logits.requires_grad_()
    third = CombinedSegmentationLoss(mode="multiclass", backend="triton")
    ours = [*criteria()[0], third]
    x = leaf * 1.5
    total = weighted(relayed(ours, x, targets)) + x.square().mean()
    (dlogits,) = torch.autograd.grad(total, leaf)
    x = leaf * 1.5
    apart = weighted([loss(x, targets) for loss in ours]) + x.square().mean()
    (expected,) = torch.autograd.grad(apart, leaf)
    assert rms_error(dlogits, expected) < 1e-6
    assert added == [1, 1]


def test_another_gradient_is_not_written_to(device, added):
    """Whoever takes the logits in between by other means keeps the gradient that they gave."""
    logits, targets = draw(device)
    x = logits.requires_grad_()
    ours, relay = criteria()[0], Relay(x)
    (value,) = relayed(ours[:1], x, targets, relay=relay)
    given = torch.randn_like(x)
    before = given.clone()
    (dlogits,) = torch.autograd.grad((value, relay.logits), x, (None, given))
    (expected,) = torch.autograd.grad(ours[0](x, targets), x)
    assert torch.equal(given, before) and added == []
    assert rms_error(dlogits, expected + before) < 1e-6


def test_saved_tensors_that_come_back_elsewhere(device, added):
    logits, targets = draw(device)
    x = logits.requires_grad_()
    expected = torch.autograd.grad(weighted(relayed(criteria()[0], x, targets)), x)[0]

    def unpack(tensor):
        other = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=device)[1:]
        return other.view(tensor.shape).copy_(tensor)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        total = weighted(relayed(criteria()[0], x, targets))
    assert rms_error(torch.autograd.grad(total, x)[0], expected) < 1e-6
    assert added == [1, 1]


def test_refuses_a_second_derivative(device):
    logits, targets = draw(device)
    x = logits.requires_grad_()
    total = weighted(relayed(criteria()[0], x, targets))
    (expected,) = torch.autograd.grad(total, x, retain_graph=True)
    (dlogits,) = torch.autograd.grad(total, x, create_graph=True)
    assert rms_error(dlogits, expected) < 1e-6
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        dlogits.sum().backward()


def test_many_gradients_at_once(device):
    logits, targets = draw(device)
    x = logits.requires_grad_()
    total = weighted(relayed(criteria()[0], x, targets))
    (one,) = torch.autograd.grad(total, x, retain_graph=True)
    scales = torch.tensor([1.0, -2.0], device=device)
    (many,) = torch.autograd.grad(total, x, scales, is_grads_batched=True)
    assert rms_error(many, torch.stack((one, -2 * one))) < 1e-6


def test_without_a_gradient_or_kernels_it_is_the_plain_call(device, added):
    logits, targets = draw(device)
    for losses, x in (
        (criteria()[0], logits),
        (criteria()[1], logits.clone().requires_grad_()),
        ((CombinedSegmentationLoss(backend="triton"),), logits[:, :1].clone().requires_grad_()),
    ):
        labels = (targets == 0)[:, None].float() if x.shape[1] == 1 else targets
        relay = Relay(x)
        for loss, value in zip(losses, relayed(losses, x, labels, relay=relay), strict=True):
            assert torch.equal(value, loss(x, labels)) and relay.logits is x
        if x.requires_grad:
            weighted([loss(x, labels) for loss in losses]).backward()
    assert added == []


def test_nothing_outlives_the_losses(device):
    """No cycle that keeps the logits until a collection, and no gradient on the way."""
    logits, targets = draw(device)
    leaf = logits.requires_grad_()
    x = leaf * 1.0
    relay = Relay(x)
    total = weighted(relayed(criteria()[0], x, targets, relay=relay))
    alive = weakref.ref(x)
    total.backward()
    assert relay._box.gradient is None
    del x, relay, total
    assert alive() is None
