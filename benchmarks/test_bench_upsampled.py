"""Losses of logits that are smaller than the targets, beside interpolation and the same loss.

Under torch.compile: test_bench_losses.py. Masks, and a net's step: upsampled.py.
"""

import pytest
from conftest import label_of, upsampled_cases, upsampled_name
from measure import mode_of
from rivals import hand, ours

CASES = upsampled_cases()


@pytest.mark.parametrize("case", CASES, ids=label_of)
def test_ours(record, case):
    name = upsampled_name(case)
    record("ours", name, case, ours(name, mode_of(case)))


@pytest.mark.parametrize("case", CASES, ids=label_of)
def test_eager(record, case):
    name = upsampled_name(case)
    record("eager", name, case, hand(name))
