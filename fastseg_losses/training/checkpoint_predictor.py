"""Pseudo-masks from a net that ``train.py`` trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fastseg_losses.training.prediction import load_model
from fastseg_losses.training.predictor import Prediction, digest


class CheckpointPredictor:
    """The `Predictor` of a checkpoint, at the image size of its training.

    The confidence is the probability of the value in the mask: max(p, 1 - p), or that of the
    likeliest class.
    """

    takes_boxes = False

    def __init__(self, path: str, *, device: torch.device) -> None:
        """Loads the net.

        Args:
            path: ``best.pt`` or ``last.pt``.
            device: Where to predict.

        Raises:
            ValueError: See `load_model`.
        """
        self.model = load_model(path, device=device)
        self.labels = self.model.config.labels
        self.image_bits = self.model.image_bits
        file = Path(path).resolve()
        self.source = f"checkpoint:{file.parent.name}/{file.name}@{digest(file)}"

    @torch.no_grad()
    def predict(
        self, image: Image.Image, boxes: npt.NDArray[np.float32] | None = None
    ) -> Prediction:
        """See `Predictor`; boxes are not used."""
        logits = self.model.logits(self.model.prepare_pixels(image))
        size = (image.height, image.width)
        if self.labels is None:
            probability = _resized(logits.sigmoid(), size)
            mask = probability > 0.5
            confidence = torch.where(mask, probability, 1 - probability)
            return Prediction(_array(mask.to(torch.uint8)), _array(confidence))
        # Class by class: all probabilities at the image's size could take gigabytes.
        probabilities = logits.softmax(1)
        confidence = torch.full(size, -1.0, device=logits.device)
        ids = torch.zeros(size, dtype=torch.int32, device=logits.device)
        for k in range(self.labels.num_classes):
            plane = _resized(probabilities[:, k : k + 1], size)
            better = plane > confidence
            confidence = torch.where(better, plane, confidence)
            ids.masked_fill_(better, k)
        return Prediction(_array(ids).astype(self.labels.dtype), _array(confidence))


def _resized(probability: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 1, S, S) at the image's size (H, W)."""
    return F.interpolate(probability, size=size, mode="bilinear", align_corners=False)[0, 0]


def _array(plane: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = plane.cpu().numpy()
    return array
