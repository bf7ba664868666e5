from pathlib import Path

import pytest
import torch
from torch import nn

from fastseg_losses.training.model import (
    LightweightUNet,
    build_model,
    check_logits,
    describe,
)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (17, 33), (50, 16)])
def test_any_image_size_gives_logits_of_that_size(size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = LightweightUNet()(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, *size)
    assert torch.isfinite(logits).all()


def test_the_size_is_what_the_log_says() -> None:
    net = LightweightUNet()
    count = sum(p.numel() for p in net.parameters())
    assert 0.5e6 < count < 2e6
    text = describe(net)
    assert "Lightweight segmentation head" in text
    assert f"{count / 1e6:.2f} M" in text


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_the_way_up_ends_at_the_heads_stride(stride: int) -> None:
    net = LightweightUNet(classes=2, head_stride=stride)
    with torch.no_grad():
        assert net(torch.randn(1, 3, 48, 80)).shape == (1, 2, 48 // stride, 80 // stride)
    whole = dict(LightweightUNet(classes=2).named_parameters())
    shared = {name for name in whole if not name.startswith("head.")}
    own = {name for name, _ in net.named_parameters() if not name.startswith("head.")}
    assert own <= shared and (own == shared) is (stride == 1)
    net(torch.randn(1, 3, 48, 80)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_stride_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="^head_stride: expected one of 1, 2, 4, 8, 16, got 3"):
        LightweightUNet(head_stride=3)
    with pytest.raises(ValueError, match="^images: expected height and width to be multiples .* 4"):
        LightweightUNet(head_stride=4)(torch.zeros(1, 3, 50, 48))


def test_a_samples_logits_do_not_depend_on_the_rest_of_its_batch() -> None:
    net = LightweightUNet().train()
    image, other = torch.randn(2, 1, 3, 32, 32).unbind(0)
    with torch.no_grad():
        alone, beside = net(image), net(torch.cat([image, 100 * other]))[:1]
    torch.testing.assert_close(alone, beside)


def test_every_parameter_gets_a_gradient() -> None:
    net = LightweightUNet(widths=(8, 16))
    net(torch.randn(1, 3, 16, 16)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_users_own_factory_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets_a.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Conv2d(3, 1, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    net = build_model("own_nets_a:make")
    assert isinstance(net, nn.Conv2d)
    assert describe(net).startswith("Conv2d: 0.00 M parameters, its own head")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nocolon", "expected module:factory"),
        (":make", "expected module:factory"),
        ("torch:", "expected module:factory"),
        ("no_such_module_anywhere:make", "no module 'no_such_module_anywhere'"),
        ("torch.no_such_part:make", "no module 'torch.no_such_part'"),
        ("torch:no_such_name", "'torch' has no callable 'no_such_name'"),
        ("torch:__version__", "has no callable '__version__'"),
    ],
)
def test_a_wrong_spec_is_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(spec)


def test_a_factory_must_return_a_module() -> None:
    with pytest.raises(TypeError, match="to return a torch.nn.Module, got OrderedDict"):
        build_model("collections:OrderedDict")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def make():\n    raise RuntimeError('my own mistake')\n", "RuntimeError: my own mistake"),
        ("def make(classes):\n    pass\n", "TypeError: make() missing 1 required"),
        ("import surely_not_installed\n", "No module named 'surely_not_installed'"),
        ("def make(:\n", "SyntaxError"),
    ],
    ids=["raises", "needs an argument", "import inside", "syntax"],
)
def test_a_mistake_in_the_users_own_file_is_one_line(
    source: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    name = "own_nets_" + request.node.callspec.id.replace(" ", "_")
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"^model: .*{name}.* failed: ") as caught:
        build_model(f"{name}:make")
    text = str(caught.value)
    assert message in text and "\n" not in text
    if "raise " in source:
        assert f"{name}.py, line 2" in text


def test_wrong_logits_are_named() -> None:
    images, net = torch.zeros(2, 3, 8, 8), nn.Identity()
    for size in ((8, 8), (4, 4), (2, 4), (1, 1), (3, 3)):  # 3: every third pixel, from the first
        check_logits(torch.zeros(2, 1, *size), images, net)
    for shape in (
        (2, 1, 6, 6),
        (2, 1, 8, 5),
        (2, 1, 16, 16),
        (2, 1, 0, 8),
        (2, 2, 8, 8),
        (2, 1, 8),
    ):
        got = ", ".join(map(str, shape))
        with pytest.raises(ValueError, match=rf"logits \(2, 1, 8, 8\), or .* got \({got}\)"):
            check_logits(torch.zeros(shape), images, net)
    with pytest.raises(TypeError, match="to return a tensor, got dict"):
        check_logits({"out": torch.zeros(2, 1, 8, 8)}, images, net)
