import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training.index_files import write_index
from training.pseudo_files import cells
from training.runs import squares

from fastseg_losses.training import sam2_predictor
from fastseg_losses.training.exit_codes import EXIT_OK
from fastseg_losses.training.pseudo_label import main
from fastseg_losses.training.sam2_predictor import (
    Sam2Predictor,
    box_evidence,
    point_evidence,
)
from fastseg_losses.training.samples import as_rgb, normalised, resized

CPU = torch.device("cpu")
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM 2 of 0.1 M random parameters, saved as transformers does."""
    transformers = pytest.importorskip("transformers", minversion="4.56")
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIZE, SIZE],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIZE},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sam") / "tiny"
    transformers.Sam2Model(config).save_pretrained(path)
    return path


def make(folder: Path, points_per_side: int = 3) -> Sam2Predictor:
    return Sam2Predictor(
        str(folder), device=CPU, points_per_side=points_per_side, max_area=0.5, image_bits=16
    )


def picture(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8))


BOXES = np.array([[3, 4, 20, 30], [25, 5, 45, 35]], np.float32)


def test_boxes_prompt_the_net_as_its_own_forward_does(folder: Path) -> None:
    predictor = make(folder)
    mask, confidence = predictor.predict(picture(), BOXES)
    scaled = torch.from_numpy(BOXES) * torch.tensor([SIZE / 50, SIZE / 40] * 2)
    with torch.no_grad():
        out = predictor.net(
            pixel_values=normalised(as_rgb(resized(picture(), SIZE))[None]),
            input_boxes=scaled[None],
            multimask_output=False,
        )
    evidence = box_evidence(out.pred_masks[0, :, 0], out.iou_scores[0, :, 0], scaled / SIZE)
    planes = torch.nn.functional.interpolate(torch.stack(evidence)[None], (40, 50), mode="bilinear")
    foreground, ground = planes[0].numpy()
    assert np.array_equal(mask, foreground > ground)
    assert np.allclose(confidence, np.maximum(foreground, ground), atol=1e-5)
    assert 0 < mask.mean() < 1  # or the comparison shows nothing
    assert not mask[39:].any() and np.allclose(confidence[39:], 1)  # below every box
    assert predictor.source.startswith("sam2:tiny@")


def test_no_box_means_no_object(folder: Path) -> None:
    mask, confidence = make(folder).predict(picture(), np.zeros((0, 4), np.float32))
    assert not mask.any() and np.allclose(confidence, 1)


def test_many_prompts_go_in_several_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Random weights give logits near 0, which no segment that counts does.
    for name in ("LEAST_IOU", "LEAST_STABILITY", "STABILITY_OFFSET"):
        monkeypatch.setattr(sam2_predictor, name, 0.0)
    boxes = np.concatenate([BOXES, BOXES + 1])
    at_once = [make(folder).predict(picture(), prompts) for prompts in (None, boxes)]
    monkeypatch.setattr(sam2_predictor, "AT_ONCE", 2)
    apart = [make(folder).predict(picture(), prompts) for prompts in (None, boxes)]
    for a, b in zip(at_once, apart, strict=True):
        assert np.allclose(a.confidence, b.confidence, atol=1e-5)
    assert at_once[0].confidence.max() > 0
    assert at_once[0].mask.shape == (40, 50)


def test_a_net_that_is_sure_of_nothing_gives_no_confidence(folder: Path) -> None:
    # Random weights propose no stable segment.
    mask, confidence = make(folder).predict(picture(), None)
    assert not mask.any() and not confidence.any()


def test_the_command_writes_what_it_predicts(folder: Path, tmp_path: Path) -> None:
    images = squares(3)[0]
    boxes = [[[4.0, 4.0, 20.0, 20.0]], [], None]
    data = write_index(tmp_path / "in.parquet", images, [None] * 3, [False] * 3, box=boxes)
    out = tmp_path / "out.parquet"
    command = ["--data", str(data), "--out", str(out), "--predictor", "sam2", "--device", "cpu"]
    assert main([*command, "--model-path", str(folder)]) == EXIT_OK
    predictor = make(folder)
    image = Image.open(io.BytesIO(images[0]))
    mask, confidence = predictor.predict(image, np.array(boxes[0], np.float32))
    assert cells(out, "mask_source") == [predictor.source, predictor.source, None]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(cells(out, "mask")[0]))), mask * 255)
    assert cells(out, "mask_confidence")[0] == pytest.approx(float(confidence.mean()))


def segment(rows: int, strength: float = 9.0) -> torch.Tensor:
    """Logits (10, 10), the first rows inside."""
    logits = torch.full((10, 10), -strength)
    logits[:rows] = strength
    return logits


def test_small_segments_are_foreground_large_ones_ground_and_the_rest_unknown() -> None:
    logits = torch.stack([segment(3), segment(6).flip(0), segment(1), segment(2, 0.5)])
    iou = torch.tensor([0.9, 0.95, 0.5, 0.99])  # the third is bad, the fourth unstable
    foreground, ground = point_evidence(logits, iou, max_area=0.5)
    assert torch.allclose(foreground[:3], torch.tensor(0.9), atol=1e-3)
    assert torch.allclose(ground[4:], torch.tensor(0.95), atol=1e-3)
    assert foreground[3].max() < 0.01 and ground[3].max() < 0.01
    none = point_evidence(torch.full((1, 4, 4), -9.0), torch.tensor([1.0]), 0.5)
    assert torch.stack(none).max() == 0


def test_outside_of_every_box_is_ground() -> None:
    logits = torch.stack([segment(10), segment(10)])
    boxes = torch.tensor([[0.0, 0.0, 0.3, 1.0], [0.2, 0.0, 0.5, 0.5]])
    foreground, ground = box_evidence(logits, torch.tensor([0.8, 0.9]), boxes)
    mask = foreground > ground
    assert mask[:, :3].all() and mask[:5, 3:5].all() and not mask[:, 6:].any()
    assert (ground[:, 6:] == 1).all()
    assert torch.allclose(foreground[0, 2], torch.tensor(0.9), atol=1e-3)  # the better of both


def test_a_box_between_two_pixels_is_not_lost() -> None:
    box = torch.tensor([[0.51, 0.51, 0.54, 0.54]])  # centres are at 0.45, 0.55
    foreground, ground = box_evidence(segment(10)[None], torch.tensor([1.0]), box)
    assert (foreground > ground).sum() == 1


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}, {"a.safetensors": ""}])
def test_another_folder_is_an_error(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="model_path: expected a folder with config.json"):
        make(tmp_path)


def test_a_broken_net_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="model_path: .* is no SAM 2 net"):
        make(tmp_path)


def test_without_transformers_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("config.json", "a.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"sam2 needs transformers: pip install '.\[sam2\]'"):
        make(tmp_path)
