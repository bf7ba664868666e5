"""Arguments that are checked before anything is computed."""

import math

import pytest

from fastseg_losses.arguments import check_weight


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", True, None])
def test_weights(value):
    with pytest.raises((TypeError, ValueError), match="^dice_weight: expected a"):
        check_weight("dice_weight", value)
    assert check_weight("dice_weight", 2) == 2.0
