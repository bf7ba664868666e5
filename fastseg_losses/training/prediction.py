"""A trained net back from its checkpoint, with the preparation that its images had in training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from fastseg_losses.arguments import Mode
from fastseg_losses.functional import predict_mask
from fastseg_losses.training.checkpoint import load_checkpoint, result_weights
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.decode import DataError, image_pixels, open_picture
from fastseg_losses.training.model import build_model
from fastseg_losses.training.samples import as_rgb, normalised, resized
from fastseg_losses.upsampling import interpolate


@dataclass(frozen=True)
class TrainedModel:
    """A net with the settings that it was trained with.

    Attributes:
        net: In evaluation mode; maps prepared images to logits, which may be smaller than the image
            (`TrainConfig.head_stride` of the built-in net).
        config: The settings of its run.
        device: Where the net is.
    """

    net: nn.Module
    config: TrainConfig
    device: torch.device

    def prepare(self, image: str | os.PathLike[str] | bytes) -> Tensor:
        """Reads one image as the trainer does.

        Args:
            image: The path of a PNG or JPEG, or its encoded bytes.

        Returns:
            Float32 (1, 3, S, S), normalised, on the net's device.

        Raises:
            ValueError: The file cannot be read, or is no PNG or JPEG.
        """
        return self.prepare_pixels(self._read(image))

    def _read(self, image: str | os.PathLike[str] | bytes) -> Image.Image:
        where = "image"
        if not isinstance(image, bytes):
            where = str(image)
            try:
                image = Path(image).read_bytes()
            except OSError as error:
                raise DataError(f"{where}: cannot be read ({error.strerror})") from error
        picture = open_picture(image, where, max_pixels=self.config.max_pixels)
        return image_pixels(picture, where, bits=self.image_bits)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The logits of prepared images (N, 3, S, S), at their size: float32 (N, C, S, S)."""
        logits: Tensor = self.net(images)
        size = tuple(images.shape[2:])
        same = tuple(logits.shape[2:]) == size
        return logits.float() if same else interpolate(logits, size, "bilinear")

    @torch.no_grad()
    def mask(self, image: str | os.PathLike[str] | bytes) -> Tensor:
        """The mask of one image, in the image's own size.

        Args:
            image: See `prepare`.

        Returns:
            (H, W), 0 and 1, or class ids; see `predict_mask`.

        Raises:
            ValueError: See `prepare`.
        """
        pixels = self._read(image)
        mode: Mode = "binary" if self.config.labels is None else "multiclass"
        logits: Tensor = self.net(self.prepare_pixels(pixels))
        return predict_mask(logits, (pixels.height, pixels.width), mode=mode)[0]

    @property
    def image_bits(self) -> int:
        """How many of their 16 bits 16-bit grey images use."""
        return self.config.image_bits or 16

    def prepare_pixels(self, pixels: Image.Image) -> Tensor:
        """What `prepare` does once the image is decoded, upright, and grey or RGB of 8 bits."""
        rgb = as_rgb(resized(pixels, self.config.image_size))
        return normalised(rgb[None].to(self.device))


def load_model(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> TrainedModel:
    """Loads ``best.pt`` or ``last.pt``, of a run with ``--ema`` the averaged weights.

    A net that came from ``--model module:factory`` is made by that factory again, which has to be
    importable.

    Args:
        path: The checkpoint.
        device: Where to put the net.

    Raises:
        ValueError: The file cannot be read, is no checkpoint of the trainer, or the factory does
            not make the net that was saved.
    """
    where = torch.device(device)
    state = load_checkpoint(Path(path), ("model", "config"))
    config, weights = TrainConfig.from_dict(state["config"]), result_weights(state)
    net = build_model(config.model, config.channels, config.head_stride or 1)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: does not fit {config.model or 'the built-in net'}: {error}"
        ) from error
    return TrainedModel(net.to(where).eval(), config, where)
