"""Pseudo-masks from SAM 2 through Hugging Face transformers, from a local folder.

SAM 2 knows objects and no classes. With boxes, the boxes say what is foreground. Without, it is
asked at a grid of points: small segments that it is sure of are foreground, large ones are ground,
and where it is sure of neither, the confidence is 0.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fastseg_losses.training.labels import Labels
from fastseg_losses.training.predictor import Prediction, digest
from fastseg_losses.training.samples import as_rgb, normalised, resized

# Prompts in one pass of the mask decoder.
AT_ONCE = 64

# A segment from a point counts if SAM 2 expects at least this IoU, and if its area hardly changes
# between a cut at logit -1 and at 1: the defaults of SAM 2's automatic mask generator.
LEAST_IOU = 0.8
LEAST_STABILITY = 0.95
STABILITY_OFFSET = 1.0


class Evidence(NamedTuple):
    """For foreground and for ground, float (h, w) from 0 to 1 each."""

    foreground: Tensor
    ground: Tensor


class Sam2Predictor:
    """The `Predictor` of SAM 2; binary only.

    The confidence is the probability that the mask decoder gives, times the IoU that it expects.
    """

    labels: Labels | None = None
    takes_boxes = True

    def __init__(
        self,
        folder: str,
        *,
        device: torch.device,
        points_per_side: int,
        max_area: float,
        image_bits: int = 16,
    ) -> None:
        """Loads the net; nothing is downloaded.

        Args:
            folder: Holds config.json and *.safetensors.
            device: Where to predict.
            points_per_side: Rows and columns of the grid of points.
            max_area: Share of the image above which a segment from a point is ground.
            image_bits: How many of their 16 bits 16-bit grey images use.

        Raises:
            ValueError: transformers is not installed, or the folder holds no such net.
        """
        path = Path(folder)
        files = sorted(path.glob("*.safetensors"))
        if not files or not (path / "config.json").is_file():
            raise ValueError(
                f"model_path: expected a folder with config.json and *.safetensors, got {folder!r}"
            )
        try:
            # Any: the types of transformers come and go with its version, and need not be there.
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ValueError("predictor: sam2 needs transformers: pip install '.[sam2]'") from error
        try:
            self.net: Any = transformers.Sam2Model.from_pretrained(
                path, local_files_only=True, use_safetensors=True
            )
        except Exception as error:  # transformers raises many types on other folders
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"model_path: {folder!r} is no SAM 2 net ({text})") from error
        self.net = self.net.to(device).eval()
        size = self.net.config.prompt_encoder_config.image_size
        self.size = int(size if isinstance(size, int) else size[0])
        self.device = device
        self.points_per_side = points_per_side
        self.max_area = max_area
        self.image_bits = image_bits
        self.source = f"sam2:{path.resolve().name}@{digest(*files)}"

    @torch.no_grad()
    def predict(
        self, image: Image.Image, boxes: npt.NDArray[np.float32] | None = None
    ) -> Prediction:
        """See `Predictor`; boxes hold all objects of the image, so that outside is ground."""
        # What Sam2Processor does to an image, which needs torchvision: a square, ImageNet's mean.
        pixels = normalised(as_rgb(resized(image, self.size))[None].to(self.device))
        embeddings = self.net.get_image_embeddings(pixels)
        if boxes is None:
            evidence = self._from_points(embeddings)
        else:
            scale = np.array([self.size / image.width, self.size / image.height] * 2, np.float32)
            evidence = self._from_boxes(embeddings, torch.from_numpy(boxes * scale))
        size = (image.height, image.width)
        planes = torch.stack(evidence)[None]
        foreground, ground = F.interpolate(planes, size, mode="bilinear", align_corners=False)[0]
        mask = foreground > ground
        confidence = torch.maximum(foreground, ground)
        return Prediction(mask.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy())

    def _from_points(self, embeddings: list[Tensor]) -> Evidence:
        """A grid of points, each a prompt of its own with three candidates."""
        count = self.points_per_side
        places = (torch.arange(count) + 0.5) * (self.size / count)
        y, x = torch.meshgrid(places, places, indexing="ij")
        points = torch.stack([x, y], -1).reshape(1, count * count, 1, 2).to(self.device)
        total: Evidence | None = None
        for some in points.split(AT_ONCE, dim=1):
            labels = torch.ones(some.shape[:3], dtype=torch.int64, device=self.device)
            out = self.net(
                image_embeddings=embeddings,
                input_points=some,
                input_labels=labels,
                multimask_output=True,
            )
            logits, expected_iou = out.pred_masks.float()[0], out.iou_scores.float()[0]
            part = point_evidence(
                logits.flatten(0, 1), expected_iou.flatten().clamp(0, 1), self.max_area
            )
            if total is not None:
                part = Evidence(*(torch.maximum(a, b) for a, b in zip(total, part, strict=True)))
            total = part
        assert total is not None  # there is at least one point
        return total

    def _from_boxes(self, embeddings: list[Tensor], boxes: Tensor) -> Evidence:
        """Boxes in pixels of the square, each a prompt of its own with one candidate."""
        shape = self.net.prompt_encoder.image_embedding_size
        # The mask decoder's output is four times as fine as the embedding of the image.
        nothing = torch.zeros([4 * int(side) for side in shape], device=self.device)
        total = Evidence(nothing, nothing + 1)
        for some in boxes.to(self.device).split(AT_ONCE) if len(boxes) else ():
            # A copy: the prompt encoder shifts the boxes that it is given.
            prompts = some[None].clone()
            out = self.net(image_embeddings=embeddings, input_boxes=prompts, multimask_output=False)
            logits, expected_iou = out.pred_masks.float()[0, :, 0], out.iou_scores.float()[0, :, 0]
            part = box_evidence(logits, expected_iou.clamp(0, 1), some / self.size)
            total = Evidence(
                torch.maximum(total.foreground, part.foreground),
                torch.minimum(total.ground, part.ground),
            )
        return total


def point_evidence(logits: Tensor, expected_iou: Tensor, max_area: float) -> Evidence:
    """What segments from points say.

    Args:
        logits: (K, h, w), one segment each.
        expected_iou: (K,), 0 to 1.
        max_area: Share of h * w above which a segment is ground.
    """
    inner = (logits > STABILITY_OFFSET).sum((1, 2))
    outer = (logits > -STABILITY_OFFSET).sum((1, 2))
    # Of an empty segment the ratio says nothing; it is no segment.
    good = (expected_iou >= LEAST_IOU) & (inner >= LEAST_STABILITY * outer) & (inner > 0)
    large = (logits > 0).float().mean((1, 2)) > max_area
    evidence = logits.sigmoid() * expected_iou[:, None, None]
    return Evidence(
        (evidence * (good & ~large)[:, None, None]).amax(0),
        (evidence * (good & large)[:, None, None]).amax(0),
    )


def box_evidence(logits: Tensor, expected_iou: Tensor, boxes: Tensor) -> Evidence:
    """What segments from boxes say: foreground in any, ground in all.

    Args:
        logits: (K, h, w), one segment each.
        expected_iou: (K,), 0 to 1.
        boxes: (K, 4), left, top, right, bottom as shares of the image's sides.
    """
    height, width = logits.shape[1:]
    left, top, right, bottom = (side[:, None, None] for side in boxes.unbind(1))
    x = (torch.arange(width, device=logits.device) + 0.5) / width
    y = ((torch.arange(height, device=logits.device) + 0.5) / height)[:, None]
    # Half a pixel more, or a box between two pixels' centres would hold none.
    x_inside = (x >= left - 0.5 / width) & (x <= right + 0.5 / width)
    inside = x_inside & (y >= top - 0.5 / height) & (y <= bottom + 0.5 / height)
    iou = expected_iou[:, None, None]
    foreground = torch.where(inside, logits.sigmoid() * iou, 0.0)
    ground = torch.where(inside, (-logits).sigmoid() * iou, 1.0)
    return Evidence(foreground.amax(0), ground.amin(0))
