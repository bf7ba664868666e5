import math
from pathlib import Path

import pytest
import torch
from torch import nn
from training.runs import metrics, run, small_net, write_set

from fastseg_losses.training import launch as launching
from fastseg_losses.training.config import TrainConfig, resolve
from fastseg_losses.training.exit_codes import EXIT_OK
from fastseg_losses.training.updates import Updates

STEPS = 40


def make_updates(**values: object) -> tuple[Updates, nn.Module]:
    net = nn.Linear(3, 2)
    config = resolve({"data": "d", "epochs": 10, "lr": 0.5, "weight_decay": 0.0} | values)
    return Updates(config, net, STEPS // 10), net


def rates(updates: Updates, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(updates.lr)
        updates.step()
    return seen


FORMULAS = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: (1 + math.cos(math.pi * step / STEPS)) / 2,
    "poly": lambda step: (1 - step / STEPS) ** 0.9,
}


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule", FORMULAS)
def test_schedules_follow_their_formula(schedule: str, warmup: int) -> None:
    updates, _ = make_updates(schedule=schedule, warmup_steps=warmup)
    expected = [
        0.5 * FORMULAS[schedule](step) * min(1.0, (step + 1) / (warmup + 1))
        for step in range(STEPS)
    ]
    assert rates(updates, STEPS) == pytest.approx(expected, rel=1e-6)
    assert updates.lr == pytest.approx(0.5 if schedule == "constant" else 0.0, abs=1e-9)


def test_max_steps_shortens_the_schedule() -> None:
    updates, _ = make_updates(schedule="cosine", max_steps=10)
    rates(updates, 10)
    assert updates.lr == pytest.approx(0.0, abs=1e-9)


def test_a_warm_up_that_outlasts_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    make_updates(warmup_steps=STEPS - 1)
    assert not caplog.records
    make_updates(warmup_steps=STEPS)
    (record,) = caplog.records
    assert f"--warmup-steps {STEPS}: the run has {STEPS} steps" in record.message


def test_gradients_are_clipped_and_their_norm_is_kept() -> None:
    torch.manual_seed(0)
    updates, net = make_updates(clip_grad=0.1)
    norms = []
    seen = []
    updates.optimizer.register_step_pre_hook(
        lambda *_: seen.append(math.hypot(*(float(p.grad.norm()) for p in net.parameters())))
    )
    for scale in (1.0, 100.0, 1e-6):
        (net(torch.ones(4, 3)).sum() * scale).backward()
        norms.append(math.hypot(*(float(p.grad.norm()) for p in net.parameters())))
        updates.step()
        assert all(p.grad is None for p in net.parameters())
    assert seen == pytest.approx([min(norm, 0.1) for norm in norms], rel=1e-4)
    assert updates.take_grad_norm() == pytest.approx(sum(norms) / 3, rel=1e-5)
    assert math.isnan(updates.take_grad_norm())


def test_nothing_is_clipped_unasked() -> None:
    updates, net = make_updates()
    (net(torch.ones(4, 3)).sum() * 1e6).backward()
    kept = [p.grad.clone() for p in net.parameters()]
    updates.optimizer.register_step_pre_hook(
        lambda *_: kept.extend(p.grad.clone() for p in net.parameters())
    )
    updates.step()
    assert torch.equal(kept[0], kept[2]) and math.isnan(updates.take_grad_norm())


def test_a_run_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_model", small_net)
    options = {"schedule": "poly", "warmup_steps": 2, "clip_grad": 1.0, "epochs": 3}
    assert run(write_set(tmp_path / "d.parquet"), tmp_path / "run", **options) == EXIT_OK
    rows = metrics(tmp_path / "run")
    assert [float(row["lr"]) for row in rows] == sorted(
        (float(r["lr"]) for r in rows), reverse=True
    )
    assert float(rows[-1]["lr"]) == pytest.approx(0.0, abs=1e-9)
    assert all(float(row["grad_norm"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule", "linear", "schedule: expected one of constant, cosine, poly"),
        ("warmup_steps", -1, "warmup_steps: expected a whole number of at least 0"),
        ("clip_grad", 0.0, "clip_grad: expected a finite number above 0"),
        ("patience", 0, "patience: expected at least 1"),
        ("min_epochs", 5, "min_epochs: expected --patience beside --min-epochs, got 5"),
    ],
)
def test_bad_settings(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


@pytest.mark.gpu
def test_on_cuda_a_step_does_not_sync() -> None:
    net = nn.Linear(3, 2).cuda()
    config = resolve({"data": "d", "schedule": "cosine", "warmup_steps": 3, "clip_grad": 1.0})
    updates = Updates(config, net, 50)
    for _ in range(3):
        net(torch.ones(4, 3, device="cuda")).sum().backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            updates.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert updates.take_grad_norm() > 0
