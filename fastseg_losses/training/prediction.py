"""A trained net back from its checkpoint, with the preparation that its images had in training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from fastseg_losses.training.checkpoint import load_checkpoint, result_weights
from fastseg_losses.training.config import TrainConfig
from fastseg_losses.training.decode import DataError, image_pixels, open_picture
from fastseg_losses.training.model import build_model
from fastseg_losses.training.samples import as_rgb, normalised, resized


@dataclass(frozen=True)
class TrainedModel:
    """A net with the settings that it was trained with.

    Attributes:
        net: In evaluation mode; maps prepared images to logits.
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
        where = "image"
        if not isinstance(image, bytes):
            where = str(image)
            try:
                image = Path(image).read_bytes()
            except OSError as error:
                raise DataError(f"{where}: cannot be read ({error.strerror})") from error
        picture = open_picture(image, where, max_pixels=self.config.max_pixels)
        return self.prepare_pixels(image_pixels(picture, where, bits=self.image_bits))

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
    net = build_model(config.model, config.channels)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: does not fit {config.model or 'the built-in net'}: {error}"
        ) from error
    return TrainedModel(net.to(where).eval(), config, where)
