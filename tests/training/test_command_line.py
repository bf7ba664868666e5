import dataclasses

import pytest

from fastseg_losses.training.command_line import as_typed, build_parser, parse_args
from fastseg_losses.training.config import TrainConfig


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
        "ignore_index": 255,
        "upsample": "bilinear",
    }
    assert (config.data, config.val, config.model) == ("d.parquet", "v.parquet", "nets:make")
    assert config.keep_unannotated and config.allow_no_foreground
    assert (config.check_every, config.on_collapse, config.max_steps) == (20, "stop", 10)


def test_every_field_is_an_option() -> None:
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    for field in dataclasses.fields(TrainConfig):
        assert "--" + field.name.replace("_", "-") in flags


@pytest.mark.parametrize(
    "line",
    [
        "--epochs 0",
        "--epoch 3",
        "--epochs three",
        "--loss hinge",
        "--nonsense",
        "extra",
        "--num-classes 3",
        "--data d.parquet --mode multiclass",
    ],
)
def test_a_wrong_command_line_ends_with_code_2(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(line.split())
    assert caught.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("train.py: error: ")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--image-sizes 3", "unknown argument --image-sizes; did you mean --image-size?"),
        ("--lr=1e-3 --imagesize=3", "did you mean --image-size?"),
        ("--zzz", "unknown argument --zzz (--help"),
        ("--loss dice --dice-weight 0.5", "error: --dice-weight: expected no weight beside loss"),
        ("--val-fraction 1", "error: --val-fraction: expected a number above 0 and below 1"),
        ("--image-bits 4", "error: --image-bits: expected a whole number from 8 to 16, got 4"),
    ],
)
def test_an_error_names_the_option_as_it_is_typed(
    line: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(line.split())
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("output_dir: expected a folder", "--output-dir: expected a folder"),
        (
            "bce_weight and the other weights: expected",
            "--bce-weight and the other weights: expected",
        ),
        ("data.parquet: no such file", "data.parquet: no such file"),
        ("targets: expected values in [0, 1]", "targets: expected values in [0, 1]"),
    ],
)
def test_only_a_fields_name_becomes_an_option(message: str, typed: str) -> None:
    assert as_typed(message) == typed
