"""`region_sums`: the sums themselves, differentiable, for formulas of one's own."""

import pytest
import torch
from torch.testing import assert_close

from fastseg_losses import DiceLoss, region_sums


@pytest.fixture(params=["torch", "triton"])
def place(request):
    """A backend, and a device it runs on."""
    if request.param == "torch":
        return "torch", torch.device("cpu")
    return "triton", request.getfixturevalue("device")


def draw(shape, device):
    logits = torch.randn(shape, device=device) * 3
    return logits, (torch.rand(shape, device=device) < 0.4).to(torch.uint8)


def expected_sums(logits, targets, live):
    """I, P, T, V of (N, C, *spatial) in plain PyTorch."""
    p, t, live = (v.double().flatten(2) for v in (logits.sigmoid(), targets, live))
    return [(v * live).sum(2) for v in (p * t, p, t, torch.ones_like(p))]


def masked(which, targets):
    """(targets, keyword arguments, which pixels are valid) of one way to ignore pixels."""
    N, C, *spatial = targets.shape
    drawn = torch.rand(N, 1, *spatial, device=targets.device) < 0.6
    everything = torch.ones_like(targets, dtype=torch.bool)
    if which == "all":
        return targets, {}, everything
    if which == "samples":
        valid = torch.arange(N, device=targets.device) % 2 == 0
        return targets, {"valid": valid}, everything & valid.view(N, *[1] * (targets.dim() - 1))
    if which == "pixels":
        return targets, {"valid": drawn[:, 0]}, everything & drawn
    live = torch.rand(targets.shape, device=targets.device) < 0.6
    return torch.where(live, targets.long(), -100), {"ignore_index": -100}, live


MASKS = ["all", "samples", "pixels", "ignore_index"]


@pytest.mark.parametrize("which", MASKS)
def test_values_and_gradients(which, place):
    backend, device = place
    logits, targets = draw((3, 2, 7, 9), device)
    targets, arguments, live = masked(which, targets)
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    sums = region_sums(ours, targets, mode="multilabel", backend=backend, **arguments)
    expected = expected_sums(exact, targets.where(live, 0), live)
    upstream = torch.randn(4, 3, 2, dtype=torch.float64, device=device)
    for value, reference in zip(sums, expected, strict=True):
        assert value.dtype == torch.float32
        assert_close(value, reference.detach().float())
    (torch.stack(sums) * upstream).sum().backward()
    (torch.stack(expected) * upstream).sum().backward()
    assert_close(ours.grad, exact.grad.float())
    assert (ours.grad[~live] == 0).all()


def test_one_sum_alone_has_the_gradient_of_that_sum(place):
    backend, device = place
    logits, targets = draw((2, 1, 5, 6), device)
    x = logits.clone().requires_grad_()
    sums = region_sums(x, targets, backend=backend)
    p = logits.sigmoid()
    for value, slope in ((sums.I, targets), (sums.P, 1.0), (sums.T, 0.0), (sums.V, 0.0)):
        (grad,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        assert_close(grad, p * (1 - p) * slope)


@pytest.mark.parametrize("which", MASKS)
def test_a_dice_of_ones_own_is_the_dice_loss(which, place):
    backend, device = place
    logits, targets = draw((4, 3, 6, 5), device)
    targets, arguments, _ = masked(which, targets)
    common = {"mode": "multilabel", "backend": backend}
    ignore_index = arguments.get("ignore_index")
    criterion = DiceLoss(reduction="none", ignore_index=ignore_index, **common)
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    I, P, T, V = region_sums(x, targets, **arguments, **common)  # noqa: E741
    ours = torch.where(V > 0, 1 - (2 * I + 1) / (P + T + 1), 0.0)
    loss = criterion(y, targets, arguments.get("valid"))
    upstream = torch.randn_like(loss)
    ours.backward(upstream)
    loss.backward(upstream)
    assert_close(ours, loss)
    assert_close(x.grad, y.grad)


def test_sums_of_parts_add_up_to_the_batch_dice(place):
    """What ranks do: each its own samples, the sums all-reduced, then the formula."""
    backend, device = place
    logits, targets = draw((5, 2, 4, 7), device)
    common = {"mode": "multilabel", "backend": backend}
    parts = [
        region_sums(x, t, **common)
        for x, t in zip(logits.split([2, 3]), targets.split([2, 3]), strict=True)
    ]
    I, P, T, _ = (sum(s.sum(0) for s in part) for part in zip(*parts, strict=True))  # noqa: E741
    criterion = DiceLoss(batch=True, reduction="none", smooth=0.5, **common)
    assert_close(1 - (2 * I + 0.5) / (P + T + 0.5), criterion(logits, targets))


def test_binary_without_channel(place):
    backend, device = place
    logits, targets = draw((3, 8, 5), device)
    sums = region_sums(logits, targets, backend=backend)
    assert all(s.shape == (3, 1) for s in sums)
    for ours, expected in zip(
        sums, region_sums(logits[:, None], targets[:, None], backend=backend), strict=True
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_summed_in_float32(dtype, place):
    backend, device = place
    logits, targets = draw((1, 1, 70_000), device)
    sums = region_sums(logits.to(dtype), targets, backend=backend)
    exact = expected_sums(logits.to(dtype).double(), targets, torch.ones_like(targets))
    for ours, expected in zip(sums, exact, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, expected.float())
    assert sums.V == 70_000  # beyond float16


def test_double_logits_give_double_sums():
    logits, targets = draw((2, 1, 5, 6), torch.device("cpu"))
    assert all(s.dtype == torch.float64 for s in region_sums(logits.double(), targets))


def test_errors():
    logits, targets = draw((2, 3, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match="^mode: expected one of .*got 'rgb'"):
        region_sums(logits, targets, mode="rgb")
    with pytest.raises(ValueError, match="^activation: expected None or 'sigmoid'"):
        region_sums(logits, targets, activation="softmax")
    with pytest.raises(TypeError, match="^ignore_index: expected an int or None, got 1.5"):
        region_sums(logits, targets, ignore_index=1.5)
    with pytest.raises(ValueError, match=r"^targets: expected the logits' shape \(2, 3, 4\)"):
        region_sums(logits, targets[..., 1:], backend="torch")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiled_fullgraph(backend, device):
    torch._dynamo.reset()
    step = torch.compile(
        lambda x, t: region_sums(x, t, ignore_index=7, backend=backend),
        fullgraph=True,
        backend="aot_eager",
    )
    logits, targets = draw((2, 1, 5, 6), device)
    expected = region_sums(logits, targets, ignore_index=7, backend=backend)
    for ours, theirs in zip(step(logits, targets), expected, strict=True):
        assert_close(ours, theirs)
