import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_cli import run_without
from training.index_files import png, zeros
from training.pseudo_files import cells, replaced, write_pseudo_set
from training.runs import ROWS, SIZE, log, metrics, run, same, small_net, weights, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training import outputs, prediction
from fastseg_losses.training.exit_codes import EXIT_BAD_INPUT, EXIT_OK, EXIT_REFUSED
from fastseg_losses.training.index import IndexTable
from fastseg_losses.training.pseudo_label import build_parser, main

UNDRAWN = range(0, ROWS, 2)
DRAWN = [row for row in range(ROWS) if row % 2]


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_model", small_net)
    monkeypatch.setattr(prediction, "build_model", small_net)
    for name in ("plot_curves", "plot_samples"):
        monkeypatch.setattr(outputs.report, name, lambda *args, **options: None)


def test_from_a_checkpoint_to_a_training_with_its_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_set(tmp_path / "bare.parquet", undrawn=UNDRAWN)
    assert run(bare, tmp_path / "first", epochs=12) == EXIT_OK
    out, checkpoint = tmp_path / "out.parquet", tmp_path / "first" / "best.pt"
    command = ["--data", str(bare), "--out", str(out), "--checkpoint", str(checkpoint)]
    assert main([*command, "--device", "cpu"]) == EXIT_OK
    said = capsys.readouterr()
    assert f"Rows filled: {len(UNDRAWN)} of {len(UNDRAWN)}" in said.out
    assert cells(out, "mask_source")[0].startswith("checkpoint:first/best.pt@")
    folder = tmp_path / "second"
    assert run(out, folder, epochs=2, pseudo_weight=0.5, pseudo_confidence=0.7) == EXIT_OK
    assert "pseudo-masks: 12 training rows, weight 0.5, pixels below a confidence of 0.7" in log(
        folder
    )
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["pseudo_weight"], settings["pseudo_confidence"]) == (0.5, 0.7)
    assert main(command) == EXIT_BAD_INPUT
    assert "--out: " in capsys.readouterr().err


def test_pseudo_masks_take_part_only_if_asked(tmp_path: Path) -> None:
    bare = write_set(tmp_path / "bare.parquet", undrawn=UNDRAWN)
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)
    for name, path, settings in (
        ("bare", bare, {}),
        ("off", data, {}),
        ("kept", bare, {"keep_unannotated": True}),
        ("kept, off", data, {"keep_unannotated": True}),
        ("on", data, {"pseudo_weight": 1.0, "pseudo_confidence": 0.5}),
        (
            "on, kept",
            data,
            {"pseudo_weight": 1.0, "pseudo_confidence": 0.5, "keep_unannotated": True},
        ),
    ):
        assert run(path, tmp_path / name, epochs=2, **settings) == EXIT_OK
    found = {p.name: weights(p) for p in tmp_path.iterdir() if p.is_dir()}
    assert same(found["bare"], found["off"])
    assert same(found["kept"], found["kept, off"])
    assert not same(found["bare"], found["on"]) and not same(found["kept"], found["on, kept"])
    assert same(found["on"], found["on, kept"])  # every row has a mask
    assert "12 training rows hold a pseudo-mask, which is not used" in log(tmp_path / "off")
    assert "not used" not in log(tmp_path / "bare") + log(tmp_path / "on")


