"""A training step as PyTorch users write it: mixed precision, accumulation, checkpointing, hooks.

Each beside the plain call, on the device of the session: kernels interpreted on the CPU, compiled
on a GPU. Graphs, streams, threads: test_gpu_ways.py. Compilers and tracers: test_ways_traced.py.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastseg_losses import BCELoss, CombinedSegmentationLoss, DiceLoss, SegmentationStats

BACKENDS = ["torch", "triton"]
KINDS = {
    "binary": {},
    "multiclass": {"mode": "multiclass", "ignore_index": 255},
    "low resolution": {"mode": "multiclass", "upsample": "bilinear"},
}


class Net(nn.Module):
    """A linear map of each pixel: on a GPU a convolution would be TF32, and repeat roughly."""

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(2, classes)

    def forward(self, images):
        return self.linear(images).movedim(-1, 1).contiguous()


class Step:
    """A net, a batch, and what a step on them gives."""

    def __init__(self, kind, backend, device, samples=2):
        classes = 3 if KINDS[kind].get("mode") == "multiclass" else 1
        self.net = Net(classes).to(device)
        self.criterion = CombinedSegmentationLoss(backend=backend, **KINDS[kind]).to(device)
        scale = 2 if kind == "low resolution" else 1
        self.images = torch.randn(samples, 6, 6, 2, device=device)
        self.masks = torch.rand(samples, 1, 6 * scale, 6 * scale, device=device).lt(0.4).long()

    def gradients(self, loss):
        """Of the net, which are cleared; the loss is told to go backward."""
        loss.backward()
        found = [p.grad.clone() for p in self.net.parameters()]
        self.net.zero_grad()
        assert all(g.any() for g in found), "a gradient of nothing compares equal to anything"
        return found

    def plain(self):
        return self.gradients(self.criterion(self.net(self.images), self.masks))


def assert_same(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# ---- mixed precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_the_logits_and_not_the_loss(kind, backend, dtype, device):
    if (kind, backend, device.type) == ("low resolution", "triton", "cpu"):
        pytest.skip("20 s a case when interpreted")
    step = Step(kind, backend, device)
    with torch.autocast(device.type, dtype):
        logits = step.net(step.images)
        inside = step.criterion(logits, step.masks)
    assert logits.dtype == dtype and inside.dtype == torch.float32
    assert torch.equal(inside, step.criterion(logits.detach(), step.masks))
    of_inside = step.gradients(inside)
    with torch.autocast(device.type, dtype):
        logits = step.net(step.images)
    assert_same(of_inside, step.gradients(step.criterion(logits, step.masks)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scaler_skips_the_step_that_overflows(backend, device):
    """Of a sum, slopes are p - t: times 2**17 more than float16 holds, times 2**16 just less."""
    weights = nn.Parameter(torch.linspace(-4, 4, 64, device=device).reshape(1, 1, 8, 8))
    masks = weights.detach() < 0
    criterion = BCELoss(reduction="sum", backend=backend)
    slope = torch.autograd.grad(criterion(weights, masks), weights)[0]
    optimizer = torch.optim.SGD([weights], lr=0.125)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**17)
    before = weights.detach().clone()
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(criterion(weights.half(), masks)).backward()
        seen.append(bool(weights.grad.isfinite().all()))
        scaler.step(optimizer)
        scaler.update()
        seen.append((scaler.get_scale(), torch.equal(weights, before)))
    assert seen == [False, (2.0**16, True), True, (2.0**16, False)]
    torch.testing.assert_close(weights, before - 0.125 * slope, rtol=2e-3, atol=2e-4)


# ---- accumulation, checkpointing


@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulated_gradients_are_their_sum(backend, device):
    step = Step("binary", backend, device, samples=3)
    each = [
        step.gradients(step.criterion(step.net(image[None]), mask[None]))
        for image, mask in zip(step.images, step.masks, strict=True)
    ]
    for image, mask in zip(step.images, step.masks, strict=True):
        step.criterion(step.net(image[None]), mask[None]).backward()
    found = [p.grad.clone() for p in step.net.parameters()]
    assert_same(found, [sum(parts) for parts in zip(*each, strict=True)])
    # A mean over samples of equal size: one batch of all has a third of the sum. Not with
    # batch=True, whose score of the batch is no mean of the samples' scores.
    step.net.zero_grad()
    assert_same([3 * g for g in step.plain()], found, rtol=1e-4, atol=1e-6)
    step.criterion = DiceLoss(batch=True, backend=backend)
    each = [
        step.gradients(step.criterion(step.net(image[None]), mask[None]))
        for image, mask in zip(step.images, step.masks, strict=True)
    ]
    joint = [3 * g for g in step.plain()]
    difference = joint[0] - sum(parts[0] for parts in each)
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inside", [False, True], ids=["loss outside", "loss inside"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpointed(reentrant, inside, backend, device):
    step = Step("binary", backend, device)
    expected = step.plain()
    calls = []

    def part(images):
        calls.append(1)
        logits = step.net(images)
        return step.criterion(logits, step.masks) if inside else logits

    # a reentrant checkpoint gives no gradient at all unless an input requires one
    images = step.images.clone().requires_grad_()
    result = checkpoint(part, images, use_reentrant=reentrant)
    loss = result if inside else step.criterion(result, step.masks)
    assert_same(step.gradients(loss), expected)
    assert len(calls) == 2, "nothing was computed a second time"


# ---- autograd


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice(backend, device):
    step = Step("binary", backend, device)
    loss = step.criterion(step.net(step.images), step.masks)
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in step.net.parameters()]
    loss.backward()
    assert_same([p.grad for p in step.net.parameters()], [2 * g for g in once])
    logits = step.net(step.images).detach().requires_grad_()
    loss = step.criterion(logits, step.masks)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_upstream_gradients(backend, device):
    """`is_grads_batched`, as in `torch.autograd.functional.jacobian`, and vmap around grad."""
    step = Step("binary", backend, device)
    criterion = DiceLoss(reduction="none", backend=backend)
    logits = step.net(step.images).detach().requires_grad_()
    loss = criterion(logits, step.masks)
    each = torch.eye(2, device=device).reshape(2, *loss.shape)
    rows = [torch.autograd.grad(loss, logits, row, retain_graph=True)[0] for row in each]
    expected = torch.stack(rows)
    assert expected[0, 0].any() and not expected[0, 1].any()

    def of(dloss, **batched):
        return torch.autograd.grad(loss, logits, dloss, retain_graph=True, **batched)[0]

    torch.testing.assert_close(of(each, is_grads_batched=True), expected)
    torch.testing.assert_close(torch.func.vmap(of)(each), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks(backend, device):
    """On the module, forward and backward, and on its tensors: each is called, and may change."""
    step = Step("binary", backend, device)
    expected, seen = step.plain(), []
    criterion = step.criterion
    criterion.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1, inputs[1]))
    criterion.register_forward_hook(lambda _, inputs, output: seen.append(type(output)))
    criterion.register_full_backward_pre_hook(lambda _, dloss: (dloss[0] * 2, *dloss[1:]))
    criterion.register_full_backward_hook(lambda _, dinputs, dloss: seen.append(dinputs[0]))
    logits = step.net(step.images)
    logits.register_hook(lambda gradient: gradient / 4)
    logits.retain_grad()
    loss, stats = criterion(logits, step.masks, return_stats=True)
    loss.register_hook(lambda gradient: gradient * 2)
    assert_same(step.gradients(loss), expected)
    assert type(stats) is SegmentationStats and seen[0] is tuple
    torch.testing.assert_close(seen[1] / 4, logits.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_graph_without_gradients(backend, device):
    """The first call of its kind in inference mode: what is kept of it serves the training too."""
    step = Step("binary", backend, device)
    logits = torch.randn(2, 1, 5, 6 if backend == "torch" else 7, device=device)
    masks = logits < 0.5
    with torch.inference_mode():
        loss, stats = step.criterion(logits, masks, return_stats=True)
    assert loss.is_inference() and not loss.requires_grad
    leaf = logits.clone().requires_grad_()
    with torch.no_grad():
        assert not step.criterion(leaf, masks).requires_grad
    trained = step.criterion(leaf, masks)
    trained.backward()
    assert torch.equal(trained, loss) and leaf.grad.any() and stats.valid == logits.numel()


def test_targets_of_inference_mode_are_refused_in_training(device):
    """As in PyTorch's own losses: they cannot be kept for the backward pass."""
    logits = torch.randn(1, 1, 4, 4, device=device, requires_grad=True)
    with torch.inference_mode():
        masks = torch.zeros(1, 1, 4, 4, device=device)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        DiceLoss(backend="triton")(logits, masks)
    assert DiceLoss(backend="triton")(logits, masks.clone()).requires_grad
