from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from training.index_files import png

from fastseg_losses.training.checkpoint import save_checkpoint
from fastseg_losses.training.checkpoint_predictor import CheckpointPredictor
from fastseg_losses.training.config import resolve
from fastseg_losses.training.model import build_model
from fastseg_losses.training.prediction import load_model

CPU = torch.device("cpu")


def save(path: Path, **settings: object) -> Path:
    config = resolve({"image_size": 16} | settings)
    torch.manual_seed(0)
    model = build_model(None, config.channels, config.head_stride or 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"model": model.state_dict(), "config": config.to_dict()})
    return path


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Fixed(nn.Module):
    """Logits that are known, whatever the image; each is a block of its 16 x 16 pixels."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        block = 16 // logits.shape[-1]
        self.logits = logits.repeat_interleave(block, -1).repeat_interleave(block, -2)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def fixed(path: Path, logits: Tensor, **settings: object) -> CheckpointPredictor:
    predictor = CheckpointPredictor(str(save(path, **settings)), device=CPU)
    object.__setattr__(predictor.model, "net", Fixed(logits))
    return predictor


def test_the_source_names_the_file_and_its_content(tmp_path: Path) -> None:
    a = CheckpointPredictor(str(save(tmp_path / "x" / "best.pt")), device=CPU)
    b = CheckpointPredictor(str(save(tmp_path / "x" / "last.pt", seed=1)), device=CPU)
    assert a.source.startswith("checkpoint:x/best.pt@")
    assert len(a.source.partition("@")[2]) == 12
    assert a.source.partition("@")[2] != b.source.partition("@")[2]


@pytest.mark.parametrize("stride", [1, 4])
def test_the_mask_is_what_load_model_predicts_at_the_images_size(
    stride: int, tmp_path: Path
) -> None:
    path = save(tmp_path / "best.pt", head_stride=stride)
    image = picture(20, 30)
    mask, confidence = CheckpointPredictor(str(path), device=CPU).predict(image)
    model = load_model(path)
    with torch.no_grad():
        small = model.logits(model.prepare(png(np.asarray(image)))).sigmoid()
    large = torch.nn.functional.interpolate(small, size=(30, 20), mode="bilinear")[0, 0].numpy()
    assert mask.dtype == np.uint8 and confidence.dtype == np.float32
    assert np.array_equal(mask, large > 0.5)
    assert np.allclose(confidence, np.maximum(large, 1 - large), atol=1e-6)


def test_confidence_is_the_probability_of_what_the_mask_says(tmp_path: Path) -> None:
    probability = torch.tensor([[0.9, 0.6], [0.4, 0.05]])
    logits = probability.logit()[None, None]
    mask, confidence = fixed(tmp_path / "best.pt", logits).predict(picture(2, 2))
    assert mask.tolist() == [[1, 1], [0, 0]]
    assert np.allclose(confidence, [[0.9, 0.6], [0.6, 0.95]])


@pytest.mark.parametrize("count", [3, 300])
def test_class_ids_come_with_the_likeliest_class_probability(count: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, count, 4, 4)
    settings = {"mode": "multiclass", "num_classes": count, "data": "d.parquet"}
    predictor = fixed(tmp_path / "best.pt", logits, **settings)
    mask, confidence = predictor.predict(picture(4, 4))
    assert predictor.labels is not None and mask.dtype == np.dtype(predictor.labels.dtype)
    top, ids = logits.softmax(1)[0].max(0)
    assert np.array_equal(mask, ids.numpy())
    assert np.allclose(confidence, top.numpy(), atol=1e-6)