@pytest.mark.parametrize("mask", [None, zeros(SIZE), b"garbage"])
def test_without_a_source_a_mask_is_never_read(mask: bytes | None, tmp_path: Path) -> None:
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)
    # One row keeps its pseudo-mask; the others lose the source, and hold `mask`.
    sources = [s if row == 0 else None for row, s in enumerate(cells(data, "mask_source"))]
    masks = [
        mask if row in UNDRAWN and row else cell for row, cell in enumerate(cells(data, "mask"))
    ]
    other = replaced(data, tmp_path / "other.parquet", mask_source=sources, mask=masks)
    plain = replaced(data, tmp_path / "plain.parquet", mask_source=sources)
    settings = {"pseudo_weight": 1.0, "keep_unannotated": True, "epochs": 2}
    for name, path in (("other", other), ("plain", plain)):
        assert run(path, tmp_path / name, **settings) == EXIT_OK
    assert same(weights(tmp_path / "other"), weights(tmp_path / "plain"))
    with pytest.raises(ValueError, match="never read, the row has no pseudo-mask"):
        IndexTable(other).pseudo_cell(2, "mask")
    with pytest.raises(ValueError, match="never read, has_segmentation is false"):
        IndexTable(other).mask_cell(0)


def test_unsure_pixels_have_no_say(tmp_path: Path) -> None:
    # `Bright` is sure of the left half at 1.0 and of the right at 0.6.
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)

    def right_half(change: Callable[[np.ndarray], np.ndarray]) -> list[bytes]:
        changed = []
        for row, cell in enumerate(cells(data, "mask")):
            pixels = np.array(Image.open(io.BytesIO(cell)))
            if row in UNDRAWN:
                pixels[:, SIZE // 2 :] = change(pixels[:, SIZE // 2 :])
            changed.append(png(pixels))
        return changed

    other = replaced(data, tmp_path / "other.parquet", mask=right_half(lambda m: 255 - m))
    for name, path, sure in (
        ("a9", data, 0.9),
        ("b9", other, 0.9),
        ("a5", data, 0.5),
        ("b5", other, 0.5),
    ):
        run(path, tmp_path / name, epochs=1, pseudo_weight=1.0, pseudo_confidence=sure)
    assert same(weights(tmp_path / "a9"), weights(tmp_path / "b9"))
    assert not same(weights(tmp_path / "a5"), weights(tmp_path / "b5"))


def test_pseudo_masks_are_in_no_number(tmp_path: Path) -> None:
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)
    loud = replaced(
        data,
        tmp_path / "loud.parquet",
        mask=[_all(255) if row in UNDRAWN else c for row, c in enumerate(cells(data, "mask"))],
    )
    folder = tmp_path / "run"
    # So small a weight that the weights are the same, were it not for rounding.
    assert run(loud, folder, epochs=1, pseudo_weight=1e-6, pseudo_confidence=0.0) == EXIT_OK
    (row,) = metrics(folder)
    assert float(row["target_mean"]) == pytest.approx(100 / SIZE**2, rel=1e-3)
    text = log(folder)
    assert "Samples with segmentation: 8 / 20" in text
    assert "Samples with segmentation: 4 / 4" in text
    assert "Mask values found: 0, 255" in text
    assert (
        "Rows with a pseudo-mask (not annotated, read with --pseudo-weight only): 12 (60.0% of all "
        "rows), from bright@0, mean confidence 0.800" in text
    )


def _all(value: int) -> bytes:
    return png(np.full((SIZE, SIZE), value, np.uint8))


def test_the_same_bits_for_any_number_of_workers(tmp_path: Path) -> None:
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)
    for workers in (0, 2):
        run(data, tmp_path / str(workers), epochs=2, num_workers=workers, pseudo_weight=0.5)
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_accumulated_batches_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    # BCE is a mean over pixels; each kind of row has its own number of them in a batch.
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)
    settings = {"pseudo_weight": 0.5, "loss": "bce", "epochs": 1, "lr": 1e-3}
    gradients = []
    for batch, accumulate in ((20, 1), (4, 5)):
        folder = tmp_path / str(batch)
        run(data, folder, batch_size=batch, accumulate=accumulate, clip_grad=1e6, **settings)
        (row,) = metrics(folder)
        gradients.append(float(row["grad_norm"]))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_pseudo_masks_alone_train_only_if_that_is_asked_for(tmp_path: Path) -> None:
    data = write_pseudo_set(tmp_path / "pseudo.parquet", range(ROWS))
    # The validation rows are not annotated either; they got no mask.
    assert run(data, tmp_path / "a", pseudo_weight=1.0) == EXIT_REFUSED
    assert (
        run(data, tmp_path / "b", epochs=6, pseudo_weight=1.0, allow_no_foreground=True) == EXIT_OK
    )
    first = torch.load(tmp_path / "b" / "last.pt", weights_only=True)["metrics"]
    assert np.isnan(first["val_dice"])


