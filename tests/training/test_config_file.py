import json
from pathlib import Path

import pytest

from fastseg_losses.training.command_line import parse_args
from fastseg_losses.training.config_file import read_settings


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_yaml_and_json_give_the_same(tmp_path: Path) -> None:
    settings = {"data": "d.parquet", "lr": 1e-3, "epochs": 7, "tensorboard": True}
    as_json = write(tmp_path / "a.json", json.dumps(settings))
    # YAML 1.1 reads 1e-3 as text
    text = "data: d.parquet\nlr: 1e-3\nepochs: 7\ntensorboard: true\n"
    as_yaml = write(tmp_path / "a.yaml", text)
    assert read_settings(as_json) == read_settings(as_yaml) == settings


def test_what_is_typed_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yml", "batch-size: 4\nepochs: 7\ntensorboard: true\n")
    config = parse_args(["--config", path, "--epochs", "9", "--no-tensorboard"])
    assert (config.batch_size, config.epochs, config.tensorboard) == (4, 9, False)


def test_a_runs_own_config_starts_another_run(tmp_path: Path) -> None:
    first = parse_args(["--lr", "0.5", "--output-dir", "somewhere", "--mode", "multiclass"])
    first.save(tmp_path / "config.json")
    second = parse_args(["--config", str(tmp_path / "config.json")])
    assert second.output_dir is None
    assert second.to_dict() == first.to_dict() | {"output_dir": None}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "epoch: 7", "unknown setting 'epoch' in .*; did you mean epochs"),
        ("a.yaml", "epochs: seven", "expected epochs in .* to be a whole number, got 'seven'"),
        ("a.yaml", "epochs: 7.5", "expected epochs in .* to be a whole number, got 7.5"),
        ("a.yaml", "epochs: true", "expected epochs in .* to be a whole number, got True"),
        ("a.yaml", "epochs: null", "expected epochs in .* to be a whole number, got None"),
        ("a.yaml", "lr: fast", "expected lr in .* to be a number, got 'fast'"),
        ("a.yaml", "tensorboard: 1", "expected tensorboard in .* to be true or false, got 1"),
        ("a.yaml", "data: [a, b]", "expected data in .* to be a text"),
        ("a.yaml", "- 1\n- 2", "to hold settings by name"),
        ("a.yaml", "a: b: c", "is no YAML"),
        ("a.json", "{", "is no JSON"),
        ("a.toml", "", "expected a .json, .yaml or .yml file"),
    ],
)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        read_settings(path)
    with pytest.raises(SystemExit) as end:
        parse_args(["--config", path])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: --config: ") and error.count("\n") == 1


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_settings(str(tmp_path / "none.yaml"))


def test_ranges_are_checked_as_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "epochs: 0")
    with pytest.raises(SystemExit):
        parse_args(["--config", path])


def test_the_built_in_nets_stride_goes_with_it(tmp_path: Path) -> None:
    parse_args(["--data", "d", "--image-size", "256"]).save(tmp_path / "config.json")
    (tmp_path / "last.pt").touch()
    here = str(tmp_path)
    assert parse_args(["--resume", here]).head_stride == 4
    with pytest.raises(SystemExit):
        parse_args(["--resume", here, "--head-stride", "2"])
    own = parse_args(["--config", str(tmp_path / "config.json"), "--model", "a:b"])
    assert own.head_stride is None


def test_a_run_from_before_there_was_a_stride_goes_on_at_full_size(tmp_path: Path) -> None:
    parse_args(["--data", "d", "--image-size", "256"]).save(tmp_path / "config.json")
    (tmp_path / "last.pt").touch()
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["head_stride"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert parse_args(["--resume", str(tmp_path)]).head_stride == 1
    assert parse_args(["--config", str(tmp_path / "config.json")]).head_stride == 4
