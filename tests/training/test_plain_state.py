import io
from collections import deque

import pytest
import torch

from fastseg_losses.stats import SegmentationSnapshot
from fastseg_losses.training.class_monitor import ClassMonitor
from fastseg_losses.training.findings import Cause, Finding
from fastseg_losses.training.monitor import CollapseMonitor
from fastseg_losses.training.plain_state import from_plain, to_plain
from fastseg_losses.training.tally import Tally
from fastseg_losses.training.watch import Monitor


def through_a_file(value: object) -> object:
    """As a checkpoint is read: nothing but plain values and tensors."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2.5, "a", True, float("inf")],
        (1, None),
        {3, 5},
        {Cause.RECOVERED, Cause.ONE_CLASS},
        {Cause.ALL_FOREGROUND: 3},
        deque([1, 2], maxlen=6),
        Tally(3, batches=2, valid=7.0),
        [Finding(Cause.BAD_TARGETS, 7, "text")],
        {"a": {"kind": "dict", "value": 1}},
    ],
)
def test_round_trip(value: object) -> None:
    back = from_plain(through_a_file(to_plain(value)))
    assert back == value and type(back) is type(value)
    if isinstance(value, deque):
        assert isinstance(back, deque) and back.maxlen == value.maxlen


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="got Tensor"):
        to_plain([torch.zeros(1)])


def snapshot(generator: torch.Generator, phase: int, classes: int) -> SegmentationSnapshot:
    """A batch of a net that learns, then collapses, then recovers."""
    r = torch.rand(1, generator=generator).item()
    found = 0.0 if phase == 1 else 0.5 + 0.4 * r
    counts: dict[str, tuple[float, ...]] = {}
    if classes:
        tp = (5000.0, 1000 * found, 500 * found)
        fn = (0.0, 1000 * (1 - found), 500 * (1 - found))
        counts = {"class_tp": tp, "class_fp": (sum(fn), 0.0, 0.0), "class_fn": fn}
    return SegmentationSnapshot(
        loss=1 - found,
        terms={},
        pred_mean=0.1 * found + 0.001,
        target_mean=0.1,
        pred_max=0.9,
        pred_positive=0.1 * found,
        target_positive=0.1,
        tp=650 * found,
        fp=10.0,
        fn=650 * (1 - found),
        valid=6500.0,
        nonfinite=0.0,
        bad_targets=0.0,
        **counts,
    )


@pytest.mark.parametrize("classes", [0, 3])
def test_a_monitor_that_was_saved_says_the_same(classes: int) -> None:
    def make() -> Monitor:
        return ClassMonitor(3, check_every=4) if classes else CollapseMonitor(check_every=4)

    generator = torch.Generator().manual_seed(0)
    batches = [snapshot(generator, phase, classes) for phase in (0, 1, 0) for _ in range(60)]
    unbroken, said = make(), []
    for batch in batches:
        said += unbroken.observe(batch, lr=0.1)
    assert len(said) >= 2  # a collapse and a recovery
    for cut in (1, 59, 63, 69, 75, 121, 130):
        first, heard = make(), []
        for batch in batches[:cut]:
            heard += first.observe(batch, lr=0.1)
        second = make()
        second.load_state_dict(through_a_file(first.state_dict()))  # type: ignore[arg-type]
        for batch in batches[cut:]:
            heard += second.observe(batch, lr=0.1)
        assert heard == said