def test_a_weight_without_pseudo_masks_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=UNDRAWN)
    assert run(data, tmp_path / "a", pseudo_weight=1.0) == EXIT_BAD_INPUT
    assert "--pseudo-weight: expected training rows with a pseudo-mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "part"),
    [("confidence", "column 'confidence': expected"), ("mask", "column 'mask': expected a PNG")],
)
def test_a_pseudo_mask_that_lacks_something_is_named(
    column: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)
    empty = [None if row == 4 else cell for row, cell in enumerate(cells(data, column))]
    data = replaced(data, tmp_path / "broken.parquet", **{column: empty})
    assert run(data, tmp_path / "a", pseudo_weight=1.0) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "row 4" in error and part in error


def test_without_the_confidence_column_the_error_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pseudo_set(tmp_path / "pseudo.parquet", UNDRAWN)
    data = replaced(data, tmp_path / "broken.parquet", confidence=None)
    assert run(data, tmp_path / "a", pseudo_weight=1.0) == EXIT_BAD_INPUT
    assert "but there is no such column" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--data d.parquet", "the following arguments are required: --out"),
        ("--data d --out o", "--checkpoint: expected beside --predictor checkpoint, got none"),
        ("--data d --out o --predictor sam2", "--model-path: expected beside --predictor sam2"),
        (
            "--data d --out o --checkpoint c --model-path m",
            "--model-path: expected --predictor sam",
        ),
        ("--data d --out o --checkpoint c --max-area 0.1", "--max-area: expected --predictor sam2"),
        (
            "--data d --out o --predictor sam2 --model-path m --points-per-side 0",
            "--points-per-side: expected a whole number from 1 to 256, got 0",
        ),
        ("--data d --out o --checkpoint c --max-pixels 0", "--max-pixels: expected at least 1"),
        ("--data d --out o --checkpoints c", "did you mean --checkpoint?"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    line: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == EXIT_BAD_INPUT
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("train.py pseudo-label: error: ") and part in error


def test_a_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=UNDRAWN)
    (tmp_path / "no.pt").write_text("no checkpoint")
    command = ["--out", str(tmp_path / "o.parquet"), "--checkpoint", str(tmp_path / "no.pt")]
    for path, part in ((data, "expected a checkpoint of train.py"), (tmp_path, "got a folder")):
        assert main(["--data", str(path), *command, "--device", "cpu"]) == EXIT_BAD_INPUT
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("train.py pseudo-label: error: ") and part in error
    assert not (tmp_path / "o.parquet").exists()


def test_help_names_the_command_and_neither_waits_for_torch() -> None:
    for argv, part in ((["--help"], "pseudo-label"), (["pseudo-label", "--help"], "--checkpoint")):
        result = run_without(["torch", "pyarrow"], "train.py", *argv)
        assert result.returncode == 0, result.stderr
        assert part in result.stdout


def test_without_the_extra_the_missing_packages_are_named() -> None:
    options = ("--data", "d", "--out", "o", "--checkpoint", "c")
    result = run_without(["pyarrow"], "train.py", "pseudo-label", *options)
    assert result.returncode == EXIT_BAD_INPUT
    (line,) = result.stderr.splitlines()
    assert line.startswith("train.py pseudo-label: error: the trainer needs pyarrow")


def test_every_option_is_described() -> None:
    text = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
    flags = [flag for action in build_parser()._actions for flag in action.option_strings]
    assert [flag for flag in flags if flag not in ("-h", "--help") and f"`{flag}" not in text] == []
