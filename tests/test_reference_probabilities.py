"""activation="identity", which compat asks for: logits that are probabilities already."""

import pytest
import torch

from fastseg_losses.ops import segmentation_loss
from fastseg_losses.spec import LossSpec, RegionTerm
from fastseg_losses.stats import FIELDS

DICE = RegionTerm("dice", 1.0, 0.5, 0.5, 1.0)


def loss_and_row(activation, values, targets, valid, **fields):
    spec = LossSpec(mode="multilabel", points=(), activation=activation, **fields)
    inputs = (values, targets, valid, None, None)
    return segmentation_loss(spec, inputs, backend="torch", want_stats=True)


@pytest.mark.parametrize("fields", [{"regions": (DICE,)}, {"regions": (), "reduction": "sums"}])
@pytest.mark.parametrize("masked", [False, True])
def test_probabilities_give_what_their_logits_give(masked, fields):
    logits = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    targets = torch.rand_like(logits)
    valid = torch.rand(2, 7, 5) < 0.7 if masked else None
    loss, row = loss_and_row(None, logits, targets, valid, **fields)
    of_p, row_of_p = loss_and_row("identity", logits.sigmoid(), targets, valid, **fields)
    torch.testing.assert_close(of_p, loss)
    torch.testing.assert_close(row_of_p, row)
    assert 0 < row[FIELDS.index("tp")] < row[FIELDS.index("valid")]


def test_a_probability_of_a_half_is_not_positive():
    half = torch.full((1, 1, 4), 0.5)
    _, row = loss_and_row("identity", half, torch.ones(1, 1, 4), None, regions=(DICE,))
    assert row[FIELDS.index("pred_positive")] == 0 and row[FIELDS.index("pred_max")] == 0.5
    _, row = loss_and_row("identity", half + 0.01, torch.ones(1, 1, 4), None, regions=(DICE,))
    assert row[FIELDS.index("pred_positive")] == 1
