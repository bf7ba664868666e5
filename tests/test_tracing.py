"""What takes the operators in place of a launch; what follows of it: test_ways_traced.py."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from fastseg_losses.tracing import is_batched, is_traced


class Named(Tensor):
    """A tensor with another name, as torchvision's masks and MONAI's images are."""


def test_plain_tensors_are_launched():
    x = torch.zeros(2)
    assert not any(map(is_traced, (x, nn.Parameter(x), x.as_subclass(Named), "no tensor")))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert not is_traced(x)


@pytest.mark.parametrize("mode", [FakeTensorMode, FlopCounterMode, forward_ad.dual_level])
def test_modes_are_noticed(mode):
    with mode() if mode is not FlopCounterMode else mode(display=False):
        assert is_traced(torch.zeros(2))
    assert not is_traced(torch.zeros(2))


def test_fake_tensors_are_noticed_outside_of_their_mode():
    assert is_traced(FakeTensorMode().from_tensor(torch.zeros(2)))


def test_transforms_and_batches_are_noticed():
    seen = []

    def watch(x):
        seen.append((is_traced(x), is_batched(x)))
        return x.sum()

    x = torch.zeros(2, 3)
    torch.func.grad(watch)(x)
    torch.func.vmap(watch)(x)
    watch(x)
    assert seen == [(True, False), (True, True), (False, False)]
