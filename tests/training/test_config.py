import json
from pathlib import Path
from typing import Any

import pytest

from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.config import TrainConfig, resolve
from fastseg_losses.training.labels import Labels
from fastseg_losses.training.settings import AUGMENT_STRENGTHS, COMBINED_WEIGHTS, SYNTHETIC_DEFAULTS


def test_without_data_the_small_defaults_apply_unless_overridden() -> None:
    config = parse_args(["--epochs", "2"])
    assert config.epochs == 2
    assert config.image_size == SYNTHETIC_DEFAULTS["image_size"]
    with_data = parse_args(["--data", "d.parquet"])
    assert (with_data.epochs, with_data.image_size) == (50, 256)


def test_the_combined_loss_gets_its_default_weights_where_none_is_given() -> None:
    config = resolve({"focal_weight": 0.0})
    assert config.loss_arguments() == COMBINED_WEIGHTS | {
        "focal_weight": 0.0,
        "ignore_index": 255,
        "upsample": "bilinear",
    }


def test_a_single_loss_has_no_weights() -> None:
    arguments = {"ignore_index": 255, "upsample": "bilinear"}
    assert resolve({"loss": "dice"}).loss_arguments() == arguments


def test_only_full_augmentation_has_strengths() -> None:
    full = resolve({"augment": "full", "rotate": 180.0})
    assert full.augment_strengths() == AUGMENT_STRENGTHS | {"rotate": 180.0}
    assert (full.rotate, full.scale) == (180.0, AUGMENT_STRENGTHS["scale"])
    assert resolve({}).augment == "flips"
    assert resolve({}).augment_strengths() == {}


def test_multiclass_is_read_and_reaches_the_loss() -> None:
    line = "--data d.parquet --mode multiclass --num-classes 19 --ignore-index 0 --loss ce"
    config = parse_args(line.split())
    assert config.labels == Labels(19, 0)
    assert config.channels == 19
    arguments = {"mode": "multiclass", "ignore_index": 0, "upsample": "bilinear"}
    assert config.loss_arguments() == arguments
    combined = parse_args(line.replace("ce", "combined").split())
    assert combined.loss_arguments()["dice_weight"] == COMBINED_WEIGHTS["dice_weight"]


