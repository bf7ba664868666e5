"""Two gloo processes against one: losses, gradients, whole runs."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from torch import Tensor
from training.runs import SIZE, make_trainer, metrics, weights, write_set

from fastseg_losses.training.distributed import World, find_world
from fastseg_losses.training.trainer import Trainer

Case = tuple[dict[str, Any], list[list[list[bool]]]]

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def batch(valid: list[bool]) -> dict[str, Tensor]:
    return {
        "image": torch.randn(len(valid), 3, SIZE, SIZE),
        "mask": (torch.rand(len(valid), 1, SIZE, SIZE) > 0.9).to(torch.uint8),
        "valid": torch.tensor(valid),
        "pseudo": ~torch.tensor(valid),  # read with a pseudo_weight only
    }


def halves(valid: list[bool]) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    whole = batch(valid)
    half = len(valid) // 2
    return [{k: v[:half] for k, v in whole.items()}, {k: v[half:] for k, v in whole.items()}]


def steps_of_a_process(rank: int, port: int, folder: Path, cases: dict[str, Case]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    world = find_world()
    world.connect(CPU)
    results = {}
    for name, (options, steps) in cases.items():
        torch.manual_seed(1)
        trainer = make_trainer(folder, CPU, world=world, **options)
        gradients = recorded(trainer)
        for step in steps:
            trainer.train_step(*(halves(valid)[rank] for valid in step))
        rows = world.gather(trainer.ring.flush())
        results[name] = {"gradients": gradients, "rows": rows}
    if world.is_main:
        torch.save(results, folder / "results.pt")
    world.leave()


def recorded(trainer: Trainer) -> list[Tensor]:
    """Will hold the gradient of each step, all parameters in a row."""
    gradients: list[Tensor] = []
    parameters = list(trainer.model.parameters())
    trainer.updates.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    )
    return gradients


VALID = {
    "all": [[[True] * 4], [[True] * 4]],
    "one process has less": [[[True, True, False, True]], [[False, True, True, True]]],
    "one process has nothing": [[[True, True, False, False]], [[False, False, True, False]]],
    "nothing at all": [[[True] * 4], [[False] * 4], [[True] * 4]],
    "accumulated": [[[True, False, True, True], [False, False, True, True]]],
}


def cases() -> dict[str, Case]:
    """What is tried: settings and steps, each a list of the valid samples of its micro-batches."""
    found: dict[str, Case] = {}
    for loss in ("combined", "dice"):
        for name, steps in VALID.items():
            found[f"{loss}, {name}"] = ({"loss": loss}, steps)
            if name != "accumulated":
                found[f"batch {loss}, {name}"] = ({"loss": loss, "batch_dice": True}, steps)
    pseudo = {"data": "d.parquet", "pseudo_weight": 0.5}
    found["pseudo"] = (pseudo, VALID["one process has nothing"])
    found["pseudo, accumulated"] = (pseudo, VALID["accumulated"])
    found["pseudo, batch"] = (pseudo | {"batch_dice": True}, VALID["one process has nothing"])
    # The rate is small: AdamW's first step is lr * sign(gradient), and the sign of rounding noise
    # may differ.
    return {
        name: (options | {"lr": 1e-7, "accumulate": len(steps[0])}, steps)
        for name, (options, steps) in found.items()
    }


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of all cases, in one pair of processes: starting it takes longest."""
    folder = tmp_path_factory.mktemp("two")
    processes.spawn(steps_of_a_process, (a_free_port(), folder, cases()), nprocs=2)
    results: dict[str, Any] = torch.load(folder / "results.pt", weights_only=True)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_two_processes_take_the_step_of_one(
    name: str, of_two_processes: dict[str, Any], tmp_path: Path
) -> None:
    found = of_two_processes[name]
    options, steps = cases()[name]
    torch.manual_seed(1)
    single = make_trainer(tmp_path, CPU, **(options | {"accumulate": 1}))
    gradients = recorded(single)
    for step in steps:
        # The joined batch of a step: all its micro-batches, both processes' halves.
        parts = [half for valid in step for half in halves(valid)]
        single.train_step({k: torch.cat([part[k] for part in parts]) for k in parts[0]})
    assert len(gradients) == len(found["gradients"]) == len(steps)
    for expected, gradient, step in zip(gradients, found["gradients"], steps, strict=True):
        assert bool(expected.any()) == any(map(any, step))
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * expected.abs().max())
    assert len(found["rows"]) == 2 and len(found["rows"][0]) == sum(map(len, steps))


def a_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(a_free_port()), str(ROOT / "train.py"), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_run_of_two_processes_is_the_run_of_one(tmp_path: Path) -> None:
    from training.runs import run

    data = write_set(tmp_path / "d.parquet", undrawn=[1, 2, 8], cell=None)
    options = ["--data", str(data), "--image-size", str(SIZE), "--epochs", "3", "--device", "cpu"]
    options += ["--num-workers", "0", "--lr", "5e-3", "--keep-unannotated", "--loss", "bce"]
    two = torchrun(*options, "--batch-size", "2", "--output-dir", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    assert run(data, tmp_path / "one", epochs=3, loss="bce", keep_unannotated=True) == 0
    a, b = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(a) == len(b) == 3
    for row, other in zip(a, b, strict=True):
        for name in ("train_loss", "val_loss", "pred_mean", "target_mean", "val_dice"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=2e-2, abs=2e-3)
    assert float(a[0]["train_loss"]) == pytest.approx(float(b[0]["train_loss"]), rel=1e-4)
    # One process wrote: each line of the log stands once.
    log = (tmp_path / "two" / "logs" / "training.log").read_text()
    assert log.count("epoch 3/3") == 1 and "2 processes" in log
    assert set(weights(tmp_path / "two")) == set(weights(tmp_path / "one"))


@pytest.mark.slow
def test_all_processes_refuse_alike(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d.parquet", undrawn=range(24), cell=None)
    end = torchrun("--data", str(data), "--device", "cpu", "--image-size", str(SIZE))
    assert end.returncode != 0
    assert "refusing to train" in end.stderr


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = find_world()
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.gather("a") == ["a"] and world.largest(3) == 3 and world.from_main("b") == "b"
    value = torch.tensor([2.0])
    assert world.add_up(value) is value


def test_half_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="got no RANK"):
        find_world()
    assert World().is_main
