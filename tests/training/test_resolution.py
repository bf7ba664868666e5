"""Nets whose logits are smaller than the image: trained, validated, pictured, predicted with."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.class_files import write_class_set
from training.index_files import png
from training.runs import SIZE, log, metrics, run, squares, write_set

from fastseg_losses import CombinedSegmentationLoss
from fastseg_losses.functional import predict_mask
from fastseg_losses.training import ParquetSegmentation, normalised, open_index, outputs
from fastseg_losses.training.config import resolve
from fastseg_losses.training.prediction import load_model
from fastseg_losses.training.resolution import describe_logits

OWN = "from torch import nn\ndef make():\n    return nn.Conv2d(3, 1, 4, stride=4)\n"
CPU = torch.device("cpu")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would be drawn into samples.png."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(outputs.report, "plot_curves", lambda *args, **options: None)
    for name in ("plot_samples", "plot_class_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: calls.append(args))
    return calls


@pytest.mark.parametrize("own", [False, True], ids=["built-in", "--model"])
def test_a_run_on_small_logits(
    own: bool, tmp_path: Path, drawn: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_nets_low.py").write_text(OWN)
    data, folder = write_set(tmp_path / "d.parquet"), tmp_path / "run"
    choice: dict[str, Any] = {"model": "own_nets_low:make"} if own else {"head_stride": 4}
    assert run(data, folder, max_steps=2, **choice) == 0
    assert f"logits: 8x8 for images of {SIZE}x{SIZE}; the loss upsamples them. Computed" in log(
        folder
    )
    assert "Computed, not measured" in (folder / "report.html").read_text()
    [(_, images, masks, probabilities)] = drawn
    assert probabilities.shape == masks.shape == (len(images), 1, SIZE, SIZE)

    model = load_model(folder / "last.pt")
    val = open_index(data).val
    rows = ParquetSegmentation(val.index, val.rows, SIZE)
    images = normalised(torch.stack([rows[i]["image"] for i in range(len(rows))]))
    masks = torch.stack([rows[i]["mask"] for i in range(len(rows))])
    with torch.no_grad():
        assert model.net(images).shape[2:] == (8, 8)
        full = model.logits(images)
        _, stats = CombinedSegmentationLoss()(full, masks, return_stats=True)
    # The validation's scores are those of the masks at full size.
    assert float(metrics(folder)[-1]["val_loss"]) == pytest.approx(float(stats.loss), rel=1e-4)
    tall = model.mask(png(np.zeros((50, 70, 3), np.uint8)))
    assert tall.shape == (50, 70) and tall.dtype == torch.uint8


def test_class_ids_from_small_logits(tmp_path: Path, drawn: list[tuple[Any, ...]]) -> None:
    settings = {"mode": "multiclass", "num_classes": 3, "max_steps": 1, "head_stride": 2}
    assert run(write_class_set(tmp_path / "d.parquet"), tmp_path / "run", **settings) == 0
    [(_, images, masks, predicted, _)] = drawn
    assert predicted.shape == masks.shape and predicted.max() < 3
    model = load_model(tmp_path / "run" / "last.pt")
    encoded = squares(1)[0][0]
    expected = predict_mask(model.net(model.prepare(encoded)), (SIZE, SIZE))
    assert torch.equal(model.mask(encoded), expected[0])


def test_checkpoints_from_before_there_was_a_stride_still_load(
    tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    run(write_set(tmp_path / "d.parquet"), tmp_path / "run", max_steps=1, head_stride=1)
    path = tmp_path / "run" / "last.pt"
    state = torch.load(path, weights_only=True)
    del state["config"]["head_stride"]
    torch.save(state, path)
    model = load_model(path)
    image = model.prepare(squares(1)[0][0])
    assert model.net(image).shape == (1, 1, SIZE, SIZE)
    assert torch.equal(model.logits(image), model.net(image).detach())


def test_what_full_size_would_take_is_computed() -> None:
    config = resolve({"data": "d", "mode": "multiclass", "num_classes": 19, "batch_size": 4})
    text = describe_logits((128, 128), config, CPU, torch.bfloat16)
    mib = 2 * 4 * 19 * 256 * 256 * 2 / 2**20
    assert re.search(
        rf"4x19x256x256 in bfloat16, logits and gradient would take {mib:.3g} MiB", text
    )
    assert text.endswith("without the kernels, as on this device, the loss makes them all the same")
    full = describe_logits((256, 256), config, CPU, None)
    assert full == "256x256 for images of 256x256"
