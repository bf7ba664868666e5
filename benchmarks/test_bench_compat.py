"""Every compat loss beside the peer's own: eager, and compiled for the shape."""

import compat_pairs
import pytest
import torch._dynamo
from conftest import (
    COMPAT_SMALL,
    DEVICE,
    SHAPES,
    compat_cases,
    compiled_compat_cases,
    keep,
    label_of,
    record_replay,
)
from measure import Case
from rivals import compiled

CASES = compat_cases()


def label(value):
    return value.replace(" ", "") if isinstance(value, str) else label_of(value)


@pytest.mark.parametrize(("name", "mode", "case"), CASES, ids=label)
def test_ours(record, kernels_built, name, mode, case):
    record("ours", name, case, compat_pairs.ours(name, mode))


@pytest.mark.parametrize(("name", "mode", "case"), CASES, ids=label)
def test_peer(record, name, mode, case):
    try:
        loss = compat_pairs.theirs(name, mode)
    except ImportError as error:
        pytest.skip(f"its library does not import here ({error})")
    record("peer", name, case, loss)


@pytest.mark.parametrize(
    "key", compiled_compat_cases(), ids=lambda k: label(f"{k[1]}-{k[2].label}")
)
def test_peer_compiled(benchmark, workers, key):
    _, name, case = key
    try:
        figures = benchmark.pedantic(workers[key].figures, rounds=1, iterations=1)
    except RuntimeError as error:
        pytest.skip(f"{name} does not compile: {error}")
    keep(benchmark, "peer compiled", name, case, figures)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("name", COMPAT_SMALL)
def test_graph_replay(benchmark, name):
    """The smallest inputs as CUDA graphs, where no host is in the way, ours and the compiled."""
    case = Case(SHAPES[2], "float32", "float32", True)
    record_replay(benchmark, "ours", name, case, compat_pairs.ours(name, "binary"))


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("name", COMPAT_SMALL)
def test_graph_replay_compiled(benchmark, name):
    case = Case(SHAPES[2], "float32", "float32", True)
    try:
        loss = compat_pairs.theirs(name, "binary")
    except ImportError as error:
        pytest.skip(f"its library does not import here ({error})")
    torch._dynamo.reset()
    record_replay(benchmark, "peer compiled", name, case, compiled(loss, dynamic=False))
