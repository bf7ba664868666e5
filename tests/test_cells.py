"""The cells of an axis hold every output once, with the inputs and weights of F.interpolate."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastseg_losses.kernels.cell_tiles import MOST_OUTPUTS, piece_of
from fastseg_losses.kernels.cells import axis_cells

HOW = [("bilinear", False), ("bilinear", True), ("nearest", False)]
SIZES = [(1, 1), (1, 7), (2, 3), (3, 9), (5, 5), (4, 16), (6, 17), (32, 188), (31, 100), (128, 513)]


def interpolated(axis, inputs):
    """The outputs that the cells say; NaN where none does."""
    outputs = np.full(axis.out, np.nan)
    for j, (positions, weights) in enumerate(zip(axis.positions, axis.weights, strict=True)):
        for position, weight in zip(positions, weights, strict=True):
            if position >= 0:
                assert np.isnan(outputs[position])  # no output belongs to two cells
                right = inputs[(j + 1) % axis.size]
                outputs[position] = (1 - weight) * inputs[j] + weight * right
    return outputs


@pytest.mark.parametrize(("size", "out"), SIZES)
@pytest.mark.parametrize(("upsample", "align_corners"), HOW)
def test_outputs_are_those_of_interpolate(size, out, upsample, align_corners):
    axis = axis_cells(size, out, upsample, align_corners=align_corners)
    inputs = torch.randn(1, 1, size)
    if upsample == "nearest":
        expected = F.interpolate(inputs, size=out, mode="nearest")
    else:
        expected = F.interpolate(
            inputs.double(), size=out, mode="linear", align_corners=align_corners
        )
    found = interpolated(axis, inputs[0, 0].double().numpy())
    np.testing.assert_allclose(found, expected[0, 0].double().numpy(), atol=3e-6)


@pytest.mark.parametrize("ratio", range(1, 9))
def test_a_whole_ratio_fills_every_cell_at_even_steps(ratio):
    axis = axis_cells(5, 5 * ratio, "bilinear")
    assert axis.whole
    assert axis.most == ratio
    assert axis.start == ratio // 2
    assert axis.split == ratio - ratio // 2


@pytest.mark.parametrize(("size", "out"), SIZES)
def test_no_cell_holds_more_than_the_ratio(size, out):
    assert axis_cells(size, out, "bilinear").most <= -(-out // size)


def test_the_last_cell_holds_what_is_clamped():
    axis = axis_cells(3, 12, "bilinear")
    assert axis.positions[-1].tolist() == [10, 11, 0, 1]
    assert axis.weights[-1].tolist() == [0, 0, 1, 1]
    assert axis_cells(3, 12, "bilinear", align_corners=True).start == -1


def test_padding_adds_places_without_an_output():
    axis = axis_cells(4, 12, "bilinear").padded(2)
    assert axis.positions.shape == (4, 4)
    assert (axis.positions[:, 3] == -1).all()
    assert not axis.whole


@pytest.mark.parametrize("most", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (8, 8), (7, 40), (64, 1)])
def test_a_piece_fits_a_thread_and_a_cell(most):
    each = piece_of(*most)
    assert each[0] * each[1] <= MOST_OUTPUTS
    assert each[0] <= most[0]
    assert each[1] <= most[1]
