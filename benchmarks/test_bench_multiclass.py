"""Softmax, cross-entropy + Dice with the statistics of each class, beside what people use today."""

import pytest
from conftest import label_of, multiclass_cases
from rivals import hand, ours, rival

CASES = multiclass_cases()


@pytest.mark.parametrize("case", CASES, ids=label_of)
def test_ours(record, kernels_built, case):
    record("ours", "ce+dice", case, ours("ce+dice", "multiclass"))


@pytest.mark.parametrize("case", CASES, ids=label_of)
def test_eager(record, case):
    record("eager", "ce+dice", case, hand("ce+dice"))


@pytest.mark.parametrize("peer", ["smp", "monai"])
@pytest.mark.parametrize("case", CASES, ids=label_of)
def test_peers(record, peer, case):
    try:
        loss = rival(peer, "ce+dice", "multiclass")
    except ImportError as error:
        pytest.skip(f"{peer} does not import here ({error})")
    record(peer, "ce+dice", case, loss)
