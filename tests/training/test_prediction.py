import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training.class_files import write_class_set
from training.index_files import png
from training.runs import SIZE, run, squares, write_set

from fastseg_losses.training import ParquetSegmentation, normalised, open_index, outputs
from fastseg_losses.training.prediction import TrainedModel, load_model

OWN = """
from torch import nn
def make():
    return nn.Conv2d(3, 1, {kernel}, padding="same")
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plot_curves", "plot_samples", "plot_class_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def predict(model: TrainedModel, image: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.logits(image)
    return logits


def test_an_image_is_prepared_as_in_training(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d.parquet")
    run(data, tmp_path / "run", max_steps=1)
    model = load_model(tmp_path / "run" / "best.pt")
    images, _ = squares()
    (tmp_path / "one.png").write_bytes(images[5])
    sample = ParquetSegmentation(open_index(data).val.index, [5], SIZE)[0]
    expected = normalised(sample["image"])
    for image in (images[5], tmp_path / "one.png", str(tmp_path / "one.png")):
        assert torch.equal(model.prepare(image), expected[None])
    assert not model.net.training
    assert predict(model, expected[None]).shape == (1, 1, SIZE, SIZE)


def test_weights_and_classes_come_back(tmp_path: Path) -> None:
    settings = {"mode": "multiclass", "num_classes": 3, "max_steps": 1}
    run(write_class_set(tmp_path / "d.parquet"), tmp_path / "run", **settings)
    path = tmp_path / "run" / "last.pt"
    model = load_model(path)
    saved = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.net.state_dict().items())
    assert model.config.num_classes == 3
    large = png(np.zeros((50, 70, 3), np.uint8))
    assert predict(model, model.prepare(large)).shape == (1, 3, SIZE, SIZE)


def test_an_own_net_is_made_by_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "own_nets_p.py"
    source.write_text(OWN.format(kernel=3))
    data = write_set(tmp_path / "d.parquet")
    run(data, tmp_path / "run", max_steps=1, model="own_nets_p:make")
    path = tmp_path / "run" / "last.pt"
    assert isinstance(load_model(path).net, torch.nn.Conv2d)
    monkeypatch.delitem(sys.modules, "own_nets_p")
    source.write_text(OWN.format(kernel=5) + "# changed\n")
    with pytest.raises(ValueError, match="last.pt: does not fit own_nets_p:make"):
        load_model(path)


def test_what_is_no_checkpoint_or_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="missing.pt: cannot be read"):
        load_model(tmp_path / "missing.pt")
    for name in ("text.pt", "other.pt"):
        with pytest.raises(ValueError, match=f"{name}: expected a checkpoint of train.py"):
            load_model(tmp_path / name)
    run(write_set(tmp_path / "d.parquet"), tmp_path / "run", max_steps=1)
    model = load_model(tmp_path / "run" / "last.pt")
    with pytest.raises(ValueError, match="missing.png: cannot be read"):
        model.prepare(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="image: expected an encoded PNG or JPEG"):
        model.prepare(b"nonsense")


def test_the_bits_of_the_runs_images_are_used_again(tmp_path: Path) -> None:
    values = np.arange(SIZE**2, dtype=np.uint16).reshape(SIZE, SIZE)
    deep = png(values)
    assert Image.open(io.BytesIO(deep)).mode == "I;16"
    run(write_set(tmp_path / "d.parquet"), tmp_path / "run", max_steps=1, image_bits=10)
    model = load_model(tmp_path / "run" / "last.pt")
    grey = png(np.rint(values / (1023 / 255)).astype(np.uint8))
    assert torch.equal(model.prepare(deep), model.prepare(grey))