def test_multiclass_defaults() -> None:
    synthetic = parse_args(["--mode", "multiclass"])
    assert (synthetic.num_classes, synthetic.ignore_index) == (5, 255)
    many = resolve({"data": "d", "mode": "multiclass", "num_classes": 256})
    assert many.ignore_index == 65535  # 255 is a class there
    binary = resolve({})
    assert (binary.labels, binary.channels, binary.num_classes) == (None, 1, None)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"loss": "dice", "data": "d"},
        {"max_steps": 7, "lr": 0.1},
        {"augment": "full", "colour": 0.0},
        {"mode": "multiclass"},
        {"mode": "multiclass", "data": "d", "num_classes": 7, "ignore_index": 3},
    ],
)
def test_a_saved_configuration_comes_back_equal(given: dict[str, Any], tmp_path: Path) -> None:
    config = resolve(given)
    path = tmp_path / "config.json"
    config.save(path)
    assert TrainConfig.load(path) == config
    # What was resolved is complete: resolving it again changes nothing.
    assert resolve(json.loads(path.read_text())) == config


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match="unknown setting 'learning_rate'"):
        TrainConfig.from_dict({"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("size", "stride"),
    [(512, 4), (256, 4), (258, 2), (254, 2), (255, 1), (128, 2), (127, 1), (126, 1), (32, 1)],
)
def test_the_heads_stride_goes_by_the_image_size_where_none_is_given(
    size: int, stride: int
) -> None:
    assert resolve({"data": "d", "image_size": size}).head_stride == stride
    assert resolve({"data": "d", "image_size": size, "model": "a:b"}).head_stride is None
    # A checkpoint from before there was a choice.
    assert TrainConfig.from_dict({"image_size": size}).head_stride is None


MULTICLASS = {"data": "d", "mode": "multiclass", "num_classes": 3}
PSEUDO = {"data": "d", "pseudo_weight": 1.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"image_size": 4}, "image_size: expected"),
        ({"image_size": 100_000}, "image_size: expected at most 8192"),
        ({"cache_mb": -1}, "cache_mb: expected a whole number of at least 0"),
        ({"num_workers": -1}, "num_workers: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"seed": 2**32}, "seed: expected less than"),
        ({"check_every": 0}, "check_every: expected"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"lr": 0.0}, "lr: expected"),
        ({"lr": float("nan")}, "lr: expected a finite number above 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay: expected"),
        ({"val_fraction": 1.0}, "val_fraction: expected"),
        ({"loss": "hinge"}, "loss: expected one of combined"),
        ({"loss": "ce"}, "loss: expected one of combined, bce, dice, .* in mode binary, got 'ce'"),
        (MULTICLASS | {"loss": "bce"}, "loss: .* in mode multiclass, got 'bce'"),
        ({"mode": "multilabel"}, "mode: expected one of binary, multiclass, got 'multilabel'"),
        ({"data": "d", "mode": "multiclass"}, "num_classes: expected the number of classes"),
        ({"num_classes": 3}, "num_classes: expected mode multiclass beside it, got 3"),
        ({"ignore_index": 255}, "ignore_index: expected mode multiclass beside it, got 255"),
        (MULTICLASS | {"num_classes": 1}, "num_classes: expected at least 2, got 1"),
        (MULTICLASS | {"num_classes": 70000}, "num_classes: expected at most 65535"),
        (MULTICLASS | {"ignore_index": -1}, "ignore_index: expected at least 0, got -1"),
        (MULTICLASS | {"data": None}, "num_classes: expected 5 without --data"),
        ({"mode": "multiclass", "ignore_index": 4}, "ignore_index: expected 255 without --data"),
        ({"on_collapse": "panic"}, "on_collapse: expected warn or stop"),
        ({"val": "v.parquet"}, "val: expected --data beside --val"),
        ({"bce_weight": -0.1}, "bce_weight: expected"),
        ({"data": "d", "pseudo_weight": 0.0}, "pseudo_weight: expected a finite number above 0"),
        ({"pseudo_weight": 1.0}, "pseudo_weight: expected --data beside --pseudo-weight"),
        (PSEUDO | {"pseudo_confidence": 1.5}, "pseudo_confidence: expected a number from 0 to 1"),
        (PSEUDO | {"pseudo_confidence": float("nan")}, "pseudo_confidence: expected a number"),
        ({"data": "d", "pseudo_confidence": 0.5}, "pseudo_confidence: expected --pseudo-weight"),
        ({"loss": "dice", "bce_weight": 0.5}, "bce_weight: expected no weight beside loss 'dice'"),
        ({"augment": "all"}, "augment: expected one of none, flips, full, got 'all'"),
        ({"rotate": 10.0}, "rotate: expected no strength beside augment 'flips', got 10.0"),
        ({"augment": "full", "rotate": 181.0}, "rotate: expected a number from 0 to 180, got 181"),
        ({"augment": "full", "scale": -0.1}, "scale: expected a number from 0 to 1, got -0.1"),
        ({"augment": "full", "colour": float("nan")}, "colour: expected a number .*, got nan"),
        ({"oversample_foreground": 1.0}, "oversample_foreground: expected a number above 0 and"),
        (
            MULTICLASS | {"oversample_foreground": 0.3},
            "oversample_foreground: .* mode binary",
        ),
        (
            {"head_stride": 3, "image_size": 96},
            "head_stride: expected one of 1, 2, 4, 8 that .* 96",
        ),
        ({"head_stride": 4, "image_size": 90}, "head_stride: .* divides image_size 90, got 4"),
        ({"head_stride": 16, "image_size": 96}, "head_stride: expected one of 1, 2, 4, 8"),
        ({"head_stride": 1, "model": "a:b"}, "head_stride: expected none beside --model"),
        (dict.fromkeys(COMBINED_WEIGHTS, 0.0), "expected one above 0, got all 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(given)
