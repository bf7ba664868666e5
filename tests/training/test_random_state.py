import io
import random

import numpy as np
import torch

from fastseg_losses.training.random_state import (
    random_state,
    restore_random_state,
    seed_everything,
)

CPU = torch.device("cpu")


def draws() -> tuple[float, float, float, float]:
    normal = (float(np.random.standard_normal()), random.gauss(0, 1))  # both keep a second number
    return (*normal, random.random(), float(torch.randn(())))


def test_draws_go_on_after_a_file() -> None:
    seed_everything(5)
    draws()
    file = io.BytesIO()
    torch.save(random_state(CPU), file)
    expected = [draws() for _ in range(3)]
    seed_everything(6)
    draws()
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True), CPU)
    assert [draws() for _ in range(3)] == expected


def test_the_same_seed_gives_the_same_draws() -> None:
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
