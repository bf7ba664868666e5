"""Every compat loss beside the peer's own: eager, and compiled for the shape."""

import compat_pairs
import pytest
from conftest import compat_cases, compiled_compat_cases, keep, label_of

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
