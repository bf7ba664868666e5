"""The frozen descriptions of losses: their text form, identity and ranges."""

import dataclasses
import math

import pytest
from losses_table import ALL, ids

from fastseg_losses import DiceLoss, spec
from fastseg_losses.make_spec import sums_spec
from fastseg_losses.spec import LossSpec

SHARED = {
    "mode": "multilabel",
    "reduction": "sum",
    "ignore_index": -100,
    "include_background": True,
    "batch": True,
    "absent": "skip",
    "activation": "sigmoid",
}


@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
def test_key_round_trip(row):
    for shared in ({}, SHARED):
        ours = row.build(**shared).spec
        again = LossSpec.from_key(ours.key)
        assert again == ours
        assert again.key == ours.key
        assert again.term_names == ours.term_names
        assert LossSpec.from_key(ours.key) is again  # operators ask for it at every call


def test_key_round_trip_of_the_sums():
    ours = sums_spec("multilabel", 255)
    assert ours.reduction == "sums"
    assert ours.terms == ()
    assert LossSpec.from_key(ours.key) == ours


def test_different_specs_have_different_keys():
    specs = [row.build(**shared).spec for row in ALL for shared in ({}, SHARED)]
    assert len({s.key for s in specs}) == len(set(specs)) == len(specs)
    base = DiceLoss().spec
    for name, value in (SHARED | {"include_background": False}).items():
        other = dataclasses.replace(base, **{name: value})
        assert other != base
        assert other.key != base.key


@pytest.mark.parametrize("row", ALL, ids=ids(ALL))
def test_specs_are_values(row):
    ours, twin = row.build().spec, row.build().spec
    assert ours is not twin
    assert (ours, hash(ours), ours.key) == (twin, hash(twin), twin.key)
    assert {ours: 1}[twin] == 1


def test_specs_are_frozen():
    ours = ALL[-1].build().spec
    for part, name in ((ours, "mode"), (ours.points[0], "weight"), (ours.regions[0], "smooth")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 1)


def test_terms_are_named_in_their_order():
    ours = ALL[-1].build().spec
    assert ours.term_names == ("bce", "focal", "dice", "iou", "tversky")
    assert tuple(term.name for term in ours.terms) == ours.term_names


def test_pointwise_losses_know_no_batch():
    """They are the same per sample or per batch; per sample keeps their (N, C) under "none"."""
    for row in ALL:
        ours = row.build(batch=True, reduction="mean").spec
        assert ours.batch == bool(ours.regions)


# Maker, argument, a value, what is expected. "above" excludes the bound itself.
OUT_OF_RANGE = [
    (spec.bce_term, "label_smoothing", (-0.1, 1.1), "at least 0 and at most 1"),
    (spec.focal_term, "alpha", (-0.1, 1.1), "at least 0 and at most 1"),
    (spec.focal_term, "gamma", (-0.1,), "at least 0"),
    (spec.dice_term, "smooth", (-1e-9,), "at least 0"),
    (spec.iou_term, "smooth", (-1e-9,), "at least 0"),
    (spec.tversky_term, "alpha", (-0.1,), "at least 0"),
    (spec.tversky_term, "beta", (-0.1,), "at least 0"),
    (spec.tversky_term, "smooth", (-0.1,), "at least 0"),
    (spec.tversky_term, "gamma", (0, -1.0), "above 0"),
]


@pytest.mark.parametrize(("make", "name", "values", "bound"), OUT_OF_RANGE)
def test_parameters_out_of_range(make, name, values, bound):
    for value in (*values, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError) as caught:
            make(**{name: value})
        assert str(caught.value) == f"{name}: expected a finite number {bound}, got {value!r}"


@pytest.mark.parametrize(("make", "name", "values", "bound"), OUT_OF_RANGE)
@pytest.mark.parametrize("value", ["1", True, [0.5]], ids=str)
def test_parameters_of_the_wrong_type(make, name, values, bound, value):
    with pytest.raises(TypeError, match=f"{name}: ") as caught:
        make(**{name: value})
    assert str(caught.value).endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (spec.bce_term, "label_smoothing", (0, 1, 0.5)),
        (spec.focal_term, "alpha", (0, 1, None)),
        (spec.focal_term, "gamma", (0, 0.5, 7)),
        (spec.tversky_term, "alpha", (0, 1.5)),
        (spec.tversky_term, "beta", (0, 1.5)),
        (spec.tversky_term, "smooth", (0, 10)),
        (spec.tversky_term, "gamma", (1e-3, 3)),
        (spec.iou_term, "smooth", (0, 1e3)),
    ],
)
def test_bounds_belong_to_the_range(make, name, values):
    for value in values:
        kept = getattr(make(**{name: value}), name)
        assert kept == value
        assert value is None or isinstance(kept, float)  # ints and floats give one key
