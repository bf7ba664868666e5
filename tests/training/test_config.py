import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fastseg_losses.training.config import (
    COMBINED_WEIGHTS,
    SYNTHETIC_DEFAULTS,
    TrainConfig,
    build_parser,
    parse_args,
    resolve,
)


def test_the_full_command_line_is_read() -> None:
    line = (
        "--epochs 50 --lr 1e-4 --batch-size 8 --loss combined --bce-weight 0.3 --dice-weight 0.5 "
        "--focal-weight 0.1 --iou-weight 0.05 --tversky-weight 0.05 --image-size 128 "
        "--output-dir runs/a --seed 3 --device cpu --max-steps 10 --num-workers 1 --data d.parquet "
        "--val v.parquet --keep-unannotated --model nets:make --check-every 20 "
        "--on-collapse stop --allow-no-foreground"
    )
    config = parse_args(line.split())
    assert config.lr == 1e-4
    assert config.loss_arguments() == {
        "bce_weight": 0.3,
        "dice_weight": 0.5,
        "focal_weight": 0.1,
        "iou_weight": 0.05,
        "tversky_weight": 0.05,
    }
    assert (config.data, config.val, config.model) == ("d.parquet", "v.parquet", "nets:make")
    assert config.keep_unannotated and config.allow_no_foreground
    assert (config.check_every, config.on_collapse, config.max_steps) == (20, "stop", 10)


def test_every_field_is_an_option() -> None:
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    for field in dataclasses.fields(TrainConfig):
        assert "--" + field.name.replace("_", "-") in flags


def test_without_data_the_small_defaults_apply_unless_overridden() -> None:
    config = parse_args(["--epochs", "2"])
    assert config.epochs == 2
    assert config.image_size == SYNTHETIC_DEFAULTS["image_size"]
    with_data = parse_args(["--data", "d.parquet"])
    assert (with_data.epochs, with_data.image_size) == (50, 256)


def test_the_combined_loss_gets_its_default_weights_where_none_is_given() -> None:
    config = resolve({"focal_weight": 0.0})
    assert config.loss_arguments() == COMBINED_WEIGHTS | {"focal_weight": 0.0}


def test_a_single_loss_has_no_weights() -> None:
    assert resolve({"loss": "dice"}).loss_arguments() == {}


@pytest.mark.parametrize("given", [{}, {"loss": "dice", "data": "d"}, {"max_steps": 7, "lr": 0.1}])
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
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"image_size": 4}, "image_size: expected"),
        ({"image_size": 100_000}, "image_size: expected at most 8192"),
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
        ({"on_collapse": "panic"}, "on_collapse: expected warn or stop"),
        ({"val": "v.parquet"}, "val: expected --data beside --val"),
        ({"bce_weight": -0.1}, "bce_weight: expected"),
        ({"loss": "dice", "bce_weight": 0.5}, "bce_weight: expected no weight beside loss 'dice'"),
        (dict.fromkeys(COMBINED_WEIGHTS, 0.0), "expected one above 0, got all 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(given)


@pytest.mark.parametrize(
    "line", ["--epochs 0", "--epoch 3", "--epochs three", "--loss hinge", "--nonsense", "extra"]
)
def test_a_wrong_command_line_ends_with_code_2(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(line.split())
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err
