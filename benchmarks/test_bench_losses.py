"""Every loss, ours beside what people use today: pytest benchmarks --benchmark-only."""

import pytest
import torch
import torch._dynamo
from conftest import (
    DEVICE,
    LARGE,
    SHAPES,
    SINGLES,
    all_cases,
    compiled_cases,
    dynamic_cases,
    keep,
    label_of,
    record_replay,
)
from measure import Case, mode_of
from rivals import autograd_alone, compiled, hand, ours, rival

from fastseg_losses import CombinedSegmentationLoss

LOSSES = ["combined", *SINGLES]
CASES = all_cases()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES, ids=label_of)
def test_ours(record, kernels_built, name, case):
    record("ours", name, case, ours(name, mode_of(case)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES, ids=label_of)
def test_eager(record, name, case):
    record("eager", name, case, hand(name))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("peer", ["smp", "monai", "torchvision"])
@pytest.mark.parametrize("case", [c for c in CASES if c.logits == "float32"], ids=label_of)
def test_peers(record, peer, name, case):
    try:
        loss = rival(peer, name, mode_of(case))
    except ImportError as error:
        pytest.skip(f"{peer} does not import here ({error})")
    except LookupError as error:
        pytest.skip(f"{peer}: {error}")
    record(peer, name, case, loss)


@pytest.mark.parametrize("key", compiled_cases(), ids=lambda k: "-".join((*k[:2], k[2].label)))
def test_compiled_for_one_shape(benchmark, workers, key):
    which, name, case = key
    try:
        figures = benchmark.pedantic(workers[key].figures, rounds=1, iterations=1)
    except RuntimeError as error:
        pytest.skip(f"{which} does not compile: {error}")
    keep(benchmark, f"{which} compiled", name, case, figures)


@pytest.mark.parametrize("key", dynamic_cases(), ids=lambda k: "-".join((*k[:2], k[2].label)))
def test_compiled_for_all_shapes(record, key):
    which, name, case = key
    torch._dynamo.reset()
    loss = compiled(rival(which, name, mode_of(case)), dynamic=True)
    record(f"{which} compiled, dynamic", name, case, loss)


gpu_only = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
PAIR = ("float32", "float32", True)


@gpu_only
@pytest.mark.parametrize("shape", [SHAPES[0], LARGE], ids=str)
def test_autograd_alone(record, shape):
    record("autograd alone", "combined", Case(shape, *PAIR), autograd_alone)


@gpu_only
@pytest.mark.parametrize("pair", [PAIR, ("bfloat16", "uint8", True)], ids=str)
def test_combined_with_every_term(record, pair):
    """IoU and Tversky beside BCE, Dice and focal."""
    criterion = CombinedSegmentationLoss(iou_weight=0.1, tversky_weight=0.1)
    record("ours", "combined+iou+tversky", Case(LARGE, *pair), criterion)


@gpu_only
@pytest.mark.parametrize("pair", [PAIR, ("bfloat16", "uint8", True)], ids=str)
def test_statistics_off(record, pair):
    record("ours, no statistics", "combined", Case(LARGE, *pair), CombinedSegmentationLoss())


@gpu_only
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[0]], ids=str)
def test_graph_replay(benchmark, shape):
    record_replay(benchmark, "ours", "combined", Case(shape, *PAIR), CombinedSegmentationLoss())
