import copy

import pytest
import torch
from torch import nn

from fastseg_losses.training.config import resolve
from fastseg_losses.training.distributed import World
from fastseg_losses.training.net import Average, Net, pick_precision


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


def test_the_average_follows_its_formula() -> None:
    net = make_net()
    average = Average(net, 0.9)
    expected = copy.deepcopy(net.state_dict())
    for update in range(1, 31):
        net(torch.randn(2, 3, 8, 8))  # moves the batch norm's statistics
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += torch.randn_like(parameter)
        average.update(net)
        keep = min(0.9, (1 + update) / (10 + update))
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = keep * expected[name] + (1 - keep) * value
            else:
                expected[name] = value
    state = average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value.clone(), rtol=1e-5, atol=1e-6)
    assert int(state["1.num_batches_tracked"]) == 30
    assert not any(p.requires_grad for p in average.module.parameters())


def test_the_average_goes_on_where_it_was() -> None:
    net = make_net()
    first, second = Average(net, 0.99), Average(make_net(), 0.99)
    for _ in range(3):
        first.update(net)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 2
    for average in (first, second):
        average.update(net)
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name])


def test_training_and_prediction_use_their_own_weights() -> None:
    config = resolve({"data": "d", "ema": 0.5, "amp": "off"})
    net = Net(config, make_net(), torch.device("cpu"), World())
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net.model[2].bias += 100.0
    net.train()
    net.evaluate()
    assert net.model.training and not net.result.training
    assert (net(images) > 50).all() and (net.predict(images) < 50).all()


@pytest.mark.parametrize(
    ("name", "expected"), [("off", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_of_the_logits(name: str, expected: torch.dtype | None) -> None:
    config = resolve({"data": "d", "amp": name})
    net = Net(config, nn.Conv2d(3, 1, 1), torch.device("cpu"), World())
    assert net.precision is expected
    logits = net(torch.zeros(1, 3, 4, 4))
    assert logits.dtype == (expected or torch.float32)
    assert net.model.weight.dtype == torch.float32


def test_auto_is_off_on_the_cpu() -> None:
    assert pick_precision("auto", torch.device("cpu")) is None


@pytest.mark.gpu
def test_auto_is_bfloat16_on_capable_devices() -> None:
    capable = torch.cuda.get_device_capability()[0] >= 8
    assert pick_precision("auto", torch.device("cuda")) is (torch.bfloat16 if capable else None)


@pytest.mark.gpu
def test_on_cuda_averaging_does_not_sync() -> None:
    net = make_net().cuda()
    average = Average(net, 0.9)
    average.update(net)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        average.update(net)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_compiled_gives_the_same_logits() -> None:
    model = nn.Conv2d(3, 1, 3)
    config = resolve({"data": "d", "compile": True})
    net = Net(config, model, torch.device("cpu"), World())
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(images), model(images))
    assert list(net.model.state_dict()) == ["weight", "bias"]
