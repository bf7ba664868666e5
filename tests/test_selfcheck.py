"""The self-check agrees where all is well, and cannot say "ok" where something is off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastseg_losses
from fastseg_losses import reference, reference_multiclass
from fastseg_losses.selfcheck import __main__ as command
from fastseg_losses.selfcheck import cases, environment, formulas
from fastseg_losses.selfcheck.check import check
from fastseg_losses.stats import SegmentationStats

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FLOAT32 = [case for case in cases.all_cases() if case.dtype == torch.float32]


def case_of(name: str) -> cases.Case:
    [case] = (case for case in cases.all_cases() if case.name == name)
    return case


def row_of(name: str):
    return check(case_of(name), cases.INTERPRETED_SHAPES, CPU, "torch", timed=False)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "fastseg_losses.selfcheck", "--device", "cpu", *arguments],
        env={**environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
    )


def test_the_command_says_what_is_here_and_that_all_agree() -> None:
    ran = run()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    count = len(cases.all_cases())
    assert lines[-1].startswith(f"ok: {count} rows agree; served by torch (")
    for expected in (fastseg_losses.__version__, torch.__version__, "not available", "on cpu"):
        assert expected in ran.stdout
    rows = [line for line in lines if line.startswith(cases.MODES)]
    assert len(rows) == count
    assert ran.stderr == ""


def test_every_loss_is_there_in_every_mode() -> None:
    found = {(case.mode, case.loss) for case in cases.all_cases(quick=True)}
    for mode in cases.MODES:
        first = "ce" if mode == "multiclass" else "bce"
        losses = {loss for where, loss in found if where == mode}
        assert losses == {first, "dice", "iou", "tversky", "focal", "combined"}


def test_json_holds_the_rows_and_the_machine() -> None:
    ran = run("--quick", "--json")
    report = json.loads(ran.stdout)
    assert report["ok"] is True and ran.returncode == 0
    assert len(report["rows"]) == len(cases.all_cases(quick=True))
    assert report["environment"]["torch"].startswith(torch.__version__)
    assert all(row["backend"] == "torch" and row["troubles"] == [] for row in report["rows"])


def test_it_needs_no_training_extra() -> None:
    code = """
