"""The built-in net, small enough for a CPU, and the way to the user's own (``module:factory``)."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64, 96, 128)


class _ConvBlock(nn.Sequential):
    """3x3 convolution, GroupNorm, SiLU, twice; the first convolution may halve the size.

    GroupNorm, not BatchNorm: a batch that mixes annotated and unannotated rows must not let the
    unannotated ones reach the weights through shared statistics, and batches of one must work.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, c_out),
            nn.SiLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(8, c_out),
            nn.SiLU(inplace=True),
        )


class LightweightSegmentationHead(nn.Module):
    """Features to logits: one 1x1 convolution, no activation (the losses take logits)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, classes, H, W)."""
        logits: Tensor = self.project(features)
        return logits


class LightweightUNet(nn.Module):
    """A U-Net of five levels with a lightweight segmentation head, about 0.92 M parameters.

    Strided convolutions go down, nearest-neighbour upsampling goes up: unlike max-pooling and
    bilinear upsampling, their gradients are deterministic on CUDA too. Any input size works; it is
    padded to a multiple of the total stride and the logits are cropped back.

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        widths: channels per level, each a multiple of 8.
        head_stride: the logits have 1 / head_stride of the image's height and width, and the way
            up ends there: a power of two, at most the total stride. The image's sizes have to be
            multiples of it, or bilinear upsampling would put the logits beside their pixels.

    Raises:
        ValueError: a head_stride that is no level of the net.

    Example:
        >>> LightweightUNet()(torch.zeros(1, 3, 50, 70)).shape
        torch.Size([1, 1, 50, 70])
        >>> LightweightUNet(head_stride=4)(torch.zeros(1, 3, 52, 72)).shape
        torch.Size([1, 1, 13, 18])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        widths: tuple[int, ...] = WIDTHS,
        head_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        self.head_stride = head_stride
        strides = [2**level for level in range(len(widths))]
        if head_stride not in strides:
            names = ", ".join(map(str, strides))
            raise ValueError(f"head_stride: expected one of {names}, got {head_stride!r}")
        level = strides.index(head_stride)
        self.stem = _ConvBlock(in_channels, widths[0])
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.down = nn.ModuleList(_ConvBlock(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_ConvBlock(a + b, a) for a, b in reversed(pairs[level:]))
        self.head = LightweightSegmentationHead(widths[level], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, classes, H, W), each size by head_stride.

        Raises:
            ValueError: H or W is no multiple of head_stride.
        """
        height, width = images.shape[-2:]
        if height % self.head_stride or width % self.head_stride:
            raise ValueError(
                f"images: expected height and width to be multiples of the head's stride "
                f"{self.head_stride}, got {tuple(images.shape)}"
            )
        # Zero padding: the backward of reflect and replicate padding is not deterministic on CUDA.
        features = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        features = self.stem(features)
        skips = []
        for block in self.down:
            skips.append(features)
            features = block(features)
        for block in self.up:
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            features = block(torch.cat((features, skips.pop()), dim=1))
        logits: Tensor = self.head(features)
        return logits[..., : height // self.head_stride, : width // self.head_stride]


def build_model(spec: str | None = None, classes: int = 1, head_stride: int = 1) -> nn.Module:
    """The built-in net, or the one that the user's factory returns.

    Args:
        spec: None, or ``module:factory``; the factory is called without arguments. Modules are
            looked up as ``python`` does, and in the current folder.
        classes: channels of the built-in net's logits; the user's factory is not told.
        head_stride: of the built-in net, see `LightweightUNet`.

    Raises:
        ValueError: the spec does not have that form, nothing callable is found there, or the module
            or the factory raised.
        TypeError: the factory did not return a ``torch.nn.Module``.
    """
    if spec is None:
        return LightweightUNet(classes=classes, head_stride=head_stride)
    module_name, colon, factory_name = spec.partition(":")
    if not (module_name and colon and factory_name):
        raise ValueError(f"model: expected module:factory, for instance my_nets:make, got {spec!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        if name is not None and f"{module_name}.".startswith(f"{name}."):
            raise ValueError(f"model: no module {name!r} (from {spec!r})") from error
        raise ValueError(f"model: module {module_name!r} failed: {_blame(error)}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f"model: module {module_name!r} has no callable {factory_name!r}")
    try:
        net = factory()
    except Exception as error:
        raise ValueError(
            f"model: {spec}, called without arguments, failed: {_blame(error)}"
        ) from error
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"model: expected {spec} to return a torch.nn.Module, got {type(net).__name__}"
        )
    return net


def check_logits(logits: object, images: Tensor, model: nn.Module, classes: int = 1) -> None:
    """Say clearly when a net does not map (N, 3, H, W) to (N, classes, h, w).

    Logits may have the image's size or a whole fraction of it, as with a net of stride 4. Anything
    in between (a net of unpadded convolutions has lost a border) would be stretched out of place.

    Raises:
        ValueError: the output's shape does not fit.
        TypeError: the output is no tensor (a dict of several outputs, for instance).
    """
    name = type(model).__name__
    if not isinstance(logits, Tensor):
        raise TypeError(f"model: expected {name} to return a tensor, got {type(logits).__name__}")
    expected = (images.shape[0], classes, *images.shape[2:])
    found = tuple(logits.shape)
    same = len(found) == 4 and found[:2] == expected[:2]
    if not same or not all(map(_is_fraction, found[2:], expected[2:])):
        raise ValueError(
            f"model: expected {name} to return logits {expected}, or with 1/2, 1/3, ... of that "
            f"height and width, for images {tuple(images.shape)}, got {found}"
        )


def _is_fraction(small: int, full: int) -> bool:
    """Whether a size is that of every k-th pixel, rounded either way; k = 1 is the size itself."""
    stride = round(full / small) if small else 0
    return stride > 0 and small in (full // stride, -(-full // stride))


@torch.no_grad()
def try_out(model: nn.Module, image_size: int, classes: int) -> tuple[int, int]:
    """One black image through the net, so that a wrong net is reported before the data is read.

    Returns:
        Height and width of the logits.

    Raises:
        ValueError: the net raised, its output's shape does not fit, or it has nothing to train.
        TypeError: its output is no tensor.
    """
    images = torch.zeros(1, 3, image_size, image_size)
    was_training = model.training
    try:
        logits = model.eval()(images)
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} failed on images {tuple(images.shape)}: {_blame(error)}"
        ) from error
    model.train(was_training)
    check_logits(logits, images, model, classes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"model: expected {type(model).__name__} to have parameters to train, got none with "
            "requires_grad"
        )
    return logits.shape[2], logits.shape[3]


def _blame(error: Exception) -> str:
    """An exception in one line, with the place that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen")]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


def describe(model: nn.Module) -> str:
    """One line for the log: the net, its head and its size."""
    count = sum(p.numel() for p in model.parameters())
    head = getattr(model, "head", None)
    if isinstance(head, LightweightSegmentationHead):
        text = f"Lightweight segmentation head ({head.project.in_channels} channels -> logits)"
    else:
        text = "its own head"
    return f"{type(model).__name__}: {count / 1e6:.2f} M parameters, {text}"
