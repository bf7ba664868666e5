"""The built-in net, small enough for a CPU, and the way to the user's own (``module:factory``)."""

from __future__ import annotations

import importlib
import os
import sys

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
    """A U-Net of five levels with a lightweight segmentation head, about 1.1 M parameters.

    Strided convolutions go down, nearest-neighbour upsampling goes up: unlike max-pooling and
    bilinear upsampling, their gradients are deterministic on CUDA too. Any input size works; it is
    padded to a multiple of the total stride and the logits are cropped back.

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        widths: channels per level, each a multiple of 8.

    Example:
        >>> net = LightweightUNet()
        >>> net(torch.zeros(1, 3, 50, 70)).shape
        torch.Size([1, 1, 50, 70])
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 1, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        self.stem = _ConvBlock(in_channels, widths[0])
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.down = nn.ModuleList(_ConvBlock(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_ConvBlock(a + b, a) for a, b in reversed(pairs))
        self.head = LightweightSegmentationHead(widths[0], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, classes, H, W)."""
        height, width = images.shape[-2:]
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
        return logits[..., :height, :width]


def build_model(spec: str | None = None) -> nn.Module:
    """The built-in net, or the one that the user's factory returns.

    Args:
        spec: None, or ``module:factory``; the factory is called without arguments. Modules are
            looked up as ``python`` does, and in the current folder.

    Raises:
        ValueError: the spec does not have that form, or nothing callable is found there.
        TypeError: the factory did not return a ``torch.nn.Module``.
        RuntimeError: the factory itself failed.
    """
    if spec is None:
        return LightweightUNet()
    module_name, colon, factory_name = spec.partition(":")
    if not (module_name and colon and factory_name):
        raise ValueError(f"model: expected module:factory, for instance my_nets:make, got {spec!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module missing inside the user's own file is their error to see, not a wrong spec.
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise ValueError(f"model: no module {error.name!r} (from {spec!r})") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f"model: module {module_name!r} has no callable {factory_name!r}")
    try:
        net = factory()
    except Exception as error:
        # Not a ValueError, which would read as a mistake on the command line: with its traceback.
        raise RuntimeError(f"model: {spec} failed") from error
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"model: expected {spec} to return a torch.nn.Module, got {type(net).__name__}"
        )
    return net


def check_logits(logits: object, images: Tensor, model: nn.Module) -> None:
    """Say clearly when a net does not map (N, 3, H, W) to (N, 1, H, W).

    Raises:
        ValueError: the output's shape does not fit.
        TypeError: the output is no tensor (a dict of several outputs, for instance).
    """
    name = type(model).__name__
    if not isinstance(logits, Tensor):
        raise TypeError(f"model: expected {name} to return a tensor, got {type(logits).__name__}")
    expected = (images.shape[0], 1, *images.shape[2:])
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"model: expected {name} to return logits {expected} for images "
            f"{tuple(images.shape)}, got {tuple(logits.shape)}"
        )


def describe(model: nn.Module) -> str:
    """One line for the log: the net, its head and its size."""
    count = sum(p.numel() for p in model.parameters())
    head = getattr(model, "head", None)
    if isinstance(head, LightweightSegmentationHead):
        text = f"Lightweight segmentation head ({head.project.in_channels} channels -> logits)"
    else:
        text = "its own head"
    return f"{type(model).__name__}: {count / 1e6:.2f} M parameters, {text}"