import sys
blocked = "pandas pyarrow PIL tqdm matplotlib jinja2 yaml tensorboard triton".split()
sys.modules.update(dict.fromkeys(blocked))  # None: an import of it fails
from fastseg_losses.selfcheck.__main__ import main
sys.exit(main(["--quick", "--device", "cpu"]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "triton          missing (ModuleNotFoundError" in ran.stdout
    assert "Triton could not be imported" in ran.stdout


@pytest.mark.parametrize("mode", cases.MODES)
def test_the_kernels_agree_where_they_run(mode, device) -> None:
    shapes = cases.INTERPRETED_SHAPES if device.type == "cpu" else cases.GPU_SHAPES
    row = check(case_of(f"{mode} combined float32"), shapes, device, "triton", timed=False)
    assert row.troubles == []
    assert row.backend.startswith("triton/")


@pytest.mark.slow
def test_the_kernels_agree_in_the_whole_command() -> None:
    ran = run("--quick", TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout
    assert "served by triton (" in ran.stdout


@pytest.mark.gpu
def test_the_whole_command_on_the_gpu(capsys) -> None:
    assert command.main(["--device", "cuda"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "served by torch and triton" in last  # torch: the float64 rows


# ---- what is broken is found


def broken_dice(term, I, P, T):  # noqa: E741
    return 1 - (2 * I + 1) / (P + T + 1.001)


def test_a_broken_loss_ends_in_exit_code_1_and_its_name(monkeypatch, capsys) -> None:
    monkeypatch.setattr(reference, "region_value", broken_dice)
    assert command.main(["--device", "cpu", "--backend", "torch", "--quick"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("FAILED: ")
    # dice barely, since 1.001 for 1 is little beside the sums; iou and tversky by far
    for name in ("binary iou float32 (value off by", "multiclass tversky float32 (value off by"):
        assert name in last
    assert "binary bce" not in last and "ce float32" not in last


def with_hook(monkeypatch, hook) -> None:
    """Let every loss pass through `hook(loss, logits)` on its way out."""
    build = cases.get_loss_function

    def broken(name, **arguments):
        made = build(name, **arguments)
        forward = made.forward

        def call(logits, targets, valid=None, return_stats=False):
            result = forward(logits, targets, valid, return_stats)
            return result if return_stats else hook(result, logits)

        made.forward = call
        return made

    monkeypatch.setattr(cases, "get_loss_function", broken)


def sloped(loss, logits):
    """The same value, with a gradient one percent too large."""
    return loss + 0.01 * (loss - loss.detach())


def leaking(loss, logits):
    """The same value, and a gradient that is 0 nowhere."""
    logits.register_hook(lambda gradient: gradient + 1e-12)
    return loss


CALLS = iter(range(1_000_000))

BREAKS = {
    "value off": lambda loss, logits: loss * (1 + 2e-5),
    "gradient off": sloped,
    "value off by nan": lambda loss, logits: loss * float("nan"),
    "loss is torch.float64": lambda loss, logits: loss.double(),
    "a second call has other bits": lambda loss, logits: loss + 1e-6 * (next(CALLS) % 2),
    "RuntimeError: out of memory": lambda loss, logits: (_ for _ in ()).throw(
        RuntimeError("out of memory")
    ),
    "gradient of what is not valid": leaking,
}


@pytest.mark.parametrize("trouble", BREAKS)
def test_each_way_of_being_wrong_is_found(trouble, monkeypatch) -> None:
    assert row_of("multilabel dice float32").troubles == []
    with_hook(monkeypatch, BREAKS[trouble])
    assert trouble in "; ".join(row_of("multilabel dice float32").troubles)


def test_wrong_statistics_are_found(monkeypatch) -> None:
    snapshot = SegmentationStats.cpu

    def wrong(self):
        found = snapshot(self)
        object.__setattr__(found, "tp", found.tp + 1)
        return found

    monkeypatch.setattr(SegmentationStats, "cpu", wrong)
    assert row_of("multiclass dice float32").troubles[0].startswith("tp is ")


def test_a_peer_that_is_off_excuses_nothing(monkeypatch) -> None:
    """If PyTorch in float32 were broken in the same way, the row would still fail."""
    plain = formulas.plain_loss

    def wrong(name, mode, x, *rest):
        loss = plain(name, mode, x, *rest)
        return loss if x.dtype == torch.float64 else loss * 1.001

    monkeypatch.setattr(formulas, "plain_loss", wrong)
    with_hook(monkeypatch, lambda loss, logits: loss * 1.001)
    row = row_of("binary dice float32")
    assert row.value_plain > 5e-4
    assert any(trouble.startswith("value off") for trouble in row.troubles)


def test_broken_half_gradients_are_found(monkeypatch) -> None:
    with_hook(monkeypatch, lambda loss, logits: loss + 0.02 * (loss - loss.detach()))
    for dtype in ("float16", "bfloat16", "float64"):
        row = row_of(f"binary combined {dtype}")
        assert row.troubles and row.troubles[0].startswith("gradient off")


def test_a_broken_reference_of_multiclass_is_found(monkeypatch) -> None:
    read = reference_multiclass.read_pixels

    def one_column_off(x, t, live):
        return read(x, torch.roll(t, 1, -1), live)

    monkeypatch.setattr(reference_multiclass, "read_pixels", one_column_off)
    assert row_of("multiclass ce float32").troubles


def test_nothing_checked_is_no_ok(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cases, "all_cases", lambda quick: [])
    assert command.main(["--device", "cpu"]) == 1
    assert "FAILED: nothing was checked" in capsys.readouterr().out


# ---- options and surroundings


def test_a_device_that_is_not_there_is_named(capsys) -> None:
    for name in ("cuda:77", "toaster"):
        with pytest.raises(SystemExit) as ended:
            command.main(["--device", name])
        assert ended.value.code == 2
        assert f"--device: expected a device that works here, got '{name}'" in (
            capsys.readouterr().err
        )


def test_the_driver_is_read_from_its_file(tmp_path) -> None:
    path = tmp_path / "version"
    assert environment.driver_version(path) == "unknown"
    path.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release\n"
    )
    assert environment.driver_version(path) == "570.124.06"
    path.write_text("something else\n")
    assert environment.driver_version(path) == "unknown"


def test_the_processor_is_read_from_its_file(tmp_path) -> None:
    path = tmp_path / "cpuinfo"
    assert environment.processor_name(path)
    path.write_text("processor\t: 0\nmodel name\t: A Processor\n")
    assert environment.processor_name(path) == "A Processor"


def test_the_formulas_are_those_of_the_reference() -> None:
    """Two texts written apart, in float64: what the self-check rests on."""
    for case in FLOAT32:
        inputs = cases.draw(case, cases.CPU_SHAPES, CPU)
        exact = cases.Inputs(inputs.logits.double(), inputs.targets, inputs.valid)
        torch.testing.assert_close(
            case.build("torch")(exact), case.formula(exact), rtol=1e-12, atol=0.0
        )


def test_an_unknown_loss_has_no_formula() -> None:
    with pytest.raises(ValueError, match="name: expected a loss that the self-check knows"):
        formulas.plain_loss(
            "hinge", "binary", torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), None
        )
